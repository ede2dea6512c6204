"""Whether the machine gives its cores at this moment: products of one thread and of all.

The host of a virtual machine may put two of its processors on one core for some seconds, of
which the machine's own figures show nothing: two threads then multiply no faster than one.
"""

from __future__ import annotations

import time

import torch
from job import Job, Plan

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch",)
#: Rows and columns of the product, and seconds of each measurement.
_SIZE, _SECONDS = 512, 0.05


def speed_up(job: Job) -> Plan:
    """``[speed-up]`` of all threads over one; about their number if every one has a core."""
    a, b = torch.randn(_SIZE, _SIZE), torch.randn(_SIZE, _SIZE)
    out, threads = torch.empty(_SIZE, _SIZE), torch.get_num_threads()

    def rate(number: int) -> float:
        torch.set_num_threads(number)
        torch.mm(a, b, out=out)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < _SECONDS:
            torch.mm(a, b, out=out)
            count += 1
        return count / (time.perf_counter() - start)

    return lambda count: lambda: [rate(threads) / rate(1)]


TASKS = {"step": speed_up, "iwae": speed_up, "evaluation": speed_up}
