"""Whether the machine gives its cores, and a cache that they share, at this moment.

The host of a virtual machine may put two of its processors on one core for some seconds, of
which the machine's own figures show nothing: two threads then multiply no faster than one. Or
it puts them where they share no cache, and what one thread wrote the other reads many times
slower, of which neither products nor passes that each thread makes over its own part show
anything.
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
#: Numbers in an array that threads hand over to each other: 2 MiB.
_NUMBERS = 1 << 19


def there(job: Job) -> Plan:
    """``[speed-up, rate]``: of all threads over one, and how often data changes hands in a second.

    The speed-up is about the threads' number if every one has a core.
    """
    a, b = torch.randn(_SIZE, _SIZE), torch.randn(_SIZE, _SIZE)
    handed = torch.ones(_NUMBERS)
    out, threads = torch.empty(_SIZE, _SIZE), torch.get_num_threads()

    def products(number: int) -> float:
        torch.set_num_threads(number)
        return _rate(lambda: torch.mm(a, b, out=out))

    def hand_over() -> None:
        nonlocal handed
        # whoever wrote the first half reads the second
        handed = handed.flip(0)

    def look() -> list[float]:
        one, every = products(1), products(threads)
        return [every / one, _rate(hand_over)]

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
