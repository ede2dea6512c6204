"""Gradients of importance weighted bounds: noise and signal against the number of draws.

The model of Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
section 4, https://arxiv.org/abs/1802.04537: z ~ N(μ, I), x|z ~ N(z, I) and q(z|x) = N(A x + b,
2/3 I) in 20 dimensions, 1024 data, and parameters near the best. The gradient is that of the
mean bound of all data, taken by the objectives themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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

from pyro_vae.core import files
from pyro_vae.core.random import check_seed, seeded
from pyro_vae.learning.objectives import IWAE, MIWAE, PIWAE, Objective

from .table import RESULTS

GROUPS = 5
ESTIMATORS: dict[str, Callable[[int], Objective]] = {
    "IWAE standard": lambda k: IWAE(k),
    "IWAE stl": lambda k: IWAE(k, "stl"),
    "IWAE dreg": lambda k: IWAE(k, "dreg"),
    f"MIWAE, {GROUPS} groups": lambda k: MIWAE(GROUPS, k // GROUPS),
    f"PIWAE, {GROUPS} groups": lambda k: PIWAE(GROUPS, k // GROUPS),
}
#: What the power of k in the signal-to-noise ratio tends to, for encoder and decoder; that of
#: ``dreg`` is Tucker et al.'s (2018). ``stl`` of k > 1 is the gradient of no bound.
THEORY = {
    "IWAE standard": {"encoder": -0.5, "decoder": 0.5},
    "IWAE stl": {"encoder": None, "decoder": 0.5},
    "IWAE dreg": {"encoder": 0.5, "decoder": 0.5},
    f"MIWAE, {GROUPS} groups": {"encoder": -0.5, "decoder": 0.5},
    f"PIWAE, {GROUPS} groups": {"encoder": -0.5, "decoder": 0.5},
}
PARAMETERS = {"encoder": ("A", "b"), "decoder": ("mu",)}
#: The powers of k are those of many draws: with fewer, what is left of the ELBO's gradient
#: still falls in the decoder's.
MANY = 50


@dataclass(frozen=True)
class Preset:
    """How much work: ``draws`` / k gradients for each k, but within ``repeats``."""

    ks: tuple[int, ...]
    num_data: int
    draws: int
    repeats: tuple[int, int]

    def repeated(self, k: int) -> int:
        low, high = self.repeats
        return min(max(self.draws // k, low), high)


PRESETS = {
    "smoke": Preset(ks=(1, 10, 50, 100), num_data=32, draws=200, repeats=(10, 20)),
    "small": Preset(
        ks=(1, 2, 5, 10, 20, 50, 100, 200), num_data=1024, draws=9000, repeats=(45, 300)
    ),
}


class Toy(PyroModule):
    """The program, with parameters N(0, 0.01²) away from those that are best for ``x``."""

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


def gradients(program: Toy, objective: Objective, x: Tensor, repeats: int) -> dict[str, Tensor]:
    """So many gradients of the mean bound, ``(repeats, parameters)`` for encoder and decoder."""
    rows: dict[str, list[Tensor]] = {part: [] for part in PARAMETERS}
    for _ in range(repeats):
        program.zero_grad()
        objective.loss_and_grads(program.model, program.guide, x)
        grads = {name: p.grad for name, p in program.named_parameters()}
        for part, names in PARAMETERS.items():
            rows[part].append(torch.cat([-grads[n].flatten() / len(x) for n in names]))
    return {part: torch.stack(row) for part, row in rows.items()}


def statistics(rows: Tensor) -> dict[str, float | None]:
    """Mean, variance and signal-to-noise ratio of gradients ``(R, P)``, over all P parameters.

    ``mean`` is the root mean square over the parameters of their expected gradients, without
    what the noise of R gradients adds to it; ``variance`` the mean of their variances, and
    ``snr`` the first over the root of the second. Standard errors ``se_…`` are the jackknife's;
    that of ``snr`` is of its logarithm. ``None`` is for a signal that noise has drowned.
    """
    g = rows.double()
    count = len(g)
    total, squares = g.sum(0), g.square().sum(0)

    def of(n: int, total: Tensor, squares: Tensor) -> Tensor:
        variance = (squares - total.square() / n) / (n - 1)
        signal = (total / n).square() - variance / n
        return torch.stack([signal.mean(-1), variance.mean(-1)], -1)

    square, variance = of(count, total, squares).tolist()
    each = of(count - 1, total - g, squares - g.square())
    spread = (count - 1) / math.sqrt(count)  # of pseudo-values, over the root of their number
    se_square, se_variance = (spread * each.std(0)).tolist()
    found: dict[str, float | None] = {"variance": variance, "se_variance": se_variance}
    if square <= 0 or bool((each[:, 0] <= 0).any()):
        return {"mean": None, "se_mean": None, **found, "snr": None, "se_log_snr": None}
    logs = 0.5 * (each[:, 0] / each[:, 1]).log()
    mean = math.sqrt(square)
    return {
        "mean": mean,
        "se_mean": se_square / (2 * mean),
        **found,
        "snr": mean / math.sqrt(variance),
        "se_log_snr": float(spread * logs.std()),
    }


def slope(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The power of k in the signal-to-noise ratio for k ≥ 50, by weighted least squares."""
    used = [row for row in rows if row["k"] >= MANY and row["snr"] is not None]
    if len(used) < 2:
        return None
    log_k = np.log([row["k"] for row in used])
    weight = 1 / np.array([row["se_log_snr"] for row in used]) ** 2
    away = log_k - np.average(log_k, weights=weight)
    spread = float((weight * away**2).sum())
    fitted = float((weight * away * np.log([row["snr"] for row in used])).sum()) / spread
    return {"slope": fitted, "se": spread**-0.5}


def measure(name: str, seed: int) -> dict[str, Any]:
    """Everything that the results file says."""
    preset = PRESETS[name]
    with seeded(seed), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        x = torch.randn(20) + math.sqrt(2) * torch.randn(preset.num_data, 20)
        program = Toy(x)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number, (estimator, make) in enumerate(ESTIMATORS.items()):
        rows[estimator] = {part: [] for part in PARAMETERS}
        for k in preset.ks:
            if k % GROUPS and "groups" in estimator:
                continue
            with (
                seeded(seed, number, k),
                pyro.get_param_store().scope(),
                pyro.validation_enabled(False),
            ):
                found = gradients(program, make(k), x, preset.repeated(k))
            for part, grads in found.items():
                row = {"k": k, "repeats": len(grads), **statistics(grads)}
                rows[estimator][part].append(row)
    slopes = {
        estimator: {
            part: {"fitted": slope(table), "theory": THEORY[estimator][part]}
            for part, table in parts.items()
        }
        for estimator, parts in rows.items()
    }
    return {
        "name": "gradients",
        "title": "Gradients of importance weighted bounds against the number of draws",
        "preset": name,
        "command": f"python -m experiments.gradients --preset {name} --seed {seed}",
        "configuration": {**asdict(preset), "dimensions": 20, "perturbation": 0.01},
        "seed": seed,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("pyro-vae", "torch", "pyro-ppl")},
        },
        "columns": " ".join((statistics.__doc__ or "").split()),
        "draws": "k is the number of all draws for a datum, also where they are in groups",
        "rows": rows,
        "slopes": {
            "of": f"log snr against log k for k ≥ {MANY}; in theory for k → ∞ in each group",
            **slopes,
        },
    }


def text(results: dict[str, Any]) -> str:
    """The table as it is printed."""
    lines = [results["title"], f"{'':18} {'':8} {'k':>4} {'mean':>10} {'variance':>10}   snr"]
    for estimator, parts in results["rows"].items():
        for part, table in parts.items():
            for row in table:
                mean = "–" if row["mean"] is None else f"{row['mean']:.2e}"
                snr = "–"
                if row["snr"] is not None:
                    snr = f"{row['snr']:.3g} ± {row['snr'] * row['se_log_snr']:.1g}"
                lines.append(
                    f"{estimator:18} {part:8} {row['k']:4} {mean:>10} {row['variance']:10.2e}   "
                    f"{snr}"
                )
            told = results["slopes"][estimator][part]
            if told["fitted"] is not None:
                fit, theory = told["fitted"], told["theory"]
                beside = "" if theory is None else f", {theory:+.1f} in theory"
                lines.append(f"{'':18} snr ~ k^({fit['slope']:+.2f} ± {fit['se']:.2f}){beside}")
    return "\n".join(lines)


def draw(results: dict[str, Any]) -> Figure:
    """The encoder's variance, and both networks' signal-to-noise ratios, against k."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    noise, signal = figure.subplots(1, 2)
    rows = results["rows"]
    for color, gradient in zip(("C0", "C1", "C2"), ("standard", "stl", "dreg"), strict=True):
        _curve(noise, rows[f"IWAE {gradient}"]["encoder"], "variance", color, gradient)
    noise.set_ylabel("variance of the encoder's gradient")
    shown = {
        "encoder, standard": ("IWAE standard", "encoder", "C0"),
        "encoder, dreg": ("IWAE dreg", "encoder", "C2"),
        "decoder": ("IWAE standard", "decoder", "C3"),
    }
    for label, (estimator, part, color) in shown.items():
        table = rows[estimator][part]
        _curve(signal, table, "snr", color, label)
        power = THEORY[estimator][part]
        seen = [row for row in table if row["k"] >= MANY and row["snr"] is not None]
        if seen:
            ks = np.array([row["k"] for row in seen])
            middle = seen[len(seen) // 2]
            line = middle["snr"] * (ks / middle["k"]) ** power
            signal.plot(ks, line, color=color, ls=":", lw=1)
    signal.plot([], [], color="0.4", ls=":", lw=1, label="theory, $k^{±1/2}$")
    signal.set_ylabel("signal-to-noise ratio")
    for axes in (noise, signal):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("draws k")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def _curve(axes: Any, table: Sequence[dict[str, Any]], what: str, color: str, label: str) -> None:
    seen = [row for row in table if row[what] is not None]
    ks, values = np.array([(row["k"], row[what]) for row in seen]).reshape(-1, 2).T
    relative = [
        row["se_log_snr"] if what == "snr" else row["se_variance"] / row[what] for row in seen
    ]
    factor = np.exp(2 * np.array(relative))
    axes.fill_between(ks, values / factor, values * factor, color=color, alpha=0.25, lw=0)
    axes.plot(ks, values, marker=".", color=color, label=label)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, writes the numbers and the figure, and prints the table."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.gradients",
        description="Gradients of importance weighted bounds against the number of draws",
        allow_abbrev=False,
    )
    made.add_argument("--preset", choices=list(PRESETS), default="small")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the numbers go"
    )
    options = made.parse_args(argv)
    try:
        results = measure(options.preset, check_seed(options.seed))
        file = options.results / f"gradients-{options.preset}.json"
        files.write_text(file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        figure = draw(results)
        files.write(file.with_suffix(".png"), lambda path: figure.savefig(path, dpi=150))
    except (OSError, ValueError) as error:
        print(f"gradients: {error}", file=sys.stderr)
        return 1
    print(text(results))
    print(f"results: {file}, {file.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
