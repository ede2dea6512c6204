"""Figures of a program while it learns: bounds against the number of training data it has seen.

A script declares :class:`Curves`, a table whose rows are also judged at epochs 1, 2, 3, 4, 6, 10 …
of their training, says what its paper claims of them and draws them. What was judged lies beside
the run, datum by datum, so that curves are compared with paired errors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.axes import Axes

from pyro_vae.core import files
from pyro_vae.data import Dataset, Split
from pyro_vae.learning import History, checkpoint
from pyro_vae.learning.training import find_device
from pyro_vae.models import Autoencoder

from .cells import Cell, Table

__all__ = [
    "Curve",
    "CurveCell",
    "Curves",
    "Found",
    "Ruler",
    "Watch",
    "by_seed",
    "claim",
    "difference",
    "frame",
    "gap",
    "plot",
    "reached",
    "told",
]

#: What a model is said to be worth on some data, ``(N,)`` nats, by the name of the ruler.
Ruler = Callable[[Autoencoder, Split], Mapping[str, np.ndarray]]
#: What a paper says and what was found, for JSON, by a name: see :func:`claim`.
Found = dict[str, dict[str, Any]]
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Watch:
    """How a program is judged while it learns.

    Attributes:
        ruler: what says how good it is.
        num_data: of the first so many training data, and of as many test data.
        per_decade: how often while the number of epochs grows tenfold.
    """

    ruler: Ruler
    num_data: int
    per_decade: int = 5

    def epochs(self, last: int) -> list[int]:
        """After which epochs, of so many; those of a shorter run are among those of a longer."""
        rungs = range(math.ceil(self.per_decade * math.log10(last)))
        return sorted({*(round(10 ** (i / self.per_decade)) for i in rungs), last})


class Curve:
    """What rulers said of the same data at several times of one run.

    Arguments:
        columns: ``samples``, the training data seen, ``(P,)`` in rising order; and for each ruler
            ``train/NAME`` and ``test/NAME``, ``(P, N)``, nats.
    """

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = dict(columns)

    @classmethod
    def read(cls, file: Path) -> Curve:
        """A file of :meth:`write`; an empty curve if there is none.

        Raises:
            ValueError: if it is damaged.
        """
        if not file.is_file():
            return cls({"samples": np.empty(0, dtype=np.int64)})
        try:
            with np.load(file) as stored:
                return cls({name: stored[name] for name in stored.files})
        except (ValueError, OSError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"{file} is damaged: remove its folder to run the cell anew"
            ) from error

    def write(self, file: Path) -> None:
        files.write(file, lambda path: np.savez(path, **self.columns))

    @property
    def samples(self) -> np.ndarray:
        return self.columns["samples"]

    @property
    def rulers(self) -> list[str]:
        return [name.removeprefix("test/") for name in self.columns if name.startswith("test/")]

    def of(self, ruler: str, split: str = "test") -> np.ndarray:
        """``(P, N)``."""
        return self.columns[f"{split}/{ruler}"]

    def mean(self, ruler: str, split: str = "test") -> np.ndarray:
        """``(P,)``."""
        return self.of(ruler, split).mean(1)

    def joined(self, samples: int, figures: Mapping[str, np.ndarray]) -> Curve:
        """With one time more, of figures ``(N,)`` by column."""
        if not len(self.samples):
            return Curve(
                {"samples": np.array([samples]), **{n: v[None] for n, v in figures.items()}}
            )
        at = int(np.searchsorted(self.samples, samples))
        new = {"samples": np.array(samples), **figures}
        return Curve({n: np.insert(v, at, new[n], axis=0) for n, v in self.columns.items()})

    def summary(self) -> dict[str, Any]:
        """Means with the standard errors of the data, for JSON."""
        told: dict[str, Any] = {"samples": self.samples.tolist()}
        for split in SPLITS:
            told[split] = {}
            for ruler in self.rulers:
                values = self.of(ruler, split)
                error = values.std(1, ddof=1) / math.sqrt(values.shape[1])
                told[split][ruler] = {"value": _plain(values.mean(1)), "se": _plain(error)}
            told[split]["num_data"] = values.shape[1]
        return told


@dataclass(frozen=True)
class Curves(Table):
    """A table whose programs are judged while they learn.

    Attributes:
        watch: how, by preset.
        paper_samples: how many training data each run of the paper saw.
    """

    watch: Mapping[str, Watch] = field(default_factory=dict)
    paper_samples: float = math.nan

    def cell(self, preset: str, row: str, seed: int = 0, runs: Path = Path("runs")) -> CurveCell:
        return CurveCell(self, preset, row, seed, runs)


class CurveCell(Cell):
    """A row with one seed, whose run is judged at several epochs."""

    table: Curves

    @property
    def file(self) -> Path:
        return self.folder / "curve.npz"

    @property
    def curve(self) -> Curve:
        return Curve.read(self.file)

    def missing(self) -> str | None:
        missing = super().missing()
        try:
            lost = self._lost() if missing is None else []
        except ValueError as error:
            return str(error)
        return f"not judged after epochs {', '.join(map(str, lost))}" if lost else missing

    def work(self, device: str = "auto") -> None:
        experiment = self.experiment(device)
        self._catch_up(device)
        if not self.run.finished(experiment):
            self._measures.unlink(missing_ok=True)
            progress = sys.stderr.isatty()
            self.run.fit(experiment, resume=True, progress=progress, on_epoch=self._judge)
        if lost := self._lost():
            raise ValueError(
                f"{self.folder} was trained without being judged after epochs "
                f"{', '.join(map(str, lost))}: remove it to run the cell anew"
            )
        super().work(device)

    def budget(self) -> dict[str, Any]:
        told, whole = super().budget(), self.table.paper_samples
        return {**told, "paper_samples": whole, "fraction": told["samples_seen"] / whole}

    def more(self) -> dict[str, Any]:
        return {"curve": self.curve.summary()}

    @property
    def _epochs(self) -> list[int]:
        return self.table.watch[self.preset].epochs(self._described.settings.fit.epochs)

    def _lost(self) -> list[int]:
        """The epochs after which it should have been judged and was not."""
        sizes = self.run.read_result().get("data", {}).get("sizes", {})
        seen = {*self.curve.samples.tolist()}
        return [epoch for epoch in self._epochs if epoch * sizes.get("train", 0) not in seen]

    def _judge(self, model: Autoencoder, data: Dataset, history: History) -> None:
        samples, curve = len(history) * len(data.train), self.curve
        if len(history) not in self._epochs or samples in curve.samples:
            return
        watch, figures = self.table.watch[self.preset], {}
        for split, part in zip(SPLITS, (data.train, data.test), strict=True):
            found = watch.ruler(model, part.head(watch.num_data))
            figures |= {f"{split}/{ruler}": np.asarray(v, float) for ruler, v in found.items()}
        curve.joined(samples, figures).write(self.file)

    def _catch_up(self, device: str) -> None:
        """Judges a run that was killed after its state was written and before it was judged."""
        if not self.run.state.is_file():
            return
        state = checkpoint.load(self.run.state)
        history = History(state["history"])
        if len(history) not in self._epochs:
            return
        experiment = self.experiment(device)
        data = experiment.load_data()
        model = experiment.build_model(data)
        model.load_state_dict(state["weights"])
        self._judge(model.to(find_device(device)), data, history)


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The mean of figures ``(N,)`` less others of the same data, and its paired standard error."""
    apart = ours - theirs
    return float(apart.mean()), float(apart.std(ddof=1) / math.sqrt(len(apart)))


def gap(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """The mean of some data less that of others, and its standard error."""
    variance = sum(part.var(ddof=1) / len(part) for part in (train, test))
    return float(train.mean() - test.mean()), math.sqrt(variance)


def reached(samples: np.ndarray, curve: np.ndarray, level: float) -> float | None:
    """How many training data it took to come to a level; ``None`` if it never did.

    Between two points straight in the logarithm of the number of data.
    """
    above = np.flatnonzero(curve >= level)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(samples[0])
    share = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    low, high = np.log(samples[i - 1 : i + 1])
    return float(np.exp(low + share * (high - low)))


def claim(
    sentence: str,
    source: str,
    found: tuple[float, float],
    verdict: str,
    **more: Any,
) -> dict[str, Any]:
    """What a paper says and what was found, as :func:`collect.text` prints it.

    Arguments:
        sentence: what it says, of what.
        source: where it says so.
        found: the number that decides it, nats per datum, and its paired standard error.
        verdict: ``holds``, ``reversed`` or ``undecided``.
        **more: further numbers.
    """
    value, error = (x if math.isfinite(x) else None for x in found)
    told = {"sentence": sentence, "source": source, "value": value, "se": error, "paired": True}
    return {**told, "verdict": verdict, **more}


def by_seed(
    cells: Sequence[CurveCell],
    rows: Mapping[str, Any],
    claims: Callable[[Mapping[Any, Curve]], Found],
) -> Found:
    """The claims of each seed's curves.

    Arguments:
        cells: whose curves.
        rows: what ``claims`` knows each row of a table by.
        claims: what is to be said of one curve for each row.
    """
    return {
        f"{name}, seed {seed}": {**found, "seed": seed}
        for seed in sorted({cell.seed for cell in cells})
        for name, found in claims({rows[c.row]: c.curve for c in cells if c.seed == seed}).items()
    }


def told(
    source: str,
    table: Curves,
    rows: Mapping[str, Any],
    claims: Callable[[Mapping[Any, Curve]], Found],
) -> Callable[[Sequence[CurveCell]], dict[str, Any]]:
    """What a results file says of complete cells besides the table: the claims, for each seed.

    Arguments:
        source: the figure of the paper.
        table: the table.
        rows, claims: as in :func:`by_seed`.
    """
    paper = {"source": source, "samples": table.paper_samples}
    return lambda cells: {"paper": paper, "claims": by_seed(cells, rows, claims)}


def plot(
    axes: Axes, runs: Sequence[Mapping[str, Any]], ruler: str, label: str, color: str, **style: Any
) -> None:
    """Curves of training and test data, a pair for each run of a results file; "" is no label."""
    for run, first in zip(runs, [True, *(False for _ in runs)], strict=False):
        for split, line in zip(SPLITS, ("-", "--"), strict=True):
            told = run["curve"]
            # JSON has null for what was not finite
            values = np.array(told[split][ruler]["value"], float)
            name = f"{label} ({split})" if first and label else None
            drawn = {"ls": line, "color": color, "label": name, **style}
            axes.plot(told["samples"], values, **drawn)


def frame(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    """The paper's axes, widened where a curve ends outside of them."""
    ends = np.array([[*np.asarray(line.get_data(), float)[:, -1]] for line in axes.lines])
    right, last = ends[np.isfinite(ends).all(1)].T if len(ends) else np.empty((2, 0))
    axes.set_xlim(min([x[0], *right / 2]), x[1])
    axes.set_ylim(min([y[0], *last - 5]), max([y[1], *last + 5]))
    axes.axis("on")
    axes.spines[["top", "right"]].set_visible(False)


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(x, 5) if math.isfinite(x) else None for x in values.tolist()]
