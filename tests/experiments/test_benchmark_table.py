"""The table of what was measured: verdicts on made-up figures, the README and the files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"


def summarised(median: float) -> dict[str, object]:
    return {"median": median, "quartiles": [median - 0.0625, median + 0.125]}


def test_kept_and_missed_are_computed():
    results = {
        "step": {
            "ratios": {"ours / pyro": summarised(0.3), "ours / torch": summarised(0.5625)},
            "seconds": {"limit": summarised(2.0), "pyro": summarised(8.0)},
        },
        "iwae": {"ratios": {}},
    }
    lines = table.rows(table.CPU, results)
    assert [line[1:] for line in lines[:4]] == [
        ["0.3", "0.3 (0.237–0.425)", "0.25", "kept"],
        ["0.5", "0.562 (0.5–0.688)", "", "missed"],
        ["1.05", "", "", "not measured"],
        ["0.4", "", "", "not measured"],
    ]


def test_a_gpu_is_in_the_table_once_it_was_measured():
    assert "GPU" not in table.block({})
    results = {"evaluation-cuda": {"seconds_of_all_images": summarised(8.0)}}
    (line,) = (x for x in table.block(results).splitlines() if "10,000 digits" in x)
    assert line == "| GPU: L₅₀₀₀ of 10,000 digits | 10 s | 8 (7.94–8.12) s |  | kept |"


def test_every_figure_stands_in_its_file():
    # where a topic was measured on all its peers, each of its figures is found in it
    results = table.read()
    for figure in (*table.CPU, *table.GPU):
        if figure.topic in results:
            assert figure.measured(results) is not None, figure.text


def test_the_readme_shows_what_was_measured():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- benchmarks -->" in text, "put what table.py prints between these comments"
    shown = text.partition("<!-- benchmarks -->\n")[2].partition("\n<!-- /benchmarks -->")[0]
    assert shown == table.block(table.read())


def test_results_are_json_that_others_read():
    for file in (FOLDER / "results").glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        assert {"command", "machine"} <= {*content}, file.name
