"""Cells of tables: a row with a seed is a run folder, trained, evaluated and measured in steps."""

from __future__ import annotations

import json
import re
import shlex
import sys
import traceback
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pyro_vae.config import experiment
from pyro_vae.core import files
from pyro_vae.core.locks import LockHeldError, exclusive_lock
from pyro_vae.evaluation import Bounds
from pyro_vae.learning.diagnostics import NonFiniteLossError
from pyro_vae.runs.provenance import weights_checksum
from pyro_vae.runs.run import Run

from .tables import HERE, Measure, Table, slug

__all__ = ["FAILURES", "Cell", "find_cells", "format_error", "lock", "read_kept"]

#: Expected failures of a cell, reported in one line; the other cells still run.
FAILURES = (ValueError, OSError, ModuleNotFoundError, NonFiniteLossError)
#: Settings that may differ between a run and the script, because they do not change the numbers.
_IGNORED_DIFFERENCES = {
    *("fit.checkpoint_every", "fit.device", "data.path", "data.root", "plugin", "start_from")
}


class _CachedRun(Run):
    """A run whose bounds are read once, as differences and claims need them many times."""

    def read_bounds(self) -> Bounds:
        modified = self.bounds.stat().st_mtime_ns if self.bounds.is_file() else 0
        return _read_bounds(self.folder, modified)


@cache
def _read_bounds(folder: Path, modified: int) -> Bounds:
    return Run(folder).read_bounds()


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

    @cached_property
    def folder(self) -> Path:
        """Folder of the run, of another table if that has finished the same row."""
        for table in self.table.shares:
            cell = replace(self, table=table)
            has_row = self.row in table.rows(self.preset)
            if has_row and cell.args == self.args and cell.incomplete_reason() is None:
                return cell.folder
        return self.runs / self.table.stem(self.preset) / f"{slug(self.row)}-{self.seed}"

    @property
    def run(self) -> Run:
        return _CachedRun(self.folder, self.expected.settings.plugin)

    @property
    def start(self) -> Cell | None:
        """Cell whose weights this one starts from, or ``None``."""
        if self.row not in self.table.starts:
            return None
        table, row = self.table.starts[self.row]
        return Cell(table, self.preset, row, self.seed, self.runs)

    @property
    def args(self) -> list[str]:
        """Arguments of ``pyro-vae fit`` except ``--run``."""
        return self._make_args(HERE)

    def _make_args(self, here: Path) -> list[str]:
        preset = self.table.presets[self.preset]
        text = " ".join([self.table.base, self.table.cells[self.row], preset.fit])
        start = [] if self.start is None else ["--start_from", str(self.start.folder)]
        # {here} is replaced in arguments such as ``--plugin {here}/paper_optimizers.py``
        args = shlex.split(text.format_map({**preset.values, "here": shlex.quote(str(here))}))
        return [*args, *start, "--fit.seed", str(self.seed)]

    @property
    def commands(self) -> dict[str, str]:
        """Commands that repeat this cell alone, run in the root of the repository."""
        preset = self.table.presets[self.preset]
        # the default run folder, so that results files do not depend on --folder
        default = Cell(replace(self.table, shares=()), self.preset, self.row, self.seed)
        folder = str(default.folder)
        fit = [*default._make_args(Path("experiments")), "--run", folder]
        evaluate = [folder, "--num-samples", str(preset.num_samples)]
        if preset.num_data is not None:
            evaluate += ["--num-data", str(preset.num_data)]
        if "--plugin" in fit:
            evaluate += ["--plugin", fit[fit.index("--plugin") + 1]]
        verbs = {"fit": fit, "evaluate": evaluate}
        return {verb: shlex.join(["pyro-vae", verb, *args]) for verb, args in verbs.items()}

    def experiment(self, device: str = "auto") -> experiment.Experiment:
        """Return the experiment to run, not cached because objectives have a state.

        Raises:
            ValueError: if the arguments are not valid.
        """
        return experiment.parse([*self.args, "--fit.device", device])

    @property
    def expected(self) -> experiment.Experiment:
        """The experiment, for reading its settings."""
        return _parse(tuple(self.args))

    def check(self) -> None:
        """Check the arguments, and that an existing run was made with the same ones.

        Raises:
            ValueError: if they are not valid, or if the run has another configuration or started
                from other weights.
        """
        expected, run = self.expected, self.run
        if not run.config.is_file():
            return
        modified = run.config.stat().st_mtime_ns
        changed, stored_epochs = _find_differences(expected, run.config, modified)
        if stored_epochs < expected.settings.fit.epochs:
            changed = changed - {"fit.epochs"}  # training resumes
        if changed:
            raise ValueError(
                f"expected {self.folder} to have the configuration of the script; got other values "
                f"of {', '.join(sorted(changed))}: remove the folder to rerun the cell, or choose "
                f"another --folder"
            )
        recorded = run.read_result().get("start", {}).get("weights")
        weights = self.start.run.weights if self.start else None
        if recorded and weights and weights.is_file() and weights_checksum(weights) != recorded:
            raise ValueError(
                f"expected {self.folder} to start from {weights}, which has changed since: "
                f"remove {self.folder} to rerun the cell"
            )

    def budget(self) -> dict[str, Any]:
        """Return the training examples seen by the run, and by the preset ``paper``.

        ``samples_seen`` counts every pass over an example, including those of a run that this one
        starts from. ``fraction`` is ``samples_seen`` over ``paper_samples``. ``ended_by_itself``
        marks early stopping on validation data.
        """
        result = self.run.read_result()
        epochs, planned = result["fit"]["epochs"], self.expected.settings.fit.epochs
        start = self.start.budget() if self.start is not None else {}
        seen = epochs * result["data"]["sizes"]["train"] + start.get("samples_seen", 0)
        paper_samples = self.paper_samples() + start.get("paper_samples", 0)
        budget = {"epochs": epochs, "samples_seen": seen, "ended_by_itself": epochs < planned}
        if not paper_samples:
            return budget
        return {**budget, "paper_samples": paper_samples, "fraction": seen / paper_samples}

    def paper_samples(self) -> float:
        """Training examples seen with the preset ``paper``; 0 if unknown."""
        table = self.table
        known = table.train_size is not None and "paper" in table.presets
        if not (known and self.row in table.rows("paper")):
            return 0
        return table.train_size * replace(self, preset="paper").expected.settings.fit.epochs

    def incomplete_reason(self) -> str | None:
        """Return why the cell has no complete results yet, or ``None`` if it has."""
        try:
            if self.failure_file.is_file():
                return f"failed: {self.failure_file.read_text(encoding='utf-8').strip()}"
            if not self.run.config.is_file():
                return "not started"
            self.check()
            if not self.is_trained():
                return "training not finished"
            if not self._is_evaluated():
                return "not evaluated"
            missing = self._missing_measures()
            return f"not measured: {', '.join(missing)}" if missing else None
        except ValueError as error:
            return str(error)

    def is_trained(self) -> bool:
        """Whether training is finished; assumes that :meth:`check` has passed."""
        result = self.run.read_result()
        if "fit" not in result or not self.run.weights.is_file():
            return False
        return result["config"]["fit"]["epochs"] == self.expected.settings.fit.epochs

    def _is_evaluated(self) -> bool:
        """Whether the bounds exist with the preset's numbers of samples and examples."""
        result, preset = self.run.read_result(), self.table.presets[self.preset]
        if "bounds" not in result or not self.run.bounds.is_file():
            return False
        size = result["data"]["sizes"]["test"]
        num_samples, num_data = preset.num_samples, min(size, preset.num_data or size)
        # a process killed between writing the two files leaves them inconsistent
        bounds = self.run.read_bounds()
        if (bounds.num_samples, len(bounds)) != (num_samples, num_data):
            return False
        expected = {"split": "test", "seed": 0, "num_samples": num_samples, "num_data": num_data}
        return all(result["bounds"][key] == value for key, value in expected.items())

    def attempt(self, device: str = "auto") -> str | None:
        """Run the unfinished steps. Print and return the problem, or return ``None``."""
        problem = self._attempt_start(device)
        if problem is not None:
            return problem
        try:
            with lock(self.folder):
                if self.incomplete_reason() is None:
                    print(f"{self}: already finished", flush=True)
                else:
                    self.failure_file.unlink(missing_ok=True)
                    self.execute(device)
                    print(self.status_line(), flush=True)
        except LockHeldError:
            print(f"{self}: running in another process, skipped", flush=True)
        except FAILURES as error:
            problem = format_error(error)
            print(f"{self}: {problem}", file=sys.stderr, flush=True)
            if isinstance(error, NonFiniteLossError):  # reproducible, so it is a result
                files.atomic_write_text(self.failure_file, f"{problem}\n")
        except Exception:  # a bug in one row must not stop the others
            problem = traceback.format_exc()
            print(f"{self}:\n{problem}", file=sys.stderr, flush=True)
        return problem

    def _attempt_start(self, device: str) -> str | None:
        """Run the cell that this one starts from. Return why this one cannot start, or ``None``."""
        if self.start is None or self.start.incomplete_reason() is None:
            return None
        problem = self.start.attempt(device)
        if problem is None and self.start.incomplete_reason() is not None:
            problem = (
                f"starts from {self.start}, which is running in another process: repeat the "
                f"command when it is finished"
            )
            print(f"{self}: {problem}", file=sys.stderr, flush=True)
        return problem

    def execute(self, device: str) -> None:
        """Run the steps that are not done yet: training, evaluation and measures.

        Raises:
            ValueError, OSError, ModuleNotFoundError, NonFiniteLossError: with a one-line message.
        """
        preset, progress = self.table.presets[self.preset], sys.stderr.isatty()
        experiment = self.experiment(device)
        if not self.run.is_finished(experiment):
            self._measures_file.unlink(missing_ok=True)
            self.fit(experiment, progress)
        if not self._is_evaluated():
            self.run.evaluate(
                num_samples=preset.num_samples,
                num_data=preset.num_data,
                device=device,
                progress=progress,
            )
        if missing := self._missing_measures():
            _, data, model = self.run.open()
            model.eval()
            measures = self.read_measures()
            for name, measure in missing.items():
                measures[name] = measure(model, data)
                # save each as soon as it is computed
                files.atomic_write_text(self._measures_file, json.dumps(measures, indent=1) + "\n")

    def fit(self, experiment: experiment.Experiment, progress: bool) -> None:
        """Start or resume training."""
        self.run.fit(experiment, resume=True, progress=progress)

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
    def failure_file(self) -> Path:
        """File with the reason why training failed."""
        return self.folder / "failure.txt"

    @property
    def _measures_file(self) -> Path:
        return self.folder / "measures.json"

    @property
    def measures(self) -> dict[str, Measure]:
        """Measures of the table and the preset."""
        return {**self.table.measures, **self.table.presets[self.preset].measures}

    def _missing_measures(self) -> dict[str, Measure]:
        stored = self.read_measures()
        return {name: m for name, m in self.measures.items() if name not in stored}

    def read_measures(self) -> dict[str, Any]:
        """Return the stored results of the table's measures, by column.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self._measures_file.is_file():
            return {}
        return read_kept(self._measures_file, "compute the measures again")


def read_kept(file: Path, action: str) -> dict[str, Any]:
    """Return the contents of a JSON file of a run, which can be made anew by removing it.

    Raises:
        ValueError: if the file is damaged, with ``action``, which follows its removal.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: remove it to {action}") from error


def find_cells(cell: type[Cell], table: Table, preset: str, runs: Path) -> list[Cell]:
    """Return a cell for every row and every seed with a run folder (seed 0 if none has one)."""
    cells = []
    for row in table.rows(preset):
        folders = (runs / table.stem(preset)).glob(f"{slug(row)}-*")
        matches = [re.fullmatch(rf"{slug(row)}-(\d+)", folder.name) for folder in folders]
        seeds = sorted(int(match[1]) for match in matches if match) or [0]
        cells += [cell(table, preset, row, seed, runs) for seed in seeds]
    return cells


def lock(path: Path, wait: float = 0.0) -> AbstractContextManager[None]:
    """Return the lock of a path, which may not exist yet; see :func:`~.locks.exclusive_lock`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return exclusive_lock(path.parent / f".{path.name}.lock", wait)


def format_error(error: BaseException) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split())


_parse = cache(experiment.parse)


@cache
def _find_differences(
    expected: experiment.Experiment, config: Path, modified: int
) -> tuple[frozenset[str], int]:
    """Return the settings that differ from those of a run, and the epochs of the run."""
    stored = experiment.load_experiment(config, expected.settings.plugin)
    changed = {*expected.differences(stored)} - _IGNORED_DIFFERENCES
    return frozenset(changed), stored.settings.fit.epochs
