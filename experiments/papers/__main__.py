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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae.core import files

from ..command import RESULTS
from ..reporting import Results, format_budget_fraction, format_measure, read_results
from ..tables import ONE_SEED, MeanError, combine_errors

__all__ = [
    "TOLERANCE",
    "Comparison",
    "compare_row",
    "format_gains",
    "format_recipes",
    "format_section",
    "format_sections",
    "format_summary",
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
#: Measures of active units, by column.
_UNITS = {"units": "active units", "as the authors": "as the authors"}
#: Measure of how far the bound is from log p(x), and its column.
_LADDER = "log p̂ − L_5000"
_UNKNOWN_CAUSE = "cause unknown"
#: Rows of the IWAE tables whose difference is shown; with k = 1, the IWAE is the VAE.
_GAINS = {
    "VAE, k = 5 instead of 1": ("VAE, k = 5", "VAE, k = 1"),
    "VAE, k = 50 instead of 5": ("VAE, k = 50", "VAE, k = 5"),
    "IWAE, k = 5 instead of 1": ("IWAE, k = 5", "VAE, k = 1"),
    "IWAE, k = 50 instead of 5": ("IWAE, k = 50", "IWAE, k = 5"),
    "IWAE instead of VAE, k = 5": ("IWAE, k = 5", "VAE, k = 5"),
    "IWAE instead of VAE, k = 50": ("IWAE, k = 50", "VAE, k = 50"),
}


class Comparison(NamedTuple):
    """A row of a results file and the paper's result for it, in nats per datum.

    ``value`` is a mean over seeds, ``spread`` the standard deviation between them, ``se`` its
    standard error over the test examples, ``num_data`` of ``num_test`` of which were evaluated.
    ``error`` is the standard error of the comparison: the error over seeds, and ``se`` or the Monte
    Carlo error if all examples were evaluated, as in the paper. ``budget`` is the share of the
    paper's training, ``None`` if unknown; ``full_budget`` is also true for training that stopped
    early on validation data.
    """

    value: float
    spread: float
    se: float
    error: MeanError
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
    values, data_errors, monte_carlo_errors = (
        [math.nan if e[key] is None else e[key] for e in estimates]
        for key in ("value", "se_data", "se_monte_carlo")
    )
    data_error = statistics.fmean(data_errors)
    num_data = min(run["bounds"]["num_data"] for run in runs)
    num_test = max(run["data"]["sizes"]["test"] for run in runs)
    shares = [run["budget"].get("fraction") for run in runs]
    is_part = num_data < num_test
    error = combine_errors(values, data_error if is_part else statistics.fmean(monte_carlo_errors))
    return Comparison(
        statistics.fmean(values),
        error.se_seeds * math.sqrt(len(values)),
        data_error,
        error,
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
    * ``better than published``: a higher result of a part of the test examples;
    * ``undecided``: the difference may be within the tolerance, given its error;
    * ``disagrees``: the result differs, and none of these explains it;
    * ``one seed: not judged``: the variation between seeds is unknown;
    * ``not compared``: the published number is unconfirmed, or ours or its error is not finite.
    """
    difference = row.value - row.published
    if not (row.confirmed and math.isfinite(difference) and math.isfinite(row.error.se)):
        return "not compared"
    if not row.error.dof > 0:
        return ONE_SEED
    if abs(difference) <= TOLERANCE and row.error.se <= TOLERANCE:
        return "reproduces"
    if difference < 0 and not row.full_budget:
        return "short of budget"
    is_part = row.num_data < row.num_test
    part = f", on {row.num_data:,} of {row.num_test:,} test examples" if is_part else ""
    if part and difference > 0:
        return f"better than published{part}"
    if abs(difference) - row.error.margin <= TOLERANCE:
        return f"undecided{part}"
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
    tables = [_row_table(results), _claim_table(results)]
    formatted = [_format_table(table) for table in tables if len(table) > 1]
    if not formatted:
        return ""
    return "\n\n".join([_format_title(results), *formatted, *_format_missing(results)])


def _format_missing(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line with the missing runs, or their number if most of a table was not started."""
    missing = results.get("missing", {})
    if len(missing) > len(results["rows"]) and {*missing.values()} == {"not started"}:
        yield f"Not run: the other {len(missing)} rows."
    elif missing:
        yield f"Missing: {'; '.join(missing)}."


def _format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table whose first row is the head."""
    head, *lines = (re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cells)} |") for cells in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *lines])


def _row_table(results: Mapping[str, Any]) -> list[list[str]]:
    rows = dict(_published_rows(results))
    has_units = any(row["paper"].get("units") for row in rows.values())
    columns = _UNITS if has_units else {}
    if any(_LADDER in run.get("measures", {}) for row in rows.values() for run in row["runs"]):
        columns = {_LADDER: _LADDER, **columns}
    head = ["", "seeds", "ELBO", "ours", "± seeds", "± data", *columns]
    table = [[*head, "paper", "share of training", "verdict"]]
    for name, row in rows.items():
        comparison, runs = compare_row(row), row["runs"]
        verdict = reproduction_verdict(comparison)
        if verdict == "disagrees":
            verdict += f": {row.get('suspected_cause', _UNKNOWN_CAUSE)}"
        share = "unknown" if comparison.budget is None else f"{100 * comparison.budget:.3g} %"
        if all(run["budget"]["ended_by_itself"] for run in runs):
            share += ", stopped early"
        spread = f"{comparison.spread:.2f}" if len(runs) > 1 else ""
        ours = [format_elbo(runs), f"{comparison.value:.2f}", spread, f"{comparison.se:.2f}"]
        ours += [format_measure(runs, measure) for measure in columns.values()]
        table.append([name, str(len(runs)), *ours, row["published"], share, verdict])
    return table


def format_summary(all_results: Sequence[Mapping[str, Any]]) -> str:
    """Format the number of rows and claims with each verdict, one line for each file."""
    table = [["", "seeds", "published numbers", "claims"]]
    for results in all_results:
        rows = [row for _, row in _published_rows(results)]
        claims = [*results.get("claims", {}).values()]
        if not rows and not claims:
            continue
        seeds = {len(row["runs"]) for row in rows} | {len(c.get("seeds", [0])) for c in claims}
        verdicts = [
            [reproduction_verdict(compare_row(row)) for row in rows],
            [_claim_verdict(claim) for claim in claims],
        ]
        cells = [", ".join(_count_verdicts(found)) for found in verdicts]
        span = "–".join(map(str, sorted({min(seeds), max(seeds)})))
        table.append([_format_name(results), span, *cells])
    return _format_table(table)


def _count_verdicts(verdicts: Sequence[str]) -> Iterator[str]:
    short = Counter(verdict.partition(", on ")[0] for verdict in verdicts)
    for verdict, count in short.most_common():
        yield f"{count} {verdict.removesuffix(': not judged')}"


def format_elbo(runs: Sequence[Mapping[str, Any]]) -> str:
    """Format the mean ELBO over seeds; empty if it was not estimated."""
    estimates = [run["bounds"]["estimates"].get("elbo", {}).get("value") for run in runs]
    return "" if None in estimates else f"{statistics.fmean(estimates):.2f}"


def format_recipes(all_results: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows that several recipes of the IWAE paper share, one below the other."""
    columns = ["seeds", "ELBO", "L_5000", "± seeds", "units", "as the authors"]
    table = [["", "recipe", "output bias", "initial weights", *columns]]
    files = [r for r in all_results if r["name"] == "iwae_table1" and _is_mnist_small(r)]
    for row in dict.fromkeys(row for results in files for row in results["rows"]):
        shown = [results for results in files if row in results["rows"]]
        for results in shown if len(shown) > 1 else []:
            recipe, runs = results["variant"], results["rows"][row]["runs"]
            comparison = compare_row(results["rows"][row])
            spread = f"{comparison.spread:.2f}" if len(runs) > 1 else ""
            units = [format_measure(runs, measure) for measure in _UNITS.values()]
            numbers = [str(len(runs)), format_elbo(runs), f"{comparison.value:.2f}", spread]
            choices = [recipe["recipe"], recipe["bias"], recipe["start"]]
            table.append([row, *choices, *numbers, *units])
    return _format_table(table)


def format_gains(results: Mapping[str, Any]) -> str:
    """Format the differences between rows of an IWAE table, beside those of the paper.

    The errors are standard errors over seeds. Unlike those of the claims they do not need the test
    examples of the runs, and so can be computed for rows that were run on different machines.
    """
    layers = ["1 layer", "2 layers"]
    columns = [column for layer in layers for column in (layer, "the paper")]
    table = [["change in L_5000", *columns]]
    for name, pair in _GAINS.items():
        cells = []
        for layer in layers:
            rows = [results["rows"].get(f"{layer}: {row}") for row in pair]
            cells += ["not run", ""] if None in rows else _format_gain(*map(compare_row, rows))
        table.append([name, *cells])
    return _format_table(table)


def _format_gain(row: Comparison, than: Comparison) -> list[str]:
    """Return the difference of two rows ± its error over seeds, and the published difference."""
    difference, published = row.value - than.value, row.published - than.published
    error = math.hypot(row.error.se_seeds, than.error.se_seeds)
    spread = "(one seed)" if math.isnan(error) else f"± {error:.2f}"
    return [f"{difference:+.2f} {spread}", f"{published:+.2f}"]


def _is_mnist_small(results: Mapping[str, Any]) -> bool:
    return results["preset"] == "small" and results["variant"]["data"] == "mnist"


def _published_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the names and entries of the rows that have runs and a published result."""
    for name, row in results.get("rows", {}).items():
        if "paper" in row and row.get("runs"):
            yield name, row


def _claim_table(results: Mapping[str, Any]) -> list[list[str]]:
    table = [["claim of the paper", "seeds", "ours ± se", "verdict"]]
    for claim in results.get("claims", {}).values():
        value, error = (math.nan if claim[key] is None else claim[key] for key in ("value", "se"))
        unit = " units" if claim.get("of") in _UNITS.values() else ""
        seeds, verdict = len(claim.get("seeds", [0])), _claim_verdict(claim)
        if verdict == "reversed":
            verdict += f": {_suspected_cause(results, claim)}"
        table.append([claim["sentence"], str(seeds), f"{value:+.2f} ± {error:.2f}{unit}", verdict])
    return table


def _claim_verdict(claim: Mapping[str, Any]) -> str:
    return claim["verdict"] if len(claim.get("seeds", [0])) > 1 else ONE_SEED


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
    sources = [row["paper"]["source"] for _, row in _published_rows(results)]
    if "paper" in results:  # claims only: the table below has no column for the share of training
        share = f"{format_budget_fraction(results)} of the paper's training"
        sources += [results["paper"]["source"], share]
    return "; ".join(dict.fromkeys([f"**{_format_name(results)}**", *sources]))


def _format_name(results: Mapping[str, Any]) -> str:
    variant = ", ".join(f"{key} {value}" for key, value in results.get("variant", {}).items())
    return f"`{results['name']}` {results['preset']}" + (f" ({variant})" if variant else "")


def format_sections(all_results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return all sections of the document, by the names of their marks."""
    sections = {
        "papers": format_section(all_results),
        "recipes": format_recipes(all_results),
        "summary": format_summary(all_results),
    }
    for name in ("iwae_table1", "iwae_table3"):
        command = f"python -m experiments.papers.{name} --preset small"
        for results in (r for r in all_results if r.get("command") == command):
            sections[f"gains of {name}"] = format_gains(results)
    return sections


def insert_section(document: str, section: str, mark: str) -> str:
    """Return the document with ``section`` between its marks, unchanged if it has no marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
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
        all_results = list(read_all_results(options.results))
        sections, document = format_sections(all_results), options.document
        before = document.read_text(encoding="utf-8") if document.is_file() else ""
        after = before
        for mark, section in sections.items():
            after = insert_section(after, section, mark)
        if after != before:
            files.atomic_write_text(document, after)
    except (ValueError, OSError) as error:
        print(f"verdicts: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(sections["papers"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
