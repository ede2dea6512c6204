"""Gradients of importance weighted bounds: noise and signal against the number of samples.

The model of Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
section 4, https://arxiv.org/abs/1802.04537: z ~ N(μ, I), x|z ~ N(z, I) and q(z|x) = N(A x + b,
2/3 I) in 20 dimensions, 1024 examples, and parameters near the optimum. Gradients are those of the
mean bound over all examples, as computed by the objectives.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_vae.core.random import check_seed, seeded
from pyro_vae.learning.objectives import IWAE, MIWAE, PIWAE, Objective

from ..command import RESULTS, write_results

MODULE = "experiments.studies.gradients"
TITLE = "Gradients of importance weighted bounds against the number of samples"
GROUPS = 5
ESTIMATORS: dict[str, Callable[[int], Objective]] = {
    "IWAE standard": lambda k: IWAE(k),
    "IWAE stl": lambda k: IWAE(k, "stl"),
    "IWAE dreg": lambda k: IWAE(k, "dreg"),
    f"MIWAE, {GROUPS} groups": lambda k: MIWAE(GROUPS, k // GROUPS),
    f"PIWAE, {GROUPS} groups": lambda k: PIWAE(GROUPS, k // GROUPS),
}
#: Asymptotic power of k in the signal-to-noise ratio of encoder and decoder; for ``dreg`` from
#: Tucker et al. (2018). For k > 1, ``stl`` is biased and not the gradient of a bound.
_ENCODER_POWERS = {"IWAE stl": None, "IWAE dreg": 0.5}
THEORY = {name: {"encoder": _ENCODER_POWERS.get(name, -0.5), "decoder": 0.5} for name in ESTIMATORS}
PARAMETERS = {"encoder": ("A", "b"), "decoder": ("mu",)}
#: Smallest k of the fitted powers. Below, the gradient of the ELBO still contributes and decreases
#: in the decoder.
MIN_FITTED_K = 50


#: The number of gradients for each k is ``draws`` / k, clipped to ``repeats``.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"ks": (1, 10, 50, 100), "num_data": 32, "draws": 200, "repeats": (10, 20)},
    "small": {
        "ks": (1, 2, 5, 10, 20, 50, 100, 200),
        "num_data": 1024,
        "draws": 9000,
        "repeats": (45, 300),
    },
}


class ToyProgram(PyroModule):
    """The program, with N(0, 0.01²) noise added to the optimal parameters for ``x``."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        mean, size = x.mean(0), x.shape[1]
        for name, best in {"mu": mean, "A": torch.eye(size) / 2, "b": mean / 2}.items():
            setattr(self, name, nn.Parameter(best + 0.01 * torch.randn(best.shape)))

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean = x @ self.A.T + self.b
            pyro.sample("z", dist.Normal(mean, math.sqrt(2 / 3)).to_event(1))


def sample_gradients(
    program: ToyProgram, objective: Objective, x: Tensor, repeats: int
) -> dict[str, Tensor]:
    """Return gradients of the mean bound, ``(repeats, parameters)`` for encoder and decoder."""
    rows: dict[str, list[Tensor]] = {part: [] for part in PARAMETERS}
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        for _ in range(repeats):
            program.zero_grad()
            objective.loss_and_grads(program.model, program.guide, x)
            grads = {name: p.grad for name, p in program.named_parameters()}
            for part, names in PARAMETERS.items():
                rows[part].append(torch.cat([-grads[n].flatten() / len(x) for n in names]))
    return {part: torch.stack(row) for part, row in rows.items()}


def gradient_statistics(rows: Tensor) -> dict[str, float | None]:
    """Mean, variance and signal-to-noise ratio of gradients ``(R, P)``, over all P parameters.

    ``mean`` is the root mean square of the expected gradients, corrected for the noise of R
    gradients; ``variance`` is the mean variance, and ``snr`` is ``mean`` over its square root.
    Standard errors ``se_…`` are jackknife estimates, for ``snr`` of its logarithm. ``None`` means
    that no signal is left after the correction.
    """
    g = rows.double()
    count = len(g)
    total, squares = g.sum(0), g.square().sum(0)

    def estimate(n: int, total: Tensor, squares: Tensor) -> Tensor:
        variance = (squares - total.square() / n) / (n - 1)
        signal = (total / n).square() - variance / n
        return torch.stack([signal.mean(-1), variance.mean(-1)], -1)

    square, variance = estimate(count, total, squares).tolist()
    jackknife = estimate(count - 1, total - g, squares - g.square())
    factor = (count - 1) / math.sqrt(count)  # of the standard error of the pseudo-values' mean
    se_square, se_variance = (factor * jackknife.std(0)).tolist()
    noise: dict[str, float | None] = {"variance": variance, "se_variance": se_variance}
    if square <= 0 or bool((jackknife[:, 0] <= 0).any()):
        return {"mean": None, "se_mean": None, **noise, "snr": None, "se_log_snr": None}
    logs = 0.5 * (jackknife[:, 0] / jackknife[:, 1]).log()
    mean = math.sqrt(square)
    return {
        "mean": mean,
        "se_mean": se_square / (2 * mean),
        **noise,
        "snr": mean / math.sqrt(variance),
        "se_log_snr": float(factor * logs.std()),
    }


def _fitted_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["k"] >= MIN_FITTED_K and row["snr"] is not None]


def fit_slope(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Fit the power of k in the signal-to-noise ratio for k ≥ 50, by weighted least squares."""
    used = _fitted_rows(rows)
    if len(used) < 2:
        return None
    log_k = np.log([row["k"] for row in used])
    weight = 1 / np.array([row["se_log_snr"] for row in used]) ** 2
    centered = log_k - np.average(log_k, weights=weight)
    precision = float((weight * centered**2).sum())
    fitted = float((weight * centered * np.log([row["snr"] for row in used])).sum()) / precision
    return {"slope": fitted, "se": precision**-0.5}


def measure_gradients(name: str, seed: int) -> dict[str, Any]:
    """Return the contents of the results file."""
    preset = PRESETS[name]
    with seeded(seed):
        x = torch.randn(20) + math.sqrt(2) * torch.randn(preset["num_data"], 20)
        program = ToyProgram(x)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number, (estimator, make) in enumerate(ESTIMATORS.items()):
        rows[estimator] = {part: [] for part in PARAMETERS}
        for k in preset["ks"]:
            if k % GROUPS and "groups" in estimator:
                continue
            repeats = int(np.clip(preset["draws"] // k, *preset["repeats"]))
            with seeded(seed, number, k):
                samples = sample_gradients(program, make(k), x, repeats)
            for part, grads in samples.items():
                row = {"k": k, "repeats": len(grads), **gradient_statistics(grads)}
                rows[estimator][part].append(row)
    slopes = {
        estimator: {
            part: {"fitted": fit_slope(table), "theory": THEORY[estimator][part]}
            for part, table in parts.items()
        }
        for estimator, parts in rows.items()
    }
    return {
        "name": "gradients",
        "title": TITLE,
        "preset": name,
        "command": f"python -m {MODULE} --preset {name} --seed {seed}",
        "configuration": {**preset, "dimensions": 20, "perturbation": 0.01},
        "seed": seed,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("pyro-vae", "torch", "pyro-ppl")},
        },
        "columns": " ".join((gradient_statistics.__doc__ or "").split()),
        "draws": "k is the total number of samples for an example, over all groups",
        "rows": rows,
        "slopes": {
            "of": f"log snr against log k for k ≥ {MIN_FITTED_K}; theory: k → ∞ in each group",
            **slopes,
        },
    }


def format_results(results: dict[str, Any]) -> str:
    """Format the table for a terminal."""
    lines = [results["title"], f"{'k':>32} {'mean':>10} {'variance':>10}   snr"]
    for estimator, parts in results["rows"].items():
        for part, table in parts.items():
            for row in table:
                mean = snr = "–"
                if row["snr"] is not None:
                    mean = f"{row['mean']:.2e}"
                    snr = f"{row['snr']:.3g} ± {row['snr'] * row['se_log_snr']:.1g}"
                numbers = f"{row['k']:4} {mean:>10} {row['variance']:10.2e}   {snr}"
                lines.append(f"{estimator:18} {part:8} {numbers}")
            fit, theory = results["slopes"][estimator][part].values()
            if fit is not None:
                expected = "" if theory is None else f", theory {theory:+.1f}"
                lines.append(f"{'':18} snr ~ k^({fit['slope']:+.2f} ± {fit['se']:.2f}){expected}")
    return "\n".join(lines)


def draw(results: dict[str, Any]) -> Figure:
    """Draw the encoder's variance and the signal-to-noise ratios of both networks against k."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    noise, signal = figure.subplots(1, 2)
    rows = results["rows"]
    for color, gradient in zip(("C0", "C1", "C2"), ("standard", "stl", "dreg"), strict=True):
        _plot_curve(noise, rows[f"IWAE {gradient}"]["encoder"], "variance", color, gradient)
    noise.set_ylabel("variance of the encoder's gradient")
    shown = {
        "encoder, standard": ("IWAE standard", "encoder", "C0"),
        "encoder, dreg": ("IWAE dreg", "encoder", "C2"),
        "decoder": ("IWAE standard", "decoder", "C3"),
    }
    for label, (estimator, part, color) in shown.items():
        table = rows[estimator][part]
        _plot_curve(signal, table, "snr", color, label)
        fitted = _fitted_rows(table)
        if fitted:
            ks = np.array([row["k"] for row in fitted])
            middle = fitted[len(fitted) // 2]
            line = middle["snr"] * (ks / middle["k"]) ** THEORY[estimator][part]
            signal.plot(ks, line, color=color, ls=":", lw=1)
    signal.plot([], [], color="0.4", ls=":", lw=1, label="theory, $k^{±1/2}$")
    signal.set_ylabel("signal-to-noise ratio")
    for axes in (noise, signal):
        axes.set(xscale="log", yscale="log", xlabel="samples k")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def _plot_curve(
    axes: Any, table: Sequence[dict[str, Any]], key: str, color: str, label: str
) -> None:
    rows = [row for row in table if row[key] is not None]
    ks, values = np.array([(row["k"], row[key]) for row in rows]).reshape(-1, 2).T
    errors = [r["se_log_snr"] if key == "snr" else r["se_variance"] / r[key] for r in rows]
    factor = np.exp(2 * np.array(errors))
    axes.fill_between(ks, values / factor, values * factor, color=color, alpha=0.25, lw=0)
    axes.plot(ks, values, marker=".", color=color, label=label)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the numbers and the figure, and print the table."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=TITLE, allow_abbrev=False
    )
    parser.add_argument("--preset", choices=list(PRESETS), default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--table", action="store_true", help="print the existing results")
    options = parser.parse_args(argv)
    file = options.results / f"gradients-{options.preset}.json"
    try:
        if options.table:
            print(format_results(json.loads(file.read_text(encoding="utf-8"))))
            return 0
        results = measure_gradients(options.preset, check_seed(options.seed))
        written = write_results(file, results, partial(draw, results))
    except (OSError, ValueError) as error:
        print(f"gradients: {error}", file=sys.stderr)
        return 1
    print(f"{format_results(results)}\nresults: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
