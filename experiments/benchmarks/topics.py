"""What is measured: a step, an IWAE step, L_K, imports."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from job import Job
from process import WorkerError, environment
from rounds import agree_on_estimates, agree_on_losses, interleaved, ratio, ratios, summary
from setting import Contender, Measured, Setting, say

__all__ = ["evaluation", "import_time", "iwae", "step"]

COMPILED = {"compiled": True}


def best(setting: Setting) -> dict[str, Any]:
    """Compiled, unless there is no time for that."""
    return {} if setting.quick else COMPILED


def step(setting: Setting) -> dict[str, Any]:
    """A training step of 784–400–20 on minibatches of 128."""
    # training is long: whoever has waited finds caches cold, for which short turns pay most
    count = 5 if setting.quick else 300
    contenders = [
        Contender("ours", "ours", count, options=best(setting)),
        Contender("ours_eager", "ours", count),
        Contender("pyro", "peers.pyro_svi", count),
        Contender("torch", "peers.plain_torch", count),
        Contender("torch_compiled", "peers.plain_torch", count, options=COMPILED),
        Contender("numpyro", "peers.numpyro_scan", count, own=True),
        Contender("pythae", "peers.pythae_trainer", count, own=True),
        Contender("limit", "limits", 1, options=best(setting)),
    ]
    if setting.quick:
        contenders = without(contenders, "ours_eager", "torch_compiled")
    job = Job("step", setting.problem((400,), 20, 1 if setting.quick else 5))
    measured = setting.measure(contenders, job)
    agree_on_losses(losses(measured))
    return {
        "what": "a training step: 784–400–20, tanh, Bernoulli, batch 128, Adam, on 4000 MNIST "
        "digits binarised once, gathered from memory; seconds per step",
        **told(setting, measured),
        "losses": losses(measured),
    }


def iwae(setting: Setting) -> dict[str, Any]:
    """A training step of IWAE with k = 50 of 784–200–200–50 on minibatches of 20."""
    count = 2 if setting.quick else 120
    contenders = [
        Contender("ours", "ours", count, options=best(setting)),
        Contender("ours_eager", "ours", count),
        Contender("pyro", "peers.pyro_svi", count),
        Contender("limit", "limits", 1, options=best(setting)),
    ]
    problem = setting.problem((200, 200), 50, 1 if setting.quick else 10)
    job = Job("iwae", problem, batch=20, num_samples=5 if setting.quick else 50)
    measured = setting.measure(contenders, job)
    agree_on_losses(losses(measured))
    return {
        "what": f"a training step of IWAE: k = {job.num_samples}, 784–200–200–50, tanh, "
        f"Bernoulli, batch 20, Adam; seconds per step",
        **told(setting, measured),
        "losses": losses(measured),
    }


def evaluation(setting: Setting) -> dict[str, Any]:
    """L_5000 of MNIST digits under 784–200–200–50."""
    few, many, draws = (2, 4, 200) if setting.quick else (40, 1000, 5000)
    if setting.device == "cuda":
        many = 10_000
    contenders = [
        Contender("ours", "ours", many),
        Contender("ours_evaluate", "ours", many, options={"task": "evaluate"}),
        Contender("pyro", "peers.pyro_svi", few),
        Contender("jax", "peers.jax_jit", few, own=True),
        Contender("pythae", "peers.pythae_trainer", few, own=True),
        Contender("limit", "limits", 1, options=best(setting)),
    ]
    if setting.quick:
        contenders = without(contenders, "ours_evaluate", "limit")
    problem = setting.problem((200, 200), 50, 1 if setting.quick else 10)
    job = Job("evaluation", problem, num_samples=draws)
    measured = setting.measure(contenders, job, None if setting.quick else 7)
    estimates = {name: rows for name, rows in measured.values.items() if name != "limit"}
    agree_on_estimates(estimates)
    ours = measured.seconds["ours"]
    return {
        "what": f"L_{draws} of {many} MNIST digits (peers: {few}) under 784–200–200–50, tanh, "
        f"Bernoulli, float32; seconds per image and sample",
        **told(setting, measured, draws),
        "seconds_of_all_images": summary(ours),
        "mean_estimate": {
            name: [round(sum(row[:few]) / few, 3) for row in rows]
            for name, rows in estimates.items()
        },
    }


def import_time(setting: Setting) -> dict[str, Any]:
    """Fresh interpreters: an import, and from the import to the end of the first step."""
    rounds = 2 if setting.quick else 11
    python = Path(sys.executable)
    imports = {
        "ours": "import pyro_vae",
        "torch_and_pyro": "import torch, pyro",
    }
    clock = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
    commands = {name: [python, "-c", clock.format(code)] for name, code in imports.items()}
    # what is read from disk, and byte code, is there after the first
    interleaved(list(commands), 1, lambda name: _seconds(setting, commands[name]))
    imported = interleaved(list(commands), rounds, lambda name: _seconds(setting, commands[name]))
    say("first step")
    return {
        "what": "in fresh interpreters, seconds of an import, and from there to the end of the "
        "first step of 784–400–20, batch 128; Inductor's cache empty (cold) or not (warm)",
        "rounds": rounds,
        "threads": setting.threads,
        "seconds": {name: summary(found) for name, found in imported.items()},
        "ratios": {"ours / torch_and_pyro": ratio(imported["ours"], imported["torch_and_pyro"])},
        "seconds_to_first_step": _first_steps(setting, python),
    }


def _first_steps(setting: Setting, python: Path) -> dict[str, Any]:
    rounds = 1 if setting.quick else 5
    script = str(Path(__file__).with_name("startup.py"))
    job = Job("step", setting.problem((400,), 20))
    compiled = replace(job, compiled=True)
    words = {
        "ours_eager": ["ours", job.dumps()],
        "ours_compiled_warm": ["ours", compiled.dumps()],
        "ours_compiled_cold": ["ours", compiled.dumps()],
        "pyro": ["peers.pyro_svi", job.dumps()],
    }
    warm = setting.folder / "inductor"
    turn = iter(range(1_000_000))

    def first(name: str) -> float:
        cold = setting.folder / f"inductor-{next(turn)}"
        cache = cold if name.endswith("cold") else warm
        return _seconds(setting, [python, script, *words[name]], cache)

    first("ours_compiled_warm")  # fills the cache
    return {name: summary(found) for name, found in interleaved(list(words), rounds, first).items()}


def _seconds(setting: Setting, command: list[Any], cache: Path | None = None) -> float:
    """What a command prints."""
    env = environment(setting.threads, setting.device)
    env |= {"TORCHINDUCTOR_CACHE_DIR": str(cache)} if cache else {}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise WorkerError(f"expected seconds from {command[1:3]}; got {last}")
    return float(done.stdout)


def without(contenders: list[Contender], *names: str) -> list[Contender]:
    """Those that are left for a quick run."""
    return [c for c in contenders if c.name not in names]


def losses(measured: Measured) -> dict[str, list[float]]:
    """The mean loss of each round, nats per datum."""
    return {
        name: [round(row[0], 3) for row in rows]
        for name, rows in measured.values.items()
        if name != "limit"
    }


def told(setting: Setting, measured: Measured, each: int = 1) -> dict[str, Any]:
    """What the files of all topics say alike; a step or image counts as ``each``."""
    seconds = measured.seconds_per(each)
    result: dict[str, Any] = {
        "rounds": len(seconds["ours"]),
        "threads": setting.threads,
        "device": setting.device,
        "rounds_that_count": {n: sum(map(math.isfinite, s)) for n, s in measured.seconds.items()},
        "rounds_steady": measured.steady,
        "per_round": measured.counts,
        "seconds": {name: summary(found) for name, found in seconds.items()},
        "ratios": ratios(seconds),
        "contenders": measured.told,
    }
    if "limit" in seconds:
        parts = zip(*measured.limits, strict=True)
        names = ("all", "products", "elements", "bytes")
        result["limit"] = {n: summary(p) for n, p in zip(names, parts, strict=True)}
        result["fraction_of_limit"] = ratio(seconds["limit"], seconds["ours"])
    busy = {n: t["busy_seconds"] / each for n, t in measured.told.items() if "busy_seconds" in t}
    if busy:
        # the profiler slows what it watches: its kernels' time beside the time without it
        ours = [s / busy["ours"] for s in seconds["ours"]]
        result["ratios"]["ours / its kernels"] = summary(ours)
        result["utilisation"] = {
            name: summary([kernels / s for s in seconds[name]]) for name, kernels in busy.items()
        }
    return result
