"""Tables of experiments: rows with different arguments of ``pyro-vae fit``, each a run folder.

A :class:`Table` is a declaration. A :class:`Cell`, one row with one seed, trains and evaluates.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pyro_vae.config import experiment
from pyro_vae.core import files
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder
from pyro_vae.runs.provenance import weights_checksum
from pyro_vae.runs.run import Run

from .claims import Claim
from .published import Published

__all__ = ["Cell", "Measure", "Preset", "Table", "get_group", "group_rows", "slug"]

#: Settings that may differ between a run and the script, because they do not change the numbers.
_IGNORED_DIFFERENCES = {
    "fit.checkpoint_every",
    "fit.device",
    "data.path",
    "data.root",
    "plugin",
    "start_from",
}
#: Replaces ``{here}`` in arguments such as ``--plugin {here}/paper_optimizers.py``.
_HERE = Path(__file__).parent
#: Computes a further result of a trained model as JSON: ``value``, optionally ``se`` (its standard
#: error), ``text`` (printed in place of the number) and other entries.
Measure = Callable[[Autoencoder, Dataset], dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """Budget of every cell of a table.

    Attributes:
        fit: further arguments of ``pyro-vae fit``.
        num_samples: K, the number of samples for each test example.
        num_data: number of test examples (the first ones); all if not given.
        values: replacement of each ``{name}`` in the table's arguments.
        exclude: rows that are not run.
    """

    fit: str
    num_samples: int = 5000
    num_data: int | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Declaration of a table: shared arguments, rows, presets and published results.

    Attributes:
        name: name of the script, the run folders and the results file.
        title: subject of the table, with the facts needed to read its numbers.
        base: arguments of ``pyro-vae fit`` for all rows.
        cells: further arguments of each row. A row is compared with the first of its group.
        presets: ``smoke`` (tests), ``small`` (two cores, minutes) and ``paper`` (hours).
        bits: whether to print bits per dimension instead of nats per datum.
        measures: further results of every trained model, by column name.
        published: the paper's result for a row, as a number with its source or as text.
        claims: statements of the paper about several rows.
        causes: suspected cause of a difference from the paper at the full budget, by row; ``""``
            is the default for all other rows.
        train_size: number of training examples in an epoch of the paper.
        starts: rows that start from the weights of a row of another table.
        variant: values of the options that select this table among several of one script, e.g.
            ``{"recipe": "code"}``.
        tag: suffix of this variant's file and folder names, after the preset.

    Raises:
        ValueError: if two rows would share a run folder.
    """

    name: str
    title: str
    base: str
    cells: Mapping[str, str]
    presets: Mapping[str, Preset]
    bits: bool = False
    measures: Mapping[str, Measure] = field(default_factory=dict)
    published: Mapping[str, str | Published] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)
    causes: Mapping[str, str] = field(default_factory=dict)
    train_size: int | None = None
    starts: Mapping[str, tuple[Table, str]] = field(default_factory=dict)
    variant: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""

    def __post_init__(self) -> None:
        slugs = [slug(row) for row in self.cells]
        if len({*slugs}) < len(slugs):
            raise ValueError(f"expected rows that differ in letters or digits; got {slugs}")

    def rows(self, preset: str) -> list[str]:
        """Rows that the preset runs."""
        return [row for row in self.cells if row not in self.presets[preset].exclude]

    def cell(self, preset: str, row: str, seed: int = 0, runs: Path = Path("runs")) -> Cell:
        """Return the cell of a row and a seed. Subclasses return their own kind of cell."""
        return Cell(self, preset, row, seed, runs)

    def first_row(self, row: str, preset: str) -> str:
        """Return the row that ``row`` is compared with, the first of its group."""
        return next(r for r in self.rows(preset) if get_group(r) == get_group(row))

    def existing_cells(self, preset: str, runs: Path) -> list[Cell]:
        """Return a cell for every row and every seed with a run folder (seed 0 if none has one)."""
        cells = []
        for row in self.rows(preset):
            folder = runs / self.stem(preset)
            matches = [re.fullmatch(rf"{slug(row)}-(\d+)", f.name) for f in folder.glob("*")]
            seeds = sorted(int(match[1]) for match in matches if match) or [0]
            cells += [self.cell(preset, row, seed, runs) for seed in seeds]
        return cells

    def stem(self, preset: str) -> str:
        """Name of its results file and of its folder of runs."""
        return "-".join(filter(None, [self.name, preset, self.tag]))

    def command(self, preset: str) -> str:
        """Command that runs the table."""
        variant = [f" --{key} {value}" for key, value in self.variant.items() if self.tag]
        return f"python -m {self.module} --preset {preset}{''.join(variant)}"

    @property
    def module(self) -> str:
        """Module of its script."""
        is_paper = (_HERE / "papers" / f"{self.name}.py").is_file()
        return f"experiments.{'papers' if is_paper else 'studies'}.{self.name}"


@dataclass(frozen=True, eq=False)
class Cell:
    """One row of a table with one seed: a run folder and the arguments that produce it."""

    table: Table
    preset: str
    row: str
    seed: int = 0
    runs: Path = Path("runs")

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.runs / self.table.stem(self.preset) / f"{slug(self.row)}-{self.seed}"

    @property
    def run(self) -> Run:
        return Run(self.folder)

    @property
    def start(self) -> Cell | None:
        """Cell whose weights this one starts from, or ``None``."""
        if self.row not in self.table.starts:
            return None
        table, row = self.table.starts[self.row]
        return replace(self, table=table, row=row)

    @property
    def args(self) -> list[str]:
        """Arguments of ``pyro-vae fit`` except ``--run``."""
        return self._make_args(_HERE)

    def _make_args(self, here: Path) -> list[str]:
        preset = self.table.presets[self.preset]
        text = " ".join([self.table.base, self.table.cells[self.row], preset.fit])
        start = [] if self.start is None else ["--start_from", str(self.start.folder)]
        args = shlex.split(text.format_map({**preset.values, "here": shlex.quote(str(here))}))
        return [*args, *start, "--fit.seed", str(self.seed)]

    @property
    def commands(self) -> dict[str, str]:
        """Commands that repeat this cell alone, run in the root of the repository."""
        preset = self.table.presets[self.preset]
        # the default run folder, so that results files do not depend on --folder
        default = Cell(self.table, self.preset, self.row, self.seed)
        folder = str(default.folder)
        args = default._make_args(Path("experiments"))
        evaluate = ["evaluate", folder, "--num-samples", str(preset.num_samples)]
        if preset.num_data is not None:
            evaluate += ["--num-data", str(preset.num_data)]
        return {
            "fit": shlex.join(["pyro-vae", "fit", *args, "--run", folder]),
            "evaluate": shlex.join(["pyro-vae", *evaluate]),
        }

    def experiment(self, device: str = "auto") -> experiment.Experiment:
        """Return the experiment to run.

        Raises:
            ValueError: if the arguments are not valid.
        """
        return experiment.parse([*self.args, "--fit.device", device])

    @property
    def _parsed(self) -> experiment.Experiment:
        return _parse_cached(tuple(self.args))

    def check(self) -> None:
        """Check the arguments, and that an existing run was made with the same ones.

        Raises:
            ValueError: if they are not valid, or if the run has another configuration or started
                from other weights.
        """
        expected = self._parsed
        if not self.run.config.is_file():
            return
        stored = experiment.load_experiment(self.run.config)
        changed = {*expected.differences(stored)} - _IGNORED_DIFFERENCES
        if stored.settings.fit.epochs < expected.settings.fit.epochs:
            changed -= {"fit.epochs"}  # training resumes
        if changed:
            raise ValueError(
                f"expected {self.folder} to have the configuration of the script; got other values "
                f"of {', '.join(sorted(changed))}: remove the folder to rerun the cell, or choose "
                f"another --folder"
            )
        recorded = self.run.read_result().get("start", {}).get("weights")
        if self.start and recorded and self.start.run.weights.is_file():
            current = weights_checksum(self.start.run.weights)
            if current != recorded:
                raise ValueError(
                    f"expected {self.folder} to start from the weights in {self.start.folder}; "
                    f"these have changed since: remove the former to rerun the cell"
                )

    def budget(self) -> dict[str, Any]:
        """Return the training examples seen by the run, and by the preset ``paper``.

        ``samples_seen`` counts every pass over an example, including those of a run that this one
        starts from. ``fraction`` is ``samples_seen`` over ``paper_samples``. ``ended_by_itself``
        marks early stopping on validation data.
        """
        result = self.run.read_result()
        epochs, planned = result["fit"]["epochs"], self._parsed.settings.fit.epochs
        seen = epochs * result["data"]["sizes"]["train"]
        size = self.table.train_size
        paper_samples = 0 if size is None else size * self._paper_epochs()
        if self.start is not None:
            start = self.start.budget()
            seen += start["samples_seen"]
            paper_samples += start.get("paper_samples", 0)
        budget = {"epochs": epochs, "samples_seen": seen, "ended_by_itself": epochs < planned}
        if not paper_samples:
            return budget
        return {**budget, "paper_samples": paper_samples, "fraction": seen / paper_samples}

    def _paper_epochs(self) -> int:
        """Epochs of the preset ``paper``; 0 if it does not run this row."""
        paper = replace(self, preset="paper")
        has_paper = "paper" in self.table.presets and self.row in self.table.rows("paper")
        return paper._parsed.settings.fit.epochs if has_paper else 0

    @property
    def failure_file(self) -> Path:
        """File with the reason why training failed."""
        return self.folder / "failure.txt"

    def incomplete_reason(self) -> str | None:
        """Return why the cell has no complete results yet, or ``None`` if it has."""
        try:
            if self.failure_file.is_file():
                return f"failed: {self.failure_file.read_text(encoding='utf-8').strip()}"
            if not self.run.config.is_file():
                return "not started"
            self.check()
            if not self._is_trained():
                return "training not finished"
            if not self._is_evaluated():
                return "not evaluated"
            missing = [name for name in self.table.measures if name not in self.read_measures()]
            return f"not measured: {', '.join(missing)}" if missing else None
        except ValueError as error:
            return str(error)

    def execute(self, device: str = "auto") -> None:
        """Run the steps that are not done yet: training, evaluation and measures.

        Raises:
            ValueError, OSError, ModuleNotFoundError, NonFiniteLossError: with a one-line message.
        """
        preset, progress = self.table.presets[self.preset], sys.stderr.isatty()
        self.failure_file.unlink(missing_ok=True)
        experiment = self.experiment(device)
        if not self.run.is_finished(experiment):
            self._measures_file.unlink(missing_ok=True)
            self.run.fit(experiment, resume=True, progress=progress)
        if not self._is_evaluated():
            self.run.evaluate(
                num_samples=preset.num_samples,
                num_data=preset.num_data,
                device=device,
                progress=progress,
            )
        self._take_measures()
        print(self.status_line(), flush=True)

    def status_line(self) -> str:
        """Return one line with the bounds, or the reason why they are not complete."""
        reason = self.incomplete_reason()
        if reason is not None:
            return f"{self}: {reason}"
        bounds = self.run.read_bounds()
        return f"{self}: ELBO {bounds.elbo:.3f}, log p̂ {bounds.log_evidence:.3f}"

    def extra_record(self) -> dict[str, Any]:
        """Return further entries of the cell's record in the results file."""
        return {}

    @property
    def _measures_file(self) -> Path:
        return self.folder / "measures.json"

    def read_measures(self) -> dict[str, Any]:
        """Return the stored results of the table's measures, by column.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self._measures_file.is_file():
            return {}
        try:
            return json.loads(self._measures_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{self._measures_file} is damaged: remove it to compute the measures again"
            ) from error

    def _take_measures(self) -> None:
        """Compute the missing measures, and save each as soon as it is computed."""
        measures = self.read_measures()
        missing = {n: m for n, m in self.table.measures.items() if n not in measures}
        if not missing:
            return
        _, data, model = self.run.open()
        model.eval()
        for name, measure in missing.items():
            measures[name] = measure(model, data)
            files.atomic_write_text(self._measures_file, json.dumps(measures, indent=1) + "\n")

    def _is_trained(self) -> bool:
        """Whether training is finished; assumes that :meth:`check` has passed."""
        result = self.run.read_result()
        if "fit" not in result or not self.run.weights.is_file():
            return False
        return result["config"]["fit"]["epochs"] == self._parsed.settings.fit.epochs

    def _is_evaluated(self) -> bool:
        """Whether the bounds exist with the preset's numbers of samples and examples."""
        result, preset = self.run.read_result(), self.table.presets[self.preset]
        if "bounds" not in result or not self.run.bounds.is_file():
            return False
        recorded, size = result["bounds"], result["data"]["sizes"]["test"]
        expected = {
            "split": "test",
            "seed": 0,
            "num_samples": preset.num_samples,
            "num_data": min(size, preset.num_data or size),
        }
        # a process killed between writing the two files leaves them inconsistent
        bounds = self.run.read_bounds()
        consistent = (bounds.num_samples, len(bounds)) == (
            recorded["num_samples"],
            recorded["num_data"],
        )
        return consistent and all(recorded[key] == value for key, value in expected.items())


@cache
def _parse_cached(args: tuple[str, ...]) -> experiment.Experiment:
    """For reading settings only: training needs a fresh experiment, as objectives have state."""
    return experiment.parse(args)


def group_rows(name: str, base: str, cells: Mapping[str, str]) -> dict[str, str]:
    """Return rows ``name: row`` with shared arguments, compared within the group."""
    return {f"{name}: {row}": f"{base} {args}" for row, args in cells.items()}


def get_group(row: str) -> str:
    """Return the group of a row, or an empty string."""
    return row.rpartition(": ")[0]


def slug(row: str) -> str:
    """Return the folder name of a row."""
    return re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
