"""Helpers of the tests of ``experiments``: its scripts, and running one in a temporary folder."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments are not installed with the package

from experiments.tables import Table  # noqa: E402

RESULTS = ROOT / "experiments" / "results"


def import_scripts() -> dict[str, ModuleType]:
    """Return the modules of ``papers`` and ``studies`` that can be run, by name."""
    files = [f for d in ("papers", "studies") for f in (ROOT / "experiments" / d).glob("[!_]*.py")]
    return {
        file.stem: importlib.import_module(f"experiments.{file.parent.name}.{file.stem}")
        for file in sorted(files)
        if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")
    }


SCRIPTS = import_scripts()
#: The tables of each script that has one, the default first.
TABLES: dict[str, list[Table]] = {
    name: list(getattr(script, "TABLES", [script.TABLE]))
    for name, script in SCRIPTS.items()
    if hasattr(script, "TABLE")
}


def make_args(folder: Path, *args: str, preset: str = "smoke") -> list[str]:
    """Return arguments of a script that runs in ``folder``."""
    folders = ["--folder", str(folder / "runs"), "--results", str(folder)]
    return ["--preset", preset, "--device", "cpu", *folders, *args]


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def modification_times(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}
