"""Measurement of contenders in turns, each in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import summaries
import torch
from job import Job
from ours import make_problem
from summaries import BenchmarkError, summarise

from pyro_vae.compiler.matmul import has_bfloat16

#: Additional tolerance of estimates whose products are rounded to bfloat16, in nats.
BFLOAT16_SLACK = 0.2
#: Code of a contender's process. The clock starts before the first import.
START = (
    "import sys, time; start = time.perf_counter(); sys.path.insert(0, {folder!r}); "
    "from job import serve; serve({file_descriptor}, start)"
)


@dataclass(frozen=True)
class Contender:
    """A module in this folder, changes to its job, and whether it needs the peers' environment."""

    module: str
    options: dict[str, Any] = field(default_factory=dict)
    needs_peers: bool = False


@dataclass(frozen=True)
class Case:
    """A task, the model that it runs on, and its contenders by name.

    Attributes:
        widths: hidden units and latents of each layer of latents, the lowest first.
        count, peer_count: steps or images in a turn, and those of slower peers if fewer.
        epochs: training before the measurement. With initial weights the KL divergence is near
            zero, and a contender that omits it would go unnoticed.
        threads: number of cores if not all.
        fresh: whether each turn is a new process, and its time that from the start of Python.
    """

    contenders: dict[str, Contender]
    job: dict[str, Any]
    widths: tuple[tuple[int, ...], ...] = ()
    count: int = 1
    peer_count: int | None = None
    rounds: int = 15
    epochs: int = 10
    threads: int | None = None
    fresh: bool = False


class Worker:
    """The process of a contender, which waits for requests.

    Raises:
        BenchmarkError: without a Python; in a request, if the process has failed or exited.
    """

    def __init__(self, name: str, python: Path, module: str, job: Job, threads: int) -> None:
        if not python.exists():
            raise BenchmarkError(
                f"expected a Python at {python} for the contender {name!r}; got none: create the "
                f"peers' environment with make bench-peers"
            )
        self.name = name
        self._connection, theirs = Pipe()
        code = START.format(folder=str(Path(__file__).parent), file_descriptor=theirs.fileno())
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "JAX_PLATFORMS": job.device,
            # by default JAX allocates most of a GPU's memory and multiplies in TF32
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **({"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if job.device == "cuda" else {}),
            "PYTHONWARNINGS": "ignore",
        }
        self._process = subprocess.Popen(
            [str(python), "-c", code],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=2,  # a library's output goes to stderr
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._send(module, job, threads)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()  # the process ends then
        self._process.wait()

    def run(self, count: int, warm: int = 0, profiled: bool = False) -> dict[str, Any]:
        """Return the result of ``job.measure``; the process is idle afterwards."""
        self._send(count, warm, profiled)
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            answer = "the end of its process, whose output is above"
        if isinstance(answer, str):
            raise BenchmarkError(f"expected the contender {self.name!r} to answer; got {answer}")
        return answer

    def _send(self, *request: Any) -> None:
        with suppress(OSError):  # the answer says why the process has ended
            self._connection.send(request)


@dataclass(frozen=True)
class Harness:
    """Common settings of all contenders.

    Attributes:
        peers: the interpreter of the peers' environment.
        threads: cores per contender.
        device: ``cpu`` or ``cuda``.
        effort: fraction of the rounds, and of the steps in a turn.
    """

    peers: Path
    threads: int
    device: str = "cpu"
    effort: float = 1.0

    def measure(self, case: Case) -> dict[str, Any]:
        """Measure a case in turns, after one untimed turn per contender.

        Raises:
            BenchmarkError: if a contender fails or computes something else.
        """
        rounded = {name for name in case.contenders if name.endswith("bfloat16")}
        if rounded and not has_bfloat16(torch.device(self.device)):
            # emulated, a step takes ten times as long, and an evaluation most of an hour
            kept = {n: c for n, c in case.contenders.items() if n not in rounded}
            case = replace(case, contenders=kept)
        problem = make_problem(case.widths, case.epochs) if case.widths else None
        job = Job(problem=problem, device=self.device, **case.job)
        threads, rounds = case.threads or self.threads, max(3, round(self.effort * case.rounds))
        is_training, count = job.task in ("step", "iwae"), case.count
        if is_training and not case.fresh:
            count = max(2, round(self.effort * count))
        counts = dict.fromkeys(case.contenders, case.peer_count or count)
        counts.update({name: count for name in counts if name.startswith("ours")})
        counts.update({name: 1 for name in counts if name == "limit"})  # it measures itself
        workers: dict[str, Worker] = {}
        kernels = 0.0

        def start(name: str) -> Worker:
            contender = case.contenders[name]
            python = self.peers if contender.needs_peers else Path(sys.executable)
            variant = replace(job, **contender.options)
            return Worker(name, python, contender.module, variant, threads)

        def take_turn(name: str) -> dict[str, Any]:
            if case.fresh:
                with start(name) as worker:
                    return worker.run(1)
            # caches are cold after waiting for the other contenders: some are untimed
            return workers[name].run(counts[name], min(counts[name] // 3, 100))

        with ExitStack() as stack:
            for name in case.contenders:
                log(f"  {name}")
                workers[name] = stack.enter_context(start(name))
                workers[name].run(counts[name])
            turns = summaries.take_turns(list(case.contenders), rounds, take_turn)
            if self.device == "cuda" and not case.fresh:
                profiled = min(counts["ours"], 100)
                kernels = workers["ours"].run(profiled, profiled=True)["seconds"] / profiled
        samples = job.num_samples if job.task == "evaluation" else 1
        clock = "since_start" if case.fresh else "seconds"
        seconds = {
            name: [turn[clock] / counts[name] / samples for turn in row]
            for name, row in turns.items()
        }
        values = {name: [turn["values"] for turn in row] for name, row in turns.items()}
        result: dict[str, Any] = {}
        if "limit" in values:
            parts = list(zip(*values.pop("limit"), strict=True))
            seconds["limit"] = list(parts[0])
            names = ("all", "products", "elements", "bytes")
            result["limit"] = {n: summarise(p) for n, p in zip(names, parts, strict=True)}
        if is_training:
            losses = {name: [row[0] for row in rows] for name, rows in values.items()}
            summaries.check_losses_agree(losses)
        elif job.task != "import":
            summaries.check_estimates_agree(values, dict.fromkeys(rounded, BFLOAT16_SLACK))
        ratios = summaries.summarise_ratios(seconds)
        if kernels:
            # the profiler adds overhead: relate its kernel times to unprofiled wall times
            ours = [s * samples / kernels for s in seconds["ours"]]
            ratios["ours / its kernels"] = summarise(ours)
        return {
            "model": "–".join(map(str, (784, *chain(*case.widths)))),
            "job": case.job,
            "device": self.device,
            "threads": threads,
            "rounds": rounds,
            "per_turn": counts,
            "seconds": {name: summarise(row) for name, row in seconds.items()},
            "ratios": ratios,
            **result,
            "mean_values": {n: round(float(np.mean(r[-1])), 3) for n, r in values.items() if r[-1]},
            "versions": {k: v for row in turns.values() for k, v in row[-1]["versions"].items()},
        }


def log(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
