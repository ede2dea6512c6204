"""Measurement of contenders in turns, each in a separate process.

The speed of a shared machine drifts by more than the contenders differ. Contenders therefore take
turns, and ratios are computed within each round of turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from multiprocessing import get_context
from typing import Any

import job as jobs
import numpy as np
import torch
from cases import SELF_TIMED, Case
from job import BenchmarkError, Job
from ours import make_problem

from pyro_vae.compiler.matmul import has_bfloat16

#: Tolerances: of losses, relative; of estimates whose products are rounded to bfloat16, in nats.
LOSS_TOLERANCE, BFLOAT16_TOLERANCE = 0.03, 0.2


class Worker(ProcessPoolExecutor):
    """A contender in a new process, which is idle between calls.

    Raises:
        BenchmarkError: in any call, if the contender has failed or its process has ended.
    """

    def __init__(self, name: str, module: str, job: Job) -> None:
        super().__init__(1, get_context("spawn"))
        self.name = name
        self.call(jobs.start, module, job)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the process."""
        try:
            return self.submit(jobs.call, function, *args).result()
        except (BrokenProcessPool, BenchmarkError) as error:
            self.shutdown()
            got = "the end of its process" if isinstance(error, BrokenProcessPool) else error
            message = f"expected the contender {self.name!r} to answer; got {got}"
            raise BenchmarkError(message) from error


def take_turns(
    names: Sequence[str], rounds: int, work: Callable[[str], Any]
) -> dict[str, list[Any]]:
    """Return the results of ``work(name)`` in each round; rounds begin with another contender."""
    results: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            results[name].append(work(name))
    return results


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles to four digits."""
    low, median, high = (float(f"{q:.4g}") for q in np.percentile(values, [25, 50, 75]))
    return {"median": median, "quartiles": [low, high]}


def summarise_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return the ratio of each variant of ours to each other contender, round by round."""
    pairs = [(a, b) for a in seconds if a.startswith("ours") for b in seconds if a != b]
    return {
        f"{a} / {b}": summarise([x / y for x, y in zip(seconds[a], seconds[b], strict=True)])
        for a, b in pairs
    }


def check_agreement(values: Mapping[str, Sequence[Sequence[float]]], relative: float = 0) -> None:
    """Check that the contenders' means of the values common to all, by round, agree.

    Mean losses may differ by a fraction of their median, ``relative``: noise is 1 to 2 %, but
    without the KL divergence they would be off by 10 %, without an optimiser by 20 % soon.
    The Monte Carlo error of estimates (``relative`` 0) is found from their spread over rounds,
    pooled over contenders, because all draw as many samples from the same q. Five standard errors
    are a false-alarm rate of 1e-4 with 20 degrees of freedom.
    """
    common = min(len(row) for rows in values.values() for row in rows)
    means = {name: [np.mean(row[:common]) for row in rows] for name, rows in values.items()}
    center = float(np.nanmedian([np.mean(rows) for rows in means.values()]))
    variance = np.mean([np.var(rows, ddof=1) / len(rows) for rows in means.values()])
    for name, rows in means.items():
        # float32 sums over 784 pixels differ in the fourth decimal
        tolerance = relative * abs(center) or 5 * np.sqrt(variance) + 1e-3
        tolerance += BFLOAT16_TOLERANCE * (not relative and name.endswith("bfloat16"))
        value = float(np.mean(rows))
        if not abs(value - center) <= tolerance:
            raise BenchmarkError(
                f"expected the mean value of {name!r} within {tolerance:.3f} nats of the median of "
                f"all contenders, {center:.3f}; got {value:.3f}: they do not do the same work"
            )


def measure(case: Case, threads: int, device: str = "cpu", quick: bool = False) -> dict[str, Any]:
    """Measure a case in turns, after an untimed turn of each contender.

    Arguments:
        threads: threads and cores per contender, unless the case has its own.
        device: ``cpu`` or ``cuda``.
        quick: whether to take three rounds only, with a third of the steps in a turn.

    Raises:
        BenchmarkError: if a contender fails or computes something else.
    """
    # emulated, a step in bfloat16 takes ten times as long, and an evaluation most of an hour
    where = torch.device(device)
    names = [n for n in case.contenders if not n.endswith("bfloat16") or has_bfloat16(where)]
    problem = make_problem(case.widths) if case.widths else None
    job = Job(**{"problem": problem, "threads": threads, "device": device, **case.job})
    rounds, count, fresh = 3 if quick else case.rounds, case.count, case.count == 1
    if quick and job.is_training and not fresh:
        count //= 3
    counts = {n: count if n.startswith("ours") else case.peer_count or count for n in names}
    # caches are cold after waiting for the other contenders: some steps or images are untimed
    untimed = {n: min(counts[n], 100 if job.is_training else 1) for n in names}
    if "limit" in names:  # it repeats its work itself
        counts["limit"], untimed["limit"] = 1, 0
    workers: dict[str, Worker] = {}

    def start(name: str) -> Worker:
        module, options = case.contenders[name]
        return Worker(name, module, replace(job, **options))

    def take_turn(name: str) -> dict[str, Any]:
        if not fresh:
            return workers[name].call(jobs.measure, counts[name], untimed[name])
        with start(name) as worker:
            turn = worker.call(jobs.measure, 1)
        # without the start of Python, which all have in common
        return {**turn, "seconds": turn["since_start"]}

    with ExitStack() as stack:
        for name in names:
            log(f"  {name}")
            workers[name] = stack.enter_context(start(name))
            if untimed[name]:
                workers[name].call(jobs.measure, counts[name])
        turns = take_turns(names, rounds, take_turn)
    units = {n: counts[n] * (job.num_samples if job.task == "evaluation" else 1) for n in names}
    seconds = {n: [turn["seconds"] / units[n] for turn in row] for n, row in turns.items()}
    values = {n: [turn["values"] for turn in row] for n, row in turns.items()}
    own = {name: values.pop(name) for name in SELF_TIMED if name in values}
    seconds |= {name: [row[0] for row in rows] for name, rows in own.items()}
    if job.task != "import":
        check_agreement(values, LOSS_TOLERANCE if job.is_training else 0)
    parts = zip(*own.get("limit", []), strict=True)
    return {
        "model": "–".join(map(str, (784, *chain(*case.widths)))),
        "job": case.job,
        "device": device,
        "threads": job.threads,
        "rounds": rounds,
        "per_turn": counts,
        "seconds": {name: summarise(row) for name, row in seconds.items()},
        "ratios": summarise_ratios(seconds),
        "limit": dict(
            zip(("all", "products", "elements", "bytes"), map(summarise, parts), strict=False)
        ),
        "mean_values": {n: round(float(np.mean(r[-1])), 3) for n, r in values.items() if r[-1]},
    }


def log(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
