"""Benchmark topics: a training step, an IWAE step, L_K and import time."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Contender, Harness, Measurements, log
from job import Job
from process import WorkerError, make_environment
from rounds import (
    check_estimates_agree,
    check_losses_agree,
    interleave,
    summarise,
    summarise_ratio,
    summarise_ratios,
)

__all__ = ["measure_evaluation", "measure_import_time", "measure_iwae", "measure_step"]

COMPILED = {"compiled": True}


def compile_options(harness: Harness) -> dict[str, Any]:
    """Return the options that enable compilation, except in a quick run."""
    return {} if harness.quick else COMPILED


def measure_step(harness: Harness) -> dict[str, Any]:
    """Measure a training step of 784–400–20 on minibatches of 128."""
    # caches are cold at the start of a turn, unlike in real training: take many steps per turn
    count = 5 if harness.quick else 300
    contenders = [
        Contender("ours", "ours", count, options=compile_options(harness)),
        Contender("ours_eager", "ours", count),
        Contender("pyro", "peers.pyro_svi", count),
        Contender("torch", "peers.plain_torch", count),
        Contender("torch_compiled", "peers.plain_torch", count, options=COMPILED),
        Contender("numpyro", "peers.numpyro_scan", count, needs_peers=True),
        Contender("pythae", "peers.pythae_trainer", count, needs_peers=True),
        Contender("limit", "limits", 1, options=compile_options(harness)),
    ]
    if harness.quick:
        contenders = exclude(contenders, "ours_eager", "torch_compiled")
    job = Job("step", harness.problem((400,), 20, 1 if harness.quick else 5))
    measured = harness.measure(contenders, job)
    check_losses_agree(mean_losses(measured))
    return {
        "what": "a training step: 784–400–20, tanh, Bernoulli, batch 128, Adam, on 4000 MNIST "
        "digits binarised once, gathered from memory; seconds per step",
        **make_result(harness, measured),
        "losses": mean_losses(measured),
    }


def measure_iwae(harness: Harness) -> dict[str, Any]:
    """Measure a training step of IWAE with k = 50 of 784–200–200–50 on minibatches of 20."""
    count = 2 if harness.quick else 120
    contenders = [
        Contender("ours", "ours", count, options=compile_options(harness)),
        Contender("ours_eager", "ours", count),
        Contender("pyro", "peers.pyro_svi", count),
        Contender("limit", "limits", 1, options=compile_options(harness)),
    ]
    problem = harness.problem((200, 200), 50, 1 if harness.quick else 10)
    job = Job("iwae", problem, batch=20, num_samples=5 if harness.quick else 50)
    measured = harness.measure(contenders, job)
    check_losses_agree(mean_losses(measured))
    return {
        "what": f"a training step of IWAE: k = {job.num_samples}, 784–200–200–50, tanh, "
        f"Bernoulli, batch 20, Adam; seconds per step",
        **make_result(harness, measured),
        "losses": mean_losses(measured),
    }


def measure_evaluation(harness: Harness) -> dict[str, Any]:
    """Measure L_5000 of MNIST digits under 784–200–200–50."""
    peer_count, count, num_samples = (2, 4, 200) if harness.quick else (40, 1000, 5000)
    if harness.device == "cuda":
        count = 10_000
    contenders = [
        Contender("ours", "ours", count),
        Contender("ours_evaluate", "ours", count, options={"task": "evaluate"}),
        Contender("pyro", "peers.pyro_svi", peer_count),
        Contender("jax", "peers.jax_jit", peer_count, needs_peers=True),
        Contender("pythae", "peers.pythae_trainer", peer_count, needs_peers=True),
        Contender("limit", "limits", 1, options=compile_options(harness)),
    ]
    if harness.quick:
        contenders = exclude(contenders, "ours_evaluate", "limit")
    problem = harness.problem((200, 200), 50, 1 if harness.quick else 10)
    job = Job("evaluation", problem, num_samples=num_samples)
    measured = harness.measure(contenders, job, None if harness.quick else 7)
    estimates = {name: rows for name, rows in measured.values.items() if name != "limit"}
    check_estimates_agree(estimates)
    ours = measured.seconds["ours"]
    return {
        "what": f"L_{num_samples} of {count} MNIST digits (peers: {peer_count}) under "
        f"784–200–200–50, tanh, Bernoulli, float32; seconds per image and sample",
        **make_result(harness, measured, num_samples),
        "seconds_of_all_images": summarise(ours),
        "mean_estimate": {
            name: [round(sum(row[:peer_count]) / peer_count, 3) for row in rows]
            for name, rows in estimates.items()
        },
    }


def measure_import_time(harness: Harness) -> dict[str, Any]:
    """Measure import time and time to the end of the first step, in fresh interpreters."""
    rounds = 2 if harness.quick else 11
    python = Path(sys.executable)
    imports = {
        "ours": "import pyro_vae",
        "torch_and_pyro": "import torch, pyro",
    }
    clock = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
    commands = {name: [python, "-c", clock.format(code)] for name, code in imports.items()}
    # the first round warms the disk cache and writes byte code
    interleave(list(commands), 1, lambda name: _run_timed(harness, commands[name]))
    imported = interleave(list(commands), rounds, lambda name: _run_timed(harness, commands[name]))
    log("first step")
    return {
        "what": "seconds of an import and from the import to the end of the first step of "
        "784–400–20, batch 128, in fresh interpreters; Inductor's cache empty (cold) or not (warm)",
        "rounds": rounds,
        "threads": harness.threads,
        "seconds": {name: summarise(values) for name, values in imported.items()},
        "ratios": {
            "ours / torch_and_pyro": summarise_ratio(imported["ours"], imported["torch_and_pyro"])
        },
        "seconds_to_first_step": _time_first_steps(harness, python),
    }


def _time_first_steps(harness: Harness, python: Path) -> dict[str, Any]:
    rounds = 1 if harness.quick else 5
    script = str(Path(__file__).with_name("startup.py"))
    job = Job("step", harness.problem((400,), 20))
    compiled = replace(job, compiled=True)
    args = {
        "ours_eager": ["ours", job.dumps()],
        "ours_compiled_warm": ["ours", compiled.dumps()],
        "ours_compiled_cold": ["ours", compiled.dumps()],
        "pyro": ["peers.pyro_svi", job.dumps()],
    }
    warm = harness.folder / "inductor"
    counter = iter(range(1_000_000))

    def time_first_step(name: str) -> float:
        cold = harness.folder / f"inductor-{next(counter)}"
        cache = cold if name.endswith("cold") else warm
        return _run_timed(harness, [python, script, *args[name]], cache)

    time_first_step("ours_compiled_warm")  # fills the cache
    seconds = interleave(list(args), rounds, time_first_step)
    return {name: summarise(values) for name, values in seconds.items()}


def _run_timed(harness: Harness, command: list[Any], cache: Path | None = None) -> float:
    """Run a command and return the seconds that it prints."""
    env = make_environment(harness.threads, harness.device)
    env |= {"TORCHINDUCTOR_CACHE_DIR": str(cache)} if cache else {}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise WorkerError(f"expected seconds from {command[1:3]}; got {last_line}")
    return float(done.stdout)


def exclude(contenders: list[Contender], *names: str) -> list[Contender]:
    """Return the contenders without those named."""
    return [c for c in contenders if c.name not in names]


def mean_losses(measured: Measurements) -> dict[str, list[float]]:
    """Return the mean loss of each round, in nats per datum."""
    return {
        name: [round(row[0], 3) for row in rows]
        for name, rows in measured.values.items()
        if name != "limit"
    }


def make_result(harness: Harness, measured: Measurements, samples: int = 1) -> dict[str, Any]:
    """Return the entries common to all result files; an image takes ``samples`` samples."""
    seconds = measured.seconds_per(samples)
    result: dict[str, Any] = {
        "rounds": len(seconds["ours"]),
        "threads": harness.threads,
        "device": harness.device,
        "rounds_that_count": {n: sum(map(math.isfinite, s)) for n, s in measured.seconds.items()},
        "rounds_steady": measured.steady,
        "per_round": measured.counts,
        "seconds": {name: summarise(values) for name, values in seconds.items()},
        "ratios": summarise_ratios(seconds),
        "contenders": measured.info,
    }
    if "limit" in seconds:
        parts = zip(*measured.limits, strict=True)
        names = ("all", "products", "elements", "bytes")
        result["limit"] = {n: summarise(p) for n, p in zip(names, parts, strict=True)}
        result["fraction_of_limit"] = summarise_ratio(seconds["limit"], seconds["ours"])
    busy = {
        name: info["busy_seconds"] / samples
        for name, info in measured.info.items()
        if "busy_seconds" in info
    }
    if busy:
        # the profiler adds overhead: relate its kernel times to unprofiled wall times
        ours = [s / busy["ours"] for s in seconds["ours"]]
        result["ratios"]["ours / its kernels"] = summarise(ours)
        result["utilisation"] = {
            name: summarise([kernels / s for s in seconds[name]]) for name, kernels in busy.items()
        }
    return result
