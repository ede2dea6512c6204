"""One type for every data set: tensors that are split, recorded and ready to be scored."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.components import Shape
from ..core.random import check_seed
from ..core.validation import positive_int
from .kinds import Kind, kind_of
from .pixel_values import BINARIZE_CHOICES, VALUES_CHOICES, Binarize, Values, binarize
from .sources import SOURCES, Place, Raw, root_folder
from .splits import Split, checksum, is_class

__all__ = ["Dataset", "Split", "load"]

Nats = TypeVar("Nats", float, np.ndarray, Tensor)


@dataclass(frozen=True)
class Dataset:
    """A named data set, split, and binarised or dequantised.

    Attributes:
        name: as in :func:`load`.
        train, valid, test: the three :class:`Split` s; ``valid`` or ``test`` may be empty.
        kind: of the values that a likelihood sees.
        binarize: how the pixels became 0/1.
        checksum: SHA-256 of the stored train, valid and test values, in this order.
        values: what a likelihood sees of levels; always ``unit`` where they became 0/1.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    kind: Kind
    binarize: Binarize
    checksum: str
    values: Values = "unit"

    @property
    def event_shape(self) -> Shape:
        """The shape of one datum."""
        return self.train.event_shape

    @property
    def num_classes(self) -> int:
        """How many classes there are: one more than the largest label of any split.

        Raises:
            ValueError: if the data have no labels that are classes.
        """
        known = [s.labels for s in self._splits if s.labels is not None and len(s)]
        if not known or not is_class(known[0]):
            got = f"labels of shape {tuple(known[0].shape)}" if known else "none"
            raise ValueError(
                f"expected data set {self.name!r} to have classes, an integer for each datum; got "
                f"{got}: choose data with labels, or name those of a .npz file with "
                f"data.labels_key"
            )
        largest = max(int(labels.max()) for labels in known)
        if largest < 0:
            raise ValueError(
                f"expected data set {self.name!r} to have classes; got −1, not known, for every "
                f"datum: a program that is not given classes needs no labels"
            )
        return 1 + largest

    @property
    def condition(self) -> int | Shape:
        """What a label is: the number of classes, or the shape of one label that is none.

        Raises:
            ValueError: if the data have no labels.
        """
        labels = self.train.labels
        if labels is None or is_class(labels):
            return self.num_classes
        return tuple(labels.shape[1:])

    @property
    def _splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.valid, self.test

    def bits_per_dim(self, nats: Nats) -> Nats:
        """Log-likelihoods per datum, or bounds of them, as bits for each stored integer.

        Lower is better, unlike everywhere else. With D numbers in a datum it is
        −``nats`` / (D log 2) for 0/1 and for integers, of a likelihood that gives them
        probabilities (``Bernoulli``, ``Categorical``, …), and
        −(``nats`` − D log (n + 1)) / (D log 2) for dequantised levels 0 … n, of a likelihood
        that is a density: in expectation an upper bound of what the levels themselves need.

        Arguments:
            nats: in nats per datum; a number, an array or a tensor.

        Returns:
            Bits per dimension, likewise.

        Raises:
            ValueError: if the values are neither integers nor dequantised, so that a
                log-likelihood of them is the logarithm of a density, in no unit of bits.

        References:
            A note on the evaluation of generative models (Theis et al., 2016), section 3.1.
            https://arxiv.org/abs/1511.01844
        """
        if self.values != "dequantized" and self.kind in (Kind.UNIT, Kind.REAL):
            raise ValueError(
                f"expected integers or dequantised levels to count bits for; got {self.kind}, "
                f"whose log-likelihood is that of a density and counts no bits: set data.values "
                f"to dequantized (or integer)"
            )
        size = math.prod(self.event_shape)
        levels = self.train.peak + 1 if self.values == "dequantized" else 1
        return math.log2(levels) - nats / (size * math.log(2))


def load(
    name: str,
    *,
    binarize: Binarize,
    train: int | None = None,
    valid: int | float = 0.1,
    test: int | float = 0.1,
    labelled: int | None = None,
    without_class: int | None = None,
    values: Values = "unit",
    root: str | None = None,
    path: str | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set by name.

    ``digits`` and ``mnist5k`` come inside Python packages; ``mnist`` and ``fashion_mnist`` are
    downloaded at first use; ``array``, ``binarized_mnist``, ``frey`` and ``omniglot`` read files
    that you have.

    Arguments:
        name: ``array``, ``binarized_mnist``, ``digits``, ``fashion_mnist``, ``frey``, ``mnist``,
            ``mnist5k`` or ``omniglot``.
        binarize: ``dynamic``, ``static``, ``threshold`` or ``none``; has no default, because
            log-likelihoods depend on it.
        train: only so many of the training data, the first of an order that depends on the seed
            alone, so that fewer are among more; all if not given.
        valid: how many of the training data to hold out for validation; a number below 1 is
            a fraction.
        test: the same for testing; unused where the source has test data of its own.
        labelled: the classes of only so many training data are kept, equally many of every
            class, drawn with the seed; those of the others become −1, not known. All if not
            given.
        without_class: a class that is left out of the training and the validation data, so that
            a model can be asked to tell it from the others.
        values: of images that are not binarised: ``unit`` for grey in [0, 1], ``integer`` for
            the levels 0 … n, ``dequantized`` for (level + noise) / (n + 1) in (0, 1), with
            uniform noise that is drawn anew at every use, as a density needs it.
        root: the folder to find or put downloads in; else ``$PYRO_VAE_DATA``, else a cache.
        path: the file of ``array``, ``binarized_mnist``, ``frey`` or ``omniglot``.
        key: the array's name in an ``.npz`` file.
        labels_key: the labels' name there: an integer for each datum is its class, −1 if it is
            not known; any other array ``(N, …)`` is to condition on.
        seed: of the split, of ``labelled`` and of static binarisation.

    Returns:
        The :class:`Dataset`.

    Raises:
        ValueError: for an unknown name (with the nearest right one), values that cannot be
            binarised, dequantised or scored (NaN), a split that leaves nothing to train on, or
            less than ``train``, a number ``labelled`` that the classes do not share equally, or a
            class that no training datum, or every one, is of.
        FileNotFoundError: if the file is missing, saying where to get it.
        ModuleNotFoundError: if the package that carries the data is not installed.
    """
    _choice("data set", name, tuple(SOURCES))
    _choice("binarize", binarize, BINARIZE_CHOICES)
    _choice("values", values, VALUES_CHOICES)
    if values == "dequantized" and binarize != "none":
        raise ValueError(
            f"expected data.binarize to be none for data.values dequantized; got {binarize}: "
            f"0/1 need no noise, set data.values to unit"
        )
    check_seed(seed)
    try:
        raw = SOURCES[name](Place(root_folder(root), path, key, labels_key))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data set {name!r} needs the package {error.name}: pip install 'pyro-vae[data]'"
        ) from error
    try:
        kind_of(raw.values)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from None
    if binarize != "none" and raw.peak is None:
        raise ValueError(
            f"expected values in [0, 1] or image levels to binarise; got "
            f"{kind_of(raw.values).describe(raw.values)}: set data.binarize to none"
        )
    if values == "dequantized" and (raw.peak is None or not _whole(raw)):
        raise ValueError(
            f"expected image levels 0 … n to dequantise; got "
            f"{kind_of(raw.values).describe(raw.values)}: set data.values to unit"
        )
    rest, held_out = _hold_out(raw, test, "test", seed) if raw.test is None else (raw, raw.test)
    training, validation = _hold_out(rest, valid, "valid", seed)
    if without_class is not None:
        _check_class(name, training, without_class)
        training, validation = (_without(part, without_class) for part in (training, validation))
    if train is not None:
        training = _first(training, train)
    parts = (training, validation, held_out)
    splits = [_split(part, binarize, values, seed, i) for i, part in enumerate(parts)]
    loaded = Dataset(
        name,
        *splits,
        kind=Kind.BINARY if binarize != "none" else kind_of(splits[0].materialize(seed)),
        binarize=binarize,
        checksum=checksum(split.values for split in splits),
        values=values if binarize == "none" else "unit",
    )
    return loaded if labelled is None else _keep_labels(loaded, labelled, seed)


def _whole(raw: Raw) -> bool:
    return kind_of(raw.values) not in (Kind.UNIT, Kind.REAL)


def _choice(what: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        near = difflib.get_close_matches(str(got), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected {what} to be one of {', '.join(known)}; got {got!r}{hint}")


def _hold_out(raw: Raw, amount: int | float, name: str, seed: int) -> tuple[Raw, Raw]:
    """Splits off ``amount`` random data, or random blocks of near copies."""
    size = len(raw.values)
    count = round(amount * size) if 0 <= amount < 1 else int(amount)
    if not 0 <= count < size or (count != amount and amount >= 1):
        raise ValueError(
            f"expected {name} to be a fraction below 1 or a number of data below {size}; "
            f"got {amount}"
        )
    order = np.random.default_rng([seed, size]).permutation(-(-size // raw.block))
    rows = np.concatenate([np.arange(b * raw.block, (b + 1) * raw.block) for b in order])
    rows = torch.from_numpy(rows[rows < size])
    return _take(raw, rows[count:]), _take(raw, rows[:count])


def _first(raw: Raw, count: int) -> Raw:
    """The first so many data."""
    size = len(raw.values)
    if positive_int("data.train", count) > size:
        raise ValueError(
            f"expected data.train to be at most {size}, the data that are left to train on; got "
            f"{count}: hold out less for validation or testing"
        )
    return _take(raw, torch.arange(count))


def _take(raw: Raw, rows: Tensor) -> Raw:
    labels = None if raw.labels is None else raw.labels[rows]
    return replace(raw, values=raw.values[rows], labels=labels)


def _without(raw: Raw, label: int) -> Raw:
    assert raw.labels is not None  # or it was refused
    return _take(raw, (raw.labels != label).nonzero()[:, 0])


def _check_class(name: str, train: Raw, label: int) -> None:
    """Refuses to leave out what is not there, or all there is."""
    found = [] if train.labels is None or train.labels.ndim > 1 else train.labels.unique().tolist()
    if label not in found or len(found) == 1:
        known = ", ".join(map(str, found)) or "none"
        raise ValueError(
            f"expected data.without_class to be one of several classes of {name!r} ({known}); got "
            f"{label}"
        )


def _split(raw: Raw, how: Binarize, values: str, seed: int, part: int) -> Split:
    stored, peak = raw.values, raw.peak or 1
    if how in ("static", "threshold"):
        grey = stored.to(torch.float64) / peak
        return Split(binarize(grey, how, seed, part), labels=raw.labels)
    kept = how == "none" and values == "integer"
    return Split(
        stored,
        1.0 if kept else peak,
        dynamic=how == "dynamic",
        labels=raw.labels,
        noisy=values == "dequantized",
    )


def _keep_labels(data: Dataset, count: int, seed: int) -> Dataset:
    """The same data, of which only so many training labels are known."""
    classes, labels = data.num_classes, data.train.labels
    each, rest = divmod(positive_int("data.labelled", count), classes)
    if rest:
        raise ValueError(
            f"expected data.labelled to be a multiple of the {classes} classes, equally many of "
            f"each; got {count}"
        )
    assert labels is not None  # or there would be no classes
    # the first of one order, so that fewer labels are among those of more
    order = torch.from_numpy(np.random.default_rng([seed, len(labels), 1]).permutation(len(labels)))
    rows = [order[labels[order] == c] for c in range(classes)]
    fewest = min(range(classes), key=lambda c: len(rows[c]))
    if len(rows[fewest]) < each:
        raise ValueError(
            f"expected data.labelled to be at most {classes * len(rows[fewest])}, because there "
            f"are {len(rows[fewest])} training data of class {fewest}; got {count}"
        )
    kept = torch.cat([some[:each] for some in rows])
    known = torch.full_like(labels, -1).index_copy(0, kept, labels[kept])
    return replace(data, train=replace(data.train, labels=known))
