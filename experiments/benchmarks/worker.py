"""Process of a contender: the part that runs in the contender's own interpreter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from job import Job, Run, make_inputs

__all__ = ["answer", "serve"]


def serve(channel: Any, module: str, options: dict[str, Any], threads: int) -> None:
    """Prepare a contender, send the versions of its packages, and answer requests."""
    if hasattr(os, "sched_setaffinity"):
        # libraries choose their number of threads accordingly
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    job, contender = Job(**options), import_module(module)
    run, next_inputs = contender.TASKS[job.task](job), make_inputs(job)
    channel.send({package: metadata.version(package) for package in contender.PACKAGES})
    for count, warm in channel:
        channel.send(answer(run, next_inputs, count, warm))


def answer(run: Run, next_inputs: Callable[[int], Any], count: int, warm: int) -> Any:
    """Return seconds and values of ``count`` steps or images, after ``warm`` untimed ones.

    With a negative ``count``, return the seconds of the kernels on the GPU.
    """
    if count < 0:
        # imported here, because some contenders' environments lack torch
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run(next_inputs(-count))
        return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    if warm:
        run(next_inputs(warm))
    inputs = next_inputs(count)
    start, cpu_start = time.perf_counter(), time.process_time()
    values = run(inputs)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "values": values}
