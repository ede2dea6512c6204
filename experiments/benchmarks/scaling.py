"""Cost against the size of the minibatch, K, the number of data and of latents; memory with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from job import Job
from rounds import ratios, summary
from setting import Contender, Setting, say

__all__ = ["scaling"]

#: Numbers of pixels that a contender decodes in a round, about: large sizes get fewer steps.
WORK = 5_000_000


@dataclass(frozen=True)
class Case:
    """One size of one axis: the job, and its steps or images in a round."""

    axis: str
    value: int
    job: Job
    count: int

    @property
    def contenders(self) -> list[Contender]:
        """Ours, compiled and eager, and Pyro."""
        compiled = Contender("ours", "ours", self.count, options={"compiled": True})
        eager = Contender("ours_eager", "ours", self.count)
        pyro = Contender("pyro", "peers.pyro_svi", self.count)
        return [compiled, eager, pyro]


def scaling(setting: Setting) -> dict[str, Any]:
    """Seconds of a step or of a sample, and memory, along five axes."""
    rows = []
    for case in cases(setting):
        say(f"{case.axis} {case.value}")
        measured = setting.measure(case.contenders, case.job, 2 if setting.quick else 7)
        each = case.job.num_samples if case.job.task == "evaluation" else 1
        seconds = measured.seconds_per(each)
        rows.append(
            {
                "axis": case.axis,
                "value": case.value,
                "seconds": {name: summary(found) for name, found in seconds.items()},
                "ratios": ratios(seconds),
                "above_mib": {name: t["above_mib"] for name, t in measured.told.items()},
            }
        )
    return {
        "what": "seconds per step (ELBO: 784–400–20, batch 128; IWAE: 784–200–200–50, batch 20) or "
        "per image and sample (L_K: 784–200–200–50), and the most memory above imports and data",
        "threads": setting.threads,
        "device": setting.device,
        "rows": rows,
    }


def cases(setting: Setting) -> Iterator[Case]:
    """The sizes, one axis after the other; in a quick run the first of each."""
    small, large = setting.problem((400,), 20), setting.problem((200, 200), 50)
    step, judge = Job("step", small), Job("evaluation", large)
    batches = [replace(step, batch=n) for n in (16, 128, 1024)]
    latents = [replace(step, problem=setting.problem((400,), n)) for n in (2, 20, 200)]
    particles = [Job("iwae", large, batch=20, num_samples=k) for k in (1, 5, 50, 500)]
    draws = [replace(judge, num_samples=k) for k in (50, 500, 5000)]
    first = 1 if setting.quick else None
    for job in batches[:first]:
        yield Case("batch", job.batch, job, _count(setting, job.batch))
    for job in latents[:first]:
        yield Case("latent_dim", job.data.latent_dim, job, _count(setting, job.batch))
    for job in particles[:first]:
        yield Case("IWAE k", job.num_samples, job, _count(setting, job.batch * job.num_samples))
    for job in draws[:first]:
        yield Case("L_K: K", job.num_samples, job, _count(setting, job.num_samples))
    for images in (10, 100, 1000)[:first]:
        # few draws, or the thousand would take a minute a round
        yield Case("L_500: images", images, replace(judge, num_samples=500), images)


def _count(setting: Setting, data: int) -> int:
    """Steps or images in a round, of so many decoded data each."""
    return 2 if setting.quick else max(2, min(100, WORK // (784 * data)))
