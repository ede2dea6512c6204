"""How long to measure, who takes part, and the round of contenders that all topics share."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from job import Job
from process import Worker
from rounds import interleaved
from steady import Cores, Turn, counted, enough

__all__ = ["Contender", "Measured", "Setting"]


#: Steps or images that the profiler watches at most.
PROFILED = 100


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        name: in the results.
        module: in this folder.
        count: steps or images in a round; the slower, the fewer.
        own: whether it needs the peers' environment.
        options: what its job has besides.
    """

    name: str
    module: str
    count: int
    own: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What the contenders of a topic did: for each contender, and for each round.

    Attributes:
        counts: steps or images in a round.
        seconds: of a round, not a number where the machine was not all there.
        steady: in how many rounds the machine was all there.
        values: what was found in a round; the limit's are its seconds.
        told: versions, the seconds to make ready and to run once, memory, what kept it busy.
    """

    counts: dict[str, int]
    seconds: dict[str, list[float]]
    steady: dict[str, int]
    values: dict[str, list[list[float]]]
    told: dict[str, dict[str, Any]]

    @property
    def limits(self) -> list[list[float]]:
        """The limit's seconds, whole and in parts, of the rounds in which it counts."""
        pairs = zip(self.values["limit"], self.seconds["limit"], strict=True)
        return [[v if s == s else s for v in row] for row, s in pairs]

    def seconds_per(self, each: int = 1) -> dict[str, list[float]]:
        """Seconds per step, or per sample if a step is ``each`` of them; of the limit its value."""
        return {
            name: [row[0] for row in self.limits]
            if name == "limit"
            else [s / self.counts[name] / each for s in seconds]
            for name, seconds in self.seconds.items()
        }


@dataclass(frozen=True)
class Setting:
    """Where and how long to measure.

    Attributes:
        folder: for the problems' files.
        peers: the Python of the peers' environment, if they take part.
        device: ``cpu`` or ``cuda``.
        threads: cores for each contender.
        quick: as short as it goes; such figures mean nothing.
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
        """The file of a problem, made at first use."""
        # imported here: who only wants a table does not wait for it
        import problem

        name = "-".join(map(str, (*hidden, latent_dim, epochs)))
        path = self.folder / f"{name}.npz"
        if not path.exists():
            problem.make(path, hidden, latent_dim, epochs)
        return str(path)

    def start(self, contender: Contender, job: Job) -> Worker:
        """The contender in a process of its own."""
        python = self.peers if contender.own else Path(sys.executable)
        assert python is not None
        job = replace(job, device=self.device, **contender.options)
        return Worker(contender.name, python, contender.module, job, self.threads)

    def measure(self, contenders: list[Contender], job: Job, rounds: int | None = None) -> Measured:
        """Lets contenders take turns at a job, after a first round that is not counted."""
        known = {c.name: c for c in contenders if not c.own or self.peers is not None}
        counts = {name: c.count for name, c in known.items()}
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            told: dict[str, dict[str, Any]] = {}
            for name, contender in known.items():
                say(f"{job.task}: {name}")
                worker = workers[name] = stack.enter_context(self.start(contender, job))
                first = worker.ask(run=contender.count, warm=max(1, contender.count // 3))
                told[name] = {
                    "versions": worker.versions,
                    "seconds_to_make_ready": round(worker.seconds, 2),
                    "seconds_of_first_round": round(first["seconds"], 2),
                }
            watched = self.threads > 1 and self.device == "cpu" and not self.quick
            looks = self.start(Contender("cores", "cores", 1), job) if watched else None
            cores = Cores(stack.enter_context(looks) if looks else None, self.threads)

            def turn(name: str) -> Turn:
                asked = {"run": counts[name], "warm": max(1, counts[name] // 3)}
                return cores.turn(lambda: workers[name].ask(**asked))

            wanted = rounds or self.rounds
            turns = interleaved(list(known), wanted, turn, lambda found: enough(found, wanted))
            for name, worker in workers.items():
                told[name] |= worker.ask(memory=True)
                if self.device != "cpu" and name != "limit" and "torch" in worker.versions:
                    few = min(counts[name], PROFILED)
                    told[name] |= _per(few, worker.ask(profile=few))
        return Measured(
            counts=counts,
            seconds=counted(turns),
            steady={name: sum(t.steady for t in found) for name, found in turns.items()},
            values={name: [t.answer["values"] for t in found] for name, found in turns.items()},
            told=told,
        )


def _per(count: int, profile: dict[str, float]) -> dict[str, float]:
    """What the profiler saw, for one step or image."""
    return {key: seconds / count for key, seconds in profile.items()}


def say(text: str) -> None:
    """What is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)
