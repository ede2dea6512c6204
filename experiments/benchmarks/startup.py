"""Time of imports and to the first result, in fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from typing import Any

from cases import WIDE
from harness import FOLDER, Case, ContenderError, Harness, log, make_environment
from job import Job
from summaries import summarise, summarise_ratios, take_turns

__all__ = ["measure_startup", "time_code"]

CLOCK = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
FIRST_STEP = (
    "import sys; sys.path.insert(0, {folder!r}); import {module} as m; from job import Job, "
    "make_inputs; job = Job(**{options!r}); m.TASKS[job.task](job)(make_inputs(job)(1))"
)


def measure_startup(harness: Harness) -> dict[str, dict[str, Any]]:
    """Measure imports, and the time from the imports to the end of the first step."""
    problem = harness.problem(Case({}, {}, **WIDE, count=1, epochs=0))
    job = Job("step", problem, device=harness.device)

    def first_step(module: str, compiled: bool = False) -> str:
        options = asdict(replace(job, compiled=compiled))
        return FIRST_STEP.format(folder=str(FOLDER), module=module, options=options)

    cases = {
        "import": {"ours": "import pyro_vae", "torch_and_pyro": "import torch, pyro"},
        "first step": {
            "ours": first_step("ours"),
            "pyro": first_step("peers.pyro_svi"),
            "ours_compiled": first_step("ours", compiled=True),
            "ours_compiled_cold": first_step("ours", compiled=True),
        },
    }
    if harness.effort < 1:
        del cases["first step"]["ours_compiled_cold"]  # half a minute each
    results = {}
    for name, codes in cases.items():
        log(f"startup: {name}")
        rounds = harness.scale(11 if name == "import" else 5, 3)

        def run(contender: str, codes: dict[str, str] = codes) -> float:
            return time_code(harness, codes[contender], cold=contender.endswith("cold"))

        take_turns(list(codes), 1, run)  # fills the caches
        seconds = take_turns(list(codes), rounds, run)
        results[name] = {
            "threads": harness.threads,
            "rounds": rounds,
            "seconds": {n: summarise(values) for n, values in seconds.items()},
            "ratios": summarise_ratios(seconds),
        }
    return results


def time_code(harness: Harness, code: str, cold: bool = False) -> float:
    """Return the seconds of code in a fresh interpreter, with an empty Inductor cache if cold."""
    with tempfile.TemporaryDirectory() as empty:
        cache = empty if cold else str(harness.folder / "inductor")
        environment = make_environment(harness.threads, harness.device)
        environment["TORCHINDUCTOR_CACHE_DIR"] = cache
        done = subprocess.run(
            [sys.executable, "-c", CLOCK.format(code)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ContenderError(f"expected seconds from {code[:60]!r}…; got {last_line}")
    return float(done.stdout.split()[-1])
