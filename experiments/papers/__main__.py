"""Compare results with the papers, and update ``docs/explanation/reproductions.md``.

    python -m experiments.papers

The published numbers and the suspected causes of differences are declared in the scripts and copied
to the results files. The verdicts are computed here.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae.core import files

from ..command import RESULTS
from ..reporting import Results, format_budget_fraction, format_measure, read_results

__all__ = [
    "TOLERANCE",
    "Comparison",
    "compare_row",
    "format_section",
    "insert_section",
    "main",
    "read_all_results",
    "reproduction_verdict",
]

#: Difference in nats up to which a result is reproduced.
TOLERANCE = 0.5
#: Share of the paper's training that counts as all of it, as batches need not divide the data.
_FULL_BUDGET = 0.98
#: Presets whose results are compared.
_PRESETS = ("small", "paper")
_DOCUMENT = Path(__file__).parents[2] / "docs" / "explanation" / "reproductions.md"
_UNKNOWN_CAUSE = "cause unknown"
_MARKS = ("<!-- papers -->", "<!-- /papers -->")


class Comparison(NamedTuple):
    """A row of a results file and the paper's result for it, in nats per datum.

    ``value`` is a mean over seeds, ``se`` its standard error over the test examples, ``num_data``
    of ``num_test`` of which were evaluated. ``error`` is the standard error of the comparison:
    ``se``, or the Monte Carlo error if all examples were evaluated, as in the paper. ``budget`` is
    the share of the paper's training, ``None`` if unknown; ``full_budget`` is also true for
    training that stopped early on validation data.
    """

    value: float
    se: float
    error: float
    num_data: int
    num_test: int
    budget: float | None
    full_budget: bool
    published: float
    confirmed: bool


def compare_row(row: Mapping[str, Any]) -> Comparison:
    """Compare a row of a results file with its published result."""
    runs = row["runs"]
    estimates = [run["bounds"]["estimates"]["log_evidence"] for run in runs]
    value, data_error, monte_carlo_error = (
        statistics.fmean(math.nan if e[key] is None else e[key] for e in estimates)
        for key in ("value", "se_data", "se_monte_carlo")
    )
    num_data = min(run["bounds"]["num_data"] for run in runs)
    num_test = max(run["data"]["sizes"]["test"] for run in runs)
    shares = [run["budget"].get("fraction") for run in runs]
    return Comparison(
        value,
        data_error,
        data_error if num_data < num_test else monte_carlo_error,
        num_data,
        num_test,
        None if None in shares else min(shares),
        _is_full_budget(row),
        row["paper"]["value"],
        row["paper"]["confirmed"],
    )


def _is_full_budget(row: Mapping[str, Any]) -> bool:
    """Whether all runs of a row had the full budget or stopped early."""
    budgets = [run["budget"] for run in row["runs"]]
    return all(b["ended_by_itself"] or (b.get("fraction") or 0.0) >= _FULL_BUDGET for b in budgets)


def reproduction_verdict(row: Comparison) -> str:
    """Return whether a result was reproduced.

    * ``reproduces``: the difference and its error are within the tolerance;
    * ``short of budget``: the result is too low after shorter training;
    * ``better than published``, ``undecided``: a higher result, or a lower one within its error,
      of a part of the test examples;
    * ``disagrees``: the result differs, and none of these explains it;
    * ``not compared``: the published number is unconfirmed, or ours or its error is not finite.
    """
    difference = row.value - row.published
    if not (row.confirmed and math.isfinite(difference) and math.isfinite(row.error)):
        return "not compared"
    if abs(difference) <= TOLERANCE and row.error <= TOLERANCE:
        return "reproduces"
    if difference < 0 and not row.full_budget:
        return "short of budget"
    if row.num_data < row.num_test:
        part = f"on {row.num_data:,} of {row.num_test:,} test examples"
        if difference > 0:
            return f"better than published, {part}"
        if -difference - 2 * row.error <= TOLERANCE:
            return f"undecided, {part}"
    return "disagrees"


def read_all_results(folder: Path = RESULTS) -> Iterator[Results]:
    """Yield the contents of the results files of the compared presets.

    Raises:
        ValueError: if a file is damaged.
    """
    for file in sorted(folder.glob("*.json")):
        results = read_results(file, "its script")
        if isinstance(results, dict) and results.get("preset") in _PRESETS:
            yield results


def format_section(all_results: Sequence[Mapping[str, Any]]) -> str:
    """Format results and claims as Markdown tables, with a title for each file."""
    return "\n\n".join(filter(None, map(_format_file, all_results))) or "No results yet."


def _format_file(results: Mapping[str, Any]) -> str:
    rows = "| | ours ± se | paper | share of training | verdict |\n| --- | --- | --- | --- | --- |"
    claims = "| claim of the paper | ours ± se | verdict |\n| --- | --- | --- |"
    tables = {rows: [*_row_cells(results)], claims: [*_claim_cells(results)]}
    formatted = [
        "\n".join([head, *(f"| {' | '.join(cells)} |" for cells in lines)])
        for head, lines in tables.items()
        if lines
    ]
    if not formatted:
        return ""
    missing = [f"Missing: {'; '.join(results['missing'])}."] if results.get("missing") else []
    return "\n\n".join([_format_title(results), *formatted, *missing])


def _row_cells(results: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, row in _published_rows(results):
        comparison = compare_row(row)
        ours = f"{comparison.value:.2f} ± {comparison.se:.2f}"
        if row["paper"].get("units"):
            ours += f" / {format_measure(row['runs'], 'active units')}"
        ours += f" ({len(row['runs'])} seeds)" if len(row["runs"]) > 1 else ""
        verdict = reproduction_verdict(comparison)
        if verdict == "disagrees":
            verdict += f": {row.get('suspected_cause', _UNKNOWN_CAUSE)}"
        share = "unknown" if comparison.budget is None else f"{100 * comparison.budget:.3g} %"
        if all(run["budget"]["ended_by_itself"] for run in row["runs"]):
            share += ", stopped early"
        yield [name, ours, row["published"], share, verdict]


def _published_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the names and entries of the rows that have runs and a published result."""
    for name, row in results.get("rows", {}).items():
        if "paper" in row and row.get("runs"):
            yield name, row


def _claim_cells(results: Mapping[str, Any]) -> Iterator[list[str]]:
    for claim in results.get("claims", {}).values():
        value, error = (math.nan if claim[key] is None else claim[key] for key in ("value", "se"))
        unit = " units" if claim.get("of") == "active units" else ""
        verdict = claim["verdict"]
        if verdict == "reversed":
            verdict += f": {_suspected_cause(results, claim)}"
        yield [claim["sentence"], f"{value:+.2f} ± {error:.2f}{unit}", verdict]


def _suspected_cause(results: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """Return the suspected cause of a reversed claim: declared by the script, or short training."""
    if "suspected_cause" in claim:
        return claim["suspected_cause"]
    names = claim.get("weights", results["rows"])
    rows = [row for name, row in results["rows"].items() if name in names]
    if not all(map(_is_full_budget, rows)):
        return "short of budget"
    return next((r["suspected_cause"] for r in rows if "suspected_cause" in r), _UNKNOWN_CAUSE)


def _format_title(results: Mapping[str, Any]) -> str:
    variant = ", ".join(results.get("variant", {}).values())
    name = " ".join(filter(None, [f"**`{results['name']}`**", results["preset"], variant]))
    sources = [row["paper"]["source"] for _, row in _published_rows(results)]
    if "paper" in results:  # claims only: the table below has no column for the share of training
        share = f"{format_budget_fraction(results)} of the paper's training"
        sources += [results["paper"]["source"], share]
    return "; ".join(dict.fromkeys([name, *sources]))


def insert_section(document: str, section: str) -> str:
    """Return the document with ``section`` between its marks, unchanged if it has no marks."""
    begin, end = _MARKS
    replacement = f"{begin}\n{section}\n{end}"
    return re.sub(f"{begin}.*?{end}", lambda _: replacement, document, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison, and write it between the marks of the document."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.papers",
        description="Compare the results with the papers: published numbers, claims and verdicts",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results")
    add("--document", type=Path, default=_DOCUMENT, metavar="FILE", help="document to update")
    options = parser.parse_args(argv)
    try:
        section = format_section(list(read_all_results(options.results)))
        document = options.document
        before = document.read_text(encoding="utf-8") if document.is_file() else ""
        after = insert_section(before, section)
        if after != before:
            files.atomic_write_text(document, after)
    except (ValueError, OSError) as error:
        print(f"verdicts: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
