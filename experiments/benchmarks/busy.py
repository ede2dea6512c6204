"""Time for which the device is busy: kernels of a GPU, operators of a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from job import Run

__all__ = ["profile_run", "union_length"]


def union_length(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals: concurrent kernels count once."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def profile_run(run: Run) -> dict[str, Any]:
    """Run under torch's profiler, which adds overhead.

    Returns:
        ``busy_seconds``, the time covered by kernels (on a CPU, by torch's operators), and
        ``wall_seconds``.
    """
    # imported lazily: some contenders' environments lack torch
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
    busy = union_length((e.time_range.start, e.time_range.end) for e in events)
    return {"busy_seconds": busy / 1e6, "wall_seconds": seconds}
