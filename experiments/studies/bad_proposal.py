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

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.core import files
from pyro_vae.data import Split
from pyro_vae.evaluation import Bounds
from pyro_vae.evaluation.annealing.sampler import Annealing, ais
from pyro_vae.evaluation.importance.psis import khat_threshold

from ..table import RESULTS, Cell, Preset, Table

#: Changes of q(z|x): shifts of its mean in standard deviations, and factors of these.
CHANGES = {"mean": (0.0, 0.5, 1.0, 2.0, 4.0), "scale": (0.25, 0.5, 1.0, 2.0, 4.0)}
TITLES = {"mean": "mean of q shifted, in units of σ", "scale": "σ of q multiplied by"}
#: Annealing from q. AIS from the prior uses ``PRIOR_FACTOR`` times as many temperatures.
ANNEALING = {
    "smoke": Annealing(num_chains=2, num_temperatures=10, num_steps=2),
    "small": Annealing(num_chains=8, num_temperatures=200, num_steps=5),
}
PRIOR_FACTOR = 5

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
        "smoke": Preset(
            fit="",
            num_samples=50,
            num_data=10,
            values={
                "digits": "mnist5k",
                "data": "--data.test 4800",
                "hidden": "[20]",
                "epochs": 1,
                "few": 2,
                "many": 10,
            },
        ),
        "small": Preset(
            fit="",
            num_data=100,
            values={
                "digits": "mnist",
                "data": "",
                "hidden": "[200,200]",
                "epochs": 15,
                "few": 5,
                "many": 50,
            },
        ),
    },
)


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


def measure_model(
    cell: Cell, earlier: dict[str, Any], device: str, save: Callable[[dict[str, Any]], None]
) -> None:
    """Measure one model and save each row. Rows of ``earlier`` for the same weights are kept."""
    cell.check()
    if cell.incomplete_reason() is not None:
        cell.execute(device)
    preset, annealing = cell.table.presets[cell.preset], ANNEALING[cell.preset]
    results: dict[str, Any] = {
        **cell.commands,
        # rows are measured again if the weights or the digits have changed
        "weights": hashlib.sha256(cell.run.weights.read_bytes()).hexdigest(),
        "data": cell.run.read_result()["data"]["checksum"],
        "latents": cell.run.read_result()["config"]["model"]["latent_dim"],
    }
    unchanged = all(earlier.get(key) == value for key, value in results.items())
    results["rows"] = earlier["rows"] if unchanged else {}
    _, data, vae = cell.run.open()
    digits = data.test.head(preset.num_data or len(data.test))
    if "prior" not in results["rows"]:
        num_temperatures = PRIOR_FACTOR * annealing.num_temperatures
        from_prior = replace(annealing, initial="prior", num_temperatures=num_temperatures)
        results["rows"]["prior"] = evaluate_ais(vae, digits, from_prior)
        save(results)
    for parameter, amounts in CHANGES.items():
        for amount in amounts:
            name = f"{parameter} {amount:g}"
            if name not in results["rows"]:
                program = PerturbedProposal(vae, **{parameter: amount})
                results["rows"][name] = evaluate_program(
                    program, digits, preset.num_samples, annealing
                )
                save(results)
                print(f"{cell.row}, {name}: done", flush=True)


def describe_results(preset: str) -> dict[str, Any]:
    """Return the results file without its numbers."""
    return {
        "name": TABLE.name,
        "title": TABLE.title,
        "preset": preset,
        "command": TABLE.command(preset),
        "columns": " ".join((evaluate_program.__doc__ or "").split()),
        "num_samples": TABLE.presets[preset].num_samples,
        "num_data": TABLE.presets[preset].num_data,
        "annealing": {
            **asdict(ANNEALING[preset]),
            "from_prior": f"{PRIOR_FACTOR} × num_temperatures",
        },
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("pyro-vae", "torch", "pyro-ppl")},
        },
    }


def format_results(results: dict[str, Any]) -> str:
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
    return "\n".join(lines)


def _format_estimate(row: dict[str, float | None]) -> str:
    return " ± ".join("–" if row[key] is None else f"{row[key]:.2f}" for key in ("value", "se"))


def draw(results: dict[str, Any]) -> Figure:
    """Draw L_K and AIS against the change of q, and below the number of examples with a bad k̂."""
    models = results["models"]
    figure = Figure(figsize=(9.6, 4.2 * len(models)), layout="constrained")
    ratios = [3, 1] * len(models)
    panels = figure.subplots(2 * len(models), 2, height_ratios=ratios, squeeze=False)
    for i, (model, entry) in enumerate(models.items()):
        for j, (parameter, amounts) in enumerate(CHANGES.items()):
            nats, khat = panels[2 * i, j], panels[2 * i + 1, j]
            _draw_panels(nats, khat, entry["rows"], parameter, amounts, results)
            title = f"{model}, {entry['latents']} latents: {TITLES[parameter]}"
            nats.set_title(title, fontsize=10)
    panels[0, 0].legend(frameon=False)
    return figure


def _draw_panels(
    nats: Any,
    khat: Any,
    rows: dict[str, Any],
    parameter: str,
    amounts: Sequence[float],
    results: dict[str, Any],
) -> None:
    index = range(len(amounts))
    perturbed = [rows[f"{parameter} {amount:g}"] for amount in amounts]
    for key, label, color in (
        ("l_k", f"$L_{{{results['num_samples']}}}$", "C0"),
        ("ais", "AIS from q", "C2"),
    ):
        values, errors = (
            np.array([row[key][part] for row in perturbed], float) for part in ("value", "se")
        )
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
        axes.set_xticks(index, [f"{amount:g}" for amount in amounts])
        axes.spines[["top", "right"]].set_visible(False)


def _measure_all(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Return the results, written to ``file`` after every row."""
    results = describe_results(options.preset)
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # other annealing settings or versions start again
    unchanged = {**earlier, "models": None} == {**results, "models": None}
    results["models"] = dict(earlier["models"]) if unchanged else {}
    for row in TABLE.rows(options.preset):

        def save(entry: dict[str, Any], row: str = row) -> None:
            results["models"][row] = entry
            files.atomic_write_text(file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")

        cell = Cell(TABLE, options.preset, row, runs=options.folder)
        measure_model(cell, results["models"].get(row, {}), options.device, save)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measure missing rows, write the numbers and the figure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies.bad_proposal",
        description=TABLE.title,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=list(TABLE.presets), default="small")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results"
    )
    options = parser.parse_args(argv)
    file = options.results / f"{TABLE.name}-{options.preset}.json"
    try:
        results = _measure_all(options, file)
    except (ValueError, OSError) as error:
        print(f"bad_proposal: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bad_proposal: interrupted; repeat the command to resume", file=sys.stderr)
        return 130
    figure = draw(results)
    picture = file.with_suffix(".png")
    files.atomic_write(picture, lambda temporary: figure.savefig(temporary, dpi=120))
    print(format_results(results))
    print(f"results: {file}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
