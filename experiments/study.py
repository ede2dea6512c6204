"""Command line of the studies that train no model of the tables: measure, print and write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.core.random import check_seed

from .benchmarks.machine import describe_machine
from .command import RESULTS, write_results
from .reporting import Results

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """A study with its own measurements, and its command line.

    Attributes:
        name, title: the module in ``experiments.studies``, and its subject.
        presets: the budgets by name.
        labels: the rows that ``--only`` selects from; such results are not written.
        measure: ``measure(preset, seed, only)`` prints and returns its rows.
        columns: what the entries of a row are.
        show: formats results for ``--table``.
    """

    name: str
    title: str
    presets: Mapping[str, Mapping[str, Any]]
    labels: Sequence[str]
    measure: Callable[[str, int, Sequence[str] | None], dict[str, Any]]
    columns: str
    show: Callable[[Results], str]

    @property
    def module(self) -> str:
        return f"experiments.studies.{self.name}"

    def results(self, preset: str, seed: int, only: Sequence[str] | None = None) -> Results:
        """Measure, and return the contents of the results file."""
        return {
            "name": self.name,
            "title": self.title,
            "preset": preset,
            "command": f"python -m {self.module} --preset {preset} --seed {seed}",
            "configuration": self.presets[preset],
            "seed": seed,
            "machine": describe_machine(),
            "columns": " ".join(self.columns.split()),
            "rows": self.measure(preset, seed, only),
        }

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Measure, print and write ``NAME-PRESET.json``.

        Arguments:
            argv: the command-line arguments; ``sys.argv[1:]`` if not given.

        Returns:
            0, or 1 after printing a one-line error.
        """
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.module}", description=self.title, allow_abbrev=False
        )
        parser.add_argument("--preset", choices=list(self.presets), default="small")
        parser.add_argument("--only", nargs="+", choices=list(self.labels), metavar="ROW")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
        parser.add_argument("--table", action="store_true", help="print the existing results")
        options = parser.parse_args(argv)
        file = options.results / f"{self.name}-{options.preset}.json"
        try:
            if options.table:
                print(self.show(json.loads(file.read_text(encoding="utf-8"))))
                return 0
            results = self.results(options.preset, check_seed(options.seed), options.only)
            written = [] if options.only else write_results(file, results)
        except (OSError, ValueError) as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            return 1
        done = f"results: {', '.join(map(str, written))}" if written else None
        print(done or "no results written: --only")
        return 0
