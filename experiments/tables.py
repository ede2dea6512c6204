"""Declaration of tables: rows of arguments, budgets, published results and claims."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

__all__ = [
    "ADAM",
    "HERE",
    "ONE_SEED",
    "Claim",
    "MeanError",
    "Measure",
    "Preset",
    "Published",
    "Table",
    "budget",
    "claim_verdict",
    "combine_errors",
    "group_rows",
    "ordering",
    "slug",
    "smoke",
    "start_label",
]

HERE = Path(__file__).parent
#: Computes a further result of a trained model as JSON: ``value``, optionally ``se`` (its standard
#: error), ``text`` (printed in place of the number) and other entries.
Measure = Callable[[Autoencoder, Dataset], dict[str, Any]]
#: The verdict without an estimate of the variation between seeds.
ONE_SEED = "one seed: not judged"
#: Distance from zero, in standard errors of a normal distribution, at which a claim is decided.
_NUM_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Preset:
    """Budget of every cell of a table.

    Attributes:
        fit: further arguments of ``pyro-vae fit``.
        num_samples: K, the number of samples for each test example.
        num_data: number of test examples (the first ones); all if not given.
        values: replacement of each ``{name}`` in the table's arguments.
        exclude: rows that are not run.
        measures: measures besides those of the table, which they replace if named equally.
    """

    fit: str
    num_samples: int = 5000
    num_data: int | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    measures: Mapping[str, Measure] = field(default_factory=dict)


def budget(
    fit: str = "",
    *,
    num_samples: int = 5000,
    num_data: int | None = None,
    exclude: Sequence[str] = (),
    measures: Mapping[str, Measure] | None = None,
    **values: object,
) -> Preset:
    """Return a preset whose further arguments are its ``values``."""
    return Preset(fit, num_samples, num_data, values, exclude, measures or {})


#: A smoke test of seconds: 150 digits, one epoch, 50 samples for each of 20 examples.
smoke = partial(
    budget,
    "--data.name mnist5k --data.train 150 --data.test 100 --fit.epochs 1 --fit.batch_size 50",
    num_samples=50,
    num_data=20,
)
#: The optimizer of most of our comparisons.
ADAM = "--fit.batch_size 100 --fit.optimizer Adam --fit.optimizer.lr 0.001"


@dataclass(frozen=True)
class Published:
    """A published log-likelihood.

    Attributes:
        value: the log-likelihood in nats per datum, i.e. minus the NLL that papers print.
        source: paper and table.
        units: the number of active units of each layer, bottom up, if published.
        confirmed: whether the number was checked against the source. Unconfirmed numbers are
            printed but not compared.
    """

    value: float
    source: str
    units: tuple[int, ...] = ()
    confirmed: bool = True

    def __str__(self) -> str:
        text = f"{self.value:.2f}".replace("-", "−")
        text += f" / {'+'.join(map(str, self.units))}" if self.units else ""
        return text if self.confirmed else f"{text} (unconfirmed)"

    def record(self) -> dict[str, Any]:
        """Return the entry of a results file."""
        record = {"value": self.value, "source": self.source, "confirmed": self.confirmed}
        return {**record, "units": list(self.units)} if self.units else record


@dataclass(frozen=True)
class Claim:
    """A weighted sum of rows that is positive if the paper's statement holds.

    Attributes:
        sentence: the statement.
        weights: the weight of each row.
        measure: the measure that is summed. If not given, log p̂ of the test examples, with a
            standard error over paired examples and over seeds.
    """

    sentence: str
    weights: Mapping[str, float]
    measure: str | None = None


def ordering(sentence: str, row: str, than: str, measure: str | None = None) -> Claim:
    """Return the claim that ``row`` has a higher value than ``than``."""
    return Claim(sentence, {row: 1.0, than: -1.0}, measure)


def start_label(row: str) -> str:
    """Return the name, in claims, of the run that a row starts from."""
    return f"before: {row}"


class MeanError(NamedTuple):
    """Standard error of a mean over seeds.

    Attributes:
        se: the total, with the errors over examples and over seeds added in quadrature.
        se_seeds: the standard error over seeds; NaN for one seed, and then not part of ``se``.
        dof: the effective degrees of freedom of ``se``; 0 for one seed.
    """

    se: float
    se_seeds: float
    dof: float

    @property
    def margin(self) -> float:
        """Half-width of the interval that has the coverage of two normal standard errors."""
        if not self.dof > 0:
            return math.inf
        coverage = stats.norm.cdf(_NUM_STANDARD_ERRORS)
        return float(stats.t.ppf(coverage, self.dof)) * self.se


def combine_errors(values: Sequence[float], data_error: float) -> MeanError:
    """Return the standard error of the mean of ``values``, one for each seed.

    All seeds are evaluated on the same examples. The error of these does not become smaller with
    more seeds, and is independent of the variation between seeds. The standard deviation of a few
    seeds is uncertain itself: the degrees of freedom are those of Welch and Satterthwaite.

    Arguments:
        values: the values of the seeds.
        data_error: the standard error over the examples, of the mean of all seeds.
    """
    if len(values) < 2:
        return MeanError(data_error, math.nan, 0.0)
    finite = all(map(math.isfinite, values))
    se_seeds = statistics.stdev(values) / math.sqrt(len(values)) if finite else math.nan
    se = math.hypot(data_error, se_seeds)
    dof = math.inf if se_seeds == 0 else (len(values) - 1) * (se / se_seeds) ** 4
    return MeanError(se, se_seeds, dof)


def claim_verdict(value: float, error: float, dof: float = math.inf) -> str:
    """Return ``holds``, ``reversed``, ``undecided`` near zero, or ``ONE_SEED``.

    Arguments:
        value: the number that is positive if the claim holds.
        error: its standard error.
        dof: the degrees of freedom of ``error``, see :class:`MeanError`. ``undecided`` is within
            two standard errors if there are many, 4.5 if there are two.
    """
    if dof == 0:
        return ONE_SEED
    # a comparison with NaN is false
    if not MeanError(error, math.nan, dof).margin < abs(value) < math.inf:
        return "undecided"
    return "holds" if value > 0 else "reversed"


@dataclass(frozen=True)
class Table:
    """A table of a script: each row is a run of ``pyro-vae fit`` and ``pyro-vae evaluate``.

    Attributes:
        name: name of the script, the run folders and the results file.
        title: subject of the table, with the facts needed to read its numbers.
        base: arguments of ``pyro-vae fit`` for all rows.
        cells: further arguments of each row. A row is compared with the first of its group, the
            rows with the same text before ``": "``.
        presets: ``smoke`` (seconds), ``small`` (two cores, minutes to hours) and ``paper``.
        bits: whether to print bits per dimension instead of nats per datum.
        measures: further results of every trained model, by column name.
        published: the paper's result for a row, as a number with its source or as text.
        claims: statements of the paper about several rows.
        causes: suspected cause of a difference from the paper at the full budget, by row; ``""``
            is the default for all other rows.
        train_size: number of training examples in an epoch of the paper.
        starts: rows that start from the weights of a row of another table.
        shares: tables whose finished run of the same row is used instead of another one.
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
    shares: Sequence[Table] = ()
    variant: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""

    def __post_init__(self) -> None:
        slugs = [slug(row) for row in self.cells]
        if len({*slugs}) < len(slugs):
            raise ValueError(f"expected rows that differ in letters or digits; got {slugs}")

    def rows(self, preset: str) -> list[str]:
        """Rows that the preset runs."""
        return [row for row in self.cells if row not in self.presets[preset].exclude]

    def first_row(self, row: str, preset: str) -> str:
        """Return the row that ``row`` is compared with, the first of its group."""
        group = row.rpartition(": ")[0]
        return next(r for r in self.rows(preset) if r.rpartition(": ")[0] == group)

    def stem(self, preset: str) -> str:
        """Name of its results file and of its folder of runs."""
        return "-".join(filter(None, [self.name, preset, self.tag]))

    @property
    def module(self) -> str:
        """Module of its script."""
        is_paper = (HERE / "papers" / f"{self.name}.py").is_file()
        return f"experiments.{'papers' if is_paper else 'studies'}.{self.name}"

    def command(self, preset: str) -> str:
        """Command that runs the table."""
        variant = [f" --{key} {value}" for key, value in self.variant.items() if self.tag]
        return f"python -m {self.module} --preset {preset}{''.join(variant)}"


def group_rows(name: str, base: str, cells: Mapping[str, str]) -> dict[str, str]:
    """Return rows ``name: row`` with shared arguments, compared within the group."""
    return {f"{name}: {row}": f"{base} {args}" for row, args in cells.items()}


def slug(row: str) -> str:
    """Return the folder name of a row."""
    return re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
