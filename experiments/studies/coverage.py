"""Coverage of the errors that ``evaluate`` states, where log p(x) is known.

Each regime is a Pyro program whose log p(x) and KL(q ‖ p(z|x)) are known in closed form or by
quadrature. It is evaluated on many independent data sets. A 95 % interval should contain the truth
in 90–98 % of the cases, for single examples and for the row of the table, or the example should be
flagged. Examples are flagged by ``Bounds.flagged``; a row is if one of its examples is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import integrate, stats
from torch import Tensor

import pyro_vae as pv
from pyro_vae.core.random import seeded
from pyro_vae.evaluation import Bounds

from ..study import Study

TITLE = "Coverage of 95 % intervals by regime"

Program = tuple[Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True)
class Problem:
    """A data set with its truth.

    Attributes:
        program: model and guide.
        x: the data, ``(N, …)``.
        log_evidence: log p(x), ``(N,)``.
        divergence: KL(q ‖ p(z|x)), ``(N,)``.
        args: further arguments of the program.
    """

    program: Program
    x: Tensor
    log_evidence: np.ndarray
    divergence: np.ndarray
    args: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Regime:
    """A kind of mismatch between q and the posterior.

    Attributes:
        make: returns a data set of N examples; random numbers come from the global generator.
        num_samples: the number K of samples.
        size: the number N of examples of a data set.
        is_homogeneous: whether the weights relative to p(x) have the same distribution for all
            examples, so that the mean of L_k − log p(x) estimates its expectation.
        has_laplace: whether the latents are continuous.
    """

    make: Callable[[int], Problem]
    num_samples: int = 1000
    size: int = 100
    is_homogeneous: bool = True
    has_laplace: bool = True


def normal(dim: int, ratio: tuple[float, ...] = (1.0,), shift: float = 0.0) -> Callable:
    """Return a linear model with the posterior N(x/2, 1/2) in each dimension.

    Arguments:
        dim: the number of latents.
        ratio: variances of q relative to those of the posterior; one is drawn for each example,
            or, of two numbers marked by −1 between them, from the log-uniform distribution.
        shift: shift of the mean of q in standard deviations of the posterior.
    """

    def model(x: Tensor, scale: Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior = dist.Normal(torch.zeros(dim, dtype=x.dtype), 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, scale: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x / 2 + shift * math.sqrt(0.5)
            pyro.sample("z", dist.Normal(loc, scale[..., None].expand_as(loc)).to_event(1))

    def make(size: int) -> Problem:
        x = math.sqrt(2) * torch.randn(size, dim, dtype=torch.float64)
        if len(ratio) == 3:
            low, _, high = ratio
            c = torch.empty(size, dtype=torch.float64).uniform_(math.log(low), math.log(high)).exp()
        else:
            c = torch.tensor(ratio, dtype=torch.float64)[torch.randint(len(ratio), (size,))]
        truth = stats.norm.logpdf(x.numpy(), scale=math.sqrt(2)).sum(1)
        divergence = dim * 0.5 * (c - 1 - c.log() + shift**2)
        return Problem((model, guide), x, truth, divergence.numpy(), ((c / 2).sqrt(),))

    return make


def latents_apart_from_data(
    sample: Callable[[bool], None], divergence: float
) -> Callable[[int], Problem]:
    """Return a model whose data do not depend on the latents: the posterior is the prior.

    Arguments:
        sample: samples the latents of the model, or of the guide.
        divergence: KL(guide ‖ model) of the latents.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            sample(False)
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            sample(True)

    def make(size: int) -> Problem:
        x = torch.randn(size, dtype=torch.float64)
        truth = stats.norm.logpdf(x.numpy())
        return Problem((model, guide), x, truth, np.full(size, divergence))

    return make


def _expect_normal(function: Callable[[float], float]) -> float:
    """Return the expectation of a function of a standard normal variable, by quadrature."""
    value, _ = integrate.quad(lambda u: stats.norm.pdf(u) * function(u), -12, 12, limit=200)
    return value


def student(dim: int) -> Callable[[int], Problem]:
    """Return posteriors with the tails of Student's t with 5 degrees of freedom; q is normal."""
    single = _expect_normal(lambda u: stats.norm.logpdf(u) - stats.t.logpdf(u, 5))

    def sample(is_guide: bool) -> None:
        zero = torch.zeros(dim, dtype=torch.float64)
        part = dist.Normal(zero, 1.0) if is_guide else dist.StudentT(5.0, zero, 1.0)
        pyro.sample("z", part.to_event(1))

    return latents_apart_from_data(sample, dim * single)


def funnel() -> Callable[[int], Problem]:
    """Return a funnel, v ~ N(0, 1) and y|v ~ N(0, e^v), with a standard normal q."""
    # E[v/2 + (e^−v − 1)/2] for a standard normal v
    divergence = (math.exp(0.5) - 1) / 2

    def sample(is_guide: bool) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        v = pyro.sample("v", dist.Normal(zero, 1.0))
        pyro.sample("y", dist.Normal(zero, 1.0 if is_guide else (v / 2).exp()))

    return latents_apart_from_data(sample, divergence)


def two_modes(distance: float) -> Callable[[int], Problem]:
    """Return posteriors with two normal modes at a distance; q is N(0, 1.3²) at one of them."""

    def log_density(z: np.ndarray) -> np.ndarray:
        return np.logaddexp(stats.norm.logpdf(z), stats.norm.logpdf(z, distance)) - math.log(2)

    divergence = _expect_normal(
        lambda u: float(stats.norm.logpdf(u) - math.log(1.3) - log_density(np.array(1.3 * u)))
    )

    def sample(is_guide: bool) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        if is_guide:
            pyro.sample("z", dist.Normal(zero, 1.3))
            return
        means = torch.tensor([0.0, distance], dtype=torch.float64)
        weights = dist.Categorical(probs=torch.full((2,), 0.5, dtype=torch.float64))
        pyro.sample("z", dist.MixtureSameFamily(weights, dist.Normal(means, 1.0)))

    return latents_apart_from_data(sample, divergence)


def counts() -> Callable[[int], Problem]:
    """Return counts with a gamma prior on their rate; q is log-normal, at the mode of log z."""
    shape, rate = 1.0, 1.0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            one = torch.ones((), dtype=torch.float64)
            z = pyro.sample("z", dist.Gamma(shape * one, rate * one))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = shape + x
            pyro.sample("z", dist.LogNormal((a / (rate + 1)).log(), a.rsqrt()))

    def make(size: int) -> Problem:
        z = torch.distributions.Gamma(torch.tensor(shape).double(), rate).sample((size,))
        x = torch.poisson(z)
        n = x.numpy()
        truth = stats.nbinom.logpmf(n, shape, rate / (1 + rate))
        a, b = shape + n, rate + 1
        # entropy of the log-normal, and E log Gamma(a, b) under it
        mean = np.log(a / b)
        entropy = mean + 0.5 * np.log(2 * math.pi * math.e / a)
        expected = a * np.log(b) - _log_gamma(a) + (a - 1) * mean - a * np.exp(0.5 / a)
        return Problem((model, guide), x, truth, -entropy - expected)

    return make


def _log_gamma(values: np.ndarray) -> np.ndarray:
    return torch.lgamma(torch.from_numpy(values)).numpy()


def classes(chance: float) -> Callable[[int], Problem]:
    """Return two equally probable classes, of which q draws the second with the given chance."""

    def sample(is_guide: bool) -> None:
        p = torch.tensor(chance if is_guide else 0.5, dtype=torch.float64)
        pyro.sample("k", dist.Bernoulli(p))

    divergence = sum(q * math.log(2 * q) for q in (chance, 1 - chance))
    return latents_apart_from_data(sample, divergence)


REGIMES: dict[str, Regime] = {
    "exact q": Regime(normal(3)),
    "wide, 10 latents": Regime(normal(10, (1.3,))),
    "50 latents": Regime(normal(50, (0.9,))),
    "shifted, 10 latents": Regime(normal(10, shift=0.3)),
    "narrow 0.6": Regime(normal(1, (0.6,))),
    "narrow 0.4": Regime(normal(1, (0.4,))),
    "narrow 0.25": Regime(normal(1, (0.25,))),
    "narrow 0.7, 10 latents": Regime(normal(10, (0.7,))),
    "narrow 0.6, 100 samples": Regime(normal(1, (0.6,)), num_samples=100),
    "wide, 25 samples": Regime(normal(2, (1.3,)), num_samples=25),
    "narrow 0.8, 25 samples": Regime(normal(2, (0.8,)), num_samples=25),
    "heavy-tailed posterior": Regime(student(1)),
    "heavy-tailed, 5 latents": Regime(student(5)),
    "skewed, counts": Regime(counts(), is_homogeneous=False),
    "funnel": Regime(funnel()),
    "second mode seldom drawn": Regime(two_modes(5.0)),
    "second mode never drawn": Regime(two_modes(12.0)),
    "rare class, 2 %": Regime(classes(0.02), has_laplace=False),
    "rare class, 10⁻⁵": Regime(classes(1e-5), has_laplace=False),
    "easy and hard examples": Regime(normal(2, (0.9, 0.9, 0.9, 0.25)), is_homogeneous=False),
    "0.2 to 1.3 by example": Regime(normal(1, (0.2, -1.0, 1.3)), is_homogeneous=False),
    "narrow 0.6, one example": Regime(normal(1, (0.6,)), size=1),
    "narrow 0.4, one example": Regime(normal(1, (0.4,)), size=1),
}


@dataclass
class _Count:
    """Running counts of one row of the table in one regime.

    Attributes:
        covered, unflagged, examples: numbers of examples: the truth lies in the interval and the
            example is not flagged; not flagged; all.
        rows_covered, rows_covered_unflagged, rows_unflagged, rows: the same of rows of tables.
        errors, stated: squares of the errors and standard errors of the rows.
    """

    covered: int = 0
    unflagged: int = 0
    examples: int = 0
    rows_covered: int = 0
    rows_covered_unflagged: int = 0
    rows_unflagged: int = 0
    rows: int = 0
    errors: list[float] = field(default_factory=list)
    stated: list[float] = field(default_factory=list)

    def add(self, bounds: Bounds, name: str, truth: np.ndarray) -> None:
        flagged = bounds.flagged(name)
        low, high = bounds.interval(name)
        # rounding of exact estimates
        tolerance = 1e-9 * (1 + np.abs(truth))
        inside = (low - tolerance <= truth) & (truth <= high + tolerance)
        self.covered += int((inside & ~flagged).sum())
        self.unflagged += int((~flagged).sum())
        self.examples += len(truth)
        row = bounds.estimates[name]
        error = row.value - truth.mean()
        is_covered = abs(error) <= 1.96 * row.se_monte_carlo + tolerance.mean()
        self.rows += 1
        self.rows_covered += int(is_covered)
        self.rows_unflagged += int(not flagged.any())
        self.rows_covered_unflagged += int(is_covered and not flagged.any())
        self.errors.append(error**2)
        self.stated.append(row.se_monte_carlo**2)

    def summary(self) -> dict[str, float | None]:
        """Return the shares.

        ``coverage`` of the intervals of examples that are not flagged, and their number
        ``examples``; ``flagged``: share of flagged examples. ``row_coverage`` of all rows, and of
        ``rows_unflagged`` rows without a flagged example ``row_coverage_unflagged``. ``row_error``
        and ``row_stated``: root mean square of the error and of the standard error, in nats.
        """
        return {
            "coverage": _divide(self.covered, self.unflagged),
            "examples": self.unflagged,
            "flagged": 1 - self.unflagged / self.examples,
            "row_coverage": self.rows_covered / self.rows,
            "row_coverage_unflagged": _divide(self.rows_covered_unflagged, self.rows_unflagged),
            "rows": self.rows,
            "rows_unflagged": self.rows_unflagged,
            "row_error": _round(math.sqrt(np.mean(self.errors))),
            "row_stated": _round(math.sqrt(np.mean(self.stated))),
        }


def _divide(count: int, total: int) -> float | None:
    return round(count / total, 4) if total else None


def _round(value: float) -> float:
    return float(f"{value:.3g}")


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"repetitions": 3, "size": 10, "single": 10},
    "small": {"repetitions": 50, "size": 20, "single": 100},
}


def evaluate_problem(regime: Regime, problem: Problem, seed: int) -> Bounds:
    """Return all rows of the table for one data set."""
    count = regime.num_samples
    estimators = [pv.evaluation.Corrected(), pv.evaluation.Defensive()]
    return pv.evaluate(
        problem.program,
        problem.x,
        *problem.args,
        num_samples=count,
        ks=(3 * count // 10,),  # does not divide the number of samples
        estimators=[*estimators, pv.Laplace(count)] if regime.has_laplace else estimators,
        seed=seed,
        compile=False,
    )


def climb(regime: Regime, problem: Problem, seed: int) -> Bounds:
    """Return the bounds of ``reliable=True`` for one data set."""
    return pv.evaluate(
        problem.program,
        problem.x,
        *problem.args,
        num_samples=regime.num_samples,
        reliable=True,
        seed=seed,
        compile=False,
    )


def measure_regime(regime: Regime, preset: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return :meth:`_Count.summary` of each row of the table."""
    is_single = regime.size == 1
    repetitions = preset["single" if is_single else "repetitions"]
    size = 1 if is_single else preset["size"]
    evaluated, ladder = [], _Count()
    for seed in range(repetitions):
        problem = regime.make(size)
        evaluated.append((problem, evaluate_problem(regime, problem, seed)))
        ladder.add(climb(regime, problem, seed), "log_evidence", problem.log_evidence)
    k = 3 * regime.num_samples // 10
    excess = np.concatenate([b.iwae_per_datum[k] - p.log_evidence for p, b in evaluated]).mean()
    counts: dict[str, _Count] = {}
    for problem, bounds in evaluated:
        truths = {
            "elbo": problem.log_evidence - problem.divergence,
            f"iwae_{k}": problem.log_evidence + excess,
            "gap": problem.divergence,
        }
        for name in bounds.estimates:
            if name.startswith("iwae_") and (name != f"iwae_{k}" or not regime.is_homogeneous):
                continue
            if name.endswith("_gap"):
                continue
            key = "L_k" if name.startswith("iwae_") else name
            truth = truths.get(name, problem.log_evidence)
            count = counts.setdefault(key, _Count())
            count.add(bounds, name, truth)
    return {name: count.summary() for name, count in counts.items()} | {"ladder": ladder.summary()}


def measure_coverage(name: str, seed: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the rows of the results."""
    preset = PRESETS[name]
    rows = {}
    for index, (label, regime) in enumerate(REGIMES.items()):
        if only and label not in only:
            continue
        with seeded(seed, index):
            rows[label] = {
                "num_samples": regime.num_samples,
                "size": 1 if regime.size == 1 else preset["size"],
                **measure_regime(regime, preset),
            }
        print(format_regime(label, rows[label]), flush=True)
    return rows


def format_regime(label: str, row: dict[str, Any]) -> str:
    """Format the rows of a regime for a terminal."""
    lines = [f"{label}: {row['size']} examples × {row['num_samples']} samples"]
    for name, entry in row.items():
        if isinstance(entry, dict):
            lines.append(
                f"  {name:14}{_percent(entry['coverage'])} of examples, flagged "
                f"{entry['flagged']:6.1%}; row {_percent(entry['row_coverage'])}, unflagged "
                f"{_percent(entry['row_coverage_unflagged'])}; error {entry['row_error']:.2g}, "
                f"stated {entry['row_stated']:.2g}"
            )
    return "\n".join(lines)


def format_table(results: dict[str, Any]) -> str:
    """Format the results as the Markdown table of ``docs/explanation/errors.md``."""
    titles = {
        "log_evidence": "log p̂",
        "psis": "PSIS",
        "gap": "log p̂ − ELBO",
        "defensive": "defensive",
        "laplace": "Laplace",
        "ladder": "`reliable=True`",
    }
    lines = [f"| regime | {' | '.join(titles.values())} |", f"|---{'|---' * len(titles)}|"]
    for label, row in results["rows"].items():
        cells = []
        for name in titles:
            entry = row.get(name)
            if entry is None:
                cells.append("–")
                continue
            parts = [entry["coverage"], entry["flagged"], entry["row_coverage"]]
            cells.append(" / ".join(_percent(part).strip().replace(".0%", "%") for part in parts))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return f"{'–':>6}" if share is None else f"{share:6.1%}"


STUDY = Study(
    "coverage",
    TITLE,
    PRESETS,
    list(REGIMES),
    measure_coverage,
    _Count.summary.__doc__ or "",
    format_table,
)


if __name__ == "__main__":
    sys.exit(STUDY.main())
