"""Rate and distortion of VAEs trained at several β, and the curve achievable by one decoder.

Fixing a Broken ELBO (Alemi et al., 2018), figure 3, for the sweep, and Evaluating Lossy
Compression Rates of Deep Generative Models (Huang, Cao & Grosse, 2020) for the curve, by annealed
importance sampling. https://arxiv.org/abs/1711.00464 https://arxiv.org/abs/2008.06653
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from pyro_vae.data import Dataset
from pyro_vae.evaluation import Annealing
from pyro_vae.evaluation.annealing.rate_distortion_curve import RateDistortion, rate_distortion
from pyro_vae.evaluation.latent_diagnostics.elbo_surgery import surgery
from pyro_vae.evaluation.latent_diagnostics.kl import divergences
from pyro_vae.models import Autoencoder
from pyro_vae.runs.provenance import weights_checksum

from ..cells import Cell
from ..command import main as run
from ..papers.iwae_paper import measure_active_units
from ..reporting import Results, collect_results, format_results
from ..tables import ADAM, Table, budget, smoke

ROWS = {f"beta {beta}": beta for beta in ("1", "0.1", "0.3", "3", "10")}


def measure_rate(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the rate E KL(q(z|x) ‖ p(z)) on the test examples, total and by latent dimension."""
    kl = divergences(model, data.test, num_samples=8)
    row = kl.estimates["rate"]
    dimensions = {name: site.dimensions for name, site in kl.sites.items()}
    return {
        "value": row.value,
        "se": row.se_data,
        "dimensions": {n: v.round(5).tolist() for n, v in dimensions.items() if v is not None},
    }


def measure_distortion(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the distortion −E log p(x|z) on the test examples."""
    row = divergences(model, data.test, num_samples=8).estimates["distortion"]
    return {"value": row.value, "se": row.se_data, "se_monte_carlo": row.se_monte_carlo}


def measure_mutual_information(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return I_q(x; z) of the test examples, at most the logarithm of their number.

    References:
        ELBO surgery (Hoffman & Johnson, 2016), section 2.
        https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """
    result = surgery(model, data.test, num_draws=2000)
    row, marginal = (result.estimates[name] for name in ("mutual_information", "marginal"))
    return {
        "value": row.value,
        "se": row.se_data,
        "limit": result.limit,
        "marginal": {"value": marginal.value, "se": marginal.se_data},
    }


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
        "smoke": smoke(hidden="[20]"),
        "small": budget(
            f"--fit.epochs 10 {ADAM}", num_samples=1000, num_data=1000, hidden="[200,200]"
        ),
        "paper": budget(f"--fit.epochs 500 {ADAM}", hidden="[200,200]"),
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
    weights = weights_checksum(cell.run.weights)
    if file.is_file():
        curve = RateDistortion.from_netcdf(file)
        if curve.provenance.get("weights") == weights:
            return curve
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
    result.to_netcdf(file, provenance={"weights": weights})
    checkpoint.unlink(missing_ok=True)
    return result


def collect(table: Table, preset: str, cells: Sequence[Cell], earlier: Any) -> Results:
    """Return the contents of the results file, with the curve if its model is trained."""
    results = collect_results(table, preset, cells)
    first = next((cell for cell in cells if cell.row == next(iter(ROWS))), None)
    if first is None or first.incomplete_reason() is not None:
        return results
    return {**results, "curve": {"row": first.row, **load_or_make_curve(first).summary()}}


def show(results: Results) -> str:
    """Format the table and the curve."""
    lines = [format_results(results)]
    if "curve" in results:
        curve = results["curve"]
        rows = zip(curve["betas"], curve["rate"], curve["distortion"], strict=True)
        lines += ["", f"curve of {curve['row']}", "     β       rate   distortion"]
        lines += [f"{b:6.3g}{r['value']:11.2f}{d['value']:13.2f}" for b, r, d in rows]
    return "\n".join(lines)


def draw(results: Results, cells: Sequence[Cell]) -> Figure:
    """Draw the trained programs and the curve of the first in the rate-distortion plane."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    if "curve" in results:
        curve = results["curve"]
        axes.errorbar(
            [r["value"] for r in curve["rate"]],
            [d["value"] for d in curve["distortion"]],
            xerr=[2 * r["se_data"] for r in curve["rate"]],
            yerr=[2 * d["se_data"] for d in curve["distortion"]],
            color="C0",
            marker=".",
            lw=1,
            elinewidth=0.6,
            label=f"prior and decoder of β = 1, AIS of {curve['num_data']} examples ± 2 se",
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


main = partial(run, TABLE, collect=collect, show=show, draw=draw)

if __name__ == "__main__":
    sys.exit(main())
