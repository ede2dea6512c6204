"""What the slower rulers said of a run: sections of the report with tables and pictures."""

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

__all__ = ["Section", "Table", "bounds_table", "sections"]


@dataclass(frozen=True)
class Table:
    """Numbers in rows, as they are shown.

    Attributes:
        head: what the columns are called; the first is that of the rows' names.
        rows: as many cells each, the first of them the row's name.
        main: the names of rows that matter most.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    main: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """What one ruler said, or how to ask it.

    Attributes:
        title: its heading.
        command: the command that measures it.
        about: sentences under the heading.
        tables, pictures: what it said; nothing if it was not asked.
    """

    title: str
    command: str
    about: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default_factory=list)

    @property
    def there(self) -> bool:
        return bool(self.tables or self.pictures)


def bounds_table(bounds: Bounds) -> Table:
    """Every row of bounds."""
    head = ["", "nats per datum", "± data", "± Monte Carlo", ""]
    labels = bounds.labels
    rows = [
        [labels[name][0], *map(_number, row), labels[name][1]]
        for name, row in bounds.estimates.items()
    ]
    return Table(head, rows, [labels[n][0] for n in ("elbo", "log_evidence") if n in labels])


def sections(run: Run, bounds: Bounds) -> Iterator[Section]:
    """A section for each ruler, whether it has been asked or not.

    Raises:
        RunError: if a file is damaged.
    """
    result = run.read_result()
    yield _ladder(run, bounds)
    yield _gaps(result.get("gaps"), run)
    yield _latents(result.get("latents"), run)
    yield _rate_distortion(result.get("rate_distortion"), run)


def _ladder(run: Run, bounds: Bounds) -> Section:
    title, command = "Between two bounds", f"pyro-vae bdmc {run.folder}"
    there = run.ruler("bdmc").is_file()
    if not there and "ais" not in bounds.labels:
        return Section(title, command)
    panels, tables, told = {"held-out data": bounds}, [], []
    if there:
        simulated = run.read_ruler("bdmc", Bounds.from_netcdf)
        panels["data simulated by the model"] = simulated
        tables.append(bounds_table(simulated))
        told.append(_enclosed(simulated))
    else:
        told.append(f"How far AIS is off: {command}.")
    if "ais" not in bounds.labels:
        told.append(f"AIS of held-out data: pyro-vae evaluate {run.folder} --ais.")
    caption = " ".join(["± 2 Monte Carlo standard errors.", *told])
    picture = Picture("ladder", "The ladder of bounds", caption, plots.ladder(panels))
    about = "The table is that of the simulated data." if there else ""
    return Section(title, command, about, tables, [picture])


def _enclosed(simulated: Bounds) -> str:
    gap = simulated.estimates["bdmc_gap"]
    walk = simulated.settings["annealing"]
    return (
        f"On {len(simulated)} data that the model made, {walk['num_chains']} chains of "
        f"{walk['num_temperatures']} temperatures × {walk['num_steps']} steps enclose the mean of "
        f"log p(x) to {gap.value:.2f} ± {gap.se_monte_carlo:.2f} nats (Monte Carlo): AIS is there "
        f"no further off than that, and on held-out data that look alike about as good."
    )


def _gaps(told: Mapping[str, Any] | None, run: Run) -> Section:
    title, command = "Where the ELBO is lost", f"pyro-vae gaps {run.folder}"
    if told is None:
        return Section(title, command)
    rows, estimates = told["gaps"], told["estimates"]
    names = {
        "elbo": "ELBO",
        "refitted": f"ELBO, {told['family']} refitted to each datum",
        "richer": f"ELBO, {told['richer']} refitted",
        "log_evidence": "log p̂ by importance sampling",
        "ais": "AIS",
    }
    differences = {
        "amortisation": "amortisation gap",
        "approximation": "approximation gap",
        "closed": f"of that, closed by {told['richer']}",
        "remaining": f"left by {told['richer']}",
        "total": "log p̂ − ELBO",
        "train_amortisation": "amortisation gap of training data",
        "generalisation": "encoder's generalisation, test − train",
    }
    head = ["", "nats per datum", "± data", "± Monte Carlo"]
    table = [[label, *_cells(estimates[n])] for n, label in names.items() if n in estimates]
    table += [[label, *_cells(rows[n])] for n, label in differences.items() if n in rows]
    parts = ("closed", "remaining") if "closed" in rows else ("approximation",)
    bars = {f"{told['split']} data": {n: rows[n] for n in ("amortisation", *parts)}}
    if "train_amortisation" in rows:
        bars["training data"] = {"amortisation": rows["train_amortisation"]}
    figure = plots.gap_parts(bars, told["richer"])
    picture = Picture("gaps", "Parts of the gap", told["reading"], figure)
    about = f"{told['num_data']} data. “± data” of a difference is paired."
    main = [differences[name] for name in ("amortisation", "approximation")]
    return Section(title, command, about, [Table(head, table, main)], [picture])


def _latents(told: Mapping[str, Any] | None, run: Run) -> Section:
    title, command = "What the latents carry", f"pyro-vae latents {run.folder}"
    if told is None:
        return Section(title, command)
    names = {"rate": "rate, E KL(q(z|x) ‖ p(z))", "distortion": "distortion, −E log p(x|z)"}
    head = ["", "nats per datum", "± data", "± Monte Carlo"]
    table = [[label, *_cells(told["estimates"][n])] for n, label in names.items()]
    cut = told["surgery"]
    parts = {"mutual_information": "mutual information I_q(x; z)", "marginal": "KL(q(z) ‖ p(z))"}
    if cut is not None:
        table += [[f"{label} *", *_cells(cut["estimates"][n])] for n, label in parts.items()]
    about = [f"{told['num_data']} data."]
    if cut is not None:
        about.append(
            f"* of the aggregate posterior of {cut['num_data']} data; the mutual information can "
            f"never be above log N = {cut['limit']:.2f}."
        )
        about += [f"{cut['warning'][0].upper()}{cut['warning'][1:]}."] if cut["warning"] else []
    pictures = []
    for name, site in told["sites"].items():
        caption = f"KL of {name}: {site['total']['value']:.3f} nats."
        if site["active"] is not None:
            caption += f" {site['active']} of {site['units']} units are active."
        if site["variance"] is None and site["dimensions"] is None:
            about.append(caption)
            continue
        figure = plots.latent_units(site, told["threshold"], name)
        pictures.append(Picture(f"units-{name}", f"Units of {name}", caption, figure))
    return Section(title, command, " ".join(about), [Table(head, table)], pictures)


def _rate_distortion(told: Mapping[str, Any] | None, run: Run) -> Section:
    title, command = "Rate and distortion", f"pyro-vae rate-distortion {run.folder}"
    if told is None:
        return Section(title, command)
    own = told["own"]
    head = ["β", "rate", "± data", "± Monte Carlo", "distortion", "± data", "± Monte Carlo"]
    table = [
        [f"{beta:g}", *_cells(r), *_cells(d)]
        for beta, r, d in zip(told["betas"], told["rate"], told["distortion"], strict=True)
    ]
    table.append(["q itself", *_cells(own["rate"]), *_cells(own["distortion"])])
    about = (
        f"{told['num_data']} data, nats per datum. The points lie on the best curve of this prior "
        f"and decoder or above it, in expectation."
    )
    figure = plots.rate_distortion(told["betas"], told["rate"], told["distortion"], own)
    caption = "Along the dotted line the ELBO, −(R + D), is that of q."
    if 1.0 in told["betas"] and _total(own) < _total(told, told["betas"].index(1.0)):
        caption += (
            " At β = 1 the chains do worse than q: more temperatures or chains would bring the "
            "curve down."
        )
    picture = Picture("rate-distortion", "The rate–distortion curve", caption, figure)
    return Section(title, command, about, [Table(head, table, ["q itself"])], [picture])


def _total(told: Mapping[str, Any], index: int | None = None) -> float:
    """R + D, of one of several points if there is an index."""
    rows = (told[name] if index is None else told[name][index] for name in ("rate", "distortion"))
    return sum(math.nan if row["value"] is None else row["value"] for row in rows)


def _cells(row: Mapping[str, float | None]) -> list[str]:
    return [_number(row[key]) for key in ("value", "se_data", "se_monte_carlo")]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
