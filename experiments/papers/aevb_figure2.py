"""Lower bound against training examples seen, for AEVB and wake-sleep and several N_z.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), figure 2 and section 5: one layer of tanh
units in encoder and decoder, 500 for MNIST and 200 for Frey Face, which output log σ²; all weights
and biases from N(0, 0.01); Adagrad with a step size chosen by a pilot; minibatches of M = 100,
L = 1. Both methods have the prior N(0, I) on all weights and biases: log p(θ) enters each
minibatch's gradient with the fraction M / N_train, which is a weight decay of that size.
https://arxiv.org/abs/1312.6114

The paper leaves open whether 0.01 is a variance; in its first author's code
(https://github.com/dpkingma/anglepy) it is the standard deviation. That code also accumulates
squared gradients for 100 steps before the first Adagrad update, which the paper does not mention
and this script does not do. A decoded σ is at least 0.001 here.

The paper does not describe the binarisation of MNIST. Here it is drawn once with a seed, so that
only the bound prevents overfitting. The paper does not describe the split of Frey Face either. By
default single frames are held out, whose neighbours are in the training data; ``--faces blocks``
holds out whole blocks of 50 frames.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.data import Split
from pyro_vae.models import Autoencoder

from ..tables import MeanError, budget
from . import curves
from .curves import (
    Claims,
    Curve,
    CurveCell,
    CurveClaim,
    Curves,
    EvaluationSchedule,
    format_final,
    mean_paired_difference,
    samples_to_reach,
    train_test_gap,
)

SOURCE = "Kingma & Welling 2013, figure 2"
BATCH = 100
BASE = f"""
    --data.valid 0 --fit.batch_size {BATCH} --fit.optimizer Adagrad
    --model.posterior DiagonalNormal --model.posterior.log_variance true
    --model.encoder MLP --model.encoder.init 0.01 --model.decoder MLP --model.decoder.init 0.01
"""
DATA = {
    "MNIST": """
        --data.name {mnist} --data.binarize static --data.test 1000 --data.train {mnist_train}
        --model.encoder.hidden {mnist_hidden} --model.decoder.hidden {mnist_hidden}
        --fit.epochs {mnist_epochs} --fit.optimizer.weight_decay {mnist_decay}
    """,
    "Frey Face": """
        --data.name frey --data.binarize none --data.test 365 --data.train {frey_train}
        --data.keep_blocks {keep_blocks}
        --model.encoder.hidden {frey_hidden} --model.decoder.hidden {frey_hidden}
        --model.likelihood Gaussian --model.likelihood.scale decoded_variance
        --model.likelihood.mean sigmoid
        --fit.epochs {frey_epochs} --fit.checkpoint_every {frey_often}
        --fit.optimizer.weight_decay {frey_decay}
    """,
}
LATENTS = {"MNIST": (3, 5, 10, 20, 200), "Frey Face": (2, 5, 10, 20)}
METHODS = {"AEVB": "--objective ELBO", "wake-sleep": "--objective WakeSleep"}
#: Axis limits of the paper.
AXIS_LIMITS = {"MNIST": (-150.0, -100.0), "Frey Face": (0.0, 1600.0)}
#: Replacements of ``{keep_blocks}``, by the option ``--faces``.
FACES = {"frames": "false", "blocks": "true"}


def weight_decay(num_train: int) -> float:
    """Return the weight decay that is the prior N(0, I), for gradients summed over a minibatch."""
    return BATCH / num_train


def recipe_args(data: str, latents: int, method: str) -> str:
    """Return the arguments of a row, without those that all rows share."""
    return f"{DATA[data]} {METHODS[method]} --model.latent_dim {latents}"


def row_name(data: str, latents: int, method: str) -> str:
    """Return the name of a row, which starts with that of its panel."""
    return f"{data}, N_z = {latents}: {method}"


def estimate_elbo(model: Autoencoder, data: Split) -> Mapping[str, np.ndarray]:
    return {"elbo": pv.evaluate(model, data, num_samples=10).per_datum["elbo"]}


ROWS = {
    row_name(data, latents, method): (data, latents, method)
    for data in DATA
    for latents in LATENTS[data]
    for method in METHODS
}
#: Values of the presets at the paper's sizes, which figures 4 and 5 share.
FULL = {
    "mnist": "mnist",
    "mnist_train": 50000,
    "mnist_decay": weight_decay(50000),
    "mnist_hidden": "[500]",
    "frey_train": 1600,
    "frey_decay": weight_decay(1600),
    "frey_hidden": "[200]",
    "frey_often": 100,
    "keep_blocks": FACES["frames"],
}
TABLE = Curves(
    name="aevb_figure2",
    title=(
        "Lower bound of AEVB and wake-sleep against training examples seen, for several numbers of "
        "latents; MNIST binarised once, Frey Face as densities on [0, 1]"
    ),
    base=BASE,
    cells={name: recipe_args(*row) for name, row in ROWS.items()},
    schedules={
        "smoke": EvaluationSchedule(estimate_elbo, num_data=50),
        "small": EvaluationSchedule(estimate_elbo, num_data=1000),
        "paper": EvaluationSchedule(estimate_elbo, num_data=10000),
    },
    paper_samples=1e8,
    presets={
        "smoke": budget(
            num_samples=50,
            num_data=20,
            exclude=[row_name(d, n, m) for (d, n, m) in ROWS.values() if n not in (2, 3, 20)],
            mnist="mnist5k",
            mnist_train=200,
            mnist_decay=weight_decay(200),
            mnist_hidden="[20]",
            mnist_epochs=3,
            frey_train=100,
            frey_decay=weight_decay(100),
            frey_hidden="[10]",
            frey_often=2,
            frey_epochs=3,
            keep_blocks=FACES["frames"],
        ),
        "small": budget(num_samples=50, num_data=1000, **FULL, mnist_epochs=10, frey_epochs=312),
        "paper": budget(
            num_samples=500, num_data=1000, **FULL, mnist_epochs=2000, frey_epochs=62500
        ),
    },
    variant={"faces": "frames"},
)


def _split_by(faces: str) -> Curves:
    """Return the table with another split of Frey Face."""
    presets = {
        name: replace(preset, values={**preset.values, "keep_blocks": FACES[faces]})
        for name, preset in TABLE.presets.items()
    }
    rows = {name: args for name, args in TABLE.cells.items() if name.startswith("Frey")}
    return replace(TABLE, cells=rows, presets=presets, variant={"faces": faces}, tag=faces)


TABLES = [TABLE, _split_by("blocks")]


def compare_methods(panel: str, aevb: Curve, wake_sleep: Curve) -> Claims:
    """Evaluate whether AEVB ends above wake-sleep, and when it reaches wake-sleep's final bound."""
    needed = samples_to_reach(aevb.samples, aevb.mean("elbo"), wake_sleep.mean("elbo")[-1])
    claim = CurveClaim(
        f"{panel}: AEVB ends with a higher test bound than wake-sleep",
        SOURCE,
        *mean_paired_difference(aevb.values("elbo")[-1], wake_sleep.values("elbo")[-1]),
        extra={"samples_needed": needed, "samples_of_wake_sleep": int(wake_sleep.samples[-1])},
    )
    return {f"{panel}: faster and better": claim}


def _is_not_higher(value: float, error: MeanError) -> str:
    return "holds" if value <= error.margin else "reversed"


def _is_not_lower(value: float, error: MeanError) -> str:
    return "holds" if value >= -error.margin else "reversed"


def compare_latents(data: str, by_latents: Mapping[int, Curve]) -> Claims:
    """Evaluate whether the train-test gap grows with N_z, and whether more latents cost nats.

    Differences are paired, because all models are evaluated on the same examples. The largest
    number of latents is compared with the smallest one and with the one below it. The names of the
    claims have these numbers, so that seeds with other models are not combined.
    """
    final = {
        n: [curve.values("elbo", split)[-1] for split in curves.SPLITS]
        for n, curve in by_latents.items()
    }
    numbers = sorted(final)
    few, fewer, many = numbers[0], numbers[-2], numbers[-1]
    growth = train_test_gap(*(final[many][i] - final[few][i] for i in range(2)))
    gaps = {n: train_test_gap(*final[n])[0] for n in numbers}
    return {
        f"{data}: no overfitting, {few} to {many}": CurveClaim(
            f"{data}: the gap between training and test bound is not larger for "
            f"N_z = {many} than for N_z = {few} (difference)",
            SOURCE,
            *growth,
            _is_not_higher,
            extra={"gaps": gaps},
        ),
        f"{data}: superfluous latents cost nothing, {fewer} to {many}": CurveClaim(
            f"{data}: the test bound is not lower for N_z = {many} than for N_z = {fewer} "
            f"(difference)",
            SOURCE,
            *mean_paired_difference(final[many][1], final[fewer][1]),
            _is_not_lower,
        ),
    }


def evaluate_claims(curve_of: Mapping[tuple[str, int, str], Curve]) -> Claims:
    """Evaluate the paper's claims, given curves by data, N_z and method."""
    claims: Claims = {}
    for (data, n, method), curve in curve_of.items():
        if method == "AEVB" and (data, n, "wake-sleep") in curve_of:
            panel = f"{data}, N_z = {n}"
            claims |= compare_methods(panel, curve, curve_of[data, n, "wake-sleep"])
    for data in DATA:
        by_latents = {n: c for (d, n, m), c in curve_of.items() if (d, m) == (data, "AEVB")}
        if len(by_latents) > 1:
            claims |= compare_latents(data, by_latents)
    return claims


def format_table(results: Mapping[str, Any]) -> str:
    """Format the final bounds as Markdown tables, one for each data set, and the other claims."""
    head = ["AEVB, training / test", "wake-sleep, training / test", "AEVB − wake-sleep, test"]
    head = ["seeds", "step sizes", *head, "AEVB reached it after", "verdict"]
    tables = [
        curves.format_markdown([f"{data}, N_z", *head], _format_panels(results, data))
        for data in DATA
    ]
    others = [name for name in results["claims"] if "faster" not in name]
    return "\n\n".join(filter(None, [*tables, curves.format_claims(results, others)]))


def _format_panels(results: Mapping[str, Any], data: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the table of a data set."""
    for n in LATENTS[data]:
        names = [row_name(data, n, method) for method in METHODS]
        if not all(name in results["rows"] for name in names):
            continue
        runs = [results["rows"][name]["runs"] for name in names]
        claim = results["claims"][f"{data}, N_z = {n}: faster and better"]
        needed = zip(claim["samples_needed"], claim["samples_of_wake_sleep"], strict=True)
        shares = [f"{x / total:.0%}" if x else "never" for x, total in needed]
        yield [
            str(n),
            str(len(claim["seeds"])),
            "; ".join(map(curves.format_step_sizes, runs)),
            *(format_final(r, "elbo") for r in runs),
            curves.format_claim(claim),
            ", ".join(shares),
            claim.get("verdict", ""),
        ]


def draw(results: Mapping[str, Any], cells: Sequence[CurveCell]) -> Figure:
    """Draw a panel for each data set and N_z, as in the paper."""
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    panels = figure.subplots(2, 5, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for name, row in results["rows"].items():
        data, latents, method = ROWS[name]
        axes = panels[list(DATA).index(data), LATENTS[data].index(latents)]
        curves.plot_curves(axes, row["runs"], "elbo", method, f"C{list(METHODS).index(method)}")
        axes.set_title(f"{data}, $N_z$ = {latents}", fontsize=10)
        axes.set_xscale("log")
        curves.set_limits(axes, (1e5, 1e8), AXIS_LIMITS[data])
        axes.set_xlabel("training examples seen")
    for axes in panels[:, 0]:
        axes.set_ylabel("lower bound, nats per datum")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return figure


main = curves.make_main(TABLES, draw, SOURCE, ROWS, evaluate_claims, format_table)

if __name__ == "__main__":
    sys.exit(main())
