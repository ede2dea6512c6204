"""How much of the time the device works: kernels of a GPU, operators of a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from job import Run

__all__ = ["covered", "profiled"]


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals: kernels that run at once count once."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def profiled(run: Run) -> dict[str, Any]:
    """Runs under torch's profiler, which itself takes time.

    Returns:
        ``busy_seconds``, in which kernels ran (on a CPU, in which torch's operators did), and
        ``wall_seconds``.
    """
    # only those who ask for it have torch
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    kind = "CUDA" if on_gpu else "CPU"
    events = [e for e in profiler.events() or [] if e.device_type.name == kind]
    busy = covered((e.time_range.start, e.time_range.end) for e in events)
    return {"busy_seconds": busy / 1e6, "wall_seconds": seconds}
