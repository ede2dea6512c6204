"""Ours and the papers': the README's table, made of the files in ``results/``.

    python -m experiments.verdicts          # or: pyro-vae experiment --table

What was published and what may be the cause of a difference stand in the scripts, and from there in
the files; whether a figure was reproduced is computed here.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.core import files

from .collect import figure, share
from .table import RESULTS

__all__ = ["TOLERANCE", "Compared", "block", "compared", "fill", "main", "results", "verdict"]

#: Nats within which a figure is reproduced.
TOLERANCE = 0.5
#: A share of the paper's training that is all of it: minibatches do not divide every set of data.
_WHOLE = 0.98
#: Presets whose figures mean something, and where they stand.
_PRESETS = ("small", "paper")
_README = Path(__file__).parents[1] / "README.md"
_UNKNOWN = "the cause is not known"
_MARKS = ("<!-- papers -->", "<!-- /papers -->")


@dataclass(frozen=True)
class Compared:
    """A row of a results file beside what a paper has for it.

    Attributes:
        value: ours, in nats per datum, a mean over seeds.
        se: its standard error over the test data.
        error: what stands between ours and the paper's besides the model: ``se`` where only some
            of the test data were looked at; else Monte Carlo's, because the paper scored the same.
        seeds: how many.
        published: the paper's figure.
        confirmed: whether that was read there, and not remembered.
        budget: the share of the paper's training, between 0 and 1; unknown if not given.
        whole: whether training was not cut short: all of the paper's, or ended by itself.
        all_data: whether all test data were looked at.
    """

    value: float
    se: float
    error: float
    seeds: int
    published: float
    confirmed: bool
    budget: float | None
    whole: bool
    all_data: bool


def compared(row: Mapping[str, Any]) -> Compared:
    """A row of a results file that has a paper's figure, in numbers."""
    runs = row["runs"]
    figures = [run["bounds"]["estimates"]["log_evidence"] for run in runs]

    def mean(key: str) -> float:
        return statistics.fmean(math.nan if f[key] is None else f[key] for f in figures)

    shares = [run["budget"].get("fraction") for run in runs]
    least = None if None in shares else min(shares)
    all_data = all(r["bounds"]["num_data"] >= r["data"]["sizes"]["test"] for r in runs)
    return Compared(
        value=mean("value"),
        se=mean("se_data"),
        error=mean("se_monte_carlo" if all_data else "se_data"),
        seeds=len(runs),
        published=row["paper"]["value"],
        confirmed=row["paper"]["confirmed"],
        budget=least,
        whole=_whole(row),
        all_data=all_data,
    )


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether no run of a row was cut short."""
    budgets = [run["budget"] for run in row["runs"]]
    return all(b["ended_by_itself"] or (b.get("fraction") or 0.0) >= _WHOLE for b in budgets)


def verdict(row: Compared, tolerance: float = TOLERANCE) -> str:
    """Whether a figure was reproduced.

    * ``reproduces``: within the tolerance, and known to be: its error is no larger;
    * ``short of budget``: not so, and training was cut short (then it may only be too low), or too
      few test data were looked at to tell;
    * ``disagrees``: outside by more than two of its errors, with nothing of the above to blame;
    * ``not judged``: the paper's figure was only remembered, or ours or its error is not finite.
    """
    difference = row.value - row.published
    if not (row.confirmed and math.isfinite(difference) and math.isfinite(row.error)):
        return "not judged"
    if abs(difference) <= tolerance and row.error <= tolerance:
        return "reproduces"
    too_few = not row.all_data and abs(difference) - 2 * row.error <= tolerance
    too_short = not row.whole and difference < 0
    return "short of budget" if too_few or too_short else "disagrees"


def results(folder: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """The results files that have a paper's figures, or claims.

    Raises:
        ValueError: if one is damaged.
    """
    for file in sorted(folder.glob("*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({error}): remove it, and run its script again"
            ) from None
        if isinstance(found, dict) and found.get("preset") in _PRESETS:
            yield found


def block(every: Sequence[Mapping[str, Any]]) -> str:
    """Each file's figures and claims in Markdown, below its name and the paper's."""
    return "\n\n".join(filter(None, map(_section, every))) or "No results beside a paper's yet."


def _section(found: Mapping[str, Any]) -> str:
    tables = [
        (["", "ours ± se", "paper", "of its training", "verdict"], list(_rows(found))),
        (["the paper says", "ours ± se", "verdict"], list(_claims(found))),
    ]
    written = [_markdown(head, lines) for head, lines in tables if lines]
    if not written:
        return ""
    lost = [f"Missing: {'; '.join(found['missing'])}."] if found.get("missing") else []
    return "\n\n".join([_title(found), *written, *lost])


def _rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, row in _published(found):
        numbers = compared(row)
        ours = f"{numbers.value:.2f} ± {numbers.se:.2f}"
        if row["paper"].get("units"):
            ours += f" / {figure(row['runs'], 'active units')}"
        ours += f" ({numbers.seeds} seeds)" if numbers.seeds > 1 else ""
        said = verdict(numbers)
        if said == "disagrees":
            said += f": {row.get('suspected_cause', _UNKNOWN)}"
        trained = "unknown" if numbers.budget is None else f"{100 * numbers.budget:.3g} %"
        if all(run["budget"]["ended_by_itself"] for run in row["runs"]):
            trained += ", ended by itself"
        yield [name, ours, row["published"], trained, said]


def _published(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows that were run and have a paper's figure, by name."""
    rows = found.get("rows")
    for name, row in rows.items() if isinstance(rows, dict) else ():
        if isinstance(row, dict) and "paper" in row and row.get("runs"):
            yield name, row


def _claims(found: Mapping[str, Any]) -> Iterator[list[str]]:
    claims = found.get("claims")
    for claim in claims.values() if isinstance(claims, dict) else ():
        told = [math.nan if claim[key] is None else claim[key] for key in ("value", "se")]
        unit = " units" if claim.get("of") == "active units" else ""
        ours = "{:+.2f} ± {:.2f}".format(*told) + unit
        said = claim["verdict"]
        said += f": {_suspected(found, claim)}" if said == "reversed" else ""
        yield [claim["sentence"], ours, said]


def _suspected(found: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """Why a claim may be reversed: what its script says, or training that was cut short."""
    if "suspected_cause" in claim:
        return claim["suspected_cause"]
    names = claim.get("weights", found["rows"])
    rows = [row for name, row in found["rows"].items() if name in names]
    if not all(map(_whole, rows)):
        return "short of budget"
    return next((r["suspected_cause"] for r in rows if "suspected_cause" in r), _UNKNOWN)


def _title(found: Mapping[str, Any]) -> str:
    variant = ", ".join(found.get("variant", {}).values())
    name = " ".join(filter(None, [f"**`{found['name']}`**", found["preset"], variant]))
    sources = [row["paper"]["source"] for _, row in _published(found)]
    if "paper" in found:  # of claims alone, whose rows are not told below
        sources += [found["paper"]["source"], f"{share(found)} of its training"]
    return "; ".join(dict.fromkeys([name, *sources]))


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("|  |", "| |")


def fill(document: str, table: str) -> str:
    """The document with the table between its marks; the document itself where it has none."""
    begin, end = map(re.escape, _MARKS)
    inside = f"{_MARKS[0]}\n{table}\n{_MARKS[1]}"
    return re.sub(f"{begin}.*?{end}", lambda _: inside, document, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables, and writes them between the README's marks, if it has them."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.verdicts",
        description="ours and the papers': figures, claims, and whether they were reproduced",
        allow_abbrev=False,
    )
    made.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    made.add_argument("--readme", type=Path, default=_README, metavar="FILE")
    options = made.parse_args(argv)
    try:
        table = block(list(results(options.results)))
        before = options.readme.read_text(encoding="utf-8") if options.readme.is_file() else ""
        after = fill(before, table)
        if after != before:
            files.write_text(options.readme, after)
    except (ValueError, OSError) as error:
        print(f"verdicts: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
