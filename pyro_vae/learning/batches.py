"""Minibatches with shuffling, labels and sharding."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import distributed
from ..core.components import Labels
from ..core.random import seeded
from ..core.validation import positive_int
from ..data.containers import Container, gather
from ..data.items import SequentialItems
from ..data.reading import read_ahead
from ..data.splits import Split, checksum
from ..programs.base import label_use
from ..programs.inputs import materialize, program_dtype, program_labels

__all__ = ["Batch", "BatchLoader", "ValidationData", "checksum_data"]

#: Minibatches that are read before they are needed.
_READ_AHEAD = 4


@dataclass(frozen=True)
class Batch:
    """A minibatch.

    Attributes:
        index: training-set indices of its examples, ``(batch,)``.
        labelled: whether the program is called with labels.
        source: the tensors from which :meth:`BatchLoader.make_args` makes the arguments of the
            program: the index, if the data are on the device; else the stored values, the labels
            in use, and further arguments.
    """

    index: Tensor
    labelled: bool
    source: tuple[Tensor, ...]


class BatchLoader:
    """Minibatches of the training data of a program, reshuffled in every epoch.

    A program that conditions on labels gets labels with every minibatch. A program with partial
    labels (``PARTIAL``) is called with ``(x, labels)`` on minibatches of labelled examples and with
    ``(x)`` on minibatches of unlabelled ones; no minibatch mixes the two.

    Data in memory are moved to the training device, and a minibatch is gathered there by index.
    A container is read on the CPU, ahead of the training step where possible.

    Attributes:
        data: the training data.
        size: examples per minibatch.
        labels: the labels in use, ``(N, …)``, or ``None``.

    Arguments:
        program: the program to train.
        data: training data.
        size: examples per minibatch; the last minibatch of a group may be smaller.
        labelled_every: number of unlabelled minibatches between two labelled ones. An epoch is
            then a pass over the unlabelled examples; the labelled ones repeat as often as needed,
            reshuffled each time. If not given, an epoch contains every example once.
        shuffle: whether to reshuffle in every epoch; if not, minibatches are consecutive. Items of
            an iterable data set are never reshuffled.
        drop_last: whether to leave out a last minibatch that is smaller than the others.

    Raises:
        ValueError: if there are no examples, if required labels are missing, if
            ``labelled_every`` is given for a data set that is not partially labelled or exceeds the
            number of unlabelled minibatches, or if batch norm would get a single example.
    """

    def __init__(
        self,
        program: nn.Module,
        data: Split | Tensor,
        size: int,
        labelled_every: int | None = None,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.data, self.size = data, positive_int("batch_size", size)
        if not len(data):
            raise ValueError("expected at least one training example; got none")
        self._program = program
        self._dtype = program_dtype(program)
        self._device = torch.device("cpu")
        is_sequential = isinstance(data, Split) and isinstance(data.values, SequentialItems)
        self._shuffles, self._drops_last = shuffle and not is_sequential, drop_last
        self.labels = program_labels(program, data)
        self._arguments: tuple[Tensor, ...] = ()
        self._groups = _group_by_label(program, data)
        self._partial = label_use(program) is Labels.PARTIAL
        self._every = labelled_every
        if labelled_every is not None:
            self._check_labelled_every(program, positive_int("labelled_every", labelled_every))
        if (drop_last or not self._shuffles) and self._partial:
            got = "a DataLoader without shuffle or with drop_last: pass its dataset"
            if is_sequential:
                got = "an iterable data set, which is read in its order: use a map-style Dataset"
            raise ValueError(
                f"expected a program with partial labels to be trained on shuffled minibatches of "
                f"all examples; got {got}"
            )
        if drop_last and len(data) < self.size:
            raise ValueError(
                f"expected at least one full minibatch of {self.size}, with drop_last; got "
                f"{len(data)} examples: reduce batch_size, or set drop_last=False"
            )
        if not drop_last:
            _check_batch_norm(program, [len(rows) for rows, _ in self._groups], self.size)

    def __len__(self) -> int:
        """Return the number of minibatches per epoch."""
        if self._drops_last:
            return len(self.data) // self.size
        sizes = [-(-len(rows) // self.size) for rows, _ in self._groups]
        return sum(sizes) if self._every is None else sizes[0] + sizes[0] // self._every

    def to(self, device: torch.device) -> None:
        """Move the data and the labels in use to a device, in place; containers stay."""
        self._device = device
        self.data = self.data.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)
        self._arguments = tuple(tensor.to(device) for tensor in self._arguments)

    def add_arguments(self, tensors: tuple[Tensor, ...]) -> None:
        """Call the program with further arguments after x and labels, gathered from ``(N, …)``."""
        self._arguments += tuple(tensor.to(self._device) for tensor in tensors)

    def keep_order(self) -> None:
        """Make minibatches of consecutive examples."""
        self._shuffles = False

    def example_args(self) -> list[tuple[Tensor, ...]]:
        """Return program arguments of a fixed minibatch with and, if applicable, without labels."""
        return [self.gather_args(rows[: self.size], labelled) for rows, labelled in self._groups]

    @property
    def first_rows(self) -> Tensor:
        """Indices of the minibatch of the first of :meth:`example_args`."""
        return self._groups[0][0][: self.size]

    def gather_args(self, index: Tensor, labelled: bool | None = None) -> tuple[Tensor, ...]:
        """Return the program arguments of the examples at an index, with fixed random numbers.

        Arguments:
            index: training-set indices.
            labelled: whether the program is called with labels, if it uses any; by default as for
                the first of :meth:`example_args`.
        """
        labelled = self._groups[0][1] if labelled is None else labelled
        index = index.to(self._device)
        if isinstance(self.data, Split):
            other = {"labels": None, "rows": None, "arguments": None}
            split = replace(self.data, values=gather(self.data.values, index), **other)
            x = materialize(self._program, split, 0).to(self._device)
        else:
            x = self.data[index]
        return (x, *self._labels_at(labelled, index), *self._arguments_at(index))

    def _labels_at(self, labelled: bool, index: Tensor) -> tuple[Tensor, ...]:
        return (self.labels[index],) if labelled and self.labels is not None else ()

    def _arguments_at(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self._arguments)

    def iter_epoch(self) -> Iterator[Batch]:
        """Iterate over the minibatches of an epoch, shuffled by torch's global generator.

        With several processes, each gets its shard of every minibatch, which may be empty. Their
        generators must agree before the call; afterwards they differ by rank.
        """
        order: Iterable[tuple[Tensor, bool]] = self._order()
        if distributed.world_size() > 1:
            order = list(order)
            distributed.seed_by_rank()
        shards = ((index[distributed.shard(len(index))], labelled) for index, labelled in order)
        if self._container is None:
            for index, labelled in shards:
                yield Batch(index, labelled, (index,))
            return
        # a cycle of labelled minibatches is shuffled in between training steps
        ahead = 0 if self._every is not None else _READ_AHEAD
        for (index, labelled), stored in read_ahead(self._container, shards, self._device, ahead):
            more = (*self._labels_at(labelled, index), *self._arguments_at(index))
            yield Batch(index.to(self._device), labelled, (stored, *more))

    def make_args(self, labelled: bool, source: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Return the program arguments of a minibatch: x, the labels in use, and further ones.

        Dynamic binarisation samples from torch's global generator.

        Arguments:
            labelled: whether the program is called with labels.
            source, more: :attr:`Batch.source`.
        """
        if self._container is not None:
            assert isinstance(self.data, Split)
            return (self.data.transform(source, self._dtype), *more)
        if isinstance(self.data, Split):
            x = self.data.draw(source, self._dtype)
        else:
            x = self.data[source]
        return (x, *self._labels_at(labelled, source), *self._arguments_at(source))

    @property
    def shard_size(self) -> int:
        """Examples in this process's shard of a full minibatch."""
        return len(range(self.size)[distributed.shard(self.size)])

    @property
    def _container(self) -> Container | None:
        """The container of the data, if they are not in memory."""
        if isinstance(self.data, Split) and isinstance(self.data.values, Container):
            return self.data.values
        return None

    def _place(self, index: Tensor) -> Tensor:
        """Move rows to where the data are read."""
        return index.to(self._device) if self._container is None else index

    def _order(self) -> Iterator[tuple[Tensor, bool]]:
        if not self._partial:
            size = len(self.data)
            order = torch.randperm(size) if self._shuffles else torch.arange(size)
            if self._drops_last:
                order = order[: len(self) * self.size]
            yield from ((index, True) for index in self._place(order).split(self.size))
        elif self._every is None:
            groups = [(_shuffle(rows), labelled) for rows, labelled in self._groups]
            batches = [(b, labelled) for rows, labelled in groups for b in rows.split(self.size)]
            for i in torch.randperm(len(batches)).tolist():
                index, labelled = batches[i]
                yield self._place(index), labelled
        else:
            (unlabelled, _), (labelled, _) = self._groups
            labelled_batches = _cycle_batches(labelled, self.size)
            for i, index in enumerate(_shuffle(unlabelled).split(self.size), 1):
                yield self._place(index), False
                if i % self._every == 0:
                    yield self._place(next(labelled_batches)), True

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


class ValidationData:
    """Validation data of a program, with binarisation and noise drawn once.

    Data in memory are kept as arguments of the program, on the device. A container is read in
    blocks, with the same random numbers every time.

    Arguments:
        program: the program.
        data: validation data.
        seed: seed of binarisation and noise.
        device: device of the program.
        arguments: further arguments of the program after x and labels, tensors ``(N, …)``.
    """

    def __init__(
        self,
        program: nn.Module,
        data: Split | Tensor,
        seed: int,
        device: torch.device,
        arguments: tuple[Tensor, ...] = (),
    ) -> None:
        self._data, self._seed, self._device = data, seed, device
        self._dtype, self._args = program_dtype(program), ()
        labels = program_labels(program, data) if label_use(program) is Labels.CONDITION else None
        labels = () if labels is None else (labels,)
        self._further = tuple(tensor.to(device) for tensor in (*labels, *arguments))
        if isinstance(data, Tensor) or isinstance(data.values, Tensor):
            self._args = (materialize(program, data, seed).to(device), *self._further)

    def __len__(self) -> int:
        return len(self._data)

    def head(self, size: int) -> ValidationData:
        """Return the first examples."""
        part = copy.copy(self)
        data = self._data
        part._data = data.head(size) if isinstance(data, Split) else data[:size]
        part._args = tuple(t[:size] for t in self._args)
        part._further = tuple(t[:size] for t in self._further)
        return part

    def iter_args(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the program arguments of this process's shard of the examples, in blocks."""
        shard = distributed.shard(len(self))
        if self._args:
            if shard.stop > shard.start:
                yield tuple(t[shard] for t in self._args)
            return
        assert isinstance(self._data, Split)
        for rows, x in self._data.iter_materialized(self._seed, self._dtype):
            start, stop = max(rows.start, shard.start), min(rows.stop, shard.stop)
            if stop > start:
                part = x[start - rows.start : stop - rows.start].to(self._device)
                yield (part, *(tensor[start:stop] for tensor in self._further))

    def checksum(self) -> str:
        """Return the SHA-256 of the data."""
        if self._args:
            return checksum(self._args)
        assert isinstance(self._data, Split)
        return checksum_data(self._data, *self._further)


def checksum_data(data: Split | Tensor, *more: Tensor) -> str:
    """Return the SHA-256 of stored values, labels and further arguments.

    That of an iterable data set covers its shape only, because its order may differ between
    passes.
    """
    values = data.values if isinstance(data, Split) else data
    if isinstance(values, SequentialItems):
        return f"iterable of {values.shape}, {values.dtype}"
    with seeded(0):  # a data set may transform its items at random
        return checksum([values, *more])


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
