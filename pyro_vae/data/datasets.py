"""One type for every data set: tensors that are split, recorded and ready to be scored."""

from __future__ import annotations

import difflib
import hashlib
import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .._component import Shape
from .._random import check_seed, seeded
from .binarize import CHOICES, Binarize, binarize
from .dequantize import CHOICES as VALUES
from .dequantize import Values, dequantize
from .kinds import Kind, kind_of
from .sources import SOURCES, Raw, root_folder

__all__ = ["Dataset", "Split", "load"]

Nats = TypeVar("Nats", float, np.ndarray, Tensor)


@dataclass(frozen=True)
class Split:
    """Some data, as stored and as a likelihood sees them.

    Attributes:
        values: as stored, ``(N, *event_shape)``: images stay bytes, a quarter of the memory.
        peak: what the stored values are divided by.
        dynamic: whether pixels are drawn anew, Bernoulli(value), at every use.
        labels: ``(N,)`` integers, if there are any.
        noisy: whether levels are dequantised with new noise at every use; ``peak`` is then
            the highest level.

    Raises:
        ValueError: if it is to be both ``dynamic`` and ``noisy``.
    """

    values: Tensor
    peak: float = 1.0
    dynamic: bool = False
    labels: Tensor | None = None
    noisy: bool = False

    def __post_init__(self) -> None:
        if self.dynamic and self.noisy:
            raise ValueError("expected a split to be dynamic or noisy; got both: 0/1 need no noise")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def event_shape(self) -> Shape:
        """The shape of one datum."""
        return tuple(self.values.shape[1:])

    def draw(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The data at ``index`` as a likelihood sees them, on the device of the data.

        Dynamic binarisation and dequantisation draw from torch's global generator at every
        call.
        """
        x = self.values[index].to(torch.get_default_dtype())
        if self.noisy:
            return dequantize(x, self.peak)
        if self.peak != 1.0:
            x = x / self.peak
        return torch.bernoulli(x) if self.dynamic else x

    def fixed(self, seed: int) -> Tensor:
        """All data as a likelihood sees them, what is drawn anew drawn once with ``seed``."""
        if self.noisy:
            with seeded(seed, len(self)):
                return self.draw()
        if not self.dynamic:
            return self.draw()
        grey = replace(self, dynamic=False).draw()
        return binarize(grey, "static", seed, len(self)).to(grey.dtype)

    def to(self, device: torch.device | str) -> Split:
        """The same data on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, values=self.values.to(device), labels=labels)

    def head(self, size: int) -> Split:
        """The first ``size`` data."""
        labels = None if self.labels is None else self.labels[:size]
        return replace(self, values=self.values[:size], labels=labels)


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
    valid: int | float = 0.1,
    test: int | float = 0.1,
    values: Values = "unit",
    root: str | None = None,
    path: str | None = None,
    key: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set by name.

    ``digits`` and ``mnist5k`` come inside Python packages; ``mnist`` and ``fashion_mnist`` are
    downloaded at first use; ``frey`` and ``array`` read a file that you have.

    Arguments:
        name: ``array``, ``digits``, ``fashion_mnist``, ``frey``, ``mnist`` or ``mnist5k``.
        binarize: ``dynamic``, ``static``, ``threshold`` or ``none``; has no default, because
            log-likelihoods depend on it.
        valid: how many of the training data to hold out for validation; a number below 1 is
            a fraction.
        test: the same for testing; unused where the source has test data of its own.
        values: of images that are not binarised: ``unit`` for grey in [0, 1], ``integer`` for
            the levels 0 … n, ``dequantized`` for (level + noise) / (n + 1) in (0, 1), with
            uniform noise that is drawn anew at every use, as a density needs it.
        root: the folder to find or put downloads in; else ``$PYRO_VAE_DATA``, else a cache.
        path: the file of ``frey`` or ``array``.
        key: the array's name in an ``.npz`` file.
        seed: of the split and of static binarisation.

    Returns:
        The :class:`Dataset`.

    Raises:
        ValueError: for an unknown name (with the nearest right one), values that cannot be
            binarised, dequantised or scored (NaN), or a split that leaves nothing to train on.
        FileNotFoundError: if the file is missing, saying where to get it.
        ModuleNotFoundError: if the package that carries the data is not installed.
    """
    _choice("data set", name, tuple(SOURCES))
    _choice("binarize", binarize, CHOICES)
    _choice("values", values, VALUES)
    if values == "dequantized" and binarize != "none":
        raise ValueError(
            f"expected data.binarize to be none for data.values dequantized; got {binarize}: "
            f"0/1 need no noise, set data.values to unit"
        )
    check_seed(seed)
    try:
        raw = SOURCES[name](root_folder(root), path, key)
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
    train, validation = _hold_out(rest, valid, "valid", seed)
    parts = (train, validation, held_out)
    splits = [_split(part, binarize, values, seed, i) for i, part in enumerate(parts)]
    return Dataset(
        name,
        *splits,
        kind=Kind.BINARY if binarize != "none" else kind_of(splits[0].fixed(seed)),
        binarize=binarize,
        checksum=_checksum(splits),
        values=values if binarize == "none" else "unit",
    )


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


def _take(raw: Raw, rows: Tensor) -> Raw:
    labels = None if raw.labels is None else raw.labels[rows]
    return replace(raw, values=raw.values[rows], labels=labels)


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


def _checksum(splits: list[Split]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.values.contiguous().numpy().tobytes())
    return digest.hexdigest()
