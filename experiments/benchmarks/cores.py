"""Whether the machine gives its cores and its cache at this moment.

The host of a virtual machine may put two of its processors on one core for some seconds, of
which the machine's own figures show nothing: two threads then multiply no faster than one. Or
its other guests fill the cache that all share, and what a step goes through comes from memory,
several times slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from job import Job, Plan

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch",)
#: Rows and columns of the product, and seconds of each measurement.
_SIZE, _SECONDS = 512, 0.05
#: Numbers in each of three arrays that are passed over: 12 MiB, about what a step goes through.
_NUMBERS = 1 << 20


def there(job: Job) -> Plan:
    """``[speed-up, rate]``: of all threads over one, and passes over some megabytes in a second.

    The speed-up is about the threads' number if every one has a core.
    """
    a, b = torch.randn(_SIZE, _SIZE), torch.randn(_SIZE, _SIZE)
    c, d, e = torch.ones(3, _NUMBERS)
    out, threads = torch.empty(_SIZE, _SIZE), torch.get_num_threads()

    def products(number: int) -> float:
        torch.set_num_threads(number)
        return _rate(lambda: torch.mm(a, b, out=out))

    def look() -> list[float]:
        one, all_ = products(1), products(threads)
        return [all_ / one, _rate(lambda: torch.add(c, d, out=e))]

    return lambda count: look


def _rate(work: Callable[[], object]) -> float:
    """How often in a second."""
    work()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        work()
        count += 1
    return count / (time.perf_counter() - start)


TASKS = {"step": there, "iwae": there, "evaluation": there}
