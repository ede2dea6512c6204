"""What a table of a paper is: rows that differ in a few words of ``pyro-vae fit``, and runs.

A :class:`Table` is a declaration; a :class:`Cell`, one of its rows with a seed, does the work.
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

__all__ = ["Cell", "Measure", "Preset", "Table", "group", "group_of", "slug"]

#: What may differ between a run and the script's words of today: none of it changes a number.
_MAY_DIFFER = {
    "fit.checkpoint_every",
    "fit.device",
    "data.path",
    "data.root",
    "plugin",
    "start_from",
}
#: Where the files of ``--plugin`` are that tables name as ``{here}/…``.
_HERE = Path(__file__).parent
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
        published: what a paper has for a row, as a number with its source, or as text.
        claims: what a paper says of several rows together.
        causes: why a row that was given its whole budget may not be what was published; by row,
            or for all others under "".
        train_size: how many data the paper's training sees in an epoch.
        starts: rows that begin with the weights of a row of another table.
        variant: in which of several ways, and of which data: ``{"recipe": "code"}``. Tables of
            one script that differ in it are chosen between by options of these names.
        tag: what stands behind the preset in names of files and folders of this variant.

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
        return [row for row in self.cells if row not in self.presets[preset].without]

    def cell(self, preset: str, row: str, seed: int = 0, runs: Path = Path("runs")) -> Cell:
        """One of its rows with a seed; other kinds of tables have other kinds of cells."""
        return Cell(self, preset, row, seed, runs)

    def first(self, row: str, preset: str) -> str:
        """The row that ``row`` is compared with: the first of its group."""
        return next(r for r in self.rows(preset) if group_of(r) == group_of(row))

    def found(self, preset: str, runs: Path) -> list[Cell]:
        """A cell for every row, and for every seed of it that has a folder."""
        cells = []
        for row in self.rows(preset):
            folder = runs / self.stem(preset)
            seeds = [re.fullmatch(rf"{slug(row)}-(\d+)", f.name) for f in folder.glob("*")]
            numbers = sorted(int(match[1]) for match in seeds if match) or [0]
            cells += [self.cell(preset, row, seed, runs) for seed in numbers]
        return cells

    def stem(self, preset: str) -> str:
        """What its files and folders are called."""
        return "-".join(filter(None, [self.name, preset, self.tag]))

    def command(self, preset: str) -> str:
        chosen = [f" --{key} {value}" for key, value in self.variant.items() if self.tag]
        return f"python -m experiments.{self.name} --preset {preset}{''.join(chosen)}"


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
        return self.runs / self.table.stem(self.preset) / f"{slug(self.row)}-{self.seed}"

    @property
    def run(self) -> Run:
        return Run(self.folder)

    @property
    def start(self) -> Cell | None:
        """The cell whose weights this one begins with, if it does."""
        if self.row not in self.table.starts:
            return None
        table, row = self.table.starts[self.row]
        return replace(self, table=table, row=row)

    @property
    def words(self) -> list[str]:
        """The words of ``pyro-vae fit``, but for ``--run``."""
        return self._words(_HERE)

    def _words(self, here: Path) -> list[str]:
        preset = self.table.presets[self.preset]
        text = " ".join([self.table.base, self.table.cells[self.row], preset.fit])
        start = [] if self.start is None else ["--start_from", str(self.start.folder)]
        words = shlex.split(text.format_map({**preset.values, "here": shlex.quote(str(here))}))
        return [*words, *start, "--fit.seed", str(self.seed)]

    @property
    def commands(self) -> dict[str, str]:
        """The commands that repeat this cell by itself, from the folder of the repository."""
        preset = self.table.presets[self.preset]
        # not where this process keeps its runs: a results file says the same everywhere
        usual = Cell(self.table, self.preset, self.row, self.seed)
        folder = str(usual.folder)
        words = usual._words(Path("experiments"))
        evaluate = ["evaluate", folder, "--num-samples", str(preset.num_samples)]
        if preset.num_data is not None:
            evaluate += ["--num-data", str(preset.num_data)]
        return {
            "fit": shlex.join(["pyro-vae", "fit", *words, "--run", folder]),
            "evaluate": shlex.join(["pyro-vae", *evaluate]),
        }

    def experiment(self, device: str = "auto") -> experiment.Experiment:
        """
        Raises:
            ValueError: if the words do not describe an experiment.
        """
        return _experiment([*self.words, "--fit.device", device])

    @property
    def _described(self) -> experiment.Experiment:
        return _described(tuple(self.words))

    def check(self) -> None:
        """Refuses words that mean nothing, and a run that was made with others.

        Raises:
            ValueError: in one sentence.
        """
        ours = self._described
        if not self.run.config.is_file():
            return
        stored = experiment.parse(self.run.config)
        changed = {*ours.differences(stored)} - _MAY_DIFFER
        if stored.settings.fit.epochs < ours.settings.fit.epochs:
            changed -= {"fit.epochs"}  # it goes on
        if changed:
            raise ValueError(
                f"{self.folder} was made with another configuration than the script's of today "
                f"({', '.join(sorted(changed))} differ): remove it to run the cell anew, or "
                f"choose another --folder"
            )
        began = self.run.read_result().get("start", {}).get("weights")
        if self.start and began and self.start.run.weights.is_file():
            now = weights_checksum(self.start.run.weights)
            if now != began:
                raise ValueError(
                    f"{self.folder} began with other weights than {self.start.folder} has now: "
                    f"remove it to run the cell anew"
                )

    def budget(self) -> dict[str, Any]:
        """What its training saw, beside what the preset ``paper`` would see.

        ``samples_seen`` counts a datum as often as it was learned from, in a run that this one
        begins with, too; ``fraction`` is that of the paper's. Training that ended by itself,
        because validation data said so, was not cut short.
        """
        result = self.run.read_result()
        epochs, planned = result["fit"]["epochs"], self._described.settings.fit.epochs
        seen = epochs * result["data"]["sizes"]["train"]
        size = self.table.train_size
        whole = 0 if size is None else size * self._whole_epochs()
        if self.start is not None:
            before = self.start.budget()
            seen += before["samples_seen"]
            whole += before.get("paper_samples", 0)
        told = {"epochs": epochs, "samples_seen": seen, "ended_by_itself": epochs < planned}
        if not whole:
            return told
        return {**told, "paper_samples": whole, "fraction": seen / whole}

    def _whole_epochs(self) -> int:
        """Epochs of the preset ``paper``, if there is one."""
        paper = replace(self, preset="paper")
        known = "paper" in self.table.presets and self.row in self.table.rows("paper")
        return paper._described.settings.fit.epochs if known else 0

    @property
    def failure(self) -> Path:
        """Where it says why training broke off, if it did."""
        return self.folder / "failure.txt"

    def missing(self) -> str | None:
        """What this cell lacks to stand in the table, or ``None``."""
        try:
            if self.failure.is_file():
                return f"failed: {self.failure.read_text(encoding='utf-8').strip()}"
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
        self.failure.unlink(missing_ok=True)
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

    def more(self) -> dict[str, Any]:
        """What its record says besides what all cells do."""
        return {}

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
            files.write_text(self._measures, json.dumps(figures, indent=1) + "\n")

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


def _experiment(words: Sequence[str]) -> experiment.Experiment:
    made = experiment.parser(words)
    return experiment.Experiment(made, experiment.explained(made, words))


@cache
def _described(words: tuple[str, ...]) -> experiment.Experiment:
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
