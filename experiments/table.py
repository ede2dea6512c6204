"""A table of a paper: rows that differ in a few words of ``pyro-vae fit``, each a run folder.

A script declares a :class:`Table` and calls :func:`main`. Every cell (a row with a seed) is a
run of its own: one that is finished is skipped, one that was killed goes on, and several
processes may work on one table at the same time.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pyro_vae import _files, config
from pyro_vae._parsing import nearest
from pyro_vae.data import Dataset
from pyro_vae.learning.diagnosis import NonFiniteLossError
from pyro_vae.models import Autoencoder
from pyro_vae.runs import Run

from . import collect

__all__ = ["Cell", "Measure", "Preset", "Table", "attempt", "group", "main", "parsed"]

RESULTS = Path(__file__).parent / "results"
#: What may differ between a run and the script's words of today: none of it changes a number.
_MAY_DIFFER = {"fit.device", "data.path", "data.root", "plugin"}
#: What goes wrong in one cell and is said in one sentence, so that the others still run.
_FAILURES = (ValueError, OSError, ModuleNotFoundError, NonFiniteLossError)

#: A figure of a trained model besides its bounds: ``value``, ``se`` where it has a standard
#: error, ``text`` where a number alone does not say it, and what else JSON can hold.
Measure = Callable[[Autoencoder, Dataset], dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """How much to spend on every cell of a table.

    Attributes:
        fit: further words of ``pyro-vae fit``.
        num_samples: K, the draws for each test datum.
        num_data: only the first so many test data.
        values: what stands for each ``{name}`` in the table's words.
        without: rows that are left out.
    """

    fit: str
    num_samples: int = 5000
    num_data: int | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    without: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """What the rows of a table have in common, and how they differ.

    Attributes:
        name: of the script, the run folders and the results file.
        title: what is compared, and what a reader must know to read the numbers.
        base: words of ``pyro-vae fit`` for all rows.
        cells: further words for each row; a row is compared with the first of its group.
        presets: ``smoke`` (the tests), ``small`` (two cores, minutes) and ``paper`` (hours).
        bits: print bits per dimension, not nats per datum.
        measures: further figures of every trained model, by the name of their column.
        published: what a paper has for a row, as text.

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
    published: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        slugs = [slug(row) for row in self.cells]
        if len({*slugs}) < len(slugs):
            raise ValueError(f"expected rows that differ in letters or digits; got {slugs}")

    def rows(self, preset: str) -> list[str]:
        return [row for row in self.cells if row not in self.presets[preset].without]

    def first(self, row: str, preset: str) -> str:
        """The row that ``row`` is compared with: the first of its group."""
        return next(r for r in self.rows(preset) if group_of(r) == group_of(row))

    def found(self, preset: str, runs: Path) -> list[Cell]:
        """A cell for every row, and for every seed of it that has a folder."""
        cells = []
        for row in self.rows(preset):
            folder = Cell(self, preset, row, runs=runs).folder.parent
            seeds = [re.fullmatch(rf"{slug(row)}-(\d+)", f.name) for f in folder.glob("*")]
            numbers = sorted(int(match[1]) for match in seeds if match) or [0]
            cells += [Cell(self, preset, row, seed, runs) for seed in numbers]
        return cells

    def command(self, preset: str) -> str:
        return f"python -m experiments.{self.name} --preset {preset}"


@dataclass(frozen=True, eq=False)
class Cell:
    """One row of a table with one seed: a run folder and the words that make it."""

    table: Table
    preset: str
    row: str
    seed: int = 0
    runs: Path = Path("runs")

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.runs / f"{self.table.name}-{self.preset}" / f"{slug(self.row)}-{self.seed}"

    @property
    def run(self) -> Run:
        return Run(self.folder)

    @property
    def words(self) -> list[str]:
        """The words of ``pyro-vae fit``, but for ``--run``."""
        preset = self.table.presets[self.preset]
        text = " ".join([self.table.base, self.table.cells[self.row], preset.fit])
        return [*shlex.split(text.format_map(preset.values)), "--fit.seed", str(self.seed)]

    @property
    def commands(self) -> dict[str, str]:
        """The commands that repeat this cell by itself, from the folder of the repository."""
        preset = self.table.presets[self.preset]
        # not where this process keeps its runs: a results file says the same everywhere
        folder = str(Cell(self.table, self.preset, self.row, self.seed).folder)
        evaluate = ["evaluate", folder, "--num-samples", str(preset.num_samples)]
        if preset.num_data is not None:
            evaluate += ["--num-data", str(preset.num_data)]
        return {
            "fit": shlex.join(["pyro-vae", "fit", *self.words, "--run", folder]),
            "evaluate": shlex.join(["pyro-vae", *evaluate]),
        }

    def experiment(self, device: str = "auto") -> config.Experiment:
        """
        Raises:
            ValueError: if the words do not describe an experiment.
        """
        return _experiment([*self.words, "--fit.device", device])

    @property
    def _described(self) -> config.Experiment:
        return _described(tuple(self.words))

    def check(self) -> None:
        """Refuses words that mean nothing, and a run that was made with others.

        Raises:
            ValueError: in one sentence.
        """
        ours = self._described
        if not self.run.config.is_file():
            return
        stored = config.parse(self.run.config)
        changed = {*ours.differences(stored)} - _MAY_DIFFER
        if stored.settings.fit.epochs < ours.settings.fit.epochs:
            changed -= {"fit.epochs"}  # it goes on
        if changed:
            raise ValueError(
                f"{self.folder} was made with another configuration than the script's of today "
                f"({', '.join(sorted(changed))} differ): remove it to run the cell anew, or "
                f"choose another --folder"
            )

    def missing(self) -> str | None:
        """What this cell lacks to stand in the table, or ``None``."""
        try:
            if not self.run.config.is_file():
                return "not started"
            self.check()
            if not self._trained():
                return "training has not ended"
            if not self._evaluated():
                return "not evaluated"
            absent = [name for name in self.table.measures if name not in self.measured()]
            return f"not measured: {', '.join(absent)}" if absent else None
        except ValueError as error:
            return str(error)

    def work(self, device: str = "auto") -> None:
        """Does what is still to do.

        Raises:
            ValueError, OSError, ModuleNotFoundError, NonFiniteLossError: in one sentence.
        """
        preset, progress = self.table.presets[self.preset], sys.stderr.isatty()
        experiment = self.experiment(device)
        if not self.run.finished(experiment):
            self._measures.unlink(missing_ok=True)
            self.run.fit(experiment, resume=True, progress=progress)
        if not self._evaluated():
            self.run.evaluate(
                num_samples=preset.num_samples,
                num_data=preset.num_data,
                device=device,
                progress=progress,
            )
        self._measure()
        print(self.line(), flush=True)

    def line(self) -> str:
        """What came out of it, in short; or that it does not have all of it yet."""
        missing = self.missing()
        if missing is not None:
            return f"{self}: {missing}"
        bounds = self.run.read_bounds()
        return f"{self}: ELBO {bounds.elbo:.3f}, log p̂ {bounds.log_evidence:.3f}"

    @property
    def _measures(self) -> Path:
        return self.folder / "measures.json"

    def measured(self) -> dict[str, Any]:
        """The figures that the table's measures have given so far, by column.

        Raises:
            ValueError: if their file is damaged.
        """
        if not self._measures.is_file():
            return {}
        try:
            return json.loads(self._measures.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{self._measures} is damaged: remove it, and its figures are taken anew"
            ) from error

    def _measure(self) -> None:
        """Takes the measures that are not taken yet, each kept as soon as it is there."""
        figures = self.measured()
        absent = {n: m for n, m in self.table.measures.items() if n not in figures}
        if not absent:
            return
        _, data, model = self.run.open()
        model.eval()
        for name, measure in absent.items():
            figures[name] = measure(model, data)
            _files.write_text(self._measures, json.dumps(figures, indent=1) + "\n")

    def _trained(self) -> bool:
        """:meth:`Run.finished` for a configuration that was checked, without reading it again."""
        result = self.run.read_result()
        if "fit" not in result or not self.run.weights.is_file():
            return False
        return result["config"]["fit"]["epochs"] == self._described.settings.fit.epochs

    def _evaluated(self) -> bool:
        """Whether the bounds are there, and of as many draws and data as the preset says."""
        result, preset = self.run.read_result(), self.table.presets[self.preset]
        if "bounds" not in result or not self.run.bounds.is_file():
            return False
        there, size = result["bounds"], result["data"]["sizes"]["test"]
        wanted = {
            "split": "test",
            "seed": 0,
            "num_samples": preset.num_samples,
            "num_data": min(size, preset.num_data or size),
        }
        # a process killed between the two files leaves a pair that does not fit
        bounds = self.run.read_bounds()
        pair = (bounds.num_samples, len(bounds)) == (there["num_samples"], there["num_data"])
        return pair and all(there[key] == value for key, value in wanted.items())


def _experiment(words: Sequence[str]) -> config.Experiment:
    made = config.parser(words)
    return config.Experiment(made, config.explained(made, words))


@cache
def _described(words: tuple[str, ...]) -> config.Experiment:
    """To be looked at; what is trained is made anew, because an objective learns its program."""
    return _experiment(words)


def group(name: str, base: str, cells: Mapping[str, str]) -> dict[str, str]:
    """Rows ``name: row`` that share further words and are compared among themselves."""
    return {f"{name}: {row}": f"{base} {words}" for row, words in cells.items()}


def group_of(row: str) -> str:
    """The group of a row, or nothing."""
    return row.rpartition(": ")[0]


def slug(row: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")


def main(table: Table, argv: Sequence[str] | None = None) -> int:
    """Runs what is missing of a table, and writes and prints what there is.

    Arguments:
        table: the table.
        argv: the words after the program's name; those it was started with if not given.

    Returns:
        0, or 1 after printing one sentence that says what went wrong and what to do.
    """
    options = parsed(table, argv)
    file = options.results / f"{table.name}-{options.preset}.json"
    try:
        if options.table:
            print(collect.text(collect.read(file, table.command(options.preset))))
            return 0
        failed = _work(table, options)
        print(collect.text(_write(table, options, file)))
        print(f"results: {file}")
        return int(failed)
    except _FAILURES as error:
        print(f"{table.name}: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{table.name}: interrupted; the same command goes on", file=sys.stderr)
        return 130


def parsed(table: Table, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the words after the program's name ask for; see :func:`main`."""
    made = argparse.ArgumentParser(
        prog=f"python -m experiments.{table.name}",
        description=table.title,
        epilog=f"rows: {', '.join(table.cells)}",
        allow_abbrev=False,
    )
    made.add_argument("--preset", choices=list(table.presets), default="small")
    made.add_argument("--only", nargs="+", metavar="ROW", help="only these rows")
    made.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    made.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    made.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are")
    made.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the numbers go"
    )
    made.add_argument("--table", action="store_true", help="print the results there are, run none")
    made.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="rows as jobs of submitit, N at a time: on Slurm where there is one, else here",
    )
    made.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of each job: timeout_min=600 mem_gb=16 gpus_per_node=1 slurm_partition=NAME …",
    )
    return made.parse_args(argv)


def _work(table: Table, options: argparse.Namespace) -> bool:
    """Runs the cells that were asked for; whether one of them failed."""
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"expected --jobs of at least 1; got {options.jobs}")
    if options.slurm and options.jobs is None:
        raise ValueError("expected --jobs beside --slurm; got none: say how many at a time")
    rows = table.rows(options.preset)
    unknown = [name for name in options.only or [] if name not in rows]
    if unknown:
        raise ValueError(
            f"expected --only to name rows ({', '.join(rows)}); got "
            f"{unknown[0]!r}{nearest(unknown[0], rows)}"
        )
    cells = [
        Cell(table, options.preset, row, seed, options.folder)
        for seed in options.seeds
        for row in options.only or rows
    ]
    for cell in cells:  # whatever can be refused is refused before the hours of work
        try:
            cell.check()
        except _FAILURES as error:
            raise ValueError(f"{cell}: {error}") from error
    if options.jobs is not None:
        from . import grid

        logs = options.folder / f"{table.name}-{options.preset}" / "jobs"
        told = grid.options(options.slurm)
        return grid.work(cells, logs, options.jobs, options.device, told)
    problems = {cell: attempt(cell, options.device) for cell in cells}
    return any(problem is not None for problem in problems.values())


def attempt(cell: Cell, device: str) -> str | None:
    """Does what is still to do of a cell; says what went wrong, and returns it."""
    problem = None
    try:
        with _alone(cell.folder) as mine:
            if not mine:
                print(f"{cell}: another process is at it", flush=True)
            elif cell.missing() is None:
                print(f"{cell}: finished, left as it is", flush=True)
            else:
                cell.work(device)
    except _FAILURES as error:
        problem = _sentence(error)
        print(f"{cell}: {problem}", file=sys.stderr, flush=True)
    except Exception:  # a mistake of ours in one row must not cost the night's other rows
        problem = traceback.format_exc()
        print(f"{cell}:\n{problem}", file=sys.stderr, flush=True)
    return problem


def _write(table: Table, options: argparse.Namespace, file: Path) -> collect.Results:
    # of two processes that end together, the later one must see what the earlier one did
    with _alone(options.folder / f"{table.name}-{options.preset}" / "results", wait=True):
        results = collect.collect(
            table, options.preset, table.found(options.preset, options.folder)
        )
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            _files.write_text(file, text)
    return results


@contextmanager
def _alone(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process is the only one in here; a killed one is out by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())
