"""Minibatches with shuffling, labels and sharding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import distributed
from ..core.components import Labels
from ..core.validation import positive_int
from ..data.splits import Split, check_container, materialize
from ..programs.base import label_use
from ..programs.inputs import program_labels

__all__ = ["Batch", "BatchLoader"]


@dataclass(frozen=True)
class Batch:
    """A minibatch.

    Attributes:
        index: training-set indices of its examples, ``(batch,)``.
        labelled: whether the program is called with labels.
    """

    index: Tensor
    labelled: bool


class BatchLoader:
    """Minibatches of the training data of a program, reshuffled in every epoch.

    A program that conditions on labels gets labels with every minibatch. A program with partial
    labels (``PARTIAL``) is called with ``(x, labels)`` on minibatches of labelled examples and with
    ``(x)`` on minibatches of unlabelled ones; no minibatch mixes the two.

    Arguments:
        program: the program to train.
        data: training data, on the training device.
        size: examples per minibatch; the last minibatch of a group may be smaller.
        labelled_every: number of unlabelled minibatches between two labelled ones. An epoch is
            then a pass over the unlabelled examples; the labelled ones repeat as often as needed,
            reshuffled each time. If not given, an epoch contains every example once.

    Raises:
        ValueError: if there are no examples, if required labels are missing, if
            ``labelled_every`` is given for a data set that is not partially labelled or exceeds the
            number of unlabelled minibatches, or if batch norm would get a single example.
    """

    def __init__(
        self, program: nn.Module, data: Split | Tensor, size: int, labelled_every: int | None = None
    ) -> None:
        check_container(data)
        self.data, self.size = data, positive_int("batch_size", size)
        if not len(data):
            raise ValueError("expected at least one training example; got none")
        self.labels = program_labels(program, data)
        self._groups = _group_by_label(program, data)
        self._partial = label_use(program) is Labels.PARTIAL
        self._every = labelled_every
        if labelled_every is not None:
            self._check_labelled_every(program, positive_int("labelled_every", labelled_every))
        _check_batch_norm(program, [len(rows) for rows, _ in self._groups], self.size)

    def __len__(self) -> int:
        """Return the number of minibatches per epoch."""
        sizes = [-(-len(rows) // self.size) for rows, _ in self._groups]
        return sum(sizes) if self._every is None else sizes[0] + sizes[0] // self._every

    def to(self, device: torch.device) -> None:
        """Move the data and the labels in use to a device, in place."""
        self.data = self.data.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)

    def example_args(self) -> list[tuple[Tensor, ...]]:
        """Return program arguments of a fixed minibatch with and, if applicable, without labels."""
        examples = []
        for rows, labelled in self._groups:
            index = rows[: self.size].to(self._device)
            subset = self.data.at(index) if isinstance(self.data, Split) else self.data[index]
            examples.append((materialize(subset, 0), *self._label_args(index, labelled)))
        return examples

    def iter_epoch(self) -> Iterator[Batch]:
        """Iterate over the minibatches of an epoch, shuffled by torch's global generator.

        With several processes, each gets its shard of every minibatch, which may be empty. Their
        generators must agree before the call; afterwards they differ by rank.
        """
        order: Iterable[tuple[Tensor, bool]] = self._order()
        if distributed.world_size() > 1:
            order = list(order)
            distributed.seed_by_rank()
        for index, labelled in order:
            yield Batch(index[distributed.shard(len(index))], labelled)

    def make_args(self, index: Tensor, labelled: bool = True) -> tuple[Tensor, ...]:
        """Return the program arguments of a minibatch: ``(x,)`` or ``(x, labels)``.

        Dynamic binarisation samples from torch's global generator.
        """
        x = self.data.draw(index) if isinstance(self.data, Split) else self.data[index]
        return (x, *self._label_args(index, labelled))

    @property
    def shard_size(self) -> int:
        """Examples in this process's shard of a full minibatch."""
        return len(range(self.size)[distributed.shard(self.size)])

    @property
    def _device(self) -> torch.device:
        return self.data.values.device if isinstance(self.data, Split) else self.data.device

    def _label_args(self, index: Tensor, labelled: bool) -> tuple[Tensor, ...]:
        return (self.labels[index],) if labelled and self.labels is not None else ()

    def _order(self) -> Iterator[tuple[Tensor, bool]]:
        if not self._partial:
            order = torch.randperm(len(self.data)).to(self._device)
            yield from ((index, True) for index in order.split(self.size))
        elif self._every is None:
            groups = [(_shuffle(rows), labelled) for rows, labelled in self._groups]
            batches = [(b, labelled) for rows, labelled in groups for b in rows.split(self.size)]
            for i in torch.randperm(len(batches)).tolist():
                index, labelled = batches[i]
                yield index.to(self._device), labelled
        else:
            (unlabelled, _), (labelled, _) = self._groups
            labelled_batches = _cycle_batches(labelled, self.size)
            for i, index in enumerate(_shuffle(unlabelled).split(self.size), 1):
                yield index.to(self._device), False
                if i % self._every == 0:
                    yield next(labelled_batches).to(self._device), True

    def _check_labelled_every(self, program: nn.Module, every: int) -> None:
        if not self._partial:
            raise ValueError(
                f"expected labelled_every only for a program with partial labels; got "
                f"{type(program).__name__}: leave it out"
            )
        if len(self._groups) < 2:
            count = len(self.data) if self._groups[0][1] else 0
            raise ValueError(
                f"expected both labelled and unlabelled examples for labelled_every; got {count} "
                f"of {len(self.data)} examples with labels: leave it out"
            )
        unlabelled = -(-len(self._groups[0][0]) // self.size)
        if every > unlabelled:
            raise ValueError(
                f"expected labelled_every to be at most {unlabelled}, the number of unlabelled "
                f"minibatches per epoch, so that labels are used; got {every}"
            )


def _group_by_label(program: nn.Module, data: Split | Tensor) -> list[tuple[Tensor, bool]]:
    """Return the rows that may share a minibatch, and whether they come with labels."""
    rows = torch.arange(len(data))
    if label_use(program) is not Labels.PARTIAL:
        return [(rows, True)]
    known = data.has_label.cpu() if isinstance(data, Split) else torch.zeros_like(rows) > 0
    groups = [(rows[~known], False), (rows[known], True)]
    return [(group, labelled) for group, labelled in groups if len(group)]


def _shuffle(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows))]


def _cycle_batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    while True:
        yield from _shuffle(rows).split(size)


def _check_batch_norm(program: nn.Module, group_sizes: list[int], size: int) -> None:
    """Raise if batch norm would get a minibatch of one example."""
    has_batch_norm = any(isinstance(m, _BatchNorm) for m in program.modules())
    for count in group_sizes if has_batch_norm else ():
        if (count - 1) % size == 0:
            raise ValueError(
                f"expected at least 2 examples in every minibatch, for batch norm; got 1 in the "
                f"last minibatch of {count} examples by {size}: choose another batch_size"
            )
