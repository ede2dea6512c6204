"""Worker process of a contender, driven by JSON lines on stdin and stdout.

    python worker.py MODULE JOB THREADS

After setup it sends ``{"versions": …, "seconds": …}`` with the setup time. It then answers each
request with one line:

- ``{"run": 100, "warm": 30}`` runs 30 untimed and 100 timed steps, and returns the seconds and
  values of the latter;
- ``{"memory": true}`` returns the peak memory above imports and data;
- ``{"profile": 100}`` returns the time for which the device was busy.

An error is sent as ``{"error": …}``.
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
    # keep stdout for answers: whatever libraries print to it goes to stderr
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        limit_cores(int(threads))
        contender, job = import_module(module), Job.loads(text)
        _ = job.data
        memory = PeakMemory()
        start = time.perf_counter()
        plan = contender.TASKS[job.task](job)
        seconds = time.perf_counter() - start
        versions = {package: metadata.version(package) for package in contender.PACKAGES}
        send({"seconds": seconds, "versions": versions})
        for line in sys.stdin:
            send(handle_request(json.loads(line), plan, memory))
    except Exception as error:
        send({"error": f"{type(error).__name__}: {error}"})
        raise


def handle_request(request: dict[str, Any], plan: Plan, memory: PeakMemory) -> dict[str, Any]:
    """Return the answer to one request."""
    if "memory" in request:
        return memory.measure()
    if "profile" in request:
        return busy.profile_run(plan(request["profile"]))
    if "warm" in request:
        # caches are cold after waiting for the other contenders
        plan(request["warm"])()
    run = plan(request["run"])
    start, cpu_start = time.perf_counter(), time.process_time()
    values = run()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "values": values}


def limit_cores(threads: int) -> None:
    """Restrict the process to ``threads`` cores; libraries choose their threads accordingly."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class PeakMemory:
    """Peak memory of this process since creation of this object, on Linux."""

    def __init__(self) -> None:
        with suppress(OSError):
            # resets the kernel's peak resident size
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _read_mib("VmRSS")

    def measure(self) -> dict[str, float | None]:
        """Return the memory at creation and the peak above it, in MiB."""
        before, peak = self.before, _read_mib("VmHWM")
        above = None if peak is None or before is None else round(peak - before, 1)
        return {"before_mib": before, "above_mib": above}


def _read_mib(name: str) -> float | None:
    status = Path("/proc/self/status")
    text = status.read_text() if status.is_file() else ""
    match = re.search(rf"{name}:\s+(\d+) kB", text)
    return round(int(match[1]) / 1024, 1) if match else None


if __name__ == "__main__":
    main(*sys.argv[1:])
