"""Measurement of contenders in turns, each in a process of its own."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import execnet
import summaries
from job import Job, Upper
from summaries import summarise

__all__ = ["Case", "Contender", "ContenderError", "Harness", "Worker", "log", "make_environment"]

FOLDER = Path(__file__).parent
#: Additional tolerance of estimates whose products are rounded to bfloat16, in nats.
BFLOAT16_SLACK = 0.2


class ContenderError(RuntimeError):
    """A contender failed; the message is one sentence."""


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
        upper: hidden layers and latents of a second layer of latents, if any.
        count, peer_count: steps or images in a turn, and those of slower peers if fewer.
        epochs: training before the measurement. With initial weights the KL divergence is near
            zero, and a contender that omits it would go unnoticed.
        threads: number of cores if not all.
        least: steps or images in a turn of a quick run at least.
    """

    contenders: dict[str, Contender]
    job: dict[str, Any]
    hidden: tuple[int, ...]
    latent_dim: int
    count: int
    upper: Upper | None = None
    peer_count: int | None = None
    rounds: int = 15
    epochs: int = 10
    threads: int | None = None
    least: int = 2

    def count_of(self, name: str) -> int:
        """Return the steps or images in a turn of a contender; the limit measures itself once."""
        if name == "limit":
            return 1
        return self.count if name.startswith("ours") else self.peer_count or self.count


class Worker:
    """The process of a contender, which waits for requests.

    Raises:
        ContenderError: if the process fails or exits, now or during a later request.
    """

    def __init__(self, name: str, python: Path, module: str, job: Job, threads: int) -> None:
        if not python.exists():
            raise ContenderError(
                f"expected a Python at {python} for the contender {name!r}; got none: create the "
                f"peers' environment with make bench-peers"
            )
        self.name, self._group = name, execnet.Group()
        gateway = self._group.makegateway(f"popen//python={shlex.quote(str(python))}")
        self._channel = gateway.remote_exec(
            _start,
            folder=str(FOLDER),
            environment=make_environment(threads, job.device),
            options={"module": module, "options": asdict(job), "threads": threads},
        )
        self.versions: dict[str, str] = self._receive()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._group.terminate(timeout=10)

    def run(self, count: int, warm: int = 0) -> Any:
        """Return the answer of ``worker.serve``; the process is idle afterwards."""
        self._channel.send((count, warm))
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._channel.receive()
        except (EOFError, execnet.RemoteError) as error:
            lines = getattr(error, "formatted", "").strip().splitlines()
            reason = lines[-1] if lines else "the end of its process, whose output is above"
            self._group.terminate(timeout=1)
            raise ContenderError(
                f"expected the contender {self.name!r} to answer; got {reason}"
            ) from None


def _start(channel, folder, environment, options):
    """Serve a contender. execnet sends this function's source to the other interpreter."""
    import os
    import sys

    os.environ.update(environment)
    sys.path.insert(0, folder)
    from worker import serve

    serve(channel, **options)


def make_environment(threads: int, device: str) -> dict[str, str]:
    """Return the environment variables for threads, device and float32 of all libraries."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": device,
        # by default JAX allocates most of a GPU's memory and multiplies in TF32
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **({"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if device == "cuda" else {}),
        "PYTHONWARNINGS": "ignore",
    }


@dataclass(frozen=True)
class Harness:
    """Common settings of all contenders.

    Attributes:
        folder: folder for problem files and caches.
        peers: the interpreter of the peers' environment.
        threads: cores per contender.
        device: ``cpu`` or ``cuda``.
        effort: fraction of the rounds, and of the steps in a turn.
    """

    folder: Path
    peers: Path
    threads: int
    device: str = "cpu"
    effort: float = 1.0

    def scale(self, count: int, least: int) -> int:
        return max(min(count, least), round(self.effort * count))

    def problem(self, case: Case) -> str:
        """Return the path of a problem file, which is created on first use."""
        from problem import make_problem  # imports the whole package

        path = self.folder / f"{_model_name(case)}-{case.epochs}.npz"
        if not path.exists():
            make_problem(path, case.hidden, case.latent_dim, case.upper, case.epochs)
        return str(path)

    def measure(self, case: Case) -> dict[str, Any]:
        """Measure a case in turns, after one untimed turn per contender.

        Raises:
            ContenderError, DisagreementError: if a contender fails or computes something else.
        """
        job = Job(problem=self.problem(case), device=self.device, **case.job)
        threads, rounds = case.threads or self.threads, self.scale(case.rounds, 3)
        counts = {name: self.scale(case.count_of(name), case.least) for name in case.contenders}
        kernels = 0.0
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for name, contender in case.contenders.items():
                log(f"  {name}")
                python = self.peers if contender.needs_peers else Path(sys.executable)
                options = replace(job, **contender.options)
                worker = Worker(name, python, contender.module, options, threads)
                workers[name] = stack.enter_context(worker)
                worker.run(counts[name])
            # caches are cold after waiting for the other contenders: some are untimed
            turns = summaries.take_turns(
                list(workers), rounds, lambda n: workers[n].run(counts[n], min(counts[n] // 3, 100))
            )
            if self.device == "cuda":
                profiled = min(counts["ours"], 100)
                kernels = workers["ours"].run(-profiled) / profiled
        samples = job.num_samples if job.task == "evaluation" else 1
        seconds = {
            name: [turn["seconds"] / counts[name] / samples for turn in row]
            for name, row in turns.items()
        }
        values = {name: [turn["values"] for turn in row] for name, row in turns.items()}
        result: dict[str, Any] = {}
        if "limit" in values:
            parts = list(zip(*values.pop("limit"), strict=True))
            seconds["limit"] = list(parts[0])
            names = ("all", "products", "elements", "bytes")
            result["limit"] = {n: summarise(p) for n, p in zip(names, parts, strict=True)}
        if job.task in ("step", "iwae"):
            losses = {name: [row[0] for row in rows] for name, rows in values.items()}
            summaries.check_losses_agree(losses)
        else:
            rounded = {name: BFLOAT16_SLACK for name in values if name.endswith("bfloat16")}
            summaries.check_estimates_agree(values, rounded)
        ratios = summaries.summarise_ratios(seconds)
        if kernels:
            # the profiler adds overhead: relate its kernel times to unprofiled wall times
            ours = [s * samples / kernels for s in seconds["ours"]]
            ratios["ours / its kernels"] = summarise(ours)
        return {
            "model": _model_name(case),
            "job": case.job,
            "device": self.device,
            "threads": threads,
            "rounds": rounds,
            "per_turn": counts,
            "seconds": {name: summarise(row) for name, row in seconds.items()},
            "ratios": ratios,
            **result,
            "mean_values": {n: round(sum(r[-1]) / len(r[-1]), 3) for n, r in values.items()},
            "versions": {k: v for w in workers.values() for k, v in w.versions.items()},
        }


def _model_name(case: Case) -> str:
    upper = () if case.upper is None else (*case.upper[0], case.upper[1])
    return "–".join(map(str, (784, *case.hidden, case.latent_dim, *upper)))


def log(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
