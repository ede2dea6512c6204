"""Cost and memory as functions of batch size, K, number of examples and latent dimension."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from harness import Contender, Harness, log
from job import Job
from rounds import summarise, summarise_ratios

__all__ = ["measure_scaling"]

#: Approximate number of pixels that a contender decodes in a round; limits the number of steps.
PIXELS_PER_ROUND = 5_000_000


@dataclass(frozen=True)
class Case:
    """One size along one axis: the job, and its steps or images in a round."""

    axis: str
    value: int
    job: Job
    count: int

    @property
    def contenders(self) -> list[Contender]:
        """This package, compiled and eager, and Pyro."""
        compiled = Contender("ours", "ours", self.count, options={"compiled": True})
        eager = Contender("ours_eager", "ours", self.count)
        pyro = Contender("pyro", "peers.pyro_svi", self.count)
        return [compiled, eager, pyro]


def measure_scaling(harness: Harness) -> dict[str, Any]:
    """Measure memory and the seconds per step or sample along five axes."""
    rows = []
    for case in make_cases(harness):
        log(f"{case.axis} {case.value}")
        measured = harness.measure(case.contenders, case.job, 2 if harness.quick else 7)
        samples = case.job.num_samples if case.job.task == "evaluation" else 1
        seconds = measured.seconds_per(samples)
        rows.append(
            {
                "axis": case.axis,
                "value": case.value,
                "seconds": {name: summarise(values) for name, values in seconds.items()},
                "ratios": summarise_ratios(seconds),
                "above_mib": {name: info["above_mib"] for name, info in measured.info.items()},
            }
        )
    return {
        "what": "seconds per step (ELBO: 784–400–20, batch 128; IWAE: 784–200–200–50, batch 20) or "
        "per image and sample (L_K: 784–200–200–50), and peak memory above imports and data",
        "threads": harness.threads,
        "device": harness.device,
        "rows": rows,
    }


def make_cases(harness: Harness) -> Iterator[Case]:
    """Yield the cases, axis by axis; a quick run has only the first case of each axis."""
    small, large = harness.problem((400,), 20), harness.problem((200, 200), 50)
    step, evaluation = Job("step", small), Job("evaluation", large)
    batches = [replace(step, batch=n) for n in (16, 128, 1024)]
    latents = [replace(step, problem=harness.problem((400,), n)) for n in (2, 20, 200)]
    particles = [Job("iwae", large, batch=20, num_samples=k) for k in (1, 5, 50, 500)]
    samples = [replace(evaluation, num_samples=k) for k in (50, 500, 5000)]
    limit = 1 if harness.quick else None
    for job in batches[:limit]:
        yield Case("batch", job.batch, job, _choose_count(harness, job.batch))
    for job in latents[:limit]:
        yield Case("latent_dim", job.data.latent_dim, job, _choose_count(harness, job.batch))
    for job in particles[:limit]:
        count = _choose_count(harness, job.batch * job.num_samples)
        yield Case("IWAE k", job.num_samples, job, count)
    for job in samples[:limit]:
        yield Case("L_K: K", job.num_samples, job, _choose_count(harness, job.num_samples))
    for images in (10, 100, 1000)[:limit]:
        # 500 samples only, because 1000 images would otherwise take a minute per round
        yield Case("L_500: images", images, replace(evaluation, num_samples=500), images)


def _choose_count(harness: Harness, decoded: int) -> int:
    """Return the steps or images in a round, each of which decodes ``decoded`` examples."""
    return 2 if harness.quick else max(2, min(100, PIXELS_PER_ROUND // (784 * decoded)))
