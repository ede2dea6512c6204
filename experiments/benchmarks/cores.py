"""Measurement of the cores and the shared cache that the machine currently provides.

The host of a virtual machine may temporarily schedule two virtual processors on one core, which
the guest cannot see: two threads then multiply no faster than one. Or it schedules them on cores
without a common cache: reading data that another thread wrote is then many times slower, which
matrix products and elementwise passes do not reveal.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from job import Job, Plan

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch",)
#: Size of the square matrices, and duration of each measurement in seconds.
_SIZE, _SECONDS = 512, 0.05
#: Elements of the array that threads exchange (2 MiB).
_EXCHANGED = 1 << 19


def plan_core_check(job: Job) -> Plan:
    """Plan a check of the cores.

    Returns:
        A plan whose runs return ``[speed-up, rate]``: the speed-up of all threads over one, about
        the number of threads if each has a core, and the data exchanges between threads per second.
    """
    a, b = torch.randn(_SIZE, _SIZE), torch.randn(_SIZE, _SIZE)
    exchanged = torch.ones(_EXCHANGED)
    out, threads = torch.empty(_SIZE, _SIZE), torch.get_num_threads()

    def matmul_rate(num_threads: int) -> float:
        torch.set_num_threads(num_threads)
        return _measure_rate(lambda: torch.mm(a, b, out=out))

    def exchange() -> None:
        nonlocal exchanged
        # each thread reads the half that the other one wrote
        exchanged = exchanged.flip(0)

    def run() -> list[float]:
        single, parallel = matmul_rate(1), matmul_rate(threads)
        return [parallel / single, _measure_rate(exchange)]

    return lambda count: run


def _measure_rate(work: Callable[[], object]) -> float:
    """Return the calls per second."""
    work()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        work()
        count += 1
    return count / (time.perf_counter() - start)


TASKS = {"step": plan_core_check, "iwae": plan_core_check, "evaluation": plan_core_check}
