"""The numbers of a table, read from its run folders, as a results file and as text."""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.report.tables import paired_difference

from .claims import before
from .published import Published
from .weighed_claims import weighed

if TYPE_CHECKING:
    from .cells import Cell, Table

__all__ = ["Results", "collect", "figure", "read", "share", "text"]

#: A results file.
Results = dict[str, Any]

#: The L_k that are kept; a run's own bounds hold more.
_PRINTED = ("elbo", "iwae_5", "iwae_50", "iwae_500", "iwae_5000", "log_evidence", "gap")


def collect(
    table: Table, preset: str, cells: Sequence[Cell], earlier: Results | None = None
) -> Results:
    """The results of the cells that are complete, and what the others lack.

    Times are left out: on a machine that others use too they say little.

    Arguments:
        table: the table.
        preset: the preset that the cells were run with.
        cells: a cell for every row and seed that there is, whether complete or not.
        earlier: results whose runs may be elsewhere: they are kept until a run here replaces them.
    """
    lacks = {cell: cell.missing() for cell in cells}
    complete = {(c.row, c.seed): c for c, reason in lacks.items() if reason is None}
    ended = {(c.row, c.seed) for c in cells if c.failure.is_file()} | complete.keys()
    kept = _kept(earlier or {}, table, preset, ended)
    rows: dict[str, dict[str, Any]] = {}
    for row in table.rows(preset):
        first = table.first(row, preset)
        found = {
            cell.seed: _record(cell, complete.get((first, cell.seed)))
            for cell in complete.values()
            if cell.row == row
        }
        found |= {seed: record for (name, seed), record in kept.items() if name == row}
        records = [found[seed] for seed in sorted(found)]
        if records:
            rows[row] = {"words": table.cells[row], "first": first, "runs": records}
            if row in table.published:
                rows[row] |= _published(table, row)
            if len(records) > 1:
                rows[row]["over_seeds"] = _over_seeds(records, table.bits)
    known = complete | {
        (before(row), seed): cell.start
        for (row, seed), cell in complete.items()
        if cell.start is not None and cell.start.missing() is None
    }
    claims = {
        name: weighed(claim, known) or _kept_claim(earlier or {}, table, name, kept)
        for name, claim in table.claims.items()
    }
    return {
        "name": table.name,
        "title": table.title,
        "preset": preset,
        **({"variant": dict(table.variant)} if table.variant else {}),
        "command": table.command(preset),
        "units": "bits per dimension" if table.bits else "nats per datum",
        "rows": rows,
        **({"claims": {n: c for n, c in claims.items() if c is not None}} if claims else {}),
        "missing": {
            str(c): reason
            for c, reason in lacks.items()
            if reason is not None and (c.row, c.seed) not in kept
        },
    }


def _kept(
    earlier: Results, table: Table, preset: str, ended: Collection[tuple[str, int]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Earlier records of rows and seeds that did not end here, if the words of today make them.

    A difference to a first row that was run here anew would be to another run of it: left out.
    """
    kept = {}
    for row in table.rows(preset):
        for record in earlier.get("rows", {}).get(row, {}).get("runs", []):
            seed, first = record["seed"], table.first(row, preset)
            commands = table.cell(preset, row, seed).commands
            same = all(record[verb] == command for verb, command in commands.items())
            if same and (row, seed) not in ended:
                again = {"difference": None} if (first, seed) in ended else {}
                kept[row, seed] = record | again
    return kept


def _kept_claim(
    earlier: Results, table: Table, name: str, kept: Collection[tuple[str, int]]
) -> dict[str, Any] | None:
    """What was found of a claim all of whose runs are elsewhere."""
    told, asked = earlier.get("claims", {}).get(name), table.claims[name]
    if told is None or told["weights"] != dict(asked.weights):
        return None
    there = {(alias, seed) for row, seed in kept for alias in (row, before(row))}
    wanted = {(row, seed) for row in told["weights"] for seed in told["seeds"]}
    return told if wanted <= there else None


def _published(table: Table, row: str) -> dict[str, Any]:
    """What the paper has for a row, and why it may differ."""
    told = table.published[row]
    if not isinstance(told, Published):
        return {"published": told}
    cause = table.causes.get(row) or table.causes.get("")
    return {
        "published": str(told),
        "paper": told.record(),
        **({"suspected_cause": cause} if cause else {}),
    }


def read(file: Path, command: str) -> Results:
    """A results file.

    Arguments:
        file: where it is.
        command: what writes it, for the message.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected results in {file}; there are none: `{command}`")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): `{command}` writes it anew") from None


def text(results: Results) -> str:
    """The table, to be read in a terminal or pasted into a document."""
    rows, bits = results["rows"], results["units"] == "bits per dimension"
    lines = [*textwrap.wrap(results["title"], 100), ""]
    wide = max([len("row"), *map(len, rows)])
    sizes = {(r["bounds"]["num_data"], r["bounds"]["num_samples"]) for _, r in _runs(results)}
    several = any("over_seeds" in row for row in rows.values())
    last = f"L_{k}" if len({k for _, k in sizes}) == 1 and (k := max(sizes)[1]) else "L_K"
    head = f"{'row':{wide}}{'parameters':>12}{'ELBO':>11}{last:>11}{'± data':>9}"
    head += f"{'± seeds':>9}" if several else ""
    measures = list(dict.fromkeys(n for _, r in _runs(results) for n in r.get("measures", {})))
    lines.append(
        f"{head}{'− first':>11}{'± paired':>10}{'k̂>limit':>9}"
        + "".join(f"{name:>{_width(name)}}" for name in measures)
        + ("   published" if any("published" in row for row in rows.values()) else "")
    )
    for name, row in rows.items():
        told = "".join(f"{figure(row['runs'], n):>{_width(n)}}" for n in measures)
        told += f"   {row['published']}" if "published" in row else ""
        lines.append(f"{name:{wide}}{_line(row, bits, several)}{told}".rstrip())
    data = ", ".join(f"{n} test data × {k} draws" for n, k in sorted(sizes, reverse=True))
    better = "lower" if bits else "higher"
    lines += ["", f"{data}; {results['units']}, {better} is better"] if sizes else []
    lines += [_told(claim) for claim in results.get("claims", {}).values()]
    if told := share(results):
        lines.append(f"of the samples that the paper's training saw: {told}")
    lines += [f"missing: {cell}: {reason}" for cell, reason in results["missing"].items()]
    return "\n".join(lines)


def _told(claim: Mapping[str, Any]) -> str:
    """A claim and what came of it, in a line."""
    value, error = (_get(claim, key) for key in ("value", "se"))
    kind = "paired" if claim["paired"] else "not paired"
    return f"{claim['verdict']}: {claim['sentence']}: {value:+.3f} ± {error:.3f} ({kind})"


def _line(row: Mapping[str, Any], bits: bool, several: bool) -> str:
    """The numbers of one row: means over its seeds."""
    runs = row["runs"]
    digits = 4 if bits else 3

    def mean(*keys: str) -> float:
        return statistics.fmean(_get(run, *keys) for run in runs)

    kind = ("bounds", "bits_per_dim" if bits else "estimates")
    line = f"{runs[0]['parameters']:12,}{mean(*kind, 'elbo', 'value'):11.{digits}f}"
    line += f"{mean(*kind, 'log_evidence', 'value'):11.{digits}f}"
    line += f"{mean(*kind, 'log_evidence', 'se_data'):9.{digits}f}"
    if several:
        line += f"{_get(row, 'over_seeds', 'log_evidence', 'spread'):9.{digits}f}"
    if all(run["difference"] for run in runs):
        line += f"{mean('difference', 'value'):11.{digits}f}"
        line += f"{mean('difference', 'se_paired'):10.{digits}f}"
    else:
        line += f"{'':21}"
    return f"{line}{round(mean('bounds', 'unreliable')):9}"


def _width(measure: str) -> int:
    return max(18, len(measure) + 2)


def figure(runs: Sequence[Mapping[str, Any]], measure: str) -> str:
    """One measure of a row: the mean over its seeds, or what a single one says of itself.

    Empty if it was not taken.
    """
    figures = [run["measures"][measure] for run in runs if measure in run.get("measures", {})]
    if not figures:
        return ""
    if len(figures) == 1 and "text" in figures[0]:
        return figures[0]["text"]
    value = statistics.fmean(_get(figure, "value") for figure in figures)
    errors = [_get(figure, "se") for figure in figures]
    told = f" ± {statistics.fmean(errors):.4g}" if all(map(math.isfinite, errors)) else ""
    return f"{value:.4g}{told}"


def share(results: Mapping[str, Any]) -> str:
    """How much of the paper's training the runs saw; empty if nobody knows."""
    budgets = [run.get("budget", {}) for _, run in _runs(results)]
    told = [f"{100 * budget['fraction']:.3g} %" for budget in budgets if "fraction" in budget]
    return ", ".join(dict.fromkeys(told))


def _get(record: Mapping[str, Any], *keys: str) -> float:
    """A number in a record; what JSON calls null is not a number."""
    value: Any = record
    for key in keys:
        value = (value or {}).get(key)
    return math.nan if value is None else value


def _runs(results: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, run) for name, row in results["rows"].items() for run in row["runs"]]


def _record(cell: Cell, first: Cell | None) -> dict[str, Any]:
    """What a reader needs to know about one run, and to repeat it."""
    result = cell.run.read_result()
    bounds, trained = result["bounds"], result["fit"]
    estimates = {k: v for k, v in bounds["estimates"].items() if k in _PRINTED}
    kept = ("split", "num_data", "num_samples", "seed", "khat", "khat_threshold", "unreliable")
    record = {
        "seed": cell.seed,
        **cell.commands,
        "parameters": trained["parameters"],
        "epochs": trained["epochs"],
        "best_epoch": trained["best_epoch"],
        "device": trained["device"],
        "budget": cell.budget(),
        "versions": result["versions"],
        "data": {**result["data"], "values": result["config"]["data"]["values"]},
        "bounds": {**{key: bounds[key] for key in kept}, "estimates": estimates},
        "difference": _difference(cell, first) if first and first is not cell else None,
    }
    if "start" in result:
        record["start"] = result["start"]
    if "bits_per_dim" in bounds:
        record["bounds"]["bits_per_dim"] = bounds["bits_per_dim"]
    if cell.table.measures:
        record["measures"] = cell.measured()
    return record | cell.more()


def _difference(cell: Cell, first: Cell) -> dict[str, float | None] | None:
    """log p̂ less that of the first row, paired datum by datum, if both scored the same data."""
    paired = paired_difference(cell.run, first.run, any_values=cell.table.bits)
    if paired is None:
        return None
    value, error = paired
    if cell.table.bits:
        ours, theirs = (c.run.read_result()["bounds"] for c in (cell, first))
        both = (_get(b, "bits_per_dim", "log_evidence", "value") for b in (ours, theirs))
        value, error = next(both) - next(both), error * _bits_per_nat(ours)
    return {"value": _number(value), "se_paired": _number(error)}


def _bits_per_nat(bounds: Mapping[str, Any]) -> float:
    """The slope of the affine map from nats to bits per dimension, but for its sign.

    An error goes through it. NaN if all errors are zero or not finite.
    """
    for name, row in bounds["bits_per_dim"].items():
        for key in ("se_data", "se_monte_carlo"):
            bits, nats = row[key], bounds["estimates"][name][key]
            if bits and nats:
                return bits / nats
    return math.nan


def _over_seeds(records: Sequence[Mapping[str, Any]], bits: bool) -> dict[str, Any]:
    """Means over seeds, and the standard deviation from one seed to another.

    Both in the table's unit; a gap exists in nats alone.
    """
    kind = "bits_per_dim" if bits else "estimates"
    columns = {
        name: [_get(r, "bounds", kind, name, "value") for r in records]
        for name in ("elbo", "log_evidence", *(() if bits else ("gap",)))
    }
    if all(r["difference"] for r in records):
        columns["difference"] = [_get(r, "difference", "value") for r in records]
    return {
        name: {"mean": _number(statistics.fmean(v)), "spread": _number(_spread(v))}
        for name, v in columns.items()
    }


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _number(x: float) -> float | None:
    """A number as JSON knows it."""
    return x if math.isfinite(x) else None
