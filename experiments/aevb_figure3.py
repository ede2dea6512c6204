"""The marginal likelihood against training data seen: AEVB, wake-sleep and Monte Carlo EM.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 3 and appendices D and E: 3
latents and 100 tanh units, learned from 1000 or 50,000 digits; log p(x) of the first training and
test data by the estimator of appendix D, with 50 draws of the posterior and 4 leapfrog steps.
Annealed importance sampling beside it says whether that was right. Monte Carlo EM, which goes over
all data again and again with chains of their own, is run on the 1000 alone, as in the paper.
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

from . import curves, table
from .aevb_figure2 import BASE, METHODS, STEP_SIZES
from .cells import Preset
from .claims import verdict
from .curves import Curve, CurveCell, Curves, Found, Watch, claim, difference

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
#: The paper's axes.
LIMITS = {1000: (-160.0, -100.0), 50000: (-160.0, -125.0)}
#: What counts as a reproduction everywhere else counts as right here, nats per datum.
RIGHT = 0.5
ROWS = {
    f"N_train = {size}: {method}": (size, method)
    for size, method in product(SIZES, OBJECTIVES)
    if not (size == 50000 and method == "MCEM")
}


def rulers(
    model: Autoencoder, data: Split, annealing: pv.Annealing, **options: Any
) -> Mapping[str, np.ndarray]:
    """log p(x): appendix D with as many draws to fit to as to judge by, AIS, and the ELBO."""
    chains = {"num_steps": 4, "target": 0.9, **options}
    paper = reciprocal(model, data, num_samples=25, num_chains=4, options=chains)
    return {
        "appendix D": paper.per_datum["reciprocal"],
        "AIS": pv.ais(model, data, annealing=annealing).per_datum["ais"],
        "elbo": pv.evaluate(model, data, num_samples=10).per_datum["elbo"],
    }


SMALL = partial(rulers, annealing=pv.Annealing(num_temperatures=200, num_steps=5))
FULL = {"mnist": "mnist", "hidden": "[100]", "few": 1000, "few_often": 100, "many": 50000}
TABLE = Curves(
    name="aevb_figure3",
    title=(
        "log p(x) against training data seen, 3 latents, digits binarised once: the estimator of "
        "AEVB's appendix D, and annealed importance sampling beside it"
    ),
    base=f"""
        --data.name {{mnist}} --data.binarize static --data.test 1000 --model.latent_dim 3
        --model.encoder.hidden {{hidden}} --model.decoder.hidden {{hidden}} {BASE}
    """,
    cells={row: f"{SIZES[size]} {OBJECTIVES[method]}" for row, (size, method) in ROWS.items()},
    watch={
        "smoke": Watch(
            partial(rulers, annealing=pv.Annealing(2, 10, 2), warm_up=20), num_data=10, per_decade=1
        ),
        "small": Watch(SMALL, num_data=100, per_decade=4),
        "paper": Watch(
            partial(rulers, annealing=pv.Annealing(16, 1000, 10)), num_data=1000, per_decade=4
        ),
    },
    paper_samples=6e7,
    presets={
        "smoke": Preset(
            fit="",
            num_samples=50,
            num_data=20,
            values={
                "mnist": "mnist5k",
                "hidden": "[10]",
                "few": 100,
                "few_epochs": 4,
                "few_often": 2,
                "many": 300,
                "many_epochs": 2,
            },
        ),
        "small": Preset(
            fit="",
            num_data=1000,
            values={**FULL, "few_epochs": 5000, "many_epochs": 100},
        ),
        "paper": Preset(
            fit="",
            num_data=1000,
            values={**FULL, "few_epochs": 60000, "many_epochs": 1200},
        ),
    },
)


def estimator(where: str, curve: Curve) -> Found:
    """How far appendix D ends from AIS, and at most was on the way, on the same data."""
    found: Found = {}
    for split in curves.SPLITS:
        value, error = difference(curve.of("appendix D", split)[-1], curve.of("AIS", split)[-1])
        apart = curve.mean("appendix D", split) - curve.mean("AIS", split)
        worst = int(np.abs(apart).argmax())
        found[f"{where}, {split}: estimator"] = claim(
            f"{where}, {split} data: appendix D is within {RIGHT} nats of AIS (it is above by)",
            "Kingma & Welling 2013, appendix D",
            (value, error),
            _right(value, error),
            worst={"value": float(apart[worst]), "samples": int(curve.samples[worst])},
        )
    return found


def _right(value: float, error: float) -> str:
    """Whether a difference is surely within what counts as right, or surely not."""
    if abs(value) + 2 * error <= RIGHT:
        return "holds"
    return "reversed" if abs(value) - 2 * error > RIGHT else "undecided"


def ahead(where: str, other: str, ours: Curve, theirs: Curve) -> Found:
    """Whether AEVB ends with the greater marginal likelihood of test data, by AIS."""
    value, error = difference(ours.of("AIS")[-1], theirs.of("AIS")[-1])
    sentence = f"{where}: AEVB ends with a greater marginal likelihood of test data than {other}"
    found = claim(sentence, SOURCE, (value, error), verdict(value, error))
    return {f"{where}: better than {other}": found}


def claims(found: Mapping[tuple[int, str], Curve]) -> Found:
    """What the paper says of curves by N_train and method."""
    told: Found = {}
    for (size, method), curve in found.items():
        where = f"N_train = {size}"
        told |= estimator(f"{where}, {method}", curve)
        if method != "AEVB" and (size, "AEVB") in found:
            told |= ahead(where, method, found[size, "AEVB"], curve)
    return told


def draw(results: Mapping[str, Any], cells: Sequence[CurveCell]) -> Figure:
    """A panel for each N_train, as in the paper; AIS as points on the curves of appendix D."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = dict(zip(SIZES, figure.subplots(1, 2), strict=True))
    for name, found in results["rows"].items():
        size, method = ROWS[name]
        color = f"C{list(OBJECTIVES).index(method)}"
        curves.plot(panels[size], found["runs"], "appendix D", method, color)
        curves.plot(panels[size], found["runs"], "AIS", "", color, ls="", marker=".")
    for size, axes in panels.items():
        axes.set_title(f"$N_{{train}}$ = {size}; points: AIS", fontsize=10)
        curves.frame(axes, (0, TABLE.paper_samples), LIMITS[size])
        axes.set_xlabel("training data seen")
        axes.set_ylabel("log p(x), nats per datum")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return figure


main = partial(table.main, TABLE, told=curves.told(SOURCE, TABLE, ROWS, claims), draw=draw)

if __name__ == "__main__":
    sys.exit(main())
