"""Tables of benchmarks in the documentation, one for each kind of processor.

    python experiments/benchmarks/table.py

The command replaces the text between ``<!-- benchmarks -->`` and ``<!-- /benchmarks -->`` by the
targets of this module and the results of ``bench.py`` in ``results/KIND/``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from machine import RESULTS

from pyro_vae.core.files import atomic_write_text

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "performance.md"
START, END = "<!-- benchmarks -->\n", "<!-- /benchmarks -->"
#: Quartiles further apart than this fraction of the median mark a row as unsteady.
MAX_SPREAD = 0.2


class Row(NamedTuple):
    """The ratio of the time of this package to that of a peer or of the limit.

    Attributes:
        text: the label.
        target: the largest median that meets the target; ``None`` without a target.
        peer, name: the other contender, and how it is called in the table.
        topic, case: where the ratio is found.
        ours: the variant of this package.
    """

    text: str
    target: float | None
    peer: str
    name: str
    topic: str
    case: str = ""
    ours: str = "ours"

    def format(self, results: Mapping[str, Any]) -> list[str]:
        """Return label, peer, target, median with quartiles, ratio at the limit and verdict."""
        head = [self.text, self.name, "" if self.target is None else f"{self.target:.2f}"]
        case = results.get(self.topic, {}).get("cases", {}).get(self.case or self.topic, {})
        ratio = case.get("ratios", {}).get(f"{self.ours} / {self.peer}")
        if ratio is None:
            return [*head, "", "", "not measured"]
        median, (low, high) = ratio["median"], ratio["quartiles"]
        seconds, limit = case["seconds"], ""
        if {"limit", self.peer} <= {*seconds} and not self.ours.endswith("bfloat16"):
            limit = f"{seconds['limit']['median'] / seconds[self.peer]['median']:.2f}"
        verdicts = []
        if self.target is not None:
            verdicts += ["met" if median <= self.target else "missed"]
            # a time below the limit, by cheaper formulas, shows that it is none
            is_bound = limit and seconds["limit"]["median"] <= seconds[self.ours]["median"]
            if is_bound and float(limit) > self.target:
                verdicts += ["the limit is above the target"]
        if high - low > MAX_SPREAD * median:
            verdicts += ["unsteady"]
        return [*head, format_ratio(ratio), limit, "; ".join(verdicts)]


STEP, IWAE = "step, batch 128", "IWAE step, k = 50, batch 20"
SMALL, IMPORT = "step, batch 20, one thread", "`import pyro_vae`"
SAMPLES, ROUNDED = "L₅₀₀₀", "L₅₀₀₀ in bfloat16, corrected"
PYRO, PYRO_IWAE = "Pyro `SVI.step`", "Pyro `RenyiELBO`"
NUMPYRO, PYRO_SAMPLES = "NumPyro `lax.scan`", "Pyro `vectorized_importance_weights`"
CPU_ROWS = (
    Row(STEP, 0.30, "pyro", PYRO, "step"),
    Row(STEP, 0.45, "torch", "plain PyTorch", "step"),
    Row(STEP, 0.50, "torch_compiled", "`torch.compile`", "step"),
    Row(STEP, 0.90, "numpyro", NUMPYRO, "step"),
    Row(STEP, 1.2, "limit", "the limit", "step"),
    Row(SMALL, 0.90, "numpyro", NUMPYRO, "small_batches", "batch 20"),
    Row(SMALL, 1.5, "limit", "the limit", "small_batches", "batch 20"),
    Row(IWAE, 0.30, "pyro", PYRO_IWAE, "iwae"),
    Row(IWAE, None, "numpyro", "NumPyro `RenyiELBO`", "iwae"),
    Row(IWAE, 1.5, "limit", "the limit", "iwae"),
    Row(SAMPLES, 0.45, "pyro", PYRO_SAMPLES, "evaluation"),
    Row(SAMPLES, 0.55, "jax", "JAX, jitted", "evaluation"),
    Row(SAMPLES, 0.22, "pythae", "pythae `get_nll`", "evaluation"),
    Row(SAMPLES, 1.15, "limit", "the limit", "evaluation"),
    Row(ROUNDED, 0.45, "pyro", PYRO_SAMPLES, "evaluation", ours="ours_bfloat16"),
    Row(ROUNDED, 0.55, "jax", "JAX, jitted", "evaluation", ours="ours_bfloat16"),
    Row(ROUNDED, 0.22, "pythae", "pythae `get_nll`", "evaluation", ours="ours_bfloat16"),
    Row(IMPORT, 1.2, "torch_and_pyro", "`import torch, pyro`", "startup", "import"),
    Row("import and first step", None, "pyro", PYRO, "startup", "first step"),
)
GPU_ROWS = (
    Row(STEP, 0.05, "pyro", PYRO, "step"),
    Row(STEP, 0.20, "torch", "plain PyTorch", "step"),
    Row(STEP, 1.05, "numpyro", NUMPYRO, "step"),
    Row(STEP, 2.0, "its kernels", "its kernels", "step"),
    Row(IWAE, None, "pyro", PYRO_IWAE, "iwae"),
    Row(SAMPLES, None, "pyro", PYRO_SAMPLES, "evaluation"),
    Row(SAMPLES, None, "limit", "the limit", "evaluation"),
    Row("AIS", None, "limit", "the limit", "ais"),
)


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the contents of the result files, by kind of processor and topic."""
    results: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        results.setdefault(file.parent.name, {})[file.stem] = content
    return results


def format_table(kind: str, results: Mapping[str, Any]) -> str:
    """Return the table of a kind of processor in Markdown, under the machine's name."""
    topics = [content for content in results.values() if "cases" in content]
    machine, cases = topics[0]["machine"], [c for t in topics for c in t["cases"].values()]
    gpu = any(case.get("device") == "cuda" for case in cases)
    name = machine["gpu"] if gpu else f"{machine['cpu']}, {machine['cores']} cores"
    few = [name for name, topic in results.items() if "cases" in topic and topic["quick"]]
    remarks = f" With a quarter of the turns (`--quick`): {', '.join(few)}." if few else ""
    one = [name for name in ("step", "iwae", "evaluation") if _has_one_thread(results.get(name))]
    remarks += f" On one thread (`--threads 1`): {', '.join(one)}." if one and not gpu else ""
    lines = [["time of", "over that of", "target", "median (quartiles)", "at the limit", ""]]
    lines += [["---"] * 6, *(row.format(results) for row in (GPU_ROWS if gpu else CPU_ROWS))]
    tables = [format_lines(lines)]
    small = results.get("small_batches", {}).get("cases", {})
    if not gpu and not {*small} <= {row.case for row in CPU_ROWS}:
        peers = {"numpyro": NUMPYRO, "torch_compiled": "`torch.compile`", "limit": "the limit"}
        columns = {f"ours / {peer}": name for peer, name in peers.items()}
        tables += [_format_cases("a step on one thread over that of", columns, small)]
    rounded = {
        name: case
        for topic in ("step", "iwae", "small_batches")
        for name, case in results.get(topic, {}).get("cases", {}).items()
        if "ours_bfloat16 / ours" in case["ratios"]
    }
    if rounded:
        columns = {"ours_bfloat16 / ours": "float32"}
        tables += [_format_cases("a step in bfloat16 over that in", columns, rounded)]
    return "\n\n".join([f"### {kind}", f"{name}, torch {machine['torch']}.{remarks}", *tables])


def _has_one_thread(topic: Mapping[str, Any] | None) -> bool:
    return topic is not None and all(c.get("threads") == 1 for c in topic["cases"].values())


def _format_cases(title: str, columns: Mapping[str, str], cases: Mapping[str, Any]) -> str:
    """Return a table with a row for each case and a column for each ratio."""
    lines = [[title, *columns.values()], ["---"] * (len(columns) + 1)]
    for name, case in cases.items():
        label = name if case["model"] in name else f"{case['model']}, {name}"
        lines.append([label, *(format_ratio(case["ratios"].get(ratio)) for ratio in columns)])
    return format_lines(lines)


def format_ratio(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return ""
    median, (low, high) = ratio["median"], ratio["quartiles"]
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def format_lines(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_tables() -> str:
    """Return the tables of all kinds of processors whose training step was measured."""
    results = read_results().items()
    return "\n\n".join(format_table(kind, topics) for kind, topics in results if "step" in topics)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        sys.exit(f"expected {START.strip()} and {END} in {PAGE}; got none: add the comments")
    atomic_write_text(PAGE, f"{before}{START}{format_tables()}\n{END}{after}")
