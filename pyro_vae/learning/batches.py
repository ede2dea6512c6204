"""Minibatches: which data, in which order, with which labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import distributed
from ..core.components import Labels
from ..core.validation import positive_int
from ..data.splits import Split, materialize
from ..programs.base import label_use
from ..programs.inputs import program_labels

__all__ = ["Batch", "Batches"]


@dataclass(frozen=True)
class Batch:
    """A minibatch.

    Attributes:
        index: which of the training data are in it, ``(batch,)``.
        labelled: whether its labels are looked at.
    """

    index: Tensor
    labelled: bool


class Batches:
    """The training data of a program in minibatches, in a new order in every epoch.

    A program that conditions on labels is given them in every minibatch. One that learns from
    labels where they are known (``PARTIAL``) has minibatches that are labelled, called
    ``(x, labels)``, and others that are not, called ``(x)``; none is mixed.

    Arguments:
        program: what is to be trained.
        data: the training data, on the device where they are used.
        size: data in a minibatch; the last of a group may be smaller.
        labelled_every: after so many minibatches without labels comes one with labels, the
            labelled data starting over as often as needed, each time in a new order; an epoch
            is then a pass over the others. Every datum once if not given.

    Raises:
        ValueError: if there are no data, if labels are missing that the program conditions on,
            if ``labelled_every`` is given where not some data have labels and others none, or
            is more than the minibatches without, or if batch norm would see a single datum.
    """

    def __init__(
        self, program: nn.Module, data: Split | Tensor, size: int, labelled_every: int | None = None
    ) -> None:
        self.data, self.size = data, positive_int("batch_size", size)
        if not len(data):
            raise ValueError("expected at least one datum to train on; got none")
        self.labels = program_labels(program, data)
        self._groups = _groups(program, data)
        self._partial = label_use(program) is Labels.PARTIAL
        self._every = labelled_every
        if labelled_every is not None:
            positive_int("labelled_every", labelled_every)
            self._check_mixture(program)
        _check_statistics(program, [len(rows) for rows, _ in self._groups], self.size)

    def __len__(self) -> int:
        """The number of minibatches in an epoch."""
        sizes = [-(-len(rows) // self.size) for rows, _ in self._groups]
        return sum(sizes) if self._every is None else sizes[0] + sizes[0] // self._every

    def to(self, device: torch.device) -> None:
        """Moves the data, and the labels that are looked at."""
        self.data = self.data.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)

    def first(self) -> list[tuple[Tensor, ...]]:
        """The first minibatch of each kind, always the same, as model and guide take it."""
        firsts = []
        for rows, labelled in self._groups:
            index = rows[: self.size].to(self._device)
            part = self.data.at(index) if isinstance(self.data, Split) else self.data[index]
            firsts.append((materialize(part, 0), *self._labels(index, labelled)))
        return firsts

    def epoch(self) -> Iterator[Batch]:
        """The minibatches of an epoch, whose order comes from torch's global generator.

        Of several processes each has its share of every minibatch, which may be empty. All must
        come here with generators in the same state, and leave with different ones.
        """
        for index, labelled in self._shares():
            yield Batch(index, labelled)

    def arguments(self, index: Tensor, labelled: bool = True) -> tuple[Tensor, ...]:
        """What model and guide are called with: ``(x,)`` or ``(x, labels)``.

        What is drawn anew at every use comes from torch's global generator.
        """
        x = self.data.draw(index) if isinstance(self.data, Split) else self.data[index]
        return (x, *self._labels(index, labelled))

    @property
    def largest(self) -> int:
        """Data in this process's share of a full minibatch."""
        return len(range(self.size)[distributed.shard(self.size)])

    @property
    def _device(self) -> torch.device:
        return self.data.values.device if isinstance(self.data, Split) else self.data.device

    def _labels(self, index: Tensor, labelled: bool) -> tuple[Tensor, ...]:
        return (self.labels[index],) if labelled and self.labels is not None else ()

    def _shares(self) -> Iterable[tuple[Tensor, bool]]:
        if distributed.world_size() == 1:
            return self._order()
        order = list(self._order())
        distributed.seed_by_rank()
        return [(index[distributed.shard(len(index))], labelled) for index, labelled in order]

    def _order(self) -> Iterator[tuple[Tensor, bool]]:
        if not self._partial:
            order = torch.randperm(len(self.data)).to(self._device)
            yield from ((index, True) for index in order.split(self.size))
        elif self._every is None:
            parts = [(_shuffled(rows), labelled) for rows, labelled in self._groups]
            batches = [(b, labelled) for rows, labelled in parts for b in rows.split(self.size)]
            for i in torch.randperm(len(batches)).tolist():
                index, labelled = batches[i]
                yield index.to(self._device), labelled
        else:
            (unknown, _), (known, _) = self._groups
            with_labels = _endless(known, self.size)
            for i, index in enumerate(_shuffled(unknown).split(self.size), 1):
                yield index.to(self._device), False
                if i % self._every == 0:
                    yield next(with_labels).to(self._device), True

    def _check_mixture(self, program: nn.Module) -> None:
        if not self._partial:
            raise ValueError(
                f"expected labelled_every only for a program that learns with and without labels; "
                f"got {type(program).__name__}: leave it out"
            )
        if len(self._groups) < 2:
            known = len(self.data) if self._groups[0][1] else 0
            raise ValueError(
                f"expected some data with labels and some without for labelled_every; got {known} "
                f"of {len(self.data)} with labels: leave it out"
            )
        without = -(-len(self._groups[0][0]) // self.size)
        if self._every is not None and self._every > without:
            raise ValueError(
                f"expected labelled_every to be at most {without}, the minibatches without labels "
                f"in an epoch, or no label is ever looked at; got {self._every}"
            )


def _groups(program: nn.Module, data: Split | Tensor) -> list[tuple[Tensor, bool]]:
    """The rows that may share a minibatch, and whether they are called with labels."""
    everything = torch.arange(len(data))
    if label_use(program) is not Labels.PARTIAL:
        return [(everything, True)]
    known = data.known.cpu() if isinstance(data, Split) else torch.zeros_like(everything) > 0
    groups = [(everything[~known], False), (everything[known], True)]
    return [(rows, labelled) for rows, labelled in groups if len(rows)]


def _shuffled(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows))]


def _endless(rows: Tensor, size: int) -> Iterator[Tensor]:
    while True:
        yield from _shuffled(rows).split(size)


def _check_statistics(program: nn.Module, groups: list[int], size: int) -> None:
    """What would end the first epoch at its last minibatch is refused before it."""
    mixes = any(isinstance(m, _BatchNorm) for m in program.modules())
    for count in groups if mixes else ():
        if (count - 1) % size == 0:
            raise ValueError(
                f"batch norm needs statistics: expected at least 2 data in every minibatch; got 1 "
                f"in the last of {count} data by {size}: choose another batch_size"
            )
