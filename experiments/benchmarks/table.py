"""Tables of benchmarks in the documentation, one for each kind of processor.

    python experiments/benchmarks/table.py

The command replaces the text between ``<!-- benchmarks -->`` and ``<!-- /benchmarks -->`` by the
targets of this module and the results of ``bench.py`` in ``results/KIND/``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import RESULTS

from pyro_vae.core.files import atomic_write_text

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "performance.md"
START, END = "<!-- benchmarks -->\n", "<!-- /benchmarks -->"
#: Quartiles further apart than this fraction of the median mark a row as unsteady.
MAX_SPREAD = 0.2
#: How contenders are called, if not by their name.
NAMES = {
    "pyro": "Pyro",
    "torch": "plain PyTorch",
    "torch_compiled": "`torch.compile`",
    "numpyro": "NumPyro",
    "jax": "JAX",
    "limit": "the limit",
    "kernels": "its kernels",
    "torch_and_pyro": "`import torch, pyro`",
}
STEP, IWAE = "step, batch 128", "IWAE step, k = 50, batch 20"
L_TARGETS = {"pyro": 0.45, "jax": 0.55, "pythae": 0.22}
#: What takes the time, topic and case, the targets of its ratio to other contenders (the largest
#: median, or ``None``), and the variant of this package.
Row = tuple[str, str, str, dict[str, float | None], str]
CPU_ROWS: tuple[Row, ...] = (
    (STEP, "step", "step", {"pyro": 0.3, "torch": 0.45, "torch_compiled": 0.5}, "ours"),
    (STEP, "step", "step", {"numpyro": 0.9, "limit": 1.2}, "ours"),
    ("step, batch 20", "small_batches", "batch 20", {"numpyro": 0.9, "limit": 1.5}, "ours"),
    (IWAE, "iwae", "iwae", {"pyro": 0.3, "numpyro": None, "limit": 1.5}, "ours"),
    ("L₅₀₀₀", "evaluation", "evaluation", {**L_TARGETS, "limit": 1.15}, "ours"),
    ("L₅₀₀₀ in bfloat16, corrected", "evaluation", "evaluation", {**L_TARGETS}, "ours_bfloat16"),
    ("`import pyro_vae`", "startup", "import", {"torch_and_pyro": 1.2}, "ours"),
    ("import and first step", "startup", "first step", {"pyro": None}, "ours"),
)
GPU_ROWS: tuple[Row, ...] = (
    (STEP, "step", "step", {"pyro": 0.05, "torch": 0.2, "numpyro": 1.05, "kernels": 2.0}, "ours"),
    (IWAE, "iwae", "iwae", {"pyro": None}, "ours"),
    ("L₅₀₀₀", "evaluation", "evaluation", {"pyro": None, "limit": None}, "ours"),
    ("AIS", "ais", "ais", {"limit": None}, "ours"),
)


def select_targets(topics: dict[str, dict[str, Any]], rows: Iterable[Row]) -> dict[str, Any]:
    """Return the topics with only the cases that have targets, and the contenders of these."""
    selected: dict[str, dict[str, dict[str, Any]]] = {}
    for _, topic, name, targets, ours in rows:
        if peers := [peer for peer, target in targets.items() if target]:
            names = selected.setdefault(topic, {}).setdefault(name, {})
            names |= {n: topics[topic][name].contenders[n] for n in (ours, *peers)}
    return {
        topic: {name: replace(topics[topic][name], contenders=c) for name, c in cases.items()}
        for topic, cases in selected.items()
    }


def format_row(peer: str, target: float | None, case: Mapping[str, Any], ours: str) -> list[str]:
    """Return peer, target, median with quartiles, ratio at the limit and verdict."""
    head = [NAMES.get(peer, peer), "" if target is None else f"{target:.2f}"]
    ratio, seconds = case.get("ratios", {}).get(f"{ours} / {peer}"), case.get("seconds", {})
    if ratio is None:
        return [*head, "", "", "not measured"]
    median, (low, high) = ratio["median"], ratio["quartiles"]
    limit, verdicts = "", []
    if {"limit", peer} <= {*seconds} and not ours.endswith("bfloat16"):
        limit = f"{seconds['limit']['median'] / seconds[peer]['median']:.2f}"
    if target is not None:
        verdicts += ["met" if median <= target else "missed"]
        # the limit is no bound if cheaper formulas than torch's take less
        is_bound = limit and seconds["limit"]["median"] <= seconds[ours]["median"]
        verdicts += ["the limit is above the target"] * bool(is_bound and float(limit) > target)
    verdicts += ["unsteady"] * (high - low > MAX_SPREAD * median)
    return [*head, format_ratio(ratio), limit, "; ".join(verdicts)]


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the contents of the result files, by kind of processor and topic."""
    results: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        results.setdefault(file.parent.name, {})[file.stem] = content
    return results


def format_kind(kind: str, results: Mapping[str, Any]) -> str:
    """Return the tables of a kind of processor in Markdown, under the machine's name."""
    topics = {name: topic for name, topic in results.items() if "cases" in topic}
    cases = {(n, name): c for n, topic in topics.items() for name, c in topic["cases"].items()}
    machine = next(iter(topics.values()))["machine"]
    gpu = any(case.get("device") == "cuda" for case in cases.values())
    text = machine["gpu"] if gpu else f"{machine['cpu']}, {machine['cores']} cores"
    text += f", torch {machine['torch']}."
    if few := [name for name, topic in topics.items() if topic["quick"]]:
        text += f" With fewer turns (`--quick`): {', '.join(few)}."
    rows = [
        [label + ", one thread" * (case.get("threads") == 1), *format_row(peer, target, case, ours)]
        for label, topic, name, targets, ours in (GPU_ROWS if gpu else CPU_ROWS)
        for case in [cases.get((topic, name), {})]
        for peer, target in targets.items()
    ]
    head = ["time of", "over that of", "target", "median (quartiles)", "at the limit", ""]
    tables = [format_lines(head, rows)]
    small = {name: case for (topic, name), case in cases.items() if topic == "small_batches"}
    if len(small) > 1 and not gpu:
        columns = {NAMES[n]: f"ours / {n}" for n in ("numpyro", "torch_compiled", "limit")}
        tables += [_format_cases("a step on one thread over that of", columns, small)]
    steps = {name: cases[name, name] for name in ("step", "iwae") if (name, name) in cases}
    rounded = {n: c for n, c in (steps | small).items() if "ours_bfloat16 / ours" in c["ratios"]}
    if rounded:
        columns = {"float32": "ours_bfloat16 / ours"}
        tables += [_format_cases("a step in bfloat16 over that in", columns, rounded)]
    return "\n\n".join([f"### {kind}", text, *tables])


def _format_cases(title: str, columns: Mapping[str, str], cases: Mapping[str, Any]) -> str:
    """Return a table with a row for each case and a column for each ratio."""
    rows = [
        [
            name if case["model"] in name else f"{case['model']}, {name}",
            *(format_ratio(case["ratios"].get(ratio)) for ratio in columns.values()),
        ]
        for name, case in cases.items()
    ]
    return format_lines([title, *columns], rows)


def format_ratio(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return ""
    median, (low, high) = ratio["median"], ratio["quartiles"]
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def format_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def format_tables() -> str:
    """Return the tables of all kinds of processors whose training step was measured."""
    results = read_results().items()
    return "\n\n".join(format_kind(kind, topics) for kind, topics in results if "step" in topics)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        sys.exit(f"expected {START.strip()} and {END} in {PAGE}; got none: add the comments")
    atomic_write_text(PAGE, f"{before}{START}{format_tables()}\n{END}{after}")
