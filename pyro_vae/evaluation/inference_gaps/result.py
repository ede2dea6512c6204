"""Results of the inference gap estimation, with errors and a one-sentence interpretation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...core.figures import get_axes
from ...core.links import see
from ..bounds import Bounds
from ..chain_errors import student_interval
from ..estimates import Estimate, estimate_mean, finite_or_none
from ..results import Result, assign_rows
from ..sections import Picture, Section
from ..table_parts import BoundsRow, TablePart, register
from ..tables import Caution, Row, Table

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

__all__ = ["PROPOSALS", "Gaps", "make_section", "plot_gap_parts", "select_tightest_bound"]

register(
    TablePart(
        order=50,
        rows=(
            BoundsRow("refitted", "ELBO refitted", "lower bound"),
            BoundsRow("richer", "ELBO richer q", "lower bound"),
        ),
    )
)

#: Candidate proposals of importance sampling: the encoder's q, the refitted q, the richer q.
PROPOSALS = ("elbo", "refitted", "richer")
#: Standard errors between two means that count as a difference. The threshold is high because
#: heavy-tailed weights underestimate their own standard errors.
_MAX_STANDARD_ERRORS = 5


@dataclass(frozen=True, repr=False)
class Gaps(Result):
    """log p̂ − ELBO as the sum of the approximation gap and the amortisation gap.

    Attributes:
        bounds: per example, the rows ``elbo``, ``refitted``, ``richer``, ``log_evidence`` (L_K
            from the best of these three q) and ``ais``. Columns ``…_late`` are the gain in ELBO
            over the second half of the steps, ``…_remaining`` the estimated gain of further steps,
            ``…_better`` whether a refit improved on its start.
        train: ``elbo``, ``refitted`` and ``log_evidence`` of training examples.
    """

    contents: ClassVar[str] = "gaps"

    bounds: Bounds
    train: Bounds | None = None

    def __len__(self) -> int:
        return len(self.bounds)

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts()))

    def parts(self) -> Iterable[str | Table]:
        """Return the head, the table, the convergence, warnings and the interpretation."""
        yield (
            f"{len(self)} examples × {self.bounds.num_samples} samples; {self.family} refitted "
            f"with {self.bounds.settings['gaps']['num_steps']} steps; nats per datum"
        )
        yield self.make_table()
        yield _describe_convergence(self)
        yield from map(Caution, _make_warnings(self))
        yield self.reading

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the parts of log p̂ − ELBO as stacked bars.

        Arguments:
            ax: Matplotlib axes to draw on; those of a new figure by default.
        """
        rows = self.estimates
        parts = ("closed", "remaining") if "closed" in rows else ("approximation",)
        bars = {"evaluated data": {name: rows[name] for name in ("amortisation", *parts)}}
        if "train_amortisation" in rows:
            bars["training data"] = {"amortisation": rows["train_amortisation"]}
        return plot_gap_parts(bars, self.richer, ax)

    @property
    def family(self) -> str:
        """The name of the refitted family."""
        return self.bounds.settings["gaps"]["family"]

    @property
    def richer(self) -> str | None:
        """The name of the richer family, if one was refitted."""
        return self.bounds.settings["gaps"]["richer"]

    @property
    def evidence_estimator(self) -> str:
        """The row used as log p̂, ``ais`` or ``log_evidence`` (:func:`select_tightest_bound`)."""
        data = self.bounds.per_datum
        rows = [name for name in ("log_evidence", "ais") if name in data]
        return select_tightest_bound({n: (data[n], data[f"{n}_variance"]) for n in rows})

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The differences in nats per datum, with paired standard errors over the data.

        The Monte Carlo errors include an optimisation error: if a refit is below the best member
        of its family by :attr:`optimisation_errors`, the approximation gap is too large by that
        amount, and the amortisation gap too small.

        * ``approximation``: log p̂ − refitted;
        * ``amortisation``: refitted − ELBO;
        * ``total``: log p̂ − ELBO;
        * ``closed``: richer − refitted, and ``remaining``: log p̂ − richer;
        * ``train_amortisation``: the amortisation gap of the training examples, and
          ``generalisation``: ``amortisation`` − ``train_amortisation``.
        """
        rows = {name: self._difference(*pair) for name, pair in self._rows.items()}
        if self.train is not None:
            train = rows["train_amortisation"] = Gaps(self.train)._difference("refitted", "elbo")
            test = rows["amortisation"]
            rows["generalisation"] = Estimate(
                test.value - train.value,
                math.hypot(test.se_data, train.se_data),
                math.hypot(test.se_monte_carlo, train.se_monte_carlo),
            )
        return rows

    @property
    def optimisation_errors(self) -> dict[str, np.ndarray]:
        """The estimated gain of further steps of each refit, nats, ``(N,)`` by row.

        The estimate of a single example is noisy, so it is at least the mean over the examples.
        """
        errors = {}
        for name in self._refits:
            raw = self.bounds.per_datum.get(f"{name}_remaining", np.zeros(len(self)))
            errors[name] = np.maximum(raw, max(float(raw.mean()), 0.0))
        return errors

    @property
    def unconverged(self) -> dict[str, np.ndarray]:
        """Indices of the examples whose refit would gain more than 0.05 nats, by row."""
        return {
            name: np.flatnonzero(error > _MAX_REMAINING)
            for name, error in self.optimisation_errors.items()
        }

    def interval(self, name: str, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return an interval for a gap of each example, ``(N,)`` limits in nats.

        The optimisation error extends it to the side on which the gap would be after further
        steps.

        Arguments:
            name: ``approximation``, ``amortisation``, ``total``, ``closed`` or ``remaining``.
            level: the probability that the interval contains the gap.

        Raises:
            ValueError: if there is no such gap.
        """
        rows = self._rows
        if name not in rows:
            raise ValueError(f"expected the gap to be one of {', '.join(rows)}; got {name!r}")
        high, low = rows[name]
        data, errors = self.bounds.per_datum, self.optimisation_errors
        value = data[high] - data[low]
        if self._shares_samples(high, low):
            limits = _limits(value, data[f"{low}_rise_variance"], level=level)
            below, above = value - limits[0], limits[1] - value
        else:
            parts = []
            for row in (high, low):
                columns = (data[row], data[f"{row}_variance"])
                dof, bias = data.get(f"{row}_dof"), data.get(f"{row}_bias")
                start, end = _limits(*columns, dof, bias, level=level)
                parts.append((data[row] - start, end - data[row]))
            below, above = np.hypot(parts[0][0], parts[1][1]), np.hypot(parts[0][1], parts[1][0])
        return value - below - errors.get(low, 0.0), value + above + errors.get(high, 0.0)

    @property
    def share(self) -> Estimate:
        """The amortisation gap as a fraction of the total gap, a ratio of the two means."""
        data = self.bounds.per_datum
        evidence = self.evidence_estimator
        part, whole = data["refitted"] - data["elbo"], data[evidence] - data["elbo"]
        total = whole.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            share = part.mean() / total
            # delta method: the numerator is refitted − (1 − share) ELBO − share log p̂
            noise = (
                data["refitted_variance"]
                + (1 - share) ** 2 * data["elbo_variance"]
                + share**2 * data[f"{evidence}_variance"]
            )
            residual = estimate_mean(part - share * whole, noise)
            error = math.hypot(residual.se_monte_carlo, self._mean_optimisation_error("refitted"))
            return Estimate(
                float(share),
                float(np.divide(residual.se_data, abs(total))),
                float(np.divide(error, abs(total))),
            )

    @property
    def reading(self) -> str:
        """One sentence on the two parts of the gap, as far as they are significant."""
        rows, share = self.estimates, self.share
        total, amortisation = rows["total"], rows["amortisation"]
        if not total.value > _MIN_STANDARD_ERRORS * _get_error(total):
            return "The gap is too small to distinguish from noise."
        if amortisation.value < -_MIN_STANDARD_ERRORS * _get_error(amortisation):
            return (
                f"The refitted {self.family} is worse than the guide, so the amortisation gap "
                f"cannot be estimated: choose a family that contains the guide."
            )
        error = _MIN_STANDARD_ERRORS * _get_error(share)
        if share.value - error > 0.5:
            return (
                f"{_format_fraction(share.value)} of the gap is due to amortisation: a larger "
                f"encoder or semi-amortised inference would help."
            )
        if share.value + error < 0.5:
            fraction = _format_fraction(1 - share.value)
            return f"{fraction} of the gap is due to approximation: {_describe_remedy(self)}."
        return (
            f"The gap is {share.value:.0%} amortisation and {1 - share.value:.0%} approximation; "
            f"{len(self)} examples are too few to tell which is larger."
        )

    @property
    def _refits(self) -> dict[str, str | None]:
        """The rows of refitted families, with the names of the families."""
        families = {"refitted": self.family, "richer": self.richer}
        return {n: f for n, f in families.items() if f"{n}_late" in self.bounds.per_datum}

    @property
    def _rows(self) -> dict[str, tuple[str, str]]:
        """The two rows of the bounds whose difference is a gap."""
        evidence = self.evidence_estimator
        rows = {
            "approximation": (evidence, "refitted"),
            "amortisation": ("refitted", "elbo"),
            "total": (evidence, "elbo"),
        }
        if self.richer is not None:
            rows |= {"closed": ("richer", "refitted"), "remaining": (evidence, "richer")}
        return rows

    def _shares_samples(self, high: str, low: str) -> bool:
        return high == "log_evidence" and low == self.bounds.settings["gaps"]["proposal"]

    def _difference(self, high: str, low: str) -> Estimate:
        """The mean difference of two rows."""
        data = self.bounds.per_datum
        variance = data[f"{high}_variance"] + data[f"{low}_variance"]
        bias = data.get(f"{high}_bias")
        if self._shares_samples(high, low):
            variance, bias = data[f"{low}_rise_variance"], data.get(f"{low}_rise_bias")
        with np.errstate(invalid="ignore"):  # an example with zero density has no gap
            row = estimate_mean(data[high] - data[low], variance, bias)
        error = math.hypot(row.se_monte_carlo, self._mean_optimisation_error(high, low))
        return row._replace(se_monte_carlo=error)

    def _mean_optimisation_error(self, *names: str) -> float:
        columns = [self.bounds.per_datum.get(f"{name}_remaining") for name in names]
        return math.hypot(*(max(float(c.mean()), 0.0) for c in columns if c is not None))

    def summary(self) -> dict[str, Any]:
        """The values of the table as plain numbers for JSON. Non-finite values become null."""
        data = self.bounds.per_datum
        rows = {"share": self.share, **self.estimates}
        return {
            **self.bounds.summary(),
            "family": self.family,
            "richer": self.richer,
            "ruler": self.evidence_estimator,
            "gaps": {name: row.summary() for name, row in rows.items()},
            "late": {name: finite_or_none(data[f"{name}_late"].mean()) for name in self._refits},
            "optimisation_error": {
                name: finite_or_none(self._mean_optimisation_error(name)) for name in self._refits
            },
            "unconverged": {name: len(rows) for name, rows in self.unconverged.items()},
            "better": {name: int(data[f"{name}_better"].sum()) for name in self._refits},
            "train": None if self.train is None else self.train.summary(),
            "reading": self.reading,
        }

    def make_table(self) -> Table:
        """Return the bounds and their differences as a table."""
        bounds, estimates, share = self.bounds.estimates, self.estimates, self.share
        proposal = _PROPOSAL_LABELS[self.bounds.settings["gaps"]["proposal"]]
        labels = {
            "elbo": "ELBO",
            "refitted": f"refitted {self.family}",
            "richer": f"refitted {self.richer}",
            "log_evidence": f"log p̂ = L_{self.bounds.num_samples}, {proposal}",
            "ais": "AIS",
        }
        error = "" if math.isnan(share.se_data) else f" ± {share.se_data:.0%}"
        parts = {
            "approximation": ("approximation gap", f"{1 - share.value:.0%}{error} of log p̂ − ELBO"),
            "amortisation": ("amortisation gap", f"{share.value:.0%}{error} of log p̂ − ELBO"),
            "total": ("log p̂ − ELBO", "total gap"),
            "closed": ("closed by richer q", str(self.richer)),
            "remaining": ("approximation gap, richer q", str(self.richer)),
            "train_amortisation": ("amortisation gap, train", "training data"),
            "generalisation": ("amortisation gap, test − train", "encoder generalisation"),
        }
        evidence = self.evidence_estimator
        return Table(
            [
                Row(label, [bounds[n]], f"lower bound{', used as log p̂' * (n == evidence)}")
                for n, label in labels.items()
                if n in bounds
            ]
            + [
                Row(label, [estimates[n]], note, n in ("approximation", "amortisation"))
                for n, (label, note) in parts.items()
                if n in estimates
            ]
        )

    def to_datatree(self) -> xarray.DataTree:
        """The results per example: group ``bounds``, and ``train/bounds`` for the training data.

        :meth:`Bounds.from_netcdf` reads only the bounds.
        """
        import xarray

        groups = {"bounds": self.bounds.to_datatree()["bounds"].to_dataset()}
        if self.train is not None:
            train = self.train.to_datatree()["bounds"].to_dataset()
            rows = self.train.rows
            groups["train/bounds"] = train if rows is None else assign_rows(train, rows)
        return xarray.DataTree.from_dict(groups)

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Gaps:
        """Return the gaps in a tree made by :meth:`to_datatree`."""
        bounds, train = Bounds.from_datatree(tree), tree.children.get("train")
        if "gaps" not in bounds.settings:
            raise ValueError("got bounds: read it with Bounds.from_netcdf")
        return cls(bounds, None if train is None else Bounds.from_datatree(train))


def select_tightest_bound(bounds: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Return the name of the lower bound on log p(x) with the largest mean over the data.

    Among bounds that do not differ from it significantly, this is the one with the least noise.
    The maximum of several equally good means would be biased upwards.

    Arguments:
        bounds: by name, the values and their Monte Carlo variances, each ``(N,)``.
    """
    means = {name: float(values.mean()) for name, (values, _) in bounds.items()}
    errors = {n: float(np.sqrt(v.sum()) / len(v)) for n, (_, v) in bounds.items()}
    top = max(means, key=lambda name: means[name])
    tied = {
        name: errors[name]
        for name in means
        if means[top] - means[name] <= _MAX_STANDARD_ERRORS * math.hypot(errors[name], errors[top])
    }
    return min(tied, key=lambda name: tied[name]) if tied else top


#: Standard errors from zero that count as significant.
_MIN_STANDARD_ERRORS = 2
#: Phrases for fractions above one half.
_FRACTIONS = {
    0.5: "A little over half",
    0.6: "Three fifths",
    2 / 3: "Two thirds",
    0.7: "Seven tenths",
    0.75: "Three quarters",
    0.8: "Four fifths",
    0.9: "Nine tenths",
    1.0: "Nearly all",
}
_PROPOSAL_LABELS = {
    "elbo": "the encoder's q",
    "refitted": "the refitted q",
    "richer": "the richer q",
}
#: Estimated gain of further steps, in nats, above which a refit has not converged.
_MAX_REMAINING = 0.05
#: Relative ESS above which the weights are nearly equal.
_EQUAL_WEIGHTS_ESS = 0.99


def _describe_convergence(gaps: Gaps) -> str:
    data, parts = gaps.bounds.per_datum, []
    for name, family in gaps._refits.items():
        gain, improved = data[f"{name}_late"].mean(), int(data[f"{name}_better"].sum())
        note = f"better than the start for {improved} of {len(gaps)} examples"
        error = gaps._mean_optimisation_error(name)
        parts.append(f"{family} {gain:+.3f}, optimisation error {error:.3f} ({note})")
    return (
        f"ELBO gain in the second half of the steps: {'; '.join(parts)}. The ± MC of the gaps "
        f"includes the optimisation error."
    )


def _make_warnings(gaps: Gaps) -> list[str]:
    bounds, warnings = gaps.bounds, []
    # the tail does not matter if the weights are nearly equal
    ess = bounds.per_datum["ess"][bounds.unreliable]
    is_unreliable = ess < _EQUAL_WEIGHTS_ESS * bounds.num_samples
    if gaps.evidence_estimator == "log_evidence" and is_unreliable.any():
        has_ais = "ais" in bounds.estimates
        remedy = "AIS is not affected" if has_ais else "compare with annealed importance sampling"
        warnings.append(
            f"k̂ is too high for {is_unreliable.sum()} of {len(gaps)} examples: log p̂ and the "
            f"approximation gap may be underestimated there; {remedy} "
            f"({see('docs/how-to/read-khat.md')})."
        )
    for name, rows in gaps.unconverged.items():
        if len(rows):
            error = gaps.optimisation_errors[name][rows].mean()
            warnings.append(
                f"The refit of {gaps._refits[name]} had not converged for {len(rows)} of "
                f"{len(gaps)} examples: further steps would gain about {error:.2f} nats there: use "
                f"more steps."
            )
    return warnings


def _describe_remedy(gaps: Gaps) -> str:
    rows, remedy = gaps.estimates, "a richer posterior family would help"
    if "closed" not in rows:
        return remedy
    closed = rows["closed"]
    if closed.value <= _MIN_STANDARD_ERRORS * _get_error(closed):
        return f"{remedy}, but {gaps.richer} does not close it measurably"
    fraction = closed.value / rows["approximation"].value
    return f"{remedy}; {gaps.richer} closes {fraction:.0%} of the approximation gap"


def _get_error(row: Estimate) -> float:
    """Return the larger standard error: that over the data lacks the optimisation error."""
    return float(np.fmax(row.se_data, row.se_monte_carlo))


def _limits(
    value: np.ndarray,
    variance: np.ndarray,
    dof: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    dof = np.full(len(value), np.inf) if dof is None else dof
    return student_interval(value, variance, dof, 0.0 if bias is None else bias, level)


def _format_fraction(fraction: float) -> str:
    return _FRACTIONS[min(_FRACTIONS, key=lambda known: abs(known - fraction))]


#: Labels and colours of the parts of the gap, from the ELBO upwards.
_PARTS = {
    "amortisation": ("amortisation", "C1"),
    "closed": ("approximation, closed by {richer}", "#7fb0d8"),
    "remaining": ("approximation, remaining", "C0"),
    "approximation": ("approximation", "C0"),
}


def make_section(gaps: Gaps) -> Section:
    """Return the section of the report."""
    picture = Picture("gaps", "Parts of the gap", gaps.reading, gaps.plot())
    about = f"{_describe_convergence(gaps)} The “± data” of a difference is paired."
    return Section([gaps.make_table()], [picture], about, " ".join(_make_warnings(gaps)))


def plot_gap_parts(
    bars: Mapping[str, Mapping[str, Estimate]], richer: str | None, ax: Axes | None = None
) -> Axes:
    """Plot the parts of log p̂ − ELBO as stacked bars.

    Arguments:
        bars: parts by data split: ``amortisation`` and, if known, either ``closed`` and
            ``remaining`` or ``approximation``.
        richer: name of the richer family, which closes the part ``closed``.
        ax: the axes; those of a new figure by default.
    """
    from matplotlib.patches import Patch

    axes = get_axes(ax, height=1.5 + 0.6 * len(bars))
    legend = {}
    for i, parts in enumerate(bars.values()):
        left = 0.0
        for part, row in parts.items():
            label, color = _PARTS[part]
            # noise can make a small part negative: it is labelled but has no bar
            width = max(row.value, 0.0) if math.isfinite(row.value) else 0.0
            axes.barh(i, width, left=left, height=0.6, color=color)
            legend[label.format(richer=richer)] = color
            error = "" if math.isnan(row.se_data) else f"\n± {row.se_data:.2f}"
            text = f"{row.value:.2f}{error}"
            axes.text(left + width / 2, i, text, ha="center", va="center", fontsize=8)
            left += width
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel("nats per datum above the ELBO")
    patches = [Patch(color=color) for color in legend.values()]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "fontsize": 8}
    axes.legend(patches, list(legend), frameon=False, **place)
    return axes
