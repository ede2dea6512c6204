"""Report sections of the diagnostics of a run, with tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..evaluation import Bounds
from . import plots
from .pictures import Picture

if TYPE_CHECKING:
    from ..runs.run import Run

__all__ = ["Section", "Table", "make_bounds_table", "make_sections"]


@dataclass(frozen=True)
class Table:
    """A table of formatted numbers.

    Attributes:
        head: column names; the first is that of the row names.
        rows: the cells of each row, starting with its name.
        main: names of the rows to highlight.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    main: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """The results of one diagnostic, or the command that computes them.

    Attributes:
        title: heading.
        command: command that computes the results.
        about: text below the heading.
        tables, pictures: the results; empty if they have not been computed.
    """

    title: str
    command: str
    about: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default_factory=list)

    @property
    def has_results(self) -> bool:
        return bool(self.tables or self.pictures)


def make_bounds_table(bounds: Bounds) -> Table:
    """Return a table with all rows of the bounds."""
    head = ["", "nats per datum", "± data", "± Monte Carlo", ""]
    labels = bounds.labels
    rows = [
        [labels[name][0], *map(_format_number, row), labels[name][1]]
        for name, row in bounds.estimates.items()
    ]
    return Table(head, rows, [labels[n][0] for n in ("elbo", "log_evidence") if n in labels])


def make_sections(run: Run, bounds: Bounds) -> Iterator[Section]:
    """Yield a section for each diagnostic, with or without results.

    Raises:
        RunError: if a file is damaged.
    """
    result = run.read_result()
    yield _bounds_section(run, bounds)
    yield _gaps_section(result.get("gaps"), run)
    yield _latents_section(result.get("latents"), run)
    yield _rate_distortion_section(result.get("rate_distortion"), run)


def _bounds_section(run: Run, bounds: Bounds) -> Section:
    title, command = "Bounds on log p(x)", f"pyro-vae bdmc {run.folder}"
    has_bdmc = run.evaluation_file("bdmc").is_file()
    if not has_bdmc and "ais" not in bounds.labels:
        return Section(title, command)
    panels, tables, notes = {"held-out data": bounds}, [], []
    if has_bdmc:
        simulated = run.read_evaluation("bdmc", Bounds.from_netcdf)
        panels["simulated data"] = simulated
        tables.append(make_bounds_table(simulated))
        notes.append(_describe_bdmc(simulated))
    else:
        notes.append(f"To measure the error of AIS on simulated data: {command}.")
    if "ais" not in bounds.labels:
        notes.append(f"To add AIS of the held-out data: pyro-vae evaluate {run.folder} --ais.")
    caption = " ".join(["Error bars: ± 2 Monte Carlo standard errors.", *notes])
    picture = Picture("ladder", "Lower and upper bounds", caption, plots.plot_bounds(panels))
    about = "The table is for data simulated by the model." if has_bdmc else ""
    return Section(title, command, about, tables, [picture])


def _describe_bdmc(simulated: Bounds) -> str:
    gap = simulated.estimates["bdmc_gap"]
    annealing = simulated.settings["annealing"]
    return (
        f"On {len(simulated)} examples simulated by the model, {annealing['num_chains']} chains "
        f"with {annealing['num_temperatures']} temperatures × {annealing['num_steps']} steps bound "
        f"the mean of log p(x) from both sides, with a gap of {gap.value:.2f} ± "
        f"{gap.se_monte_carlo:.2f} nats (Monte Carlo). The gap limits the error of AIS on these "
        f"examples; the error is comparable on similar held-out data."
    )


def _gaps_section(result: Mapping[str, Any] | None, run: Run) -> Section:
    title, command = "Inference gaps", f"pyro-vae gaps {run.folder}"
    if result is None:
        return Section(title, command)
    rows, estimates = result["gaps"], result["estimates"]
    estimate_labels = {
        "elbo": "ELBO",
        "refitted": f"ELBO, {result['family']} refitted per example",
        "richer": f"ELBO, {result['richer']} refitted",
        "log_evidence": "log p̂ by importance sampling",
        "ais": "AIS",
    }
    gap_labels = {
        "amortisation": "amortisation gap",
        "approximation": "approximation gap",
        "closed": f"part closed by {result['richer']}",
        "remaining": f"part remaining with {result['richer']}",
        "total": "log p̂ − ELBO",
        "train_amortisation": "amortisation gap, training data",
        "generalisation": "generalisation gap of the encoder, test − train",
    }
    head = ["", "nats per datum", "± data", "± Monte Carlo"]
    table = [
        [label, *_format_row(estimates[n])]
        for n, label in estimate_labels.items()
        if n in estimates
    ]
    table += [[label, *_format_row(rows[n])] for n, label in gap_labels.items() if n in rows]
    parts = ("closed", "remaining") if "closed" in rows else ("approximation",)
    bars = {f"{result['split']} data": {n: rows[n] for n in ("amortisation", *parts)}}
    if "train_amortisation" in rows:
        bars["training data"] = {"amortisation": rows["train_amortisation"]}
    figure = plots.plot_gap_parts(bars, result["richer"])
    picture = Picture("gaps", "Parts of the gap", result["reading"], figure)
    about = f"{result['num_data']} examples. The “± data” of a difference is paired."
    main = [gap_labels[name] for name in ("amortisation", "approximation")]
    return Section(title, command, about, [Table(head, table, main)], [picture])


def _latents_section(result: Mapping[str, Any] | None, run: Run) -> Section:
    title, command = "Latent variables", f"pyro-vae latents {run.folder}"
    if result is None:
        return Section(title, command)
    labels = {"rate": "rate, E KL(q(z|x) ‖ p(z))", "distortion": "distortion, −E log p(x|z)"}
    head = ["", "nats per datum", "± data", "± Monte Carlo"]
    table = [[label, *_format_row(result["estimates"][n])] for n, label in labels.items()]
    surgery = result["surgery"]
    parts = {"mutual_information": "mutual information I_q(x; z)", "marginal": "KL(q(z) ‖ p(z))"}
    about = [f"{result['num_data']} examples."]
    if surgery is not None:
        table += [
            [f"{label} *", *_format_row(surgery["estimates"][n])] for n, label in parts.items()
        ]
        about.append(
            f"* for the aggregate posterior of {surgery['num_data']} examples; the mutual "
            f"information is at most log N = {surgery['limit']:.2f}."
        )
        if surgery["warning"]:
            about.append(f"{surgery['warning'][0].upper()}{surgery['warning'][1:]}.")
    pictures = []
    for name, site in result["sites"].items():
        caption = f"KL of {name}: {site['total']['value']:.3f} nats."
        if site["active"] is not None:
            caption += f" {site['active']} of {site['units']} units are active."
        if site["variance"] is None and site["dimensions"] is None:
            about.append(caption)
            continue
        figure = plots.plot_latent_units(site, result["threshold"], name)
        pictures.append(Picture(f"units-{name}", f"Units of {name}", caption, figure))
    return Section(title, command, " ".join(about), [Table(head, table)], pictures)


def _rate_distortion_section(result: Mapping[str, Any] | None, run: Run) -> Section:
    title, command = "Rate and distortion", f"pyro-vae rate-distortion {run.folder}"
    if result is None:
        return Section(title, command)
    own = result["own"]
    head = ["β", "rate", "± data", "± Monte Carlo", "distortion", "± data", "± Monte Carlo"]
    table = [
        [f"{beta:g}", *_format_row(r), *_format_row(d)]
        for beta, r, d in zip(result["betas"], result["rate"], result["distortion"], strict=True)
    ]
    table.append(["q itself", *_format_row(own["rate"]), *_format_row(own["distortion"])])
    about = (
        f"{result['num_data']} examples, nats per datum. In expectation the points lie on or above "
        f"the optimal curve of this prior and decoder."
    )
    figure = plots.plot_rate_distortion(result["betas"], result["rate"], result["distortion"], own)
    caption = "The ELBO, −(R + D), is constant along the dotted line and equal to that of q."
    if 1.0 in result["betas"] and _rate_plus_distortion(own) < _rate_plus_distortion(
        result, result["betas"].index(1.0)
    ):
        caption += (
            " At β = 1 the annealed chains are worse than q: use more temperatures or chains to "
            "lower the curve."
        )
    picture = Picture("rate-distortion", "Rate–distortion curve", caption, figure)
    return Section(title, command, about, [Table(head, table, ["q itself"])], [picture])


def _rate_plus_distortion(result: Mapping[str, Any], index: int | None = None) -> float:
    """Return R + D, at one point of the curve if ``index`` is given."""
    rows = (
        result[name] if index is None else result[name][index] for name in ("rate", "distortion")
    )
    return sum(math.nan if row["value"] is None else row["value"] for row in rows)


def _format_row(row: Mapping[str, float | None]) -> list[str]:
    return [_format_number(row[key]) for key in ("value", "se_data", "se_monte_carlo")]


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
