"""Does the ruler notice a bad proposal? L_K, k̂ and AIS of encoders that are spoilt on purpose.

The mean of q(z|x) is moved by so many of its standard deviations in every coordinate, or its
standard deviation multiplied, and the model left as it is: log p(x) stays what it was. L_K, a
lower bound whatever q is, falls; k̂ has to say so; annealed importance sampling that begins at
the same q has to stay with the one that begins at the prior, which never asks q.

With a linear decoder the posterior is nearly normal, so that k̂ has nothing to say against a q that
was not spoilt; with a deep one and 50 latents it warns of nearly every datum from the outset.

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

from .table import RESULTS, Cell, Preset, Table

#: What is done to q(z|x): standard deviations by which its mean moves, and factors of those.
SPOILT = {"mean": (0.0, 0.5, 1.0, 2.0, 4.0), "scale": (0.25, 0.5, 1.0, 2.0, 4.0)}
TITLES = {"mean": "mean moved by so many posterior σ", "scale": "σ multiplied by"}
#: How long the chains walk from q, and so many times as many temperatures from the prior.
ANNEALING = {
    "smoke": Annealing(num_chains=2, num_temperatures=10, num_steps=2),
    "small": Annealing(num_chains=8, num_temperatures=200, num_steps=5),
}
LONGER = 5

TABLE = Table(
    name="bad_proposal",
    title="Spoilt encoders of MNIST VAEs: L_K, k̂ and annealed importance sampling",
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


class Spoilt(nn.Module):
    """A VAE with the mean and the standard deviation of its q(z|x) changed.

    Arguments:
        vae: the program, whose posterior is a diagonal normal.
        mean: standard deviations of q by which its mean moves in every coordinate.
        scale: by what its standard deviations are multiplied.
    """

    def __init__(self, vae: pv.VAE, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.vae, self.mean, self.scale = vae, mean, scale

    def model(self, x: Tensor) -> Tensor:
        return self.vae.model(x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            q = self.vae.posterior(x).base_dist
            moved = dist.Normal(q.loc + self.mean * q.scale, self.scale * q.scale)
            return pyro.sample("z", moved.to_event(1))


def judged(program: Spoilt, data: Split, num_samples: int, annealing: Annealing) -> dict[str, Any]:
    """What importance sampling and annealing say of the same data, nats per datum.

    ``elbo``, ``l_k`` and ``ais`` (from the guide) with ``se``, their Monte Carlo error;
    ``unreliable`` of ``num_data`` have a k̂ above ``khat_limit``.
    """
    bounds = pv.evaluate(program, data, num_samples=num_samples)
    khat = bounds.per_datum["khat"]
    return {
        "elbo": _row(bounds, "elbo"),
        "l_k": _row(bounds, "log_evidence"),
        "khat": {"median": float(np.median(khat)), "worst": float(khat.max())},
        "khat_limit": khat_threshold(num_samples),
        "unreliable": len(bounds.unreliable),
        **annealed(program, data, annealing),
    }


def annealed(program: Any, data: Split, annealing: Annealing) -> dict[str, Any]:
    """AIS of the data, and how many of its proposals were accepted."""
    bounds = ais(program, data, annealing=annealing)
    acceptance = float(bounds.per_datum["acceptance"].mean())
    return {"ais": _row(bounds, "ais"), "acceptance": acceptance}


def _row(bounds: Bounds, name: str) -> dict[str, float | None]:
    row = bounds.summary()["estimates"][name]
    return {"value": row["value"], "se": row["se_monte_carlo"]}


def measure(
    cell: Cell, before: dict[str, Any], device: str, save: Callable[[dict[str, Any]], None]
) -> None:
    """Saves everything about one model; what ``before`` holds of the very same one is kept."""
    cell.check()
    if cell.missing() is not None:
        cell.work(device)
    preset, annealing = cell.table.presets[cell.preset], ANNEALING[cell.preset]
    found: dict[str, Any] = {
        **cell.commands,
        # other weights or digits are another model, whose rows are measured anew
        "weights": hashlib.sha256(cell.run.weights.read_bytes()).hexdigest(),
        "data": cell.run.read_result()["data"]["checksum"],
        "latents": cell.run.read_result()["config"]["model"]["latent_dim"],
    }
    same = all(before.get(key) == value for key, value in found.items())
    found["rows"] = before["rows"] if same else {}
    _, data, vae = cell.run.open()
    digits = data.test.head(preset.num_data or len(data.test))
    if "prior" not in found["rows"]:
        longer = LONGER * annealing.num_temperatures
        walk = replace(annealing, initial="prior", num_temperatures=longer)
        found["rows"]["prior"] = annealed(vae, digits, walk)
        save(found)
    for what, amounts in SPOILT.items():
        for amount in amounts:
            name = f"{what} {amount:g}"
            if name not in found["rows"]:
                program = Spoilt(vae, **{what: amount})
                found["rows"][name] = judged(program, digits, preset.num_samples, annealing)
                save(found)
                print(f"{cell.row}, {name}: done", flush=True)


def described(preset: str) -> dict[str, Any]:
    """What the results file says besides its numbers."""
    return {
        "name": TABLE.name,
        "title": TABLE.title,
        "preset": preset,
        "command": TABLE.command(preset),
        "columns": " ".join((judged.__doc__ or "").split()),
        "num_samples": TABLE.presets[preset].num_samples,
        "num_data": TABLE.presets[preset].num_data,
        "annealing": {**asdict(ANNEALING[preset]), "from_prior": f"{LONGER} × num_temperatures"},
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("pyro-vae", "torch", "pyro-ppl")},
        },
    }


def text(results: dict[str, Any]) -> str:
    """The table as it is printed."""
    size, draws = results["num_data"], results["num_samples"]
    lines = [f"{results['title']}; {size} test digits, ± Monte Carlo"]
    for model, found in results["models"].items():
        rows = found["rows"]
        told = _told(rows["prior"]["ais"])
        lines += [
            "",
            f"{model}, {found['latents']} latents; AIS from the prior {told}",
            f"{'q(z|x)':14}{'ELBO':>12}{f'L_{draws}':>18}{'k̂ median':>11}{'k̂>limit':>10}"
            f"{'AIS from q':>18}{'accepted':>10}",
        ]
        for name, row in rows.items():
            if name != "prior":
                lines.append(
                    f"{name:14}{row['elbo']['value']:12.2f}{_told(row['l_k']):>18}"
                    f"{row['khat']['median']:10.2f}{row['unreliable']:9}{_told(row['ais']):>18}"
                    f"{row['acceptance']:10.2f}"
                )
    return "\n".join(lines)


def _told(row: dict[str, float | None]) -> str:
    return " ± ".join("–" if row[key] is None else f"{row[key]:.2f}" for key in ("value", "se"))


def draw(results: dict[str, Any]) -> Figure:
    """L_K and AIS against what was done to q, and under it how many data k̂ warns of."""
    models = results["models"]
    figure = Figure(figsize=(9.6, 4.2 * len(models)), layout="constrained")
    ratios = [3, 1] * len(models)
    panels = figure.subplots(2 * len(models), 2, height_ratios=ratios, squeeze=False)
    for i, (model, found) in enumerate(models.items()):
        for j, (what, amounts) in enumerate(SPOILT.items()):
            nats, alarm = panels[2 * i, j], panels[2 * i + 1, j]
            _panels(nats, alarm, found["rows"], what, amounts, results)
            title = f"{model}, {found['latents']} latents: {TITLES[what]}"
            nats.set_title(title, fontsize=10)
    panels[0, 0].legend(frameon=False)
    return figure


def _panels(
    nats: Any,
    alarm: Any,
    rows: dict[str, Any],
    what: str,
    amounts: Sequence[float],
    results: dict[str, Any],
) -> None:
    index = range(len(amounts))
    spoilt = [rows[f"{what} {amount:g}"] for amount in amounts]
    for key, label, color in (
        ("l_k", f"$L_{{{results['num_samples']}}}$", "C0"),
        ("ais", "AIS from q", "C2"),
    ):
        values, errors = (
            np.array([row[key][part] for row in spoilt], float) for part in ("value", "se")
        )
        bars = 2 * np.nan_to_num(errors)
        nats.errorbar(index, values, bars, marker="o", ms=4, color=color, label=label)
    prior = rows["prior"]["ais"]
    error = 2 * (prior["se"] or 0.0)
    ends = (prior["value"] - error, prior["value"] + error)
    nats.axhspan(*ends, color="0.6", alpha=0.5, lw=0, label="AIS from the prior")
    nats.axhline(prior["value"], color="0.4", lw=1, ls=":")
    nats.set_ylabel("nats per datum ± 2 se")
    alarm.bar(index, [row["unreliable"] for row in spoilt], color="C3", width=0.5)
    alarm.set_ylim(0, results["num_data"])
    alarm.set_ylabel(f"k̂ > {spoilt[0]['khat_limit']:.2f}")
    for axes in (nats, alarm):
        axes.set_xlim(-0.4, len(amounts) - 0.6)
        axes.set_xticks(index, [f"{amount:g}" for amount in amounts])
        axes.spines[["top", "right"]].set_visible(False)


def _filled(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """The results, every row written as soon as it is there."""
    results = described(options.preset)
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # longer chains, or another release, measure anew
    same = {**old, "models": None} == {**results, "models": None}
    results["models"] = dict(old["models"]) if same else {}
    for row in TABLE.rows(options.preset):

        def save(found: dict[str, Any], row: str = row) -> None:
            results["models"][row] = found
            files.write_text(file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")

        cell = Cell(TABLE, options.preset, row, runs=options.folder)
        measure(cell, results["models"].get(row, {}), options.device, save)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, writes the numbers and the figure, and prints the table."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.bad_proposal", description=TABLE.title, allow_abbrev=False
    )
    made.add_argument("--preset", choices=list(TABLE.presets), default="small")
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    made.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are")
    made.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the numbers go"
    )
    options = made.parse_args(argv)
    file = options.results / f"{TABLE.name}-{options.preset}.json"
    try:
        results = _filled(options, file)
    except (ValueError, OSError) as error:
        print(f"bad_proposal: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bad_proposal: interrupted; the same command goes on", file=sys.stderr)
        return 130
    figure = draw(results)
    picture = file.with_suffix(".png")
    files.write(picture, lambda temporary: figure.savefig(temporary, dpi=120))
    print(text(results))
    print(f"results: {file}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
