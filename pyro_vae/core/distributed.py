"""Data-parallel training and evaluation in processes started by ``torchrun``.

A thin layer over ``torch.distributed`` (gloo on CPUs, NCCL on GPUs). With a single process every
function works and costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyro
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

__all__ = [
    "all_gather",
    "all_reduce_gradients",
    "broadcast_parameters",
    "check_same_across_ranks",
    "check_shardable",
    "is_first_failure",
    "is_main_process",
    "is_torchrun",
    "local_device",
    "main_process_first",
    "process_group",
    "rank",
    "rank_entropy",
    "rank_file",
    "rank_seed",
    "seed_by_rank",
    "shard",
    "world_size",
]

T = TypeVar("T")

#: Key-value store of torchrun, for communication outside of collectives.
_store: Any = None


def rank() -> int:
    """Return the rank of this process, 0 without ``torch.distributed``."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without ``torch.distributed``."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is rank 0, the process that writes files and prints."""
    return rank() == 0


def is_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of ``torchrun``, and leave it on exit.

    Does nothing if ``torchrun`` did not start this process or if a process group exists, e.g.
    from ``torch.distributed.init_process_group``. Inside, :func:`~pyro_vae.fit` and
    :func:`~pyro_vae.evaluate` shard their work; all processes must call them with the same
    arguments. After an exception there is no final barrier, as other processes may have ended:
    exit the process.

    Example::

        # torchrun --nproc-per-node 2 script.py
        with pv.distributed.process_group():
            pv.fit(vae, data.train)
            bounds = pv.evaluate(vae, data.test)
    """
    global _store
    if not is_torchrun() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available() and _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    # torch.optim imports this module at its first step, and its functions keep the current group
    # as a default argument: the group would never be freed, and its threads would abort on exit
    import_module("torch.distributed.nn.functional")
    _store, rank, world_size = next(iter(rendezvous("env://")))
    dist.init_process_group(store=_store, rank=rank, world_size=world_size)
    try:
        yield
    except BaseException:
        # destroy the gloo group, whose threads would abort the process; with NCCL this could block
        if not torch.cuda.is_available():
            dist.destroy_process_group()
        raise
    all_gather(None)  # barrier: wait until all processes are done
    dist.destroy_process_group()
    _store = None


def all_gather(value: T) -> list[T]:
    """Gather the values of all processes, in order of rank; also a barrier.

    Like every collective, it raises a ``ConnectionError`` if another process has ended.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _detect_lost_process():
        dist.all_gather_object(values, value)
    return values


def check_same_across_ranks(settings: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` that names the settings that differ between the processes, if any."""
    first, *others = all_gather(dict(settings))
    for number, other in enumerate(others, 1):
        different = [name for name in first if first[name] != other.get(name)]
        if different:
            raise ValueError(
                f"expected the same settings and data in all {world_size()} processes; got a "
                f"different {', '.join(different)} in process {number}: start all processes with "
                f"the same arguments"
            )


def shard(size: int) -> slice:
    """Return the contiguous shard of ``size`` items of this process; shard sizes differ by ≤ 1."""
    return slice(size * rank() // world_size(), size * (rank() + 1) // world_size())


def check_shardable(size: int) -> None:
    """Raise a ``ValueError`` if there are fewer examples than processes."""
    if size < world_size():
        raise ValueError(
            f"expected at least one example for each of {world_size()} processes; got {size}: "
            f"start fewer processes"
        )


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum gradients over the processes in place, with one all-reduce per dtype and device.

    A parameter with a gradient in only some of the processes has one in all of them afterwards;
    without a gradient anywhere, ``grad`` stays ``None``.
    """
    if world_size() == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in groups.values():
        _all_reduce_group(group)


def _all_reduce_group(parameters: list[Tensor]) -> None:
    has_grad = parameters[0].new_tensor([p.grad is not None for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([has_grad, *(g.flatten() for g in gradients)])
    with _detect_lost_process():
        dist.all_reduce(flat)
    has_grad, *sums = flat.split([len(parameters), *(p.numel() for p in parameters)])
    # tolist() synchronises with the GPU: avoid it unless a gradient is missing
    any_missing = any(p.grad is None for p in parameters)
    counts = has_grad.tolist() if any_missing else [1.0] * len(parameters)
    for parameter, total, count in zip(parameters, sums, counts, strict=True):
        if count:
            parameter.grad = total.view_as(parameter)


@torch.no_grad()
def broadcast_parameters(program: nn.Module) -> None:
    """Copy the parameters and buffers of rank 0 to all processes."""
    if world_size() == 1:
        return
    tensors = [*program.parameters(), *program.buffers()]
    message: list[Any] = [[t.cpu() for t in tensors] if is_main_process() else None]
    with _detect_lost_process():
        dist.broadcast_object_list(message)
    for tensor, value in zip(tensors, message[0], strict=True):
        tensor.copy_(value)


def rank_entropy() -> tuple[int, ...]:
    """Return additional seed entropy by which the processes get different random streams."""
    return () if world_size() == 1 else (rank(), world_size())


def rank_seed(seed: int) -> int:
    """Derive a seed for this process; ``seed`` itself with a single process."""
    if world_size() == 1:
        return seed
    return int(np.random.SeedSequence([seed, *rank_entropy()]).generate_state(1)[0])


def seed_by_rank() -> None:
    """Give each process its own random stream, seeded from a number drawn from the common one."""
    common = int(torch.randint(2**31, ()))
    pyro.set_rng_seed(rank_seed(common))


def rank_file(path: Path | None) -> Path | None:
    """Return the file of this process next to ``path``; ``path`` with a single process."""
    if path is None or world_size() == 1:
        return path
    return path.with_name(f"{path.name}.{rank() + 1}of{world_size()}")


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on the others, e.g. to download a file only once."""
    if not is_main_process():
        all_gather(None)
    yield
    if is_main_process():
        all_gather(None)


def local_device() -> torch.device:
    """Return the GPU of this process: the current one, or one GPU per process if distributed.

    Raises:
        ValueError: if there are more processes than GPUs on this machine.
    """
    if world_size() == 1:
        return torch.device("cuda")
    local_rank, count = _local_rank(), torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"expected a GPU for each process on this machine; got {count} for at least "
            f"{local_rank + 1} processes: start fewer, or use device cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def is_first_failure() -> bool:
    """Whether this process is the first to fail, so that a common error is printed once.

    Uses torchrun's store, which outlives the processes.
    """
    if _store is None:
        return True
    try:
        return _store.add("pyro_vae/failed", 1) == 1
    except RuntimeError:  # torchrun and its store have ended
        return is_main_process()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", rank() % max(1, torch.cuda.device_count())))


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _detect_lost_process() -> Iterator[None]:
    """Turn the error of a failed collective into a ``ConnectionError``."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"process {rank()} of {world_size()} lost its connection because another process "
            f"ended: see the error of that process ({reason})"
        ) from error
