"""Marginal likelihood against training examples seen: AEVB, wake-sleep and Monte Carlo EM.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 3 and appendices D and E: 3
latents and 100 tanh units, trained on 1000 or 50,000 digits; log p(x) of the first training and
test examples by the estimator of appendix D, with 50 posterior samples and 4 leapfrog steps.
Annealed importance sampling checks this estimator. Weights, prior and step sizes are those of
:mod:`~experiments.papers.aevb_figure2`, but pilots compare log p(x), by importance sampling.

Monte Carlo EM (appendix E) makes one HMC transition of 10 leapfrog steps with each minibatch, at a
step size tuned to an acceptance of 90 %, and five updates with the acquired samples. It is not an
online algorithm and is run on 1000 digits only, as in the paper. An example counts as seen once per
minibatch, so at the same number of examples Monte Carlo EM has made five times as many updates. The
paper states neither how its chains start nor what its axis counts. Here each digit has a chain that
persists, started from an encoder and tuned in 50 transitions that do not count. The method itself
has no encoder: this one is fitted to the samples, and also starts the chains of the evaluation.
https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.data import Split
from pyro_vae.evaluation.importance.reciprocal_sampling import reciprocal
from pyro_vae.models import Autoencoder

from ..tables import MeanError, budget
from . import curves
from .aevb_figure2 import BASE, METHODS, weight_decay
from .curves import (
    Claims,
    Curve,
    CurveCell,
    CurveClaim,
    Curves,
    EvaluationSchedule,
    format_final,
    mean_paired_difference,
)
from .pilot import Pilot

SOURCE = "Kingma & Welling 2013, figure 3"
OBJECTIVES = {
    **METHODS,
    "MCEM": "--objective MonteCarloEM --objective.num_steps 10 --objective.updates 5 "
    "--objective.target 0.9 --objective.warm_up 50",
}
SIZES = {
    1000: "--data.train {few} --fit.epochs {few_epochs} --fit.checkpoint_every {few_often} "
    "--fit.optimizer.weight_decay {few_decay}",
    50000: "--data.train {many} --fit.epochs {many_epochs} "
    "--fit.optimizer.weight_decay {many_decay}",
}
#: Axis limits of the paper.
AXIS_LIMITS = {1000: (-160.0, -100.0), 50000: (-160.0, -125.0)}
#: Difference to AIS, in nats per datum, up to which the estimator of appendix D is correct.
TOLERANCE = 0.5
ROWS = {
    f"N_train = {size}: {method}": (size, method)
    for size, method in product(SIZES, OBJECTIVES)
    if not (size == 50000 and method == "MCEM")
}


def estimate_all(
    model: Autoencoder, data: Split, annealing: pv.Annealing, **options: Any
) -> Mapping[str, np.ndarray]:
    """Estimate log p(x) by appendix D (samples split evenly to fit and evaluate), AIS and ELBO."""
    chains = {"num_steps": 4, "target": 0.9, **options}
    appendix_d = reciprocal(model, data, num_samples=25, num_chains=4, options=chains)
    return {
        "appendix D": appendix_d.per_datum["reciprocal"],
        "AIS": pv.ais(model, data, annealing=annealing).per_datum["ais"],
        "elbo": pv.evaluate(model, data, num_samples=10).per_datum["elbo"],
    }


SMALL = partial(estimate_all, annealing=pv.Annealing(4, 100, 5))
FULL = {
    "mnist": "mnist",
    "hidden": "[100]",
    "few": 1000,
    "few_decay": weight_decay(1000),
    "few_often": 100,
    "many": 50000,
    "many_decay": weight_decay(50000),
}
TABLE = Curves(
    name="aevb_figure3",
    title=(
        "log p(x) against training examples seen, 3 latents, digits binarised once: the estimator "
        "of AEVB's appendix D and annealed importance sampling"
    ),
    base=f"""
        --data.name {{mnist}} --data.binarize static --data.test 1000 --model.latent_dim 3
        --model.encoder.hidden {{hidden}} --model.decoder.hidden {{hidden}} {BASE}
    """,
    cells={row: f"{SIZES[size]} {OBJECTIVES[method]}" for row, (size, method) in ROWS.items()},
    schedules={
        "smoke": EvaluationSchedule(
            partial(estimate_all, annealing=pv.Annealing(2, 10, 2), warm_up=20),
            num_data=10,
            per_decade=1,
        ),
        "small": EvaluationSchedule(SMALL, num_data=100, per_decade=2),
        "paper": EvaluationSchedule(
            partial(estimate_all, annealing=pv.Annealing(16, 1000, 10)), num_data=1000, per_decade=4
        ),
    },
    paper_samples=6e7,
    pilot=Pilot(estimate="log_evidence", num_samples=100),
    presets={
        "smoke": budget(
            num_samples=50,
            num_data=20,
            mnist="mnist5k",
            hidden="[10]",
            few=100,
            few_decay=weight_decay(100),
            few_epochs=4,
            few_often=2,
            many=300,
            many_decay=weight_decay(300),
            many_epochs=2,
        ),
        "small": budget(num_samples=50, num_data=1000, **FULL, few_epochs=500, many_epochs=10),
        "paper": budget(num_data=1000, **FULL, few_epochs=60000, many_epochs=1200),
    },
)


def compare_estimators(run: str, curve: Curve) -> Claims:
    """Compare appendix D to AIS on the same examples, at the end and at its largest deviation."""
    claims: Claims = {}
    for split in curves.SPLITS:
        deviation = curve.mean("appendix D", split) - curve.mean("AIS", split)
        worst = int(np.abs(deviation).argmax())
        claims[f"{run}, {split}: estimator"] = CurveClaim(
            f"{run}, {split} data: appendix D is within {TOLERANCE} nats of AIS (difference)",
            "Kingma & Welling 2013, appendix D",
            *mean_paired_difference(
                curve.values("appendix D", split)[-1], curve.values("AIS", split)[-1]
            ),
            _tolerance_verdict,
            extra={
                "worst": {"value": float(deviation[worst]), "samples": int(curve.samples[worst])}
            },
        )
    return claims


def _tolerance_verdict(value: float, error: MeanError) -> str:
    """Return whether a difference is within the tolerance, given its error."""
    if abs(value) + error.margin <= TOLERANCE:
        return "holds"
    return "reversed" if abs(value) - error.margin > TOLERANCE else "undecided"


def compare_to_aevb(panel: str, method: str, aevb: Curve, other: Curve) -> Claims:
    """Evaluate whether AEVB ends with the higher marginal likelihood of the test data, by AIS."""
    difference = mean_paired_difference(aevb.values("AIS")[-1], other.values("AIS")[-1])
    sentence = f"{panel}: AEVB ends with a higher test marginal likelihood than {method}"
    return {f"{panel}: better than {method}": CurveClaim(sentence, SOURCE, *difference)}


def evaluate_claims(curve_of: Mapping[tuple[int, str], Curve]) -> Claims:
    """Evaluate the paper's claims, given curves by N_train and method."""
    claims: Claims = {}
    for (size, method), curve in curve_of.items():
        panel = f"N_train = {size}"
        claims |= compare_estimators(f"{panel}, {method}", curve)
        if method != "AEVB" and (size, "AEVB") in curve_of:
            claims |= compare_to_aevb(panel, method, curve_of[size, "AEVB"], curve)
    return claims


def format_table(results: Mapping[str, Any]) -> str:
    """Format the final estimates and the claims as Markdown tables."""
    head = ["training / test", "seeds", "step sizes", "appendix D", "AIS", "ELBO"]
    rows = [
        [
            name,
            str(len(row["runs"])),
            curves.format_step_sizes(row["runs"]),
            *(format_final(row["runs"], estimator) for estimator in ("appendix D", "AIS", "elbo")),
        ]
        for name, row in results["rows"].items()
    ]
    # first the comparisons of methods
    names = sorted(results["claims"], key=lambda name: "estimator" in name)
    return f"{curves.format_markdown(head, rows)}\n\n{curves.format_claims(results, names)}"


def draw(results: Mapping[str, Any], cells: Sequence[CurveCell]) -> Figure:
    """Draw a panel for each N_train, as in the paper: curves of appendix D and points of AIS."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = dict(zip(SIZES, figure.subplots(1, 2), strict=True))
    for name, row in results["rows"].items():
        size, method = ROWS[name]
        color = f"C{list(OBJECTIVES).index(method)}"
        curves.plot_curves(panels[size], row["runs"], "appendix D", method, color)
        curves.plot_curves(panels[size], row["runs"], "AIS", "", color, ls="", marker=".")
    for size, axes in panels.items():
        axes.set_title(f"$N_{{train}}$ = {size}; points: AIS", fontsize=10)
        # the paper's axis is linear, on which short runs would be a vertical line
        axes.set_xscale("log")
        curves.set_limits(axes, (1e4, TABLE.paper_samples), AXIS_LIMITS[size])
        axes.set_xlabel("training examples seen")
        axes.set_ylabel("log p(x), nats per datum")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return figure


main = curves.make_main(TABLE, draw, SOURCE, ROWS, evaluate_claims, format_table)

if __name__ == "__main__":
    sys.exit(main())
