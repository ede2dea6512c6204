"""Reading of minibatches ahead of their use, by a thread or by worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .containers import Container
from .items import DatasetItems

__all__ = ["read_ahead"]

T = TypeVar("T")
#: A minibatch that is being read, after its key.
Item = tuple[tuple[Tensor, T], Tensor]


def read_ahead(
    values: Container, keys: Iterable[tuple[Tensor, T]], device: torch.device, count: int
) -> Iterator[Item]:
    """Read minibatches of a container in order, and move them to a device.

    A thread reads ahead if reading depends on nothing but the index. Items of a data set are read
    by its worker processes, if any. Their random streams derive from torch's current seed, and the
    global generator is not used. A GPU gets copies from pinned memory.

    Arguments:
        values: the container.
        keys: pairs of rows and anything else, one per minibatch.
        device: the device.
        count: maximum number of minibatches that are read ahead.

    Yields:
        The keys, each with its examples ``(batch, *event_shape)``.
    """
    workers = values.num_workers if isinstance(values, DatasetItems) else 0
    if workers and count:
        yield from _read_by_workers(values, list(keys), device, workers)
    elif values.reads_ahead and count:
        yield from _read_by_thread(values, keys, device, count)
    else:
        for key in keys:
            yield key, _move(_pin(values.gather(key[0]), device), device)


def _read_by_thread(
    values: Container, keys: Iterable[tuple[Tensor, T]], device: torch.device, count: int
) -> Iterator[Item]:
    def read(index: Tensor) -> Tensor:
        return _pin(values.gather(index), device)

    pending: deque[tuple[tuple[Tensor, T], Future[Tensor]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="pyro_vae reader") as pool:
        try:
            for key in keys:
                pending.append((key, pool.submit(read, key[0])))
                if len(pending) > count:
                    done, future = pending.popleft()
                    yield done, _move(future.result(), device)
            while pending:
                done, future = pending.popleft()
                yield done, _move(future.result(), device)
        finally:
            for _, future in pending:
                future.cancel()


class _Minibatches(TorchDataset):
    """The minibatches of a container, by their rows."""

    def __init__(self, values: Container) -> None:
        self._values = values

    def __getitem__(self, index: Any) -> Tensor:
        return self._values.gather(index)


def _read_by_workers(
    values: Container, keys: list[tuple[Tensor, T]], device: torch.device, workers: int
) -> Iterator[Item]:
    loader = DataLoader(
        _Minibatches(values),
        batch_size=None,
        sampler=[index for index, _ in keys],
        num_workers=workers,
        # otherwise the seeds of the workers are drawn from the global generator
        generator=torch.Generator().manual_seed(torch.initial_seed()),
    )
    for key, stored in zip(keys, loader, strict=True):
        yield key, _move(_pin(stored, device), device)


def _pin(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
