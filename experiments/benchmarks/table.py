"""Print the benchmark table of docs/explanation/performance.md from the results of ``bench.py``.

    python experiments/benchmarks/table.py

The targets are defined in this module and the measurements are read from ``results/``. Paste the
output between the ``<!-- benchmarks -->`` marks of docs/explanation/performance.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CPU_METRICS", "GPU_METRICS", "Metric", "format_rows", "format_table", "read_results"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        text: the row's label.
        target: upper limit for the median.
        topic: the result file, without its extension.
        path: keys of the summary in that file.
        unit: unit of target and measurement; empty for ratios.
    """

    text: str
    target: float
    topic: str
    path: tuple[str, ...]
    unit: str = ""

    def find_summary(self, results: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the median and quartiles, or ``None`` if they were not measured."""
        value: Any = results.get(self.topic)
        for key in self.path:
            value = None if value is None else value.get(key)
        return value

    def ratio_at_limit(self, results: Mapping[str, Any]) -> float | None:
        """Return the ratio if this package ran at the arithmetic limit.

        ``None`` if the limit or the peer was not measured.
        """
        seconds = results.get(self.topic, {}).get("seconds", {})
        peer = self.path[-1].removeprefix("ours / ")
        if not {"limit", peer} <= {*seconds}:
            return None
        return seconds["limit"]["median"] / seconds[peer]["median"]


def _make_ratio(text: str, target: float, topic: str, peer: str) -> Metric:
    return Metric(text, target, topic, ("ratios", f"ours / {peer}"))


CPU_METRICS = (
    _make_ratio("step, 784–400–20, batch 128: ours / Pyro `SVI.step`", 0.30, "step", "pyro"),
    _make_ratio("the same: ours / plain PyTorch", 0.50, "step", "torch"),
    _make_ratio("the same: ours / NumPyro, jitted `lax.scan`", 1.05, "step", "numpyro"),
    _make_ratio(
        "IWAE step, k = 50, 784–200–200–50, batch 20: ours / Pyro `RenyiELBO`",
        *(0.40, "iwae", "pyro"),
    ),
    _make_ratio(
        "L₅₀₀₀, per sample: ours / Pyro `vectorized_importance_weights`",
        *(0.55, "evaluation", "pyro"),
    ),
    _make_ratio("the same: ours / JAX, jitted", 0.40, "evaluation", "jax"),
    _make_ratio("the same: ours / pythae `get_nll`", 0.20, "evaluation", "pythae"),
    _make_ratio("the same: ours / arithmetic limit", 1.6, "evaluation", "limit"),
    _make_ratio("`import pyro_vae` / `import torch, pyro`", 1.2, "import_time", "torch_and_pyro"),
)

GPU_METRICS = (
    _make_ratio("GPU: step, ours / Pyro `SVI.step`", 0.05, "step-cuda", "pyro"),
    _make_ratio("GPU: step, ours / plain PyTorch", 0.20, "step-cuda", "torch"),
    _make_ratio("GPU: step, ours / NumPyro, jitted `lax.scan`", 1.05, "step-cuda", "numpyro"),
    _make_ratio("GPU: step, ours / time of its kernels", 2.0, "step-cuda", "its kernels"),
    Metric(
        "GPU: L₅₀₀₀ of 10,000 digits",
        *(10.0, "evaluation-cuda", ("seconds_of_all_images",), " s"),
    ),
)


def read_results(folder: Path = RESULTS) -> dict[str, Any]:
    """Return the contents of the result files, by topic."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")
    }


def format_rows(metrics: Iterable[Metric], results: Mapping[str, Any]) -> list[list[str]]:
    """Return label, target, median with quartiles, ratio at the limit and verdict of each row."""
    rows = []
    for metric in metrics:
        summary = metric.find_summary(results)
        target = f"{metric.target:g}{metric.unit}"
        if summary is None:
            rows.append([metric.text, target, "", "", "not measured"])
            continue
        low, high = summary["quartiles"]
        measured = f"{summary['median']:.3g} ({low:.3g}–{high:.3g}){metric.unit}"
        verdict = "met" if summary["median"] <= metric.target else "missed"
        limit = metric.ratio_at_limit(results)
        rows.append([metric.text, target, measured, f"{limit:.2g}" if limit else "", verdict])
    return rows


def format_table(results: Mapping[str, Any]) -> str:
    """Return the table in Markdown. GPU rows appear once a GPU was measured."""
    measured_gpu = any(metric.topic in results for metric in GPU_METRICS)
    metrics = [*CPU_METRICS, *(GPU_METRICS if measured_gpu else ())]
    head = ["benchmark", "target (at most)", "median (quartiles)", "at arithmetic limit", ""]
    lines = [head, ["---"] * len(head), *format_rows(metrics, results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(format_table(read_results()) + "\n")
