"""Division of the examples of a source into training, validation and test data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .sources import RawData

__all__ = ["find_class", "hold_out", "number_rows", "select"]


def hold_out(
    raw: RawData, amount: int | float, name: str, seed: int, stratify: bool = False
) -> tuple[RawData, RawData]:
    """Hold out ``amount`` random examples, or random blocks of near duplicates.

    With groups, whole groups are held out, whose number of examples is the closest one to
    ``amount``. With ``stratify``, every class of at least two examples is on both sides, in
    proportion.

    Returns:
        The other examples and those held out, each in random order.

    Raises:
        ValueError: if nothing would be left, or if the data cannot be stratified.
    """
    size = len(raw.values)
    # NaN and infinite amounts are in neither range
    is_fraction, is_number = 0 <= amount < 1, 1 <= amount < size and amount == int(amount)
    count = round(amount * size) if is_fraction else int(amount) if is_number else size
    if count >= size:
        raise ValueError(
            f"expected data.{name} to be a fraction below 1 or a number of examples below {size}; "
            f"got {amount}"
        )
    generator = np.random.default_rng([seed, size])
    if raw.groups is not None:
        order, count = _order_by_group(raw.groups.numpy(), count, generator)
    elif stratify:
        order, count = _order_by_class(_check_stratified(raw), count, generator)
    else:
        blocks = generator.permutation(-(-size // raw.block))
        order = np.concatenate([np.arange(b * raw.block, (b + 1) * raw.block) for b in blocks])
        order = order[order < size]
    rows = torch.from_numpy(order)
    return select(raw, rows[count:]), select(raw, rows[:count])


def _order_by_group(
    groups: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Return an order in which whole groups come first, and their number of examples."""
    if not count:
        return generator.permutation(len(groups)), 0
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        raise ValueError(
            f"expected at least two groups at data.groups_key, to hold one out; got {len(names)}"
        )
    permuted = generator.permutation(len(names))
    # one group is held out and one is left at least
    number = 1 + int(np.abs(np.cumsum(sizes[permuted])[:-1] - count).argmin())
    order = generator.permutation(len(groups))
    is_held_out = np.isin(groups[order], names[permuted[:number]])
    return np.concatenate([order[is_held_out], order[~is_held_out]]), int(is_held_out.sum())


def _order_by_class(
    labels: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Return an order that begins with examples of all classes, and the number of these."""
    order = generator.permutation(len(labels))
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels[order] == label)
        share = round(count * len(rows) / len(labels))
        held_out[rows[: min(max(share, int(count > 0)), len(rows) - 1)]] = True
    return np.concatenate([order[held_out], order[~held_out]]), int(held_out.sum())


def _check_stratified(raw: RawData) -> np.ndarray:
    """Return the classes, or raise if there are none."""
    if raw.labels is None or raw.labels.ndim != 1 or raw.labels.is_floating_point():
        raise ValueError(
            "expected class labels for data.stratify; got none: set data.labels_key, or leave it "
            "out"
        )
    return raw.labels.numpy()


def number_rows(raw: RawData) -> RawData:
    """Return the data with the row of each example in its file."""
    return replace(raw, rows=torch.arange(len(raw.values)))


def select(raw: RawData, rows: Tensor) -> RawData:
    """Return the examples at some rows."""
    labels, kept, groups = (
        None if part is None else part[rows] for part in (raw.labels, raw.rows, raw.groups)
    )
    return replace(raw, values=raw.values[rows], labels=labels, rows=kept, groups=groups)


def find_class(name: str, train: RawData, label: int | str) -> int:
    """Return the number of a class of the training data, which is given by its name or number.

    Raises:
        ValueError: if it is not in the training data, or is their only class.
    """
    present = []
    if train.labels is not None and train.labels.ndim <= 1:
        present = train.labels.unique().tolist()
    names = train.classes or ()
    # a name may consist of digits
    number = names.index(str(label)) if str(label) in names else label
    if number not in present or len(present) == 1:
        listed = ", ".join(str(names[i]) if names and i >= 0 else str(i) for i in present)
        raise ValueError(
            f"expected data.without_class to be one of at least two classes of {name!r} "
            f"({listed or 'none'}); got {label}"
        )
    return int(number)
