"""The process that a contender works in: one line in, one line out, nothing in between.

    python worker.py MODULE JOB THREADS

It first answers ``{"versions": …, "seconds": …}``, the time that making ready took. After that
a line ``{"run": 100, "warm": 30}`` is 30 steps that do not count and 100 that do, answered with
the seconds and values of these; ``{"memory": true}`` asks for the most memory it had above its
imports and data; ``{"profile": 100}`` for how long the device was busy. What goes wrong is
``{"error": …}``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import busy
from job import Job, Plan

__all__ = ["main"]


def main(module: str, text: str, threads: str) -> None:
    # libraries print what they like; the line to the driver is not theirs
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        keep_to(int(threads))
        contender, job = import_module(module), Job.loads(text)
        _ = job.data
        memory = Memory()
        start = time.perf_counter()
        plan = contender.TASKS[job.task](job)
        seconds = time.perf_counter() - start
        say({"seconds": seconds, "versions": {p: metadata.version(p) for p in contender.PACKAGES}})
        for line in sys.stdin:
            say(answer(json.loads(line), plan, memory))
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        raise


def answer(request: dict[str, Any], plan: Plan, memory: Memory) -> dict[str, Any]:
    if "memory" in request:
        return memory.above()
    if "profile" in request:
        return busy.profiled(plan(request["profile"]))
    if "warm" in request:
        # a process that has waited finds its memory cold, which costs short turns most
        plan(request["warm"])()
    run = plan(request["run"])
    start = time.perf_counter()
    values = run()
    return {"seconds": time.perf_counter() - start, "values": values}


def keep_to(threads: int) -> None:
    """Lets the process have so many cores, from which every library counts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Memory:
    """The most memory this process has had since now, where the kernel tells."""

    def __init__(self) -> None:
        with suppress(OSError):
            # from here on the kernel's high-water mark is that of what follows
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _mib("VmRSS")

    def above(self) -> dict[str, float | None]:
        before, peak = self.before, _mib("VmHWM")
        above = None if peak is None or before is None else round(peak - before, 1)
        return {"before_mib": before, "above_mib": above}


def _mib(name: str) -> float | None:
    status = Path("/proc/self/status")
    text = status.read_text() if status.is_file() else ""
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    return round(int(found[1]) / 1024, 1) if found else None


if __name__ == "__main__":
    main(*sys.argv[1:])
