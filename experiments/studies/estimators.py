"""Cost and error of each estimator of log p(x), by the number of latents and the posterior.

The latents of an example are independent, and so are its data given them: log p(x) is a sum of
one-dimensional integrals, known by quadrature. q(z|x) is a normal that fits moderately well, as an
encoder does.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.core.random import seeded
from pyro_vae.evaluation import Annealing, Bounds, Corrected, Defensive, Estimator, Ladder, Laplace

from ..study import Study

__all__ = ["ESTIMATORS", "POSTERIORS", "STUDY", "Posterior", "measure_problem"]

TITLE = "Cost and error of the estimators of log p(x)"


@dataclass(frozen=True)
class Posterior:
    """A latent with its datum, of which an example has several independent copies.

    Attributes:
        prior: p(z).
        likelihood: p(x|z).
        guide: q(z|x).
        grid: values of z for the quadrature, ``(G,)``; all values of a discrete z.
    """

    prior: dist.TorchDistribution
    likelihood: Callable[[Tensor], Any]
    guide: Callable[[Tensor], Any]
    grid: Tensor

    def sample(self, size: int, dim: int) -> Tensor:
        """Return data ``(N, D)`` simulated by the model."""
        return self.likelihood(self.prior.sample((size, dim))).sample()

    def log_evidence(self, x: Tensor) -> np.ndarray:
        """Return log p(x) by quadrature, ``(N,)``."""
        grid = self.grid.double().reshape(-1, 1, 1)
        terms = self.prior.log_prob(grid) + self.likelihood(grid).log_prob(x.double())
        width = 0.0 if self.is_discrete else math.log(float(grid[1, 0, 0] - grid[0, 0, 0]))
        return (terms.logsumexp(0) + width).sum(-1).numpy()

    @property
    def is_discrete(self) -> bool:
        """Whether z is discrete."""
        return not self.prior.has_rsample

    def program(self, dim: int) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return model and guide with D latents."""

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior.expand([dim]).to_event(1))
                pyro.sample("x", self.likelihood(z).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.guide(x).to_event(1))

        return model, guide


def _fine(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 40_001, dtype=torch.float64)


POSTERIORS = {
    # q has 0.7 times the variance of the posterior, and a mean that is off by 0.2 deviations
    "normal, q too narrow": Posterior(
        dist.Normal(0.0, 1.0),
        lambda z: dist.Normal(z, 1.0),
        lambda x: dist.Normal(x / 2 + 0.14, 0.35**0.5),
        _fine(-9, 9),
    ),
    "skewed: counts": Posterior(
        dist.Normal(0.0, 1.0),
        lambda z: dist.Poisson(z.exp()),
        lambda x: dist.Normal(0.6 * (x + 0.4).log(), (x + 1.8).rsqrt()),
        _fine(-9, 9),
    ),
    "heavy-tailed": Posterior(
        dist.StudentT(3.0, 0.0, 1.0),
        lambda z: dist.Normal(z, 1.5),
        lambda x: dist.Normal(0.45 * x, 0.9),
        _fine(-60, 60),
    ),
    "two modes": Posterior(
        dist.Normal(0.0, 1.0),
        lambda z: dist.Normal(z.abs(), 0.5),
        lambda x: dist.Normal(torch.zeros_like(x), 1.0),
        _fine(-9, 9),
    ),
    "discrete: counts": Posterior(
        dist.Poisson(2.0),
        lambda z: dist.Normal(z, 1.0),
        lambda x: dist.Poisson((x.clamp(min=0.5) + 2) / 2),
        torch.arange(40),
    ),
}

#: Estimator objects besides the guide's own samples, with the row that each adds.
ESTIMATORS: dict[str, tuple[str, Estimator | None]] = {
    "guide": ("log_evidence", None),
    "Corrected, PSIS": ("psis", Corrected()),
    "Defensive": ("defensive", Defensive(0.1)),
    "Laplace": ("laplace", Laplace()),
    "Annealing": ("ais", Annealing(num_chains=8, num_temperatures=200, num_steps=5)),
    "reliable=True": ("log_evidence", Ladder()),
}

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"num_samples": 100, "size": 3, "dims": [2], "repeats": 1},
    "small": {"num_samples": 5000, "size": 20, "dims": [2, 10, 50, 200], "repeats": 1},
}


def measure_problem(posterior: Posterior, dim: int, preset: dict[str, Any]) -> dict[str, Any]:
    """Return the error and cost of each estimator.

    ``error``: root mean square error of log p̂ of one example, in nats; ``stated``: that of its
    standard errors; ``flagged``: share of flagged examples; ``cost``: time over that of the samples
    of the guide, in the same run. An estimator that refuses the program has a ``reason``.
    """
    x = posterior.sample(preset["size"], dim)
    truth = posterior.log_evidence(x)
    program = posterior.program(dim)
    times: dict[str, float] = {}
    rows: dict[str, Any] = {}
    for label, (name, estimator) in ESTIMATORS.items():

        def run(estimator: Estimator | None = estimator) -> Bounds:
            chosen = [] if estimator is None else [estimator]
            return pv.evaluate(program, x, num_samples=preset["num_samples"], estimators=chosen)

        try:
            bounds = run()  # the first run compiles
        except ValueError as error:
            rows[label] = {"reason": str(error).partition(": ")[0]}
            continue
        seconds = [_time(run) for _ in range(preset["repeats"])]
        times[label] = statistics.median(seconds)
        data = bounds.per_datum
        rows[label] = {
            "error": float(np.sqrt(np.mean((data[name] - truth) ** 2))),
            "stated": float(np.sqrt(np.mean(data[f"{name}_variance"]))),
            "flagged": _share_flagged(bounds, name),
            "cost": times[label] / times["guide"],
        }
        if bounds.proposals:
            rows[label]["proposals"] = bounds.proposals
    return rows


def _share_flagged(bounds: Bounds, name: str) -> float:
    """Return the share of examples whose estimate is flagged."""
    return float(bounds.flagged(name).mean())


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, seed: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the rows of the results."""
    preset, rows = PRESETS[name], {}
    for index, (label, posterior) in enumerate(POSTERIORS.items()):
        if only and label not in only:
            continue
        for dim in preset["dims"]:
            with seeded(seed, index, dim):
                key = f"{label}, {dim} latents"
                rows[key] = measure_problem(posterior, dim, preset)
            print(format_problem(key, rows[key]), flush=True)
    return rows


def format_problem(label: str, row: dict[str, Any]) -> str:
    """Format the estimators of a problem for a terminal."""
    lines = [label]
    for name, entry in row.items():
        if "reason" in entry:
            lines.append(f"  {name:18}{entry['reason']}")
        else:
            lines.append(
                f"  {name:18}error {entry['error']:8.3f}, stated {entry['stated']:7.3f}, flagged "
                f"{entry['flagged']:4.0%}, cost {entry['cost']:5.2f}"
            )
    return "\n".join(lines)


def format_table(results: dict[str, Any]) -> str:
    """Format the results as the Markdown table of ``docs/how-to/estimators.md``."""
    lines = [f"| posterior | {' | '.join(ESTIMATORS)} |", f"|---{'|---' * len(ESTIMATORS)}|"]
    for label, row in results["rows"].items():
        cells = [_format_cell(row[name]) for name in ESTIMATORS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_cell(entry: dict[str, Any]) -> str:
    if "reason" in entry:
        return "–"
    error, cost = entry["error"], entry["cost"]
    flagged = f", {entry['flagged']:.0%} flagged" if entry["flagged"] else ""
    return f"{error:.{2 if error < 10 else 0}f}{flagged} (× {cost:.{1 if cost < 10 else 0}f})"


STUDY = Study(
    "estimators",
    TITLE,
    PRESETS,
    list(POSTERIORS),
    measure,
    measure_problem.__doc__ or "",
    format_table,
)


if __name__ == "__main__":
    sys.exit(STUDY.main())
