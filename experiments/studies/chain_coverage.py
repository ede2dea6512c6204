"""Coverage of the errors of annealed importance sampling and of inference gaps.

The regimes have continuous latents and a known log p(x), those of gaps are linear-Gaussian models.
Intervals are those of ``Bounds.interval`` and ``Gaps.interval``; rows are the mean ± 1.96 standard
errors. Examples are flagged by ``Bounds.flagged``, those of a gap also by ``Gaps.unconverged``.
"""

from __future__ import annotations

import sys
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
from pyro_vae.evaluation import Annealing
from pyro_vae.posteriors import DiagonalNormal

from ..study import Study
from .coverage import Problem, counts, funnel, normal, student, two_modes

TITLE = "Coverage of 95 % intervals of AIS and of inference gaps"
#: Differences below this do not matter, in nats.
TOLERANCE = 1e-3

REGIMES: dict[str, Callable[[int], Problem]] = {
    "2 latents, shifted q": normal(2, shift=0.5),
    "10 latents, shifted q": normal(10, shift=0.5),
    "50 latents, wide q": normal(50, (1.2,)),
    "narrow 0.25": normal(2, (0.25,)),
    "narrow 0.06": normal(2, (0.06,)),
    "narrow 0.5, 10 latents": normal(10, (0.5,)),
    "far-off q": normal(3, shift=2.0),
    "heavy-tailed posterior": student(1),
    "heavy-tailed, 5 latents": student(5),
    "skewed, counts": counts(),
    "funnel": funnel(),
    "second mode seldom drawn": two_modes(5.0),
    "easy and hard examples": normal(2, (0.9, 0.9, 0.9, 0.1)),
}
#: Chains and temperatures.
SCHEDULES = ((2, 100), (4, 20), (8, 20), (8, 100))
#: Latents, shift and relative variance of q, and steps of the refit of a diagonal normal.
GAPS = {
    "3 latents, 100 steps": (3, 0.5, 1.5, 100),
    "3 latents, 500 steps": (3, 0.5, 1.5, 500),
    "10 latents, 100 steps": (10, 0.5, 1.5, 100),
    "10 latents, 500 steps": (10, 0.5, 1.5, 500),
    "10 latents, far-off q, 500 steps": (10, 3.0, 0.25, 500),
    "30 latents, 500 steps": (30, 0.5, 0.5, 500),
}
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"repetitions": 1, "size": 10, "gap_repetitions": 1, "schedules": ((4, 20),)},
    "small": {"repetitions": 6, "size": 50, "gap_repetitions": 3, "schedules": SCHEDULES},
    "large": {
        "repetitions": 60,
        "size": 50,
        "gap_repetitions": 20,
        "schedules": (*SCHEDULES, (4, 100), (16, 100)),
    },
}


@dataclass
class Count:
    """Counts of covered and flagged examples, and of covered rows."""

    covered: int = 0
    unflagged: int = 0
    examples: int = 0
    rows_covered: int = 0
    rows: int = 0
    all_covered: int = 0

    def add(
        self,
        limits: tuple[np.ndarray, np.ndarray],
        estimate: Any,
        truth: np.ndarray,
        flagged: np.ndarray,
    ) -> None:
        inside = (limits[0] - TOLERANCE <= truth) & (truth <= limits[1] + TOLERANCE)
        self.covered += int((inside & ~flagged).sum())
        self.all_covered += int(inside.sum())
        self.unflagged += int((~flagged).sum())
        self.examples += len(truth)
        if 2 * flagged.sum() <= len(truth):
            error = abs(estimate.value - truth.mean())
            self.rows_covered += int(error <= 1.96 * estimate.se_monte_carlo + TOLERANCE)
            self.rows += 1

    def summary(self) -> dict[str, float | None]:
        """Return the shares.

        ``coverage`` of the intervals of examples that are not flagged; ``coverage_all`` of all;
        ``flagged``: share of flagged examples; ``row_coverage`` of the rows with at most half of
        the examples flagged, and their number ``rows``.
        """
        return {
            "coverage": _divide(self.covered, self.unflagged),
            "coverage_all": _divide(self.all_covered, self.examples),
            "flagged": _divide(self.examples - self.unflagged, self.examples),
            "row_coverage": _divide(self.rows_covered, self.rows),
            "rows": self.rows,
        }


def _divide(count: int, total: int) -> float | None:
    return round(count / total, 4) if total else None


def measure_ais(
    make: Callable[[int], Problem], annealing: Annealing, size: int, repetitions: int
) -> dict[str, float | None]:
    """Return the coverage of AIS on independent data sets."""
    count = Count()
    for seed in range(repetitions):
        problem = make(size)
        bounds = pv.evaluation.ais(
            problem.program, problem.x, *problem.args, annealing=annealing, seed=seed
        )
        truth = problem.log_evidence
        flagged = bounds.flagged("ais")
        count.add(bounds.interval("ais"), bounds.estimates["ais"], truth, flagged)
    return count.summary()


def correlated(dim: int, shift: float, ratio: float) -> tuple[Any, Tensor, dict[str, float]]:
    """Return a program with a correlated normal posterior, its covariance, and its gaps.

    q has the covariance of the posterior times a ratio, and a mean that is shifted by standard
    deviations in each direction.
    """
    noise = 0.7
    weights = torch.randn(2 * dim, dim, dtype=torch.float64)
    precision = torch.eye(dim, dtype=torch.float64) + weights.T @ weights / noise**2
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior = dist.Normal(torch.zeros(dim, dtype=x.dtype), 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.T, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x @ weights @ factor @ factor.T / noise**2 + shift * factor.sum(1)
            scale_tril = (ratio**0.5 * factor).expand(len(x), -1, -1)
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    total = dim * 0.5 * (ratio - 1 - np.log(ratio) + shift**2)
    # KL of the best diagonal normal to the posterior
    best = float(precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    gaps = {"approximation": best, "amortisation": total - best, "total": total, "closed": best}
    return (model, guide), weights, gaps


def measure_gaps(
    dim: int, shift: float, ratio: float, num_steps: int, size: int, repetitions: int
) -> dict[str, dict[str, float | None]]:
    """Return the coverage of each inference gap on independent data sets."""
    table: dict[str, Count] = {}
    for seed in range(repetitions):
        program, weights, truths = correlated(dim, shift, ratio)
        z = torch.randn(size, dim, dtype=torch.float64)
        x = z @ weights.T + 0.7 * torch.randn(size, 2 * dim, dtype=torch.float64)
        result = pv.gaps(
            program,
            x,
            family=DiagonalNormal,
            annealing=None,
            num_steps=num_steps,
            num_samples=2000,
            seed=seed,
        )
        for name, truth in truths.items():
            flagged = np.zeros(size, dtype=bool)
            if name in ("approximation", "total"):
                flagged |= result.bounds.flagged(result.evidence_estimator)
            names = {"total": (), "closed": ("refitted", "richer")}.get(name, ("refitted",))
            for row in names:
                flagged[result.unconverged[row]] = True
            count = table.setdefault(name, Count())
            estimate = result.estimates[name]
            count.add(result.interval(name), estimate, np.full(size, truth), flagged)
    return {name: count.summary() for name, count in table.items()}


def measure(name: str, seed: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the rows of the results."""
    preset = PRESETS[name]
    rows: dict[str, Any] = {}
    for index, (label, make) in enumerate(REGIMES.items()):
        for chains, temperatures in preset["schedules"]:
            key = f"{label}: {chains} chains × {temperatures}"
            if only and label not in only:
                continue
            annealing = Annealing(num_chains=chains, num_temperatures=temperatures, num_steps=5)
            with seeded(seed, index):
                rows[key] = measure_ais(make, annealing, preset["size"], preset["repetitions"])
            print(format_row(key, rows[key]), flush=True)
    for index, (label, options) in enumerate(GAPS.items()):
        if only and label not in only:
            continue
        with seeded(seed, len(REGIMES) + index):
            found = measure_gaps(*options, preset["size"], preset["gap_repetitions"])
        for gap, row in found.items():
            rows[f"{label}: {gap}"] = row
            print(format_row(f"{label}: {gap}", row), flush=True)
    return rows


def format_row(label: str, row: dict[str, float | None]) -> str:
    """Format a row for a terminal."""

    def percent(key: str) -> str:
        return "    –" if row[key] is None else f"{row[key]:5.0%}"

    return (
        f"{label:50} covered{percent('coverage')} of the unflagged, {percent('coverage_all')} of "
        f"all, flagged{percent('flagged')}; rows{percent('row_coverage')} of {row['rows']}"
    )


def format_tables(results: dict[str, Any]) -> str:
    """Format the results as the two Markdown tables of ``docs/explanation/errors.md``."""
    tables = []
    for labels in (REGIMES, GAPS):
        rows: dict[str, dict[str, str]] = {}
        for key, row in results["rows"].items():
            label, _, column = key.partition(": ")
            if label in labels:
                rows.setdefault(label, {})[column] = _format_cell(row)
        columns = list(next(iter(rows.values())))
        lines = [f"| problem | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
        lines += [f"| {label} | {' | '.join(cells.values())} |" for label, cells in rows.items()]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _format_cell(row: dict[str, float | None]) -> str:
    shares = (row["coverage"], row["flagged"])
    return " / ".join("–" if share is None else f"{share:.0%}" for share in shares)


STUDY = Study(
    "chain_coverage",
    TITLE,
    PRESETS,
    [*REGIMES, *GAPS],
    measure,
    Count.summary.__doc__ or "",
    format_tables,
)


if __name__ == "__main__":
    sys.exit(STUDY.main())
