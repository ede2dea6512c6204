"""Learning curves: bounds during training, against the number of training examples seen.

A script declares :class:`Curves`, a table whose rows are also evaluated after epochs 1, 2, 3, 4, 6,
10 … of training, and the claims and the figure of its paper. The values of each example are stored
in the run folder, so that curves are compared with paired errors.

An example is seen when its minibatch is, however many updates are made with the minibatch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.config.experiment import Experiment
from pyro_vae.core import files
from pyro_vae.data import Dataset, Split
from pyro_vae.learning import History, checkpoint
from pyro_vae.learning.training import resolve_device
from pyro_vae.models import Autoencoder

from ..command import main
from ..reporting import Results, collect_results, format_budget_fraction, without_verdict
from ..tables import ONE_SEED, MeanError, claim_verdict, combine_errors
from .pilot import PilotCell, PilotTable

__all__ = [
    "Claims",
    "Curve",
    "CurveCell",
    "CurveClaim",
    "Curves",
    "Estimators",
    "EvaluationSchedule",
    "combine_seeds",
    "format_claim",
    "format_claims",
    "format_final",
    "format_markdown",
    "format_over_seeds",
    "format_step_sizes",
    "make_main",
    "mean_paired_difference",
    "plot_curves",
    "samples_to_reach",
    "set_limits",
    "train_test_gap",
]

#: Evaluates a model on a split: values ``(N,)`` in nats, by the name of the estimator.
Estimators = Callable[[Autoencoder, Split], Mapping[str, np.ndarray]]
SPLITS = ("train", "test")


@dataclass(frozen=True)
class EvaluationSchedule:
    """When and how a program is evaluated during training.

    Attributes:
        estimators: evaluates the program.
        num_data: number of training and of test examples to evaluate (the first ones).
        per_decade: number of evaluations while the number of epochs grows tenfold.
    """

    estimators: Estimators
    num_data: int
    per_decade: int = 5

    def epochs(self, last: int) -> list[int]:
        """Return the epochs to evaluate after. Those of a shorter run are a subset."""
        steps = range(math.ceil(self.per_decade * math.log10(last)))
        return sorted({*(round(10 ** (i / self.per_decade)) for i in steps), last})


@dataclass(frozen=True)
class Curve:
    """Values of estimators on the same examples at several points of one run.

    Attributes:
        samples: numbers of training examples seen, ``(P,)`` in increasing order.
        columns: for each estimator ``train/NAME`` and ``test/NAME``, ``(P, N)`` in nats.
    """

    samples: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> Curve:
        """Read the points in a run folder, a file for each.

        Raises:
            ValueError: if a file is damaged.
        """
        points = {}
        for file in folder.glob("curve-*.npz"):
            try:
                with np.load(file) as stored:
                    points[int(stored["samples"])] = {name: stored[name] for name in stored.files}
            except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
                raise ValueError(f"{file} is damaged: remove {folder} to rerun the cell") from error
        ordered = [points[samples] for samples in sorted(points)]
        names = [name for name in (ordered or [{}])[0] if name != "samples"]
        columns = {name: np.stack([point[name] for point in ordered]) for name in names}
        return cls(np.array(sorted(points), dtype=np.int64), columns)

    def values(self, estimator: str, split: str = "test") -> np.ndarray:
        """Values of all examples, ``(P, N)``."""
        return self.columns[f"{split}/{estimator}"]

    def mean(self, estimator: str, split: str = "test") -> np.ndarray:
        """Means over the examples, ``(P,)``."""
        return self.values(estimator, split).mean(1)

    def summary(self) -> dict[str, Any]:
        """Return means with standard errors over the examples, for JSON."""
        summary: dict[str, Any] = {"samples": self.samples.tolist()}
        for split in SPLITS:
            summary[split] = {}
            names = [name for name in self.columns if name.startswith(f"{split}/")]
            for name in names:
                values = self.columns[name]
                error = values.std(1, ddof=1) / math.sqrt(values.shape[1])
                estimate = {"value": _to_json_list(values.mean(1)), "se": _to_json_list(error)}
                summary[split][name.removeprefix(f"{split}/")] = estimate
            summary[split]["num_data"] = self.columns[names[0]].shape[1]
        return summary


def _is_positive(value: float, error: MeanError) -> str:
    return claim_verdict(value, error.se, error.dof)


@dataclass(frozen=True)
class CurveClaim:
    """A statement of a paper, evaluated on the curves of one seed.

    Attributes:
        sentence: the statement.
        source: paper and figure.
        value: the number that decides it, in nats per datum.
        error: its paired standard error over the examples.
        verdict: returns the verdict for a number and its error; by default, the statement holds if
            the number is positive.
        extra: further entries of the results file, which get a list with one entry per seed.
    """

    sentence: str
    source: str
    value: float
    error: float
    verdict: Callable[[float, MeanError], str] = _is_positive
    extra: Mapping[str, Any] = field(default_factory=dict)


#: Claims by name.
Claims = dict[str, CurveClaim]


@dataclass(frozen=True)
class Curves(PilotTable):
    """A table whose programs are evaluated during training.

    Attributes:
        schedules: the evaluation schedule of each preset.
        paper_samples: number of training examples seen by a run of the paper.
    """

    schedules: Mapping[str, EvaluationSchedule] = field(default_factory=dict)
    paper_samples: float = math.nan


class CurveCell(PilotCell):
    """A row with one seed that is evaluated at several epochs."""

    table: Curves

    @property
    def curve(self) -> Curve:
        return Curve.read(self.folder)

    def incomplete_reason(self) -> str | None:
        reason = super().incomplete_reason()
        missing = self._missing_epochs() if reason is None else []
        return f"not evaluated after epochs {', '.join(map(str, missing))}" if missing else reason

    def execute(self, device: str) -> None:
        self._evaluate_checkpoint(device)
        if self.is_trained() and (missing := self._missing_epochs()):
            raise ValueError(
                f"expected {self.folder} to be evaluated during training; epochs "
                f"{', '.join(map(str, missing))} are missing: remove it to rerun the cell"
            )
        super().execute(device)

    def fit(self, experiment: Experiment, progress: bool) -> None:
        self.run.fit(experiment, resume=True, progress=progress, on_epoch=self._evaluate_epoch)

    def paper_samples(self) -> float:
        return self.table.paper_samples

    def extra_record(self) -> dict[str, Any]:
        return {**super().extra_record(), "curve": self.curve.summary()}

    @property
    def _epochs(self) -> list[int]:
        return self.table.schedules[self.preset].epochs(self.expected.settings.fit.epochs)

    def _point_file(self, epoch: int) -> Path:
        return self.folder / f"curve-{epoch:06}.npz"

    def _missing_epochs(self) -> list[int]:
        """Return the scheduled epochs without an evaluation."""
        return [epoch for epoch in self._epochs if not self._point_file(epoch).is_file()]

    def _evaluate_epoch(self, model: Autoencoder, data: Dataset, history: History) -> None:
        epoch, file = len(history), self._point_file(len(history))
        if epoch not in self._epochs or file.is_file():
            return
        schedule = self.table.schedules[self.preset]
        columns = {"samples": np.array(epoch * len(data.train))}
        for split, part in zip(SPLITS, (data.train, data.test), strict=True):
            values = schedule.estimators(model, part.head(schedule.num_data))
            columns |= {f"{split}/{name}": np.asarray(v, float) for name, v in values.items()}
        files.atomic_write(file, lambda path: np.savez(path, **columns))

    def _evaluate_checkpoint(self, device: str) -> None:
        """Evaluate a run that was killed between writing its checkpoint and its evaluation."""
        if not self.run.state.is_file():
            return
        state = checkpoint.load_checkpoint(self.run.state)
        history = History(state["history"])
        if len(history) not in self._epochs:
            return
        experiment = self.experiment(device)
        data = experiment.load_data()
        model = experiment.build_model(data)
        model.load_state_dict(state["weights"])
        self._evaluate_epoch(model.to(resolve_device(device)), data, history)


def mean_paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the mean of ``first - second`` over the same examples and its standard error."""
    differences = first - second
    standard_error = differences.std(ddof=1) / math.sqrt(len(differences))
    return float(differences.mean()), float(standard_error)


def train_test_gap(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Return the training mean minus the test mean, and its standard error."""
    variance = sum(part.var(ddof=1) / len(part) for part in (train, test))
    return float(train.mean() - test.mean()), math.sqrt(variance)


def samples_to_reach(samples: np.ndarray, curve: np.ndarray, level: float) -> float | None:
    """Return the number of training examples at which a curve reaches a level, or ``None``.

    Interpolates linearly in the logarithm of the number of examples.
    """
    above = np.flatnonzero(curve >= level)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(samples[0])
    fraction = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    low, high = np.log(samples[i - 1 : i + 1])
    return float(np.exp(low + fraction * (high - low)))


def combine_seeds(claims: Mapping[int, CurveClaim]) -> dict[str, Any]:
    """Return the record of a claim in a results file, from its evaluation with each seed.

    ``se_data`` is the mean of the seeds' errors over the examples, an upper bound of the error of
    their mean; see :func:`~experiments.tables.combine_errors`.
    """
    seeds = sorted(claims)
    first, values = claims[seeds[0]], [claims[seed].value for seed in seeds]
    data_error = statistics.fmean(claims[seed].error for seed in seeds)
    value, error = statistics.fmean(values), combine_errors(values, data_error)
    is_finite = math.isfinite(value) and math.isfinite(error.se)
    verdict = first.verdict(value, error) if is_finite else "undecided"
    return {
        "sentence": first.sentence,
        "source": first.source,
        "value": _to_json_number(value),
        "se": _to_json_number(error.se),
        "se_data": _to_json_number(data_error),
        "se_seeds": _to_json_number(error.se_seeds),
        "paired": True,
        "seeds": seeds,
        "by_seed": [_to_json_number(value) for value in values],
        "verdict": verdict if error.dof > 0 else ONE_SEED,
        **{key: [claims[seed].extra[key] for seed in seeds] for key in first.extra},
    }


def make_main(
    tables: Curves | Sequence[Curves],
    draw: Callable[[Results, Sequence[Any]], Figure],
    source: str,
    rows: Mapping[str, Any],
    claims: Callable[[Mapping[Any, Curve]], Claims],
    show: Callable[[Results], str],
) -> Callable[..., int]:
    """Return the command line of a script with claims about curves.

    Arguments:
        tables: the table, or several that differ in ``variant``.
        draw: makes the figure.
        source: paper and figure.
        rows: the key of each row in the argument of ``claims``.
        claims: evaluates the claims with one seed, given one curve for each key.
        show: formats the results for a terminal and for the documentation.
    """

    def collect(table: Curves, preset: str, cells: Sequence[CurveCell], _: Any) -> Results:
        complete = [cell for cell in cells if cell.incomplete_reason() is None]
        by_name: dict[str, dict[int, CurveClaim]] = {}
        for seed in sorted({cell.seed for cell in complete}):
            curve_of = {rows[c.row]: c.curve for c in complete if c.seed == seed}
            for name, claim in claims(curve_of).items():
                by_name.setdefault(name, {})[seed] = claim
        records = {name: combine_seeds(by_seed) for name, by_seed in by_name.items()}
        return {
            **collect_results(table, preset, cells),
            "paper": {"source": source, "samples": table.paper_samples},
            "claims": without_verdict(preset, records),
        }

    def show_all(results: Results) -> str:
        missing = [f"missing: {cell}: {reason}" for cell, reason in results["missing"].items()]
        share = f"share of the paper's training: {format_budget_fraction(results)}"
        return "\n".join([show(results), "", share, *missing])

    return partial(main, tables, draw=draw, collect=collect, show=show_all, cell=CurveCell)


def format_over_seeds(values: Sequence[float], digits: int = 1) -> str:
    """Format the mean over seeds, with the standard deviation if there are several."""
    text = f"{statistics.fmean(values):.{digits}f}".replace("-", "−")
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text


def format_final(runs: Sequence[Mapping[str, Any]], estimator: str) -> str:
    """Format the last training and test values of the runs of a row, over seeds."""
    parts = []
    for split in SPLITS:
        values = [run["curve"][split][estimator]["value"][-1] for run in runs]
        parts.append(format_over_seeds([math.nan if v is None else v for v in values]))
    return " / ".join(parts)


def format_step_sizes(runs: Sequence[Mapping[str, Any]]) -> str:
    """Format the different step sizes that the pilots of a row's seeds have chosen."""
    return ", ".join(dict.fromkeys(f"{run['pilot']['step_size']:g}" for run in runs))


def format_claim(claim: Mapping[str, Any]) -> str:
    """Format the value of a claim with its standard error."""
    value, error = (math.nan if claim[key] is None else claim[key] for key in ("value", "se"))
    return f"{value:+.1f} ± {error:.1f}".replace("-", "−")


def format_claims(results: Mapping[str, Any], names: Sequence[str]) -> str:
    """Format some claims as a Markdown table."""
    claims = [results["claims"][name] for name in names]
    rows = [[c["sentence"], format_claim(c), c.get("verdict", "")] for c in claims]
    return format_markdown(["claim", "nats", "verdict"], rows)


def format_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table, or an empty text if there are no rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    rule = ["---"] * len(head)
    return (
        "\n".join([f"| {' | '.join(head)} |", f"| {' | '.join(rule)} |", *lines]) if lines else ""
    )


def plot_curves(
    axes: Axes,
    runs: Sequence[Mapping[str, Any]],
    estimator: str,
    label: str,
    color: str,
    **style: Any,
) -> None:
    """Plot training and test curves of each run of a results file. ``""`` means no label."""
    for i, curve in enumerate(run["curve"] for run in runs):
        for split, line in zip(SPLITS, ("-", "--"), strict=True):
            # null in JSON stands for values that are not finite
            values = np.array(curve[split][estimator]["value"], float)
            name = f"{label} ({split})" if i == 0 and label else None
            options = {"ls": line, "color": color, "label": name, **style}
            axes.plot(curve["samples"], values, **options)


def set_limits(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Set the axis limits of the paper, widened if a curve ends outside."""
    ends = np.array([[*np.asarray(line.get_data(), float)[:, -1]] for line in axes.lines])
    right, last = ends[np.isfinite(ends).all(1)].T if len(ends) else np.empty((2, 0))
    axes.set_xlim(min([x[0], *right / 2]), x[1])
    axes.set_ylim(min([y[0], *last - 5]), max([y[1], *last + 5]))
    axes.axis("on")
    axes.spines[["top", "right"]].set_visible(False)


def _to_json_list(values: np.ndarray) -> list[float | None]:
    return [round(x, 5) if math.isfinite(x) else None for x in values.tolist()]


def _to_json_number(x: float) -> float | None:
    return x if math.isfinite(x) else None
