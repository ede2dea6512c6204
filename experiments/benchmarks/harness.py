"""Measurement of contenders in turns, each in a separate process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from multiprocessing import get_context
from typing import Any

import job as jobs
import numpy as np
import summaries
import torch
from cases import Case
from job import Job
from ours import make_problem
from summaries import BenchmarkError, summarise

from pyro_vae.compiler.matmul import has_bfloat16

#: Additional tolerance of estimates whose products are rounded to bfloat16, in nats.
BFLOAT16_SLACK = 0.2


class Worker:
    """A contender in a new process, which is idle between calls.

    Raises:
        BenchmarkError: in any call, if the contender has failed or its process has ended.
    """

    def __init__(self, name: str, module: str, job: Job) -> None:
        self._name, self._pool = name, ProcessPoolExecutor(1, get_context("spawn"))
        self.call(jobs.start, module, job)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the process."""
        try:
            return self._pool.submit(jobs.call, function, *args).result()
        except (BrokenProcessPool, jobs.ContenderError) as error:
            self._pool.shutdown()
            got = "the end of its process" if isinstance(error, BrokenProcessPool) else error
            message = f"expected the contender {self._name!r} to answer; got {got}"
            raise BenchmarkError(message) from error


def measure(case: Case, threads: int, device: str = "cpu", effort: float = 1.0) -> dict[str, Any]:
    """Measure a case in turns, after one untimed turn per contender.

    Arguments:
        threads: threads and cores per contender, unless the case has its own.
        device: ``cpu`` or ``cuda``.
        effort: fraction of the rounds, and of the steps in a turn.

    Raises:
        BenchmarkError: if a contender fails or computes something else.
    """
    contenders, where = case.find_contenders(), torch.device(device)
    # emulated, a step in bfloat16 takes ten times as long, and an evaluation most of an hour
    names = [n for n in contenders if not n.endswith("bfloat16") or has_bfloat16(where)]
    problem = make_problem(case.widths, case.epochs) if case.widths else None
    job = Job(problem=problem, threads=case.threads or threads, device=device, **case.job)
    rounds, count = max(3, round(effort * case.rounds)), case.count
    if job.is_training and not case.fresh:
        count = max(2, round(effort * count))
    counts = {n: count if n.startswith("ours") else case.peer_count or count for n in names}
    counts.update({"limit": 1} if "limit" in counts else {})  # it measures itself
    workers: dict[str, Worker] = {}
    kernels = 0.0

    def start(name: str) -> Worker:
        module, options = contenders[name]
        return Worker(name, module, replace(job, **options))

    def take_turn(name: str) -> dict[str, Any]:
        if not case.fresh:
            # caches are cold after waiting for the other contenders: some are untimed
            return workers[name].call(jobs.measure, counts[name], min(counts[name] // 3, 100))
        with start(name) as worker:
            turn = worker.call(jobs.measure, 1)
        # without the start of Python, which all have in common
        return {**turn, "seconds": turn["since_start"]}

    with ExitStack() as stack:
        for name in names:
            log(f"  {name}")
            workers[name] = stack.enter_context(start(name))
            workers[name].call(jobs.measure, counts[name])
        turns = summaries.take_turns(names, rounds, take_turn)
        if device == "cuda":
            profiled = min(count, 100)
            kernels = workers["ours"].call(jobs.measure_kernels, profiled) / profiled
    units = {n: counts[n] * (job.num_samples if job.task == "evaluation" else 1) for n in names}
    seconds = {n: [turn["seconds"] / units[n] for turn in row] for n, row in turns.items()}
    values = {n: [turn["values"] for turn in row] for n, row in turns.items()}
    result: dict[str, Any] = {}
    if "limit" in values:
        parts = list(zip(*values.pop("limit"), strict=True))
        seconds["limit"] = list(parts[0])
        labels = ("all", "products", "elements", "bytes")
        result["limit"] = {n: summarise(part) for n, part in zip(labels, parts, strict=True)}
    if job.is_training:
        summaries.check_losses_agree({n: [row[0] for row in rows] for n, rows in values.items()})
    elif job.task != "import":
        slack = {n: BFLOAT16_SLACK for n in names if n.endswith("bfloat16")}
        summaries.check_estimates_agree(values, slack)
    ratios = summaries.summarise_ratios(seconds)
    if device == "cuda":
        # the profiler adds overhead: relate its kernel times to unprofiled wall times
        images = [turn["seconds"] / counts["ours"] for turn in turns["ours"]]
        ratios["ours / its kernels"] = summarise([s / kernels for s in images])
    return {
        "model": "–".join(map(str, (784, *chain(*case.widths)))),
        "job": case.job,
        "device": device,
        "threads": job.threads,
        "rounds": rounds,
        "per_turn": counts,
        "seconds": {name: summarise(row) for name, row in seconds.items()},
        "ratios": ratios,
        **result,
        "mean_values": {n: round(float(np.mean(r[-1])), 3) for n, r in values.items() if r[-1]},
    }


def log(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
