"""Loading of data sets by name: reading, checks, and division into splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import Parameter
from typing import Any, cast

import torch
from torch import Tensor

from ..core.links import see
from ..core.random import check_seed
from ..core.validation import check_choice, positive_int
from .assembly import assemble, keep_labels, scale_values
from .columns import Column
from .containers import Container, iter_blocks
from .datasets import Dataset
from .holdout import find_class, hold_out, number_rows, select
from .kinds import Kind, kind_of
from .pixel_values import BINARIZE_CHOICES, VALUES_CHOICES, Binarize, Values
from .scaling import Scale, ScaleName
from .sources import (
    FILE_SOURCES,
    PATH_SOURCES,
    SOURCES,
    Channels,
    RawData,
    SourceOptions,
    find_source,
    root_folder,
)
from .sources.labels import align_classes

__all__ = ["load", "load_unsplit"]


def load(
    name: str,
    *,
    # no default in the signature, but its absence is reported with the choices
    binarize: Binarize = Parameter.empty,  # type: ignore[assignment]
    train: int | None = None,
    valid: int | float | str = 0.1,
    test: int | float | str = 0.1,
    labelled: int | None = None,
    without_class: int | str | None = None,
    values: Values = "unit",
    root: str | None = None,
    path: str | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    groups_key: str | None = None,
    stratify: bool = False,
    keep_blocks: bool = True,
    channels: Channels | None = None,
    types: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    size: int | Sequence[int] | None = None,
    colour: bool | None = None,
    layer: str | None = None,
    photographs: Sequence[str] | None = None,
    scale: ScaleName = "none",
    seed: int = 0,
) -> Dataset:
    """Load a data set by name.

    ``digits``, ``mnist5k`` and ``patches`` ship with Python packages, and ``cells`` are simulated.
    ``mnist``, ``fashion_mnist``, ``kmnist``, ``emnist``, ``omniglot105``, ``cifar10``, ``svhn`` and
    ``celeba`` are downloaded by torchvision on first use. ``array``, ``table``, ``images`` and
    ``h5ad`` read your own files, and ``binarized_mnist``, ``frey`` and ``omniglot`` published ones.

    Arguments:
        name: ``array``, ``binarized_mnist``, ``celeba``, ``cells``, ``cifar10``, ``digits``,
            ``emnist``, ``fashion_mnist``, ``frey``, ``h5ad``, ``images``, ``kmnist``, ``mnist``,
            ``mnist5k``, ``omniglot``, ``omniglot105``, ``patches``, ``svhn`` or ``table``.
        binarize: ``dynamic``, ``static``, ``threshold`` or ``none``; no default, because
            log-likelihoods depend on it.
        train: number of training examples to use; default: all. The order depends only on the
            seed, so a smaller training set is a subset of a larger one.
        valid: number of training examples held out for validation; below 1, a fraction; or a file
            with the validation data.
        test: number of examples held out for testing; below 1, a fraction; or a file with the test
            data. Ignored if the source has its own test set.
        labelled: number of training examples that keep their class label, the same number per
            class, sampled with the seed; the other labels become −1 (unknown). Default: all.
        without_class: a class, by name or number, to remove from training and validation data.
        values: representation of images that are not binarised: ``unit`` for grey values in
            [0, 1], ``integer`` for levels 0 … n, ``dequantized`` for (level + u) / (n + 1) in
            (0, 1), with uniform noise u resampled on every use, as required by densities.
        root: folder of downloaded data; default: ``$PYRO_VAE_DATA``, or else a cache folder.
        path: file for ``array``, ``table``, ``h5ad``, ``binarized_mnist``, ``frey`` or
            ``omniglot``; folder for ``images``.
        key: name of the array in a ``.npz`` file.
        labels_key: name of the labels in a ``.npz`` file, of their column in a table or in obs:
            one integer class per example, −1 if unknown, strings as classes, or any other array
            ``(N, …)`` to condition on.
        groups_key: name of the groups, e.g. patients, one for each example: all examples of a
            group are in the same split.
        stratify: hold out the same share of every class.
        keep_blocks: hold out whole blocks of near duplicates: frames of ``frey``, columns of
            ``patches``.
        channels: where the channels of images in an array are, ``first``, ``last``, or ``none`` if
            it has no images; by default they are recognised.
        types: types of columns of a table that differ from those recognised, a list of NAME=TYPE
            with ``real``, ``count``, ``binary`` or ``categorical``.
        drop: names of columns of a table to leave out.
        size: size of pictures in a folder, in pixels: one number, or height and width.
        colour: whether pictures in a folder are read in colour; by default, if any is.
        layer: layer of an ``.h5ad`` file; default: X.
        photographs: the photographs of ``patches``: some of ``china`` and ``flower``, the default,
            ``astronaut``, ``chelsea``, ``coffee`` and ``rocket``.
        scale: scaling of real values by the training data: ``standard`` (mean 0 and standard
            deviation 1), ``unit`` (from 0 to 1) or ``none``; by column of examples ``(D,)``, by
            channel of images, or as a whole. Log-densities are those of the scaled values.
        seed: seed of the split, the labelled subset and static binarisation.

    Returns:
        The :class:`Dataset`.

    Raises:
        ValueError: if the name is unknown (with the closest known name), if the values cannot be
            binarised, dequantised or scored (infinite), if the split leaves no training examples or
            fewer than ``train``, if ``labelled`` is not divisible by the number of classes, or if
            ``without_class`` is not in the training data or is their only class.
        FileNotFoundError: if the file is missing, with where to get it.
        ModuleNotFoundError: if the package that contains the data is not installed.

    Example:
        >>> digits = pv.data.load("digits", binarize="static")
        >>> digits.event_shape, len(digits.train), len(digits.valid), len(digits.test)
        ((1, 8, 8), 1455, 162, 180)
    """
    options = SourceOptions(
        root_folder(root),
        path=path,
        key=key,
        labels_key=labels_key,
        groups_key=groups_key,
        channels=channels,
        types=types,
        drop=drop,
        size=size,
        colour=colour,
        layer=layer,
        photographs=None if photographs is None else tuple(photographs),
    )
    raw = _read(name, options, binarize, values, seed)
    if stratify and raw.groups is not None:
        got = "both" if groups_key is not None else f"data.stratify for the groups of {name!r}"
        raise ValueError(f"expected data.groups_key or data.stratify; got {got}: leave one out")
    if not keep_blocks:
        if raw.block == 1 and (raw.groups is None or groups_key is not None):
            raise ValueError(
                f"expected data.keep_blocks false only for a data set with blocks of near "
                f"duplicates, frey or patches; got it for {name!r}: leave it out"
            )
        raw = replace(raw, block=1, groups=None)
    parts: dict[str, RawData] = {}
    for part, amount in (("test", test), ("valid", valid)):
        own = getattr(raw, part)
        if isinstance(amount, str):
            other = replace(options, path=amount, groups_key=None, types=None, drop=None)
            own = _read_part(name, other, part, raw, binarize, values)
        elif own is None:
            raw, own = hold_out(raw, amount, part, seed, stratify)
        parts[part] = own
    train_part, valid_part, test_part = raw, parts["valid"], parts["test"]
    if without_class is not None:
        left_out = find_class(name, train_part, without_class)
        train_part, valid_part = (
            select(part, (cast(Tensor, part.labels) != left_out).nonzero()[:, 0])
            for part in (train_part, valid_part)
        )
    if train is not None:
        size = len(train_part.values)
        if positive_int("data.train", train) > size:
            raise ValueError(
                f"expected data.train to be at most {size}, the number of examples not held out; "
                f"got {train}: reduce data.train, or hold out fewer examples"
            )
        train_part = select(train_part, torch.arange(train))
    loaded = assemble(name, (train_part, valid_part, test_part), binarize, values, seed)
    if scale != "none":
        loaded = scale_values(loaded, scale)
    return loaded if labelled is None else keep_labels(loaded, labelled, seed)


def load_unsplit(
    name: str,
    *,
    binarize: Binarize,
    values: Values = "unit",
    root: str | None = None,
    path: str | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    seed: int = 0,
    channels: Channels | None = None,
    size: int | Sequence[int] | None = None,
    colour: bool | None = None,
    layer: str | None = None,
    peak: float | None = None,
    classes: tuple[str, ...] | None = None,
    columns: tuple[Column, ...] | None = None,
    scale: Scale | None = None,
) -> Dataset:
    """Load new data for a trained model: all examples, as test data, in the order of the file.

    Labels are read if the file has them.

    Arguments:
        name, binarize, values, root, path, key, labels_key, channels, size, colour, layer, seed:
            as for :func:`load`.
        peak: the level that becomes 1 in the data that the model was trained on, or ``None`` if
            their values are not levels.
        classes: the names of the classes of the training data.
        columns: the columns of the training data.
        scale: the scale of the training data.

    Raises:
        ValueError: if the values have other levels, or as for :func:`load`.
    """
    options = SourceOptions(
        root_folder(root),
        path=path,
        key=key,
        labels_key=labels_key,
        channels=channels,
        size=size,
        colour=colour,
        layer=layer,
        columns=columns,
        has_optional_labels=True,
    )
    raw = _read(name, options, binarize, values, seed, peak=peak)
    if classes is None and raw.classes is not None:  # the model was trained without them
        raw = replace(raw, labels=None, classes=None)
    raw = align_classes(raw, classes, path or name, drop_unknown=True)
    if raw.test is not None:
        raw = raw.test  # the part that no model was trained on
    nothing = select(raw, torch.arange(0))
    loaded = assemble(name, (nothing, nothing, raw), binarize, values, seed)
    return loaded if scale is None else scale_values(loaded, scale)


#: The value of an argument that is not given.
_UNKNOWN: Any = object()


def _read(
    name: str,
    options: SourceOptions,
    binarize: Binarize,
    values: Values,
    seed: int,
    *,
    peak: float | None = _UNKNOWN,
) -> RawData:
    """Read a source and check that its values can be represented as requested."""
    source = find_source(name)
    if options.path is not None and name in SOURCES and name not in PATH_SOURCES:
        raise ValueError(
            f"expected data.path only for a data set that reads a file, {', '.join(PATH_SOURCES)}; "
            f"got it for {name}: leave it out, or choose another data.name"
        )
    if binarize is Parameter.empty:
        raise ValueError(
            f"expected binarize to be one of {', '.join(BINARIZE_CHOICES)}; got nothing: "
            f"log-likelihoods depend on it, so it has no default ({see('docs/reference/data.md')})"
        )
    check_choice("binarize", binarize, BINARIZE_CHOICES)
    check_choice("values", values, VALUES_CHOICES)
    if values == "dequantized" and binarize != "none":
        raise ValueError(
            f"expected data.binarize to be none for data.values dequantized; got {binarize}: "
            f"set data.values to unit, binary values need no noise"
        )
    check_seed(seed)
    try:
        raw = source(options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data set {name!r} needs the package {error.name}: pip install "
            f"'pyro-vae[{'own' if name in FILE_SOURCES else 'data'}]'"
        ) from error
    if peak is not _UNKNOWN:
        raw = _set_peak(raw, peak)
    try:
        kind_of(raw.values)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from None
    if binarize != "none" and raw.peak is None:
        raise ValueError(
            f"expected values in [0, 1] or image levels to binarise; got "
            f"{_describe(raw.values)}: set data.binarize to none"
        )
    is_integer = kind_of(raw.values) not in (Kind.UNIT, Kind.REAL)
    if values == "dequantized" and (raw.peak is None or not is_integer):
        raise ValueError(
            f"expected image levels 0 … n to dequantise; got "
            f"{_describe(raw.values)}: set data.values to unit"
        )
    own = {n: None if p is None else number_rows(p) for n, p in raw.own_parts.items()}
    return replace(number_rows(raw), **own)


def _read_part(
    name: str,
    options: SourceOptions,
    part: str,
    train: RawData,
    binarize: Binarize,
    values: Values,
) -> RawData:
    """Read validation or test data from a separate file."""
    if name not in FILE_SOURCES:
        raise ValueError(
            f"expected data.{part} to be a number or a fraction for data set {name!r}; got the "
            f"file {options.path}: only {', '.join(FILE_SOURCES)} read your own files"
        )
    options = replace(options, columns=train.columns)
    raw = _read(name, options, binarize, values, 0, peak=train.peak)
    if raw.values.shape[1:] != train.values.shape[1:]:
        raise ValueError(
            f"expected examples of shape {tuple(train.values.shape[1:])} in {options.path}, as in "
            f"the training data; got {tuple(raw.values.shape[1:])}"
        )
    return align_classes(raw, train.classes, str(options.path))


def _set_peak(raw: RawData, peak: float | None) -> RawData:
    """Return new data on the scale of the training data, whose level ``peak`` becomes 1."""
    own = {n: None if p is None else _set_peak(p, peak) for n, p in raw.own_parts.items()}
    raw = replace(raw, **own)
    if raw.peak == peak:
        return raw
    # unobserved values are NaN
    highest = max(float(block.nan_to_num(nan=0.0).max()) for block in iter_blocks(raw.values))
    # bytes of dark images alone may look like 0/1, and bytes of counts like levels
    if peak is None or (not raw.values.dtype.is_floating_point and highest <= peak):
        return replace(raw, peak=peak)
    raise ValueError(
        f"expected values with levels 0 … {peak:g}, as in the training data; got values up to "
        f"{highest:g} of type {raw.values.dtype}: convert them to the scale of the training data"
    )


def _describe(values: Tensor | Container) -> str:
    """Summarise values for messages."""
    part = values if isinstance(values, Tensor) else values.gather(slice(1000))
    return kind_of(values).describe(part)
