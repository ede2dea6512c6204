"""Runs the contenders of a topic in interleaved rounds."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from job import Job
from process import Worker
from rounds import interleave
from steady import CoreMonitor, Turn, has_enough_steady_turns, select_seconds

__all__ = ["Contender", "Harness", "Measurements", "log"]

#: Maximum number of steps or images to profile.
MAX_PROFILED = 100


@dataclass(frozen=True)
class Contender:
    """An implementation that takes part in a benchmark.

    Attributes:
        name: the name in the results.
        module: the module in this folder.
        count: steps or images in a round; fewer for slow contenders.
        needs_peers: whether it runs in the peers' environment.
        options: changes to the fields of its job.
    """

    name: str
    module: str
    count: int
    needs_peers: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurements:
    """Measurements of a topic, by contender and round.

    Attributes:
        counts: steps or images in a round.
        seconds: duration of a round; NaN where the round is discarded as unsteady.
        steady: number of steady rounds.
        values: the values computed in a round; for the limit, its times in seconds.
        info: versions, setup time, first-round time, memory and profile.
    """

    counts: dict[str, int]
    seconds: dict[str, list[float]]
    steady: dict[str, int]
    values: dict[str, list[list[float]]]
    info: dict[str, dict[str, Any]]

    @property
    def limits(self) -> list[list[float]]:
        """Seconds of the limit (total and parts) in each round; NaN for discarded rounds."""
        pairs = zip(self.values["limit"], self.seconds["limit"], strict=True)
        return [[v if s == s else s for v in row] for row, s in pairs]

    def seconds_per(self, samples: int = 1) -> dict[str, list[float]]:
        """Return the seconds per step, or per sample if an image takes ``samples`` samples.

        The limit's entry is its value, not its duration.
        """
        return {
            name: [row[0] for row in self.limits]
            if name == "limit"
            else [s / self.counts[name] / samples for s in seconds]
            for name, seconds in self.seconds.items()
        }


@dataclass(frozen=True)
class Harness:
    """Starts contenders and measures them under common settings.

    Attributes:
        folder: folder for problem files.
        peers: the interpreter of the peers' environment; ``None`` leaves these peers out.
        device: ``cpu`` or ``cuda``.
        threads: cores per contender.
        quick: run as briefly as possible; the timings are then meaningless.
    """

    folder: Path
    peers: Path | None
    device: str
    threads: int
    quick: bool = False

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 15

    def problem(self, hidden: tuple[int, ...], latent_dim: int, epochs: int = 0) -> str:
        """Return the path of a problem file, which is created on first use."""
        # imported lazily: it imports the whole package
        import problem

        name = "-".join(map(str, (*hidden, latent_dim, epochs)))
        path = self.folder / f"{name}.npz"
        if not path.exists():
            problem.make_problem(path, hidden, latent_dim, epochs)
        return str(path)

    def start(self, contender: Contender, job: Job) -> Worker:
        """Start a contender in its own process."""
        python = self.peers if contender.needs_peers else Path(sys.executable)
        assert python is not None
        job = replace(job, device=self.device, **contender.options)
        return Worker(contender.name, python, contender.module, job, self.threads)

    def measure(
        self, contenders: list[Contender], job: Job, rounds: int | None = None
    ) -> Measurements:
        """Measure a job in interleaved rounds, after one untimed round per contender."""
        active = {c.name: c for c in contenders if not c.needs_peers or self.peers is not None}
        counts = {name: c.count for name, c in active.items()}
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            info: dict[str, dict[str, Any]] = {}
            for name, contender in active.items():
                log(f"{job.task}: {name}")
                worker = workers[name] = stack.enter_context(self.start(contender, job))
                first = worker.ask(run=contender.count, warm=max(1, contender.count // 3))
                info[name] = {
                    "versions": worker.versions,
                    "seconds_to_make_ready": round(worker.seconds, 2),
                    "seconds_of_first_round": round(first["seconds"], 2),
                }
            monitored = self.threads > 1 and self.device == "cpu" and not self.quick
            checker = self.start(Contender("cores", "cores", 1), job) if monitored else None
            monitor = CoreMonitor(stack.enter_context(checker) if checker else None, self.threads)

            def take_turn(name: str) -> Turn:
                request = {"run": counts[name], "warm": max(1, counts[name] // 3)}
                return monitor.run_turn(lambda: workers[name].ask(**request))

            min_rounds = rounds or self.rounds
            turns = interleave(
                list(active),
                min_rounds,
                take_turn,
                lambda turns: has_enough_steady_turns(turns, min_rounds),
            )
            for name, worker in workers.items():
                info[name] |= worker.ask(memory=True)
                if self.device != "cpu" and name != "limit" and "torch" in worker.versions:
                    count = min(counts[name], MAX_PROFILED)
                    profile = worker.ask(profile=count)
                    # per step or image
                    info[name] |= {key: seconds / count for key, seconds in profile.items()}
        return Measurements(
            counts=counts,
            seconds=select_seconds(turns),
            steady={name: sum(t.steady for t in row) for name, row in turns.items()},
            values={name: [t.answer["values"] for t in row] for name, row in turns.items()},
            info=info,
        )


def log(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
