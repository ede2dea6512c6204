"""The table of benchmarks: verdicts, the result files and docs/explanation/performance.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import internals
import table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"


def make_summary(median: float) -> dict[str, object]:
    return {"median": median, "quartiles": [median - 0.0625, median + 0.125]}


def test_verdicts_are_computed():
    results = {
        "step": {
            "ratios": {"ours / pyro": make_summary(0.3), "ours / torch": make_summary(0.5625)},
            "seconds": {"limit": make_summary(2.0), "pyro": make_summary(8.0)},
        },
        "iwae": {"ratios": {}},
    }
    rows = table.format_rows(table.CPU_METRICS, results)
    assert [row[1:] for row in rows[:4]] == [
        ["0.3", "0.3 (0.237–0.425)", "0.25", "met"],
        ["0.5", "0.562 (0.5–0.688)", "", "missed"],
        ["1.05", "", "", "not measured"],
        ["0.4", "", "", "not measured"],
    ]


def test_gpu_rows_appear_once_measured():
    assert "GPU" not in table.format_table({})
    results = {"evaluation-cuda": {"seconds_of_all_images": make_summary(8.0)}}
    (line,) = (x for x in table.format_table(results).splitlines() if "10,000 digits" in x)
    assert line == "| GPU: L₅₀₀₀ of 10,000 digits | 10 s | 8 (7.94–8.12) s |  | met |"


def test_every_metric_is_in_its_result_file():
    # if a topic has a result file, the file has all metrics of the topic
    results = table.read_results()
    for metric in (*table.CPU_METRICS, *table.GPU_METRICS):
        if metric.topic in results:
            assert metric.find_summary(results) is not None, metric.text


def test_docs_show_the_current_table():
    text = (ROOT / "docs" / "explanation" / "performance.md").read_text(encoding="utf-8")
    assert "<!-- benchmarks -->" in text, "put the output of table.py between these comments"
    shown = text.partition("<!-- benchmarks -->\n")[2].partition("\n<!-- /benchmarks -->")[0]
    assert shown == table.format_table(table.read_results())


def test_docs_show_the_current_gains_of_internals():
    text = (ROOT / "docs" / "explanation" / "performance.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- internals -->\n")[2].partition("\n<!-- /internals -->")[0]
    assert shown == internals.format_table(table.read_results()["internals"]["ratios"])


def test_result_files_are_json_with_command_and_machine():
    for file in (FOLDER / "results").glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        assert {"command", "machine"} <= {*content}, file.name
