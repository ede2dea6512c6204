"""Evaluation with bad proposals: L_K, k̂ and AIS of encoders that are perturbed on purpose.

The mean of q(z|x) is shifted by a multiple of its standard deviation in every coordinate, or its
standard deviation is scaled. The model, and so log p(x), is unchanged. L_K is a lower bound for any
q and falls; k̂ should detect it; annealed importance sampling started from q should agree with AIS
started from the prior, which does not depend on q.

With a linear decoder the posterior is nearly normal, so k̂ is good for the trained q. With a deep
decoder and 50 latents it is bad for nearly every example from the start.

On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016); Pareto
Smoothed Importance Sampling (Vehtari et al., 2015).
https://arxiv.org/abs/1611.04273 https://arxiv.org/abs/1507.02646
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data import Dataset, Split
from pyro_vae.evaluation import Bounds
from pyro_vae.evaluation.annealing.sampler import Annealing, ais
from pyro_vae.evaluation.importance.psis import khat_threshold
from pyro_vae.runs.provenance import weights_checksum

from ..cells import Cell
from ..command import main as run
from ..reporting import Results
from ..tables import Measure, Table, budget

#: Changes of q(z|x): shifts of its mean in standard deviations, and factors of these.
CHANGES = {"mean": (0.0, 0.5, 1.0, 2.0, 4.0), "scale": (0.25, 0.5, 1.0, 2.0, 4.0)}
TITLES = {"mean": "mean of q shifted, in units of σ", "scale": "σ of q multiplied by"}
#: Annealing from q. AIS from the prior uses ``PRIOR_FACTOR`` times as many temperatures.
ANNEALING = {
    "smoke": Annealing(num_chains=2, num_temperatures=10, num_steps=2),
    "small": Annealing(num_chains=8, num_temperatures=200, num_steps=5),
}
PRIOR_FACTOR = 5


class PerturbedProposal(nn.Module):
    """A VAE whose q(z|x) has a shifted mean or a scaled standard deviation.

    Arguments:
        vae: the program, with a diagonal normal posterior.
        mean: shift of the mean in every coordinate, in standard deviations of q.
        scale: factor of the standard deviations.
    """

    def __init__(self, vae: pv.VAE, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.vae, self.mean, self.scale = vae, mean, scale

    def model(self, x: Tensor) -> Tensor:
        return self.vae.model(x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            q = self.vae.posterior(x).base_dist
            perturbed = dist.Normal(q.loc + self.mean * q.scale, self.scale * q.scale)
            return pyro.sample("z", perturbed.to_event(1))


def evaluate_program(
    program: PerturbedProposal, data: Split, num_samples: int, annealing: Annealing
) -> dict[str, Any]:
    """Importance sampling and AIS estimates of the same examples, in nats per datum.

    ``elbo``, ``l_k`` and ``ais`` (from the guide) have a Monte Carlo error ``se``. ``unreliable``
    is the number of examples, out of ``num_data``, with a k̂ above ``khat_limit``.
    """
    bounds = pv.evaluate(program, data, num_samples=num_samples)
    khat = bounds.per_datum["khat"]
    return {
        "elbo": _get_estimate(bounds, "elbo"),
        "l_k": _get_estimate(bounds, "log_evidence"),
        "khat": {"median": float(np.median(khat)), "worst": float(khat.max())},
        "khat_limit": khat_threshold(num_samples),
        "unreliable": len(bounds.unreliable),
        **evaluate_ais(program, data, annealing),
    }


def evaluate_ais(program: Any, data: Split, annealing: Annealing) -> dict[str, Any]:
    """Return the AIS estimate and its mean acceptance rate."""
    bounds = ais(program, data, annealing=annealing)
    acceptance = float(bounds.per_datum["acceptance"].mean())
    return {"ais": _get_estimate(bounds, "ais"), "acceptance": acceptance}


def _get_estimate(bounds: Bounds, name: str) -> dict[str, float | None]:
    row = bounds.summary()["estimates"][name]
    return {"value": row["value"], "se": row["se_monte_carlo"]}


def make_measures(preset: str, num_samples: int, num_data: int) -> dict[str, Measure]:
    """Return a measure for AIS from the prior, and one for each change of q(z|x)."""
    annealing = ANNEALING[preset]
    num_temperatures = PRIOR_FACTOR * annealing.num_temperatures
    from_prior = replace(annealing, initial="prior", num_temperatures=num_temperatures)

    def prior(vae: Any, data: Dataset) -> dict[str, Any]:
        return evaluate_ais(vae, data.test.head(num_data), from_prior)

    def change(vae: Any, data: Dataset, **amount: float) -> dict[str, Any]:
        program = PerturbedProposal(vae, **amount)
        return evaluate_program(program, data.test.head(num_data), num_samples, annealing)

    return {"prior": prior} | {
        f"{parameter} {amount:g}": partial(change, **{parameter: amount})
        for parameter, amounts in CHANGES.items()
        for amount in amounts
    }


TABLE = Table(
    name="bad_proposal",
    title="Perturbed encoders of MNIST VAEs: L_K, k̂ and annealed importance sampling",
    base="""
        --data.name {digits} --data.binarize dynamic --data.valid 0 {data} --fit.batch_size 100
        --model.encoder.hidden {hidden} --model.decoder.output_bias data --fit.epochs {epochs}
    """,
    cells={
        "linear decoder": "--model.latent_dim {few} --model.decoder.hidden []",
        "deep decoder": "--model.latent_dim {many} --model.decoder.hidden {hidden}",
    },
    presets={
        "smoke": budget(
            num_samples=50,
            num_data=20,
            measures=make_measures("smoke", 50, 20),
            digits="mnist5k",
            data="--data.test 4800",
            hidden="[20]",
            epochs=1,
            few=2,
            many=10,
        ),
        "small": budget(
            num_data=100,
            measures=make_measures("small", 5000, 100),
            digits="mnist",
            data="",
            hidden="[200,200]",
            epochs=15,
            few=5,
            many=50,
        ),
    },
)


def collect(table: Table, preset: str, cells: Sequence[Cell], earlier: Any) -> Results:
    """Return the contents of the results file: the measures of each model as its rows."""
    reasons = {cell: cell.incomplete_reason() for cell in cells}
    complete = {cell: cell.run.read_result() for cell, reason in reasons.items() if reason is None}
    models = {
        cell.row: {
            **cell.commands,
            "weights": weights_checksum(cell.run.weights),
            "data": result["data"]["checksum"],
            "latents": result["config"]["model"]["latent_dim"],
            "versions": result["versions"],
            "rows": cell.read_measures(),
        }
        for cell, result in complete.items()
    }
    return {
        "name": table.name,
        "title": table.title,
        "preset": preset,
        "command": table.command(preset),
        "columns": " ".join((evaluate_program.__doc__ or "").split()),
        "num_samples": table.presets[preset].num_samples,
        "num_data": table.presets[preset].num_data,
        "annealing": {
            **asdict(ANNEALING[preset]),
            "from_prior": f"{PRIOR_FACTOR} × num_temperatures",
        },
        "models": models,
        "missing": {str(cell): reason for cell, reason in reasons.items() if reason is not None},
    }


def format_results(results: Results) -> str:
    """Format the table for a terminal."""
    num_data, num_samples = results["num_data"], results["num_samples"]
    lines = [f"{results['title']}; {num_data} test digits, ± Monte Carlo"]
    for model, entry in results["models"].items():
        rows = entry["rows"]
        from_prior = _format_estimate(rows["prior"]["ais"])
        lines += [
            "",
            f"{model}, {entry['latents']} latents; AIS from the prior {from_prior}",
            f"{'q(z|x)':14}{'ELBO':>12}{f'L_{num_samples}':>18}{'k̂ median':>11}{'k̂>limit':>10}"
            f"{'AIS from q':>18}{'accepted':>10}",
        ]
        for name, row in rows.items():
            if name != "prior":
                lines.append(
                    f"{name:14}{row['elbo']['value']:12.2f}{_format_estimate(row['l_k']):>18}"
                    f"{row['khat']['median']:10.2f}{row['unreliable']:9}{_format_estimate(row['ais']):>18}"
                    f"{row['acceptance']:10.2f}"
                )
    lines += [f"missing: {cell}: {why}" for cell, why in results.get("missing", {}).items()]
    return "\n".join(lines)


def _format_estimate(row: dict[str, float | None]) -> str:
    return " ± ".join("–" if row[key] is None else f"{row[key]:.2f}" for key in ("value", "se"))


def draw(results: Results, cells: Sequence[Cell]) -> Figure:
    """Draw L_K and AIS against the change of q, and below the number of examples with a bad k̂."""
    models = results["models"]
    figure = Figure(figsize=(9.6, 4.2 * len(models)), layout="constrained")
    ratios = [3, 1] * len(models)
    panels = figure.subplots(2 * len(models), 2, height_ratios=ratios, squeeze=False)
    for i, (model, entry) in enumerate(models.items()):
        for j, parameter in enumerate(CHANGES):
            nats, khat = panels[2 * i, j], panels[2 * i + 1, j]
            _draw_panels(nats, khat, entry["rows"], parameter, results)
            title = f"{model}, {entry['latents']} latents: {TITLES[parameter]}"
            nats.set_title(title, fontsize=10)
    panels[0, 0].legend(frameon=False)
    return figure


def _draw_panels(
    nats: Axes, khat: Axes, rows: Mapping[str, Any], parameter: str, results: Results
) -> None:
    amounts = [f"{amount:g}" for amount in CHANGES[parameter]]
    index = range(len(amounts))
    perturbed = [rows[f"{parameter} {amount}"] for amount in amounts]
    l_k = f"$L_{{{results['num_samples']}}}$"
    for key, label, color in (("l_k", l_k, "C0"), ("ais", "AIS from q", "C2")):
        pairs = [(row[key]["value"], row[key]["se"]) for row in perturbed]
        values, errors = np.array(pairs, float).T
        bars = 2 * np.nan_to_num(errors)
        nats.errorbar(index, values, bars, marker="o", ms=4, color=color, label=label)
    prior = rows["prior"]["ais"]
    error = 2 * (prior["se"] or 0.0)
    ends = (prior["value"] - error, prior["value"] + error)
    nats.axhspan(*ends, color="0.6", alpha=0.5, lw=0, label="AIS from the prior")
    nats.axhline(prior["value"], color="0.4", lw=1, ls=":")
    nats.set_ylabel("nats per datum ± 2 se")
    khat.bar(index, [row["unreliable"] for row in perturbed], color="C3", width=0.5)
    khat.set_ylim(0, results["num_data"])
    khat.set_ylabel(f"k̂ > {perturbed[0]['khat_limit']:.2f}")
    for axes in (nats, khat):
        axes.set_xlim(-0.4, len(amounts) - 0.6)
        axes.set_xticks(index, amounts)
        axes.spines[["top", "right"]].set_visible(False)


main = partial(run, TABLE, collect=collect, show=format_results, draw=draw)

if __name__ == "__main__":
    sys.exit(main())
