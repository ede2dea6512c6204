"""Results of a table: collect them from the run folders, evaluate claims, format them as text."""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.runs.comparison import paired_difference

from .cells import Cell
from .tables import Claim, Published, Table, claim_verdict, combine_errors, start_label

__all__ = [
    "Results",
    "collect_results",
    "evaluate_claim",
    "format_budget_fraction",
    "format_measure",
    "format_results",
    "read_results",
    "without_verdict",
]

#: The contents of a results file.
Results = dict[str, Any]
#: The estimates that are kept in results files. The bounds of a run have more.
_KEPT_ESTIMATES = ("elbo", "iwae_5", "iwae_50", "iwae_500", "iwae_5000", "log_evidence", "gap")
_KEPT_BOUNDS = (
    *("split", "num_data", "num_samples", "seed", "khat", "khat_threshold", "unreliable"),
    "bits_per_dim",
)


def collect_results(
    table: Table, preset: str, cells: Sequence[Cell], earlier: Results | None = None
) -> Results:
    """Return the results of the complete cells, and the reasons why the others are missing.

    Times are not recorded, because they are not comparable between machines.

    Arguments:
        table: the table.
        preset: the preset of the cells.
        cells: a cell for every row and seed, complete or not.
        earlier: earlier results, whose runs may be on another machine. They are kept until a run
            of ``cells`` replaces them.
    """
    reasons = {cell: cell.incomplete_reason() for cell in cells}
    complete = {(c.row, c.seed): c for c, reason in reasons.items() if reason is None}
    ended = {(c.row, c.seed) for c in cells if c.failure_file.is_file()} | complete.keys()
    kept = _kept_records(earlier or {}, table, preset, ended)
    rows: dict[str, dict[str, Any]] = {}
    for row in table.rows(preset):
        first = table.first_row(row, preset)
        by_seed = {seed: record for (name, seed), record in kept.items() if name == row}
        by_seed |= {
            seed: _run_record(cell, complete.get((first, seed)))
            for (name, seed), cell in complete.items()
            if name == row
        }
        records = [by_seed[seed] for seed in sorted(by_seed)]
        if records:
            rows[row] = {"first": first, "runs": records, **_published_entry(table, row)}
            if len(records) > 1:
                rows[row]["over_seeds"] = _seed_summary(records, table.bits)
    claim_cells = complete | {
        (start_label(row), seed): cell.start
        for (row, seed), cell in complete.items()
        if cell.start is not None and cell.start.incomplete_reason() is None
    }
    claims = {
        name: evaluate_claim(claim, claim_cells) or _kept_claim(earlier or {}, table, name, kept)
        for name, claim in table.claims.items()
    }
    evaluated = {name: claim for name, claim in claims.items() if claim is not None}
    return {
        "name": table.name,
        "title": table.title,
        "preset": preset,
        **({"variant": dict(table.variant)} if table.variant else {}),
        "command": table.command(preset),
        "units": "bits per dimension" if table.bits else "nats per datum",
        "rows": rows,
        **({"claims": without_verdict(preset, evaluated)} if claims else {}),
        "missing": {
            str(c): reason
            for c, reason in reasons.items()
            if reason is not None and (c.row, c.seed) not in kept
        },
    }


def without_verdict(preset: str, claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims, without verdicts if the budget is that of a smoke test."""
    if preset != "smoke":
        return dict(claims)
    return {n: {k: v for k, v in c.items() if k != "verdict"} for n, c in claims.items()}


def _kept_records(
    earlier: Results, table: Table, preset: str, ended: Collection[tuple[str, int]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return earlier records of unfinished rows and seeds whose commands have not changed.

    The difference to a first row is dropped if that row was run again.
    """
    kept = {}
    for row in table.rows(preset):
        for record in earlier.get("rows", {}).get(row, {}).get("runs", []):
            seed, first = record["seed"], table.first_row(row, preset)
            commands = Cell(table, preset, row, seed).commands
            unchanged = all(record[verb] == command for verb, command in commands.items())
            if unchanged and (row, seed) not in ended:
                update = {"difference": None} if (first, seed) in ended else {}
                kept[row, seed] = record | update
    return kept


def _kept_claim(
    earlier: Results, table: Table, name: str, kept: Collection[tuple[str, int]]
) -> dict[str, Any] | None:
    """Return an earlier evaluation of a claim if all of its runs are kept, or ``None``."""
    record, claim = earlier.get("claims", {}).get(name), table.claims[name]
    if record is None or record["weights"] != dict(claim.weights):
        return None
    available = {(alias, seed) for row, seed in kept for alias in (row, start_label(row))}
    needed = {(row, seed) for row in record["weights"] for seed in record["seeds"]}
    return record if needed <= available else None


def _published_entry(table: Table, row: str) -> dict[str, Any]:
    """Return the paper's result for a row, and the suspected cause of a difference."""
    published = table.published.get(row)
    if not isinstance(published, Published):
        return {} if published is None else {"published": published}
    cause = table.causes.get(row) or table.causes.get("")
    entry = {"published": str(published), "paper": published.record()}
    return entry | ({"suspected_cause": cause} if cause else {})


def _run_record(cell: Cell, first: Cell | None) -> dict[str, Any]:
    """Return the entry of one run: its commands, data, versions and results."""
    result = cell.run.read_result()
    bounds, trained = result["bounds"], result["fit"]
    estimates = {k: v for k, v in bounds["estimates"].items() if k in _KEPT_ESTIMATES}
    return {
        "seed": cell.seed,
        **cell.commands,
        **{key: trained[key] for key in ("parameters", "epochs", "best_epoch", "device")},
        "budget": cell.budget(),
        "versions": result["versions"],
        "data": {**result["data"], "values": result["config"]["data"]["values"]},
        "bounds": {
            **{key: bounds[key] for key in _KEPT_BOUNDS if key in bounds},
            "estimates": estimates,
        },
        "difference": _paired_difference(cell, first) if first and first is not cell else None,
        **({"start": result["start"]} if "start" in result else {}),
        **({"measures": cell.read_measures()} if cell.measures else {}),
        **cell.extra_record(),
    }


def _paired_difference(cell: Cell, first: Cell) -> dict[str, float | None] | None:
    """Return the paired difference in log p̂ to the first row; ``None`` for other test data."""
    paired = paired_difference(cell.run, first.run, any_values=cell.table.bits)
    if paired is None:
        return None
    value, error = paired
    if cell.table.bits:
        bounds, first_bounds = (c.run.read_result()["bounds"] for c in (cell, first))
        value = _get_number(bounds, "bits_per_dim", "log_evidence", "value")
        value -= _get_number(first_bounds, "bits_per_dim", "log_evidence", "value")
        error *= _bits_per_nat(bounds)
    return {"value": _to_json_number(value), "se_paired": _to_json_number(error)}


def _bits_per_nat(bounds: Mapping[str, Any]) -> float:
    """Return the absolute slope of the affine map from nats to bits per dimension.

    It is the ratio of standard errors: NaN if all are zero or not finite.
    """
    for name, row in bounds["bits_per_dim"].items():
        for key in ("se_data", "se_monte_carlo"):
            bits, nats = row[key], bounds["estimates"][name][key]
            if bits and nats:
                return bits / nats
    return math.nan


def _seed_summary(records: Sequence[Mapping[str, Any]], bits: bool) -> dict[str, Any]:
    """Return means and standard deviations over seeds, in the table's unit."""
    kind = "bits_per_dim" if bits else "estimates"
    columns = {
        name: [_get_number(r, "bounds", kind, name, "value") for r in records]
        for name in ("elbo", "log_evidence", *(() if bits else ("gap",)))
    }
    if all(r["difference"] for r in records):
        columns["difference"] = [_get_number(r, "difference", "value") for r in records]
    # statistics.stdev raises for values that are not finite
    return {
        name: {
            "mean": _to_json_number(statistics.fmean(v)),
            "spread": _to_json_number(
                statistics.stdev(v) if all(map(math.isfinite, v)) else math.nan
            ),
        }
        for name, v in columns.items()
    }


def evaluate_claim(claim: Claim, cells: Mapping[tuple[str, int], Cell]) -> dict[str, Any] | None:
    """Return the value and verdict of a claim for JSON, or ``None`` if a row is missing.

    Values are means over the seeds that all rows have. ``se`` has two parts, see
    :func:`~.tables.combine_errors`: ``se_data`` over the test examples, paired, and ``se_seeds``
    over the seeds. A claim about one seed gets no verdict.

    Arguments:
        claim: the claim.
        cells: the complete cells, by row and seed.
    """
    row_seeds = [{seed for row, seed in cells if row == name} for name in claim.weights]
    seeds = sorted(set.intersection(*row_seeds))
    if not seeds:
        return None
    rows = {row: [cells[row, seed] for seed in seeds] for row in claim.weights}
    estimate = _weighted_measure if claim.measure else _weighted_log_evidence
    estimated = estimate(claim, rows)
    if estimated is None:
        return None
    values, data_error = estimated
    value, error = float(np.mean(values)), combine_errors(values, data_error)
    return {
        "sentence": claim.sentence,
        "of": claim.measure or "log_evidence",
        "weights": dict(claim.weights),
        "seeds": seeds,
        "value": _to_json_number(value),
        "se": _to_json_number(error.se),
        "se_data": _to_json_number(data_error),
        "se_seeds": _to_json_number(error.se_seeds),
        "by_seed": [*map(_to_json_number, values)],
        "paired": claim.measure is None,
        "verdict": claim_verdict(value, error.se, error.dof),
    }


def _weighted_log_evidence(
    claim: Claim, cells: Mapping[str, Sequence[Cell]]
) -> tuple[list[float], float] | None:
    """Weighted sums of log p̂ by seed, and the error of their mean over paired examples.

    ``None`` if the rows have different examples.
    """
    runs = [cell.run for row_cells in cells.values() for cell in row_cells]
    if any(paired_difference(run, runs[0]) is None for run in runs):
        return None
    with np.errstate(invalid="ignore"):  # −∞ − −∞ is NaN, and so are the sum and its error
        total = sum(
            weight * np.array([c.run.read_bounds().per_datum["log_evidence"] for c in cells[row]])
            for row, weight in claim.weights.items()
        )
        by_seed = np.asarray(total, float)  # (seeds, examples)
        per_datum = by_seed.mean(0)
        deviation = per_datum.std(ddof=1) if len(per_datum) > 1 else math.nan
        return by_seed.mean(1).tolist(), float(deviation / math.sqrt(len(per_datum)))


def _weighted_measure(
    claim: Claim, cells: Mapping[str, Sequence[Cell]]
) -> tuple[list[float], float]:
    """Weighted sums of a measure by seed, and the error of their mean, models in quadrature."""
    values, variance = np.zeros(1), 0.0
    for row, weight in claim.weights.items():
        measures = [cell.read_measures()[claim.measure or ""] for cell in cells[row]]
        errors = [measure.get("se", math.nan) for measure in measures]
        values = values + weight * np.array([float(measure["value"]) for measure in measures])
        variance += weight**2 * sum(error**2 for error in errors) / len(errors) ** 2
    return values.tolist(), math.sqrt(variance)


def read_results(file: Path, command: str) -> Results:
    """Read a results file.

    Arguments:
        file: the file.
        command: the command that writes it, for the error message.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected results in {file}; found none: run `{command}`")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}): run `{command}` to write it again"
        ) from None


def format_results(results: Results) -> str:
    """Format the table for a terminal or a document."""
    rows, bits = results["rows"], results["units"] == "bits per dimension"
    runs = [run for row in rows.values() for run in row["runs"]]
    width = max([len("row"), *map(len, rows)])
    sizes = sorted({(r["bounds"]["num_data"], r["bounds"]["num_samples"]) for r in runs})[::-1]
    has_seeds = any("over_seeds" in row for row in rows.values())
    last = f"L_{sizes[0][1]}" if len({k for _, k in sizes}) == 1 else "L_K"
    measures = list(dict.fromkeys(name for run in runs for name in run.get("measures", {})))
    cells = {row: {n: format_measure(rows[row]["runs"], n) for n in measures} for row in rows}
    widths = {
        n: max(18, len(n) + 2, *(len(columns[n]) + 1 for columns in cells.values()))
        for n in measures
    }
    head = f"{'row':{width}}{'parameters':>12}{'ELBO':>11}{last:>11}{'± data':>9}"
    head += f"{'± seeds':>9}" if has_seeds else ""
    head += f"{'− first':>11}{'± paired':>10}{'k̂>limit':>9}"
    head += "".join(f"{name:>{widths[name]}}" for name in measures)
    head += "   published" if any("published" in row for row in rows.values()) else ""
    lines = [*textwrap.wrap(results["title"], 100), "", head]
    for name, row in rows.items():
        line = f"{name:{width}}{_format_row(row, bits, has_seeds)}"
        line += "".join(f"{cells[name][n]:>{widths[n]}}" for n in measures)
        lines.append(f"{line}   {row.get('published', '')}".rstrip())
    data = ", ".join(f"{n} test examples × {k} samples" for n, k in sizes)
    better = "lower" if bits else "higher"
    lines += ["", f"{data}; {results['units']}, {better} is better"] if sizes else []
    lines += _format_claims(results)
    if fraction := format_budget_fraction(results):
        lines.append(f"training examples seen, relative to the paper: {fraction}")
    lines += [f"missing: {cell}: {reason}" for cell, reason in results["missing"].items()]
    return "\n".join(lines)


def _format_row(row: Mapping[str, Any], bits: bool, has_seeds: bool) -> str:
    """Format the numbers of one row, means over its seeds."""
    runs, digits = row["runs"], 4 if bits else 3
    kind = ("bounds", "bits_per_dim" if bits else "estimates")

    def mean(*keys: str) -> float:
        return statistics.fmean(_get_number(run, *keys) for run in runs)

    line = f"{runs[0]['parameters']:12,}{mean(*kind, 'elbo', 'value'):11.{digits}f}"
    line += f"{mean(*kind, 'log_evidence', 'value'):11.{digits}f}"
    line += f"{mean(*kind, 'log_evidence', 'se_data'):9.{digits}f}"
    if has_seeds:
        spread = _get_number(row, "over_seeds", "log_evidence", "spread")
        line += f"{spread:9.{digits}f}" if "over_seeds" in row else f"{'':9}"
    if all(run["difference"] for run in runs):
        line += f"{mean('difference', 'value'):11.{digits}f}"
        line += f"{mean('difference', 'se_paired'):10.{digits}f}"
    else:
        line += f"{'':21}"
    return f"{line}{round(mean('bounds', 'unreliable')):9}"


def _format_claims(results: Results) -> Iterator[str]:
    """Yield a line for each claim; a smoke run states no verdict."""
    claims = results.get("claims", {})
    if results["preset"] == "smoke" and claims:
        yield f"smoke budget: {len(claims)} claims evaluated, no verdict"
        return
    for claim in claims.values():
        value, error = (_get_number(claim, key) for key in ("value", "se"))
        kind = "paired" if claim["paired"] else "not paired"
        if len(claim.get("seeds", ())) > 1:
            kind += f", {len(claim['seeds'])} seeds"
        yield f"{claim['verdict']}: {claim['sentence']}: {value:+.3f} ± {error:.3f} ({kind})"


def format_measure(runs: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Format one measure of a row: the mean over its seeds.

    Parts of a text such as "26+7" are averaged one by one. Empty if the measure is missing.
    """
    measures = [run["measures"][measure] for run in runs if measure in run.get("measures", {})]
    if not measures:
        return ""
    texts = [entry.get("text", "") for entry in measures]
    if len(texts) == 1 and texts[0]:
        return texts[0]
    if all(re.fullmatch(r"\d+(\+\d+)*", text) for text in texts):
        parts = zip(*(map(int, text.split("+")) for text in texts), strict=True)
        return "+".join(f"{statistics.fmean(part):.3g}" for part in parts)
    value = statistics.fmean(_get_number(entry, "value") for entry in measures)
    errors = [_get_number(entry, "se") for entry in measures]
    suffix = f" ± {statistics.fmean(errors):.4g}" if all(map(math.isfinite, errors)) else ""
    return f"{value:.4g}{suffix}"


def format_budget_fraction(results: Mapping[str, Any]) -> str:
    """Format the runs' shares of the paper's training; empty if unknown."""
    budgets = [r.get("budget", {}) for row in results["rows"].values() for r in row["runs"]]
    shares = [f"{100 * budget['fraction']:.3g} %" for budget in budgets if "fraction" in budget]
    return ", ".join(dict.fromkeys(shares))


def _get_number(record: Mapping[str, Any], *keys: str) -> float:
    """Return a number in a nested record; null and missing entries are NaN."""
    value: Any = record
    for key in keys:
        value = (value or {}).get(key)
    return math.nan if value is None else value


def _to_json_number(x: float) -> float | None:
    """Return a number, or ``None`` if it is not finite."""
    return x if math.isfinite(x) else None
