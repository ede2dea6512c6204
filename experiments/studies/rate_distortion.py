"""Rate and distortion of VAEs trained at several β, and the curve achievable by one decoder.

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

from .. import collect
from ..measures import (
    measure_active_units,
    measure_distortion,
    measure_mutual_information,
    measure_rate,
)
from ..table import Cell, Preset, Table, parse_args
from ..table import main as run_table

ROWS = {f"beta {beta}": beta for beta in ("1", "0.1", "0.3", "3", "10")}

TABLE = Table(
    name="rate_distortion",
    title="ELBO(beta=β), evaluated at β = 1: rate and distortion on binarised MNIST",
    base="""
        --data.name mnist --data.binarize dynamic --data.valid 0 --model.latent_dim 50
        --model.encoder MLP --model.encoder.hidden {hidden}
        --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.output_bias data
        --objective ELBO
    """,
    cells={row: f"--objective.beta {beta}" for row, beta in ROWS.items()},
    measures={
        "rate": measure_rate,
        "distortion": measure_distortion,
        "active units": measure_active_units,
        "mutual information": measure_mutual_information,
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

#: Number of test examples and annealing of the curve of the first row.
CURVES = {
    "smoke": (4, Annealing(3, 10, 2, initial="prior", schedule="adaptive")),
    "small": (50, Annealing(16, 500, 5, initial="prior", schedule="adaptive")),
    "paper": (1000, Annealing(32, 5000, 10, initial="prior", schedule="adaptive")),
}


def load_or_make_curve(cell: Cell) -> RateDistortion:
    """Return the curve of a trained model, cached in its run folder."""
    file = cell.folder / "curve.nc"
    weights = cell.run.weights.stat().st_mtime_ns
    if not file.is_file() or file.stat().st_mtime_ns < weights:
        size, annealing = CURVES[cell.preset]
        _, data, model = cell.run.open()
        checkpoint = file.with_suffix(".npz")
        result = rate_distortion(
            model,
            data.test.head(size),
            annealing=annealing,
            checkpoint=checkpoint,
            progress=sys.stderr.isatty(),
        )
        result.to_netcdf(file)
        checkpoint.unlink(missing_ok=True)
    return RateDistortion.from_netcdf(file)


def draw(results: Mapping[str, Any], curve: RateDistortion) -> Figure:
    """Draw the trained programs and the curve of the first in the rate-distortion plane."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    rows = curve.estimates
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
        label=f"prior and decoder of β = 1, AIS of {len(curve)} examples ± 2 standard errors",
    )
    for row, entry in results["rows"].items():
        measures = entry["runs"][0]["measures"]
        x, y = measures["rate"]["value"], measures["distortion"]["value"]
        axes.plot(x, y, marker="o", color="C3", ls="")
        axes.annotate(f"β = {ROWS[row]}", (x, y), xytext=(6, 4), textcoords="offset points")
    axes.plot([], [], marker="o", color="C3", ls="", label="trained with ELBO(beta=β)")
    axes.margins(x=0.12)  # for the labels on the right
    axes.set_xlabel("rate, nats per datum")
    axes.set_ylabel("distortion, nats per datum")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the table; if its first row is complete, make the curve and the figure."""
    status, options = run_table(TABLE, argv), parse_args(TABLE, argv)
    first = Cell(TABLE, options.preset, next(iter(ROWS)), runs=options.folder)
    if status or options.table or first.incomplete_reason() is not None:
        return status
    file: Path = options.results / f"{TABLE.name}-{options.preset}.json"
    # a separate file, so that the table's own does not depend on the curve
    curve_file = options.results / f"{TABLE.name}_curve-{options.preset}.json"
    picture = file.with_suffix(".png")
    try:
        curve = load_or_make_curve(first)
        summary = {"command": TABLE.command(options.preset), "row": first.row, **curve.summary()}
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        files.atomic_write_text(curve_file, text + "\n")
        figure = draw(collect.read_results(file, TABLE.command(options.preset)), curve)
        files.atomic_write(picture, lambda path: figure.savefig(path, dpi=150))
    except (OSError, ValueError) as error:
        print(f"{TABLE.name}: {error}", file=sys.stderr)
        return 1
    print(f"\n{curve}\ncurve: {curve_file}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
