"""Tables in the documents are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.studies import chain_coverage, coverage, estimators, judge

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "show", "page"),
    [
        ("coverage", coverage.format_table, "explanation/errors"),
        ("chain_coverage", chain_coverage.format_tables, "explanation/errors"),
        ("estimators", estimators.format_table, "how-to/estimators"),
        ("judge", judge.format_table, "how-to/interop"),
    ],
)
def test_page_shows_the_results(name, show, page):
    file = ROOT / "experiments" / "results" / f"{name}-small.json"
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for table in show(json.loads(file.read_text(encoding="utf-8"))).split("\n\n"):
        assert table in text
