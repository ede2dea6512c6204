"""Several processes at one task, started by ``torchrun``: who they are, what they tell each other.

With one process, which is the rule, everything here is there and costs nothing. Processes find
each other by ``torch.distributed``: tensors on the processor travel by gloo, on GPUs by NCCL.
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

#: Where processes that torchrun started leave word for each other outside of collectives.
_store: Any = None


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _together() else 1


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def is_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that ``torchrun`` has started, if it has, and parts at the end.

    Inside, :func:`~pyro_vae.fit` and :func:`~pyro_vae.evaluate` share their work among the
    processes, which all must call them, with the same arguments. Instead of this, somebody may
    call ``torch.distributed.init_process_group`` himself. After an exception nobody waits for
    the others, which may be gone: the process should end.

    Example::

        # torchrun --nproc-per-node 2 script.py
        with pv.distributed.launched():
            pv.fit(vae, data.train)
            bounds = pv.evaluate(vae, data.test)
    """
    global _store
    if not is_torchrun() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available() and _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    # torch.optim imports this at its first step, and its functions have the group that is there
    # then as a default: it would never be freed, and its threads abort the process at the end
    import_module("torch.distributed.nn.functional")
    _store, number, count = next(iter(rendezvous("env://")))
    dist.init_process_group(store=_store, rank=number, world_size=count)
    try:
        yield
    except BaseException:
        # gloo's threads would abort the process; NCCL's might wait for others for ever
        if not torch.cuda.is_available():
            dist.destroy_process_group()
        raise
    all_gather(None)  # nobody leaves while another still works
    dist.destroy_process_group()
    _store = None


def all_gather(value: T) -> list[T]:
    """The values of all processes, by rank, in all of them; nobody goes on before all are here.

    Raises:
        ConnectionError: if another process has ended.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _noticing():
        dist.all_gather_object(values, value)
    return values


def check_same_across_ranks(told: Mapping[str, Any]) -> None:
    """Refuses processes that were told different things.

    Raises:
        ValueError: naming what differs from the first process.
    """
    first, *others = all_gather(dict(told))
    for number, other in enumerate(others, 1):
        wrong = [name for name in first if first[name] != other.get(name)]
        if wrong:
            raise ValueError(
                f"expected the same settings and data in all {world_size()} processes; got another "
                f"{', '.join(wrong)} in process {number}: give all of them the same arguments"
            )


def shard(size: int) -> slice:
    """Which of so many things are this process's: neighbours, as many as others' give or take 1."""
    return slice(size * rank() // world_size(), size * (rank() + 1) // world_size())


def check_shardable(size: int) -> None:
    """
    Raises:
        ValueError: if a process would have none of so many data.
    """
    if size < world_size():
        raise ValueError(
            f"expected a datum for each of {world_size()} processes at least; got {size}: start fewer"
        )


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces gradients by their sums over the processes, in one message for each dtype.

    What has a gradient nowhere goes without; what has one in some of the processes has it in
    all of them afterwards.

    Raises:
        ConnectionError: if another process has ended.
    """
    if world_size() == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in groups.values():
        _sum_gradients(group)


def _sum_gradients(parameters: list[Tensor]) -> None:
    there = parameters[0].new_tensor([p.grad is not None for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([there, *(g.flatten() for g in gradients)])
    with _noticing():
        dist.all_reduce(flat)
    there, *sums = flat.split([len(parameters), *(p.numel() for p in parameters)])
    # read back where it matters alone: that waits for a GPU
    lacking = any(p.grad is None for p in parameters)
    somewhere = there.tolist() if lacking else [1.0] * len(parameters)
    for parameter, total, known in zip(parameters, sums, somewhere, strict=True):
        if known:
            parameter.grad = total.view_as(parameter)


@torch.no_grad()
def broadcast_parameters(program: nn.Module) -> None:
    """Gives a program the weights and buffers that it has in the first process."""
    if world_size() == 1:
        return
    held = [*program.parameters(), *program.buffers()]
    sent: list[Any] = [[t.cpu() for t in held] if is_main_process() else None]
    with _noticing():
        dist.broadcast_object_list(sent)
    for tensor, value in zip(held, sent[0], strict=True):
        tensor.copy_(value)


def rank_entropy() -> tuple[int, ...]:
    """What to seed with besides the seed, so that processes draw different numbers."""
    return () if world_size() == 1 else (rank(), world_size())


def rank_seed(seed: int) -> int:
    """A seed of this process's own; ``seed`` itself if there are no others."""
    if world_size() == 1:
        return seed
    return int(np.random.SeedSequence([seed, *rank_entropy()]).generate_state(1)[0])


def seed_by_rank() -> None:
    """From now on every process draws numbers of its own, seeded by one that all have drawn."""
    common = int(torch.randint(2**31, ()))
    pyro.set_rng_seed(rank_seed(common))


def rank_file(path: Path | None) -> Path | None:
    """The file of this process beside ``path``; ``path`` itself if there are no others."""
    if path is None or world_size() == 1:
        return path
    return path.with_name(f"{path.name}.{rank() + 1}of{world_size()}")


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process goes first, the others when it is done: they find what it fetched."""
    if not is_main_process():
        all_gather(None)
    yield
    if is_main_process():
        all_gather(None)


def local_device() -> torch.device:
    """The GPU of this process: the current one, or with several processes one for each.

    Raises:
        ValueError: if there are more processes than GPUs on this machine.
    """
    if world_size() == 1:
        return torch.device("cuda")
    here, count = _local_rank(), torch.cuda.device_count()
    if here >= count:
        raise ValueError(
            f"expected a GPU for each process on this machine; got {count} for {here + 1} "
            f"processes or more: start fewer, or use device cpu"
        )
    torch.cuda.set_device(here)
    return torch.device("cuda", here)


def is_first_failure() -> bool:
    """Whether this process is the first to ask: what all stumble over is told once.

    Answered by torchrun's own store, which is there when processes are not.
    """
    if _store is None:
        return True
    try:
        return _store.add("pyro_vae/failed", 1) == 1
    except RuntimeError:  # it is gone, and torchrun with it
        return is_main_process()


def _local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank() % max(1, torch.cuda.device_count())))


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _noticing() -> Iterator[None]:
    """Says it in one sentence when the others are no longer there."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"process {rank()} of {world_size()} has lost the others, one of which has ended: what it "
            f"says tells why ({reason})"
        ) from error
