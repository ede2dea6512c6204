"""The README's table of speed, made of the files that ``bench.py`` wrote.

    python experiments/benchmarks/table.py

What is to be reached is here and what was measured in ``results/``; whether it was reached is
computed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CPU", "GPU", "Figure", "block", "read", "rows"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        text: what is measured.
        target: it shall be at most this.
        topic: the file of the result.
        path: the keys under which the summary stands in it.
        unit: of both, nothing for ratios.
    """

    text: str
    target: float
    topic: str
    path: tuple[str, ...]
    unit: str = ""

    def measured(self, results: Mapping[str, Any]) -> dict[str, Any] | None:
        """Its median and quartiles; none if the topic was not measured, or not this part."""
        found: Any = results.get(self.topic)
        for key in self.path:
            found = None if found is None else found.get(key)
        return found

    def arithmetic(self, results: Mapping[str, Any]) -> float | None:
        """What it would be if ours took the arithmetic limit; none where no limit was measured."""
        seconds = results.get(self.topic, {}).get("seconds", {})
        peer = self.path[-1].removeprefix("ours / ")
        if not {"limit", peer} <= {*seconds}:
            return None
        return seconds["limit"]["median"] / seconds[peer]["median"]


def _ratio(text: str, target: float, topic: str, peer: str) -> Figure:
    return Figure(text, target, topic, ("ratios", f"ours / {peer}"))


CPU = (
    _ratio("step, 784–400–20, batch 128: ours / Pyro `SVI.step`", 0.30, "step", "pyro"),
    _ratio("the same: ours / plain PyTorch", 0.50, "step", "torch"),
    _ratio("the same: ours / NumPyro, jitted `lax.scan`", 1.05, "step", "numpyro"),
    _ratio(
        "IWAE step, k = 50, 784–200–200–50, batch 20: ours / Pyro `RenyiELBO`",
        *(0.40, "iwae", "pyro"),
    ),
    _ratio(
        "L₅₀₀₀, per sample: ours / Pyro `vectorized_importance_weights`",
        *(0.55, "evaluation", "pyro"),
    ),
    _ratio("the same: ours / JAX, jitted", 0.40, "evaluation", "jax"),
    _ratio("the same: ours / pythae `get_nll`", 0.20, "evaluation", "pythae"),
    _ratio("the same: ours / arithmetic limit", 1.6, "evaluation", "limit"),
    _ratio("`import pyro_vae` / `import torch, pyro`", 1.2, "import_time", "torch_and_pyro"),
)

GPU = (
    _ratio("GPU: step, ours / Pyro `SVI.step`", 0.05, "step-cuda", "pyro"),
    _ratio("GPU: step, ours / plain PyTorch", 0.20, "step-cuda", "torch"),
    _ratio("GPU: step, ours / NumPyro, jitted `lax.scan`", 1.05, "step-cuda", "numpyro"),
    _ratio("GPU: step, ours / time of its kernels", 2.0, "step-cuda", "its kernels"),
    Figure(
        "GPU: L₅₀₀₀ of 10,000 digits",
        *(10.0, "evaluation-cuda", ("seconds_of_all_images",), " s"),
    ),
)


def read(folder: Path = RESULTS) -> dict[str, Any]:
    """The results, by topic."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")
    }


def rows(figures: Iterable[Figure], results: Mapping[str, Any]) -> list[list[str]]:
    """Figure, target, what was measured with its quartiles, the limit, whether it is kept."""
    table = []
    for figure in figures:
        found = figure.measured(results)
        target = f"{figure.target:g}{figure.unit}"
        if found is None:
            table.append([figure.text, target, "", "", "not measured"])
            continue
        low, high = found["quartiles"]
        measured = f"{found['median']:.3g} ({low:.3g}–{high:.3g}){figure.unit}"
        kept = "kept" if found["median"] <= figure.target else "missed"
        limit = figure.arithmetic(results)
        table.append([figure.text, target, measured, f"{limit:.2g}" if limit else "", kept])
    return table


def block(results: Mapping[str, Any]) -> str:
    """The table in Markdown; a GPU's lines are there once one was measured."""
    figures = [*CPU, *(GPU if any(f.topic in results for f in GPU) else ())]
    heads = ["figure", "at most", "measured (quartiles)", "arithmetic alone", ""]
    lines = [heads, ["---"] * len(heads), *rows(figures, results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(block(read()) + "\n")
