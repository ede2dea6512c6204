"""Rate and distortion: VAEs trained at several β, and the curve that one decoder allows.

Fixing a Broken ELBO (Alemi et al., 2018), figure 3, for the sweep, and Evaluating Lossy
Compression Rates of Deep Generative Models (Huang, Cao & Grosse, 2020) for the curve, by annealed
importance sampling. https://arxiv.org/abs/1711.00464 https://arxiv.org/abs/2008.06653
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_vae.core import files
from pyro_vae.evaluation import Annealing
from pyro_vae.evaluation.annealing.rate_distortion_curve import RateDistortion, rate_distortion

from . import collect
from .measures import active_units, distortion, mutual_information, rate
from .table import Cell, Preset, Table, parsed
from .table import main as fill

ROWS = {f"beta {beta}": beta for beta in ("1", "0.1", "0.3", "3", "10")}

TABLE = Table(
    name="rate_distortion",
    title="ELBO(beta=β), judged at β = 1: what it spends and what it leaves, binarised MNIST",
    base="""
        --data.name mnist --data.binarize dynamic --data.valid 0 --model.latent_dim 50
        --model.encoder MLP --model.encoder.hidden {hidden}
        --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.output_bias data
        --objective ELBO
    """,
    cells={row: f"--objective.beta {beta}" for row, beta in ROWS.items()},
    measures={
        "rate": rate,
        "distortion": distortion,
        "active units": active_units,
        "mutual information": mutual_information,
    },
    presets={
        "smoke": Preset(
            fit="--data.name mnist5k --data.test 4850 --fit.epochs 1 --fit.batch_size 50",
            num_samples=50,
            num_data=20,
            values={"hidden": "[20]"},
        ),
        "small": Preset(
            fit="""
                --fit.epochs 10 --fit.batch_size 100 --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            num_samples=1000,
            num_data=1000,
            values={"hidden": "[200,200]"},
        ),
        "paper": Preset(
            fit="""
                --fit.epochs 500 --fit.batch_size 100 --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            values={"hidden": "[200,200]"},
        ),
    },
)

#: How the curve of the first row is made: of so many test data, by these chains.
CURVES = {
    "smoke": (4, Annealing(3, 10, 2, initial="prior", schedule="adaptive")),
    "small": (50, Annealing(16, 500, 5, initial="prior", schedule="adaptive")),
    "paper": (1000, Annealing(32, 5000, 10, initial="prior", schedule="adaptive")),
}


def curve(cell: Cell) -> RateDistortion:
    """The curve of a trained model, made once and kept beside its run."""
    file = cell.folder / "curve.nc"
    weights = cell.run.weights.stat().st_mtime_ns
    if not file.is_file() or file.stat().st_mtime_ns < weights:
        size, annealing = CURVES[cell.preset]
        _, data, model = cell.run.open()
        kept = file.with_suffix(".npz")
        found = rate_distortion(
            model,
            data.test.head(size),
            annealing=annealing,
            checkpoint=kept,
            progress=sys.stderr.isatty(),
        )
        found.to_netcdf(file)
        kept.unlink(missing_ok=True)
    return RateDistortion.from_netcdf(file)


def draw(results: Mapping[str, Any], found: RateDistortion) -> Figure:
    """The plane of rate and distortion: trained programs, and the curve of the first."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    rows = found.estimates
    rates, distortions = (
        [[row.value, 2 * row.se_data] for row in rows[name]] for name in ("rate", "distortion")
    )
    axes.errorbar(
        [r for r, _ in rates],
        [d for d, _ in distortions],
        xerr=[e for _, e in rates],
        yerr=[e for _, e in distortions],
        color="C0",
        marker=".",
        lw=1,
        elinewidth=0.6,
        label=f"prior and decoder of β = 1, AIS of {len(found)} data ± 2 standard errors",
    )
    for row, told in results["rows"].items():
        measured = told["runs"][0]["measures"]
        x, y = measured["rate"]["value"], measured["distortion"]["value"]
        axes.plot(x, y, marker="o", color="C3", ls="")
        axes.annotate(f"β = {ROWS[row]}", (x, y), xytext=(6, 4), textcoords="offset points")
    axes.plot([], [], marker="o", color="C3", ls="", label="trained with ELBO(beta=β)")
    axes.margins(x=0.12)  # for the names of the points on the right
    axes.set_xlabel("rate, nats per datum")
    axes.set_ylabel("distortion, nats per datum")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Fills the table; once its first row is there, makes the curve and the picture."""
    status, chosen = fill(TABLE, argv), parsed(TABLE, argv)
    first = Cell(TABLE, chosen.preset, next(iter(ROWS)), runs=chosen.folder)
    if status or chosen.table or first.missing() is not None:
        return status
    file: Path = chosen.results / f"{TABLE.name}-{chosen.preset}.json"
    # beside the table's own file, which is the same whether or not there is a curve
    beside = chosen.results / f"{TABLE.name}_curve-{chosen.preset}.json"
    picture = file.with_suffix(".png")
    try:
        found = curve(first)
        told = {"command": TABLE.command(chosen.preset), "row": first.row, **found.summary()}
        text = json.dumps(told, indent=1, ensure_ascii=False)
        files.write_text(beside, text + "\n")
        figure = draw(collect.read(file, TABLE.command(chosen.preset)), found)
        files.write(picture, lambda path: figure.savefig(path, dpi=150))
    except (OSError, ValueError) as error:
        print(f"{TABLE.name}: {error}", file=sys.stderr)
        return 1
    print(f"\n{found}\ncurve: {beside}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
