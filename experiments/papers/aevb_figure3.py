"""Marginal likelihood against training examples seen: AEVB, wake-sleep and Monte Carlo EM.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 3 and appendices D and E: 3
latents and 100 tanh units, trained on 1000 or 50,000 digits; log p(x) of the first training and
test examples by the estimator of appendix D, with 50 posterior samples and 4 leapfrog steps.
Annealed importance sampling checks this estimator. Monte Carlo EM is not an online algorithm and is
run on 1000 digits only, as in the paper.
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

from ..tables import budget
from . import curves
from .aevb_figure2 import BASE, METHODS, STEP_SIZES
from .curves import (
    ClaimRecords,
    Curve,
    CurveCell,
    Curves,
    EvaluationSchedule,
    make_claim_record,
    mean_paired_difference,
)

SOURCE = "Kingma & Welling 2013, figure 3"
OBJECTIVES = {
    **{name: f"{o} --fit.optimizer.lr {STEP_SIZES['MNIST', name]}" for name, o in METHODS.items()},
    "MCEM": "--objective MonteCarloEM --objective.num_steps 10 --objective.updates 5 "
    f"--objective.target 0.9 --fit.optimizer.lr {STEP_SIZES['MNIST', 'AEVB']}",
}
SIZES = {
    1000: "--data.train {few} --fit.epochs {few_epochs} --fit.checkpoint_every {few_often}",
    50000: "--data.train {many} --fit.epochs {many_epochs}",
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


SMALL = partial(estimate_all, annealing=pv.Annealing(num_temperatures=200, num_steps=5))
FULL = {"mnist": "mnist", "hidden": "[100]", "few": 1000, "few_often": 100, "many": 50000}
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
        "small": EvaluationSchedule(SMALL, num_data=100, per_decade=4),
        "paper": EvaluationSchedule(
            partial(estimate_all, annealing=pv.Annealing(16, 1000, 10)), num_data=1000, per_decade=4
        ),
    },
    paper_samples=6e7,
    presets={
        "smoke": budget(
            num_samples=50,
            num_data=20,
            mnist="mnist5k",
            hidden="[10]",
            few=100,
            few_epochs=4,
            few_often=2,
            many=300,
            many_epochs=2,
        ),
        "small": budget(num_data=1000, **FULL, few_epochs=5000, many_epochs=100),
        "paper": budget(num_data=1000, **FULL, few_epochs=60000, many_epochs=1200),
    },
)


def compare_estimators(run: str, curve: Curve) -> ClaimRecords:
    """Compare appendix D to AIS on the same examples, at the end and at its largest deviation."""
    records: ClaimRecords = {}
    for split in curves.SPLITS:
        final = mean_paired_difference(
            curve.values("appendix D", split)[-1], curve.values("AIS", split)[-1]
        )
        deviation = curve.mean("appendix D", split) - curve.mean("AIS", split)
        worst = int(np.abs(deviation).argmax())
        records[f"{run}, {split}: estimator"] = make_claim_record(
            f"{run}, {split} data: appendix D is within {TOLERANCE} nats of AIS (difference)",
            "Kingma & Welling 2013, appendix D",
            final,
            _tolerance_verdict(*final),
            worst={"value": float(deviation[worst]), "samples": int(curve.samples[worst])},
        )
    return records


def _tolerance_verdict(value: float, error: float) -> str:
    """Return whether a difference is within the tolerance, given its error."""
    if abs(value) + 2 * error <= TOLERANCE:
        return "holds"
    return "reversed" if abs(value) - 2 * error > TOLERANCE else "undecided"


def compare_to_aevb(panel: str, method: str, aevb: Curve, other: Curve) -> ClaimRecords:
    """Evaluate whether AEVB ends with the higher marginal likelihood of the test data, by AIS."""
    difference = mean_paired_difference(aevb.values("AIS")[-1], other.values("AIS")[-1])
    sentence = f"{panel}: AEVB ends with a higher test marginal likelihood than {method}"
    return {f"{panel}: better than {method}": make_claim_record(sentence, SOURCE, difference)}


def evaluate_claims(curve_of: Mapping[tuple[int, str], Curve]) -> ClaimRecords:
    """Evaluate the paper's claims, given curves by N_train and method."""
    records: ClaimRecords = {}
    for (size, method), curve in curve_of.items():
        panel = f"N_train = {size}"
        records |= compare_estimators(f"{panel}, {method}", curve)
        if method != "AEVB" and (size, "AEVB") in curve_of:
            records |= compare_to_aevb(panel, method, curve_of[size, "AEVB"], curve)
    return records


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
        curves.set_limits(axes, (0, TABLE.paper_samples), AXIS_LIMITS[size])
        axes.set_xlabel("training examples seen")
        axes.set_ylabel("log p(x), nats per datum")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return figure


main = curves.make_main(TABLE, draw, SOURCE, ROWS, evaluate_claims)

if __name__ == "__main__":
    sys.exit(main())
