"""Bounds on log p(x) and estimates of it, per example, with errors and diagnostics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from ..core.links import see
from ..core.validation import did_you_mean
from .bounds_plots import plot_bound_against_k, plot_bounds
from .chain_errors import are_chains_good, student_interval
from .estimates import Estimate, estimate_mean, finite_or_none, median_and_worst
from .importance.discrete import MAX_RARE_VARIANCE
from .importance.psis import MIN_SAMPLES, khat_threshold, khat_thresholds
from .results import Result
from .table_parts import DEFAULT_KS, BoundsRow, TablePart, register, registered_parts
from .tables import Caution, Row, Table

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

__all__ = ["DEFAULT_KS", "Bounds"]

_Key = TypeVar("_Key", str, int)


@dataclass(frozen=True, repr=False)
class Bounds(Result):
    """Bounds on log p(x) and estimates of it, per example.

    All values are in nats per datum; higher is better. The ELBO and every L_k are lower
    bounds on log p(x) in expectation. log p̂ is L_K, the tightest of them, also read as an
    estimate with a downward bias; or, with :class:`~pyro_vae.evaluation.Ladder`, the estimate from
    the proposal that suits the example. Other estimators add columns.

    Each row of the table is a column NAME with its Monte Carlo variance in NAME_variance. A
    column with NaN, for examples that an estimator skipped, has no row. Columns:

    ========================  ==========================================================
    ``elbo``                  evidence lower bound
    ``log_evidence``          log p̂ = L_K, or that of a ladder
    ``psis``, ``jackknife``   log p̂ from smoothed weights; log p̂ with its bias corrected
    ``defensive``             log p̂ with a mixture of q and the prior as proposal
    ``refitted``, ``richer``  ELBO with q refitted per example; with a richer family
    ``ais``                   annealed importance sampling
    ``reciprocal``            reciprocal importance sampling from posterior samples
    ``upper``                 reverse annealing from exact posterior samples
    ========================  ==========================================================

    Attributes:
        num_samples: the number K of samples per example; the maximum if it varies.
        per_datum: arrays of length N: the available columns of those above, their variances,
            ``gap_variance``, and diagnostics such as ``khat``, ``ess`` and ``acceptance``. With a
            ladder, those of log p̂ belong to the proposal with the code in ``proposal``, and
            ``guide_khat``, ``guide_ess``, … to the samples of q. With ``precision="bfloat16"``,
            ``rescored`` is true for examples in float32; the values of the others are those of
            bfloat16 plus the mean change, and their variances include the spread of the change.
        iwae_per_datum: L_k of each example, ``(N,)``, by k.
        iwae_variance: their Monte Carlo variances, ``(N,)``, by k.
        log_weights: the raw log weights ``(K, N)``, if kept; never corrected.
        seed: the random seed.
        settings: the settings of the estimators, as JSON-serialisable values.
        shown_ks: the k of the L_k that the table shows; all by default.
    """

    contents: ClassVar[str] = "bounds"

    num_samples: int
    per_datum: dict[str, np.ndarray]
    iwae_per_datum: dict[int, np.ndarray] = field(default_factory=dict)
    iwae_variance: dict[int, np.ndarray] = field(default_factory=dict)
    log_weights: np.ndarray | None = None
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    shown_ks: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.per_datum.values())))

    @property
    def elbo(self) -> float:
        """The evidence lower bound, nats per datum."""
        return self.estimates["elbo"].value

    @property
    def iwae(self) -> dict[int, float]:
        """L_k by k, nats per datum."""
        return {k: float(values.mean()) for k, values in self.iwae_per_datum.items()}

    @property
    def log_evidence(self) -> float:
        """log p̂(x), nats per datum; its bias is downwards, of order 1/K for K samples."""
        return self.estimates["log_evidence"].value

    @property
    def gap(self) -> float:
        """log p̂ − ELBO, nats per datum: approximately E_x KL(q(z|x) ‖ p(z|x))."""
        return self.estimates["gap"].value

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Mean and standard errors: ``elbo``, ``iwae_5``, …, ``log_evidence``, ``gap``, …."""
        return {name: self._estimate(name) for name in self._rows}

    @property
    def labels(self) -> dict[str, tuple[str, str]]:
        """Label and role (lower bound, estimate, …) of each row of the table.

        L_K and log p̂ are one number with one row, ``log_evidence``.
        """
        rows = {name: (row.label, row.role) for name, row in self._rows.items()}
        last = f"iwae_{self.num_samples}"
        is_last = "num_samples" not in self.per_datum and "proposal" not in self.per_datum
        if "log_evidence" in rows and last in rows and is_last:
            rows["log_evidence"] = (f"log p̂ = L_{self.num_samples}", rows.pop(last)[1])
        return rows

    @property
    def _rows(self) -> dict[str, BoundsRow]:
        """The available rows: the ELBO, L_k, other estimators, and then differences."""
        complete = {row.name: row for row in _known_rows() if self._is_complete(row.name)}
        bounds = {
            f"iwae_{k}": BoundsRow(f"iwae_{k}", f"L_{k}", "lower bound")
            for k in self.iwae_per_datum
        }
        first = {name: row for name, row in complete.items() if name == "elbo"}
        rows = first | bounds | complete
        gaps = {
            row.gap[0]: replace(row, label=f"{row.label} − {rows[row.gap[1]].label}", role="gap")
            for row in complete.values()
            if row.gap and row.gap[1] in rows
        }
        return rows | gaps

    @property
    def sample_counts(self) -> np.ndarray:
        """The number of samples behind log p̂ of each example, ``(N,)``; of AIS, chains."""
        return self.per_datum.get("num_samples", np.full(len(self), self.num_samples))

    @property
    def guide_sample_counts(self) -> np.ndarray:
        """The number of samples of q of each example, ``(N,)``."""
        if "proposal" not in self.per_datum:
            return self.sample_counts
        return self.per_datum.get("guide_num_samples", np.full(len(self), self.num_samples))

    @property
    def proposals(self) -> dict[str, int]:
        """The number of examples by the proposal of log p̂; empty without a ladder."""
        if "proposal" not in self.per_datum:
            return {}
        names, codes = self.settings["proposals"], self.per_datum["proposal"]
        return {name: int((codes == code).sum()) for code, name in enumerate(names)}

    @property
    def khat_thresholds(self) -> np.ndarray:
        """The k̂ of each example above which log p̂ is unreliable, ``(N,)``."""
        return khat_thresholds(self.sample_counts)

    @property
    def unreliable(self) -> np.ndarray:
        """Indices of the examples whose tail index is too high for log p̂ to be reliable.

        It is ``khat_pooled``, which uses the tails of all examples, or else k̂. Examples of a
        ladder whose log p̂ is from AIS have no k̂: they are unreliable if their standard error is
        above the largest of the ladder, or if few chains have most of the weight. Empty if there
        is no k̂ because no importance sampling was done.
        """
        if "khat" not in self.per_datum:
            return np.empty(0, dtype=np.int64)
        is_good = self._tail_index < self.khat_thresholds
        is_good[self._annealed] = ~self._has_bad_chains[self._annealed]
        return np.flatnonzero(~is_good)

    @property
    def _annealed(self) -> np.ndarray:
        """Whether log p̂ of an example is from AIS, ``(N,)``."""
        names = self.settings.get("proposals", [])
        codes = self.per_datum.get("proposal", np.full(len(self), -1))
        return codes == (names.index("AIS") if "AIS" in names else math.nan)

    @property
    def _has_bad_chains(self) -> np.ndarray:
        """Whether log p̂ of an example is from AIS and not good, ``(N,)``."""
        if not self._annealed.any():
            return np.zeros(len(self), dtype=bool)
        max_error = self.settings["ladder"]["max_error"]
        return self._annealed & ~are_chains_good(self.per_datum, "ais", max_error)

    @property
    def _tail_index(self) -> np.ndarray:
        return self.per_datum.get("khat_pooled", self.per_datum["khat"])

    def flagged(self, name: str = "log_evidence") -> np.ndarray:
        """Return whether the value and the error of a row are unreliable, by example.

        Estimates from the samples of q are flagged by their pooled k̂, as those of a defensive
        mixture and of Laplace proposals by theirs. AIS and reverse annealing are flagged by their
        chains. The ELBO and L_k are never flagged.

        Arguments:
            name: a row of the table, such as ``log_evidence``, ``laplace`` or ``gap``.

        Returns:
            Booleans, ``(N,)``.

        Raises:
            ValueError: if there is no such row.
        """
        self._check_row(name)
        data, row = self.per_datum, self._rows[name].name
        if row == "log_evidence":
            flagged = np.zeros(len(self), dtype=bool)
            flagged[self.unreliable] = True
            return flagged
        if f"{row}_dof" in data and f"{row}_khat" in data:
            return ~are_chains_good(data, row)
        if row in ("psis", "jackknife"):
            prefix = "guide_" if "proposal" in data else ""
            khat, counts = data[f"{prefix}khat_pooled"], self.guide_sample_counts
        elif f"{row}_khat_pooled" in data:
            khat, counts = data[f"{row}_khat_pooled"], data[f"{row}_num_samples"]
        else:
            return np.zeros(len(self), dtype=bool)
        return ~(khat < khat_thresholds(counts))

    @property
    def warning(self) -> str | None:
        """A warning if some estimates are unreliable, else ``None``."""
        if not len(self.unreliable):
            return None
        khat, chains = self._tail_index, self._has_bad_chains
        is_unknown = np.isnan(khat) & ~self._annealed
        if is_unknown.all() and self.sample_counts.max() < MIN_SAMPLES:
            return (
                f"k̂ needs at least {MIN_SAMPLES} samples, but there are {self.num_samples}: the "
                f"reliability of log p̂ is unknown; it is a lower bound in expectation."
            )
        rare = self.per_datum.get("rare_variance", np.zeros(len(self))) > MAX_RARE_VARIANCE
        is_heavy = ~is_unknown & ~rare & ~self._annealed
        is_heavy &= ~(khat < self.khat_thresholds)
        thresholds = self.khat_thresholds[~self._annealed]
        low, high = (thresholds.min(), thresholds.max()) if len(thresholds) else (0.7, 0.7)
        excess = (
            f"k̂ > {high:.2g}" if low == high else f"k̂ above its threshold ({low:.2g}–{high:.2g})"
        )
        samples = f"{'up to ' * ('num_samples' in self.per_datum)}{self.num_samples} samples"
        if self.proposals:
            samples = "from the last rung of the ladder"
        reasons = {
            f"{excess} for {{}}: the importance weights are too heavy-tailed for log p̂ "
            f"({samples}) or its standard error to be reliable.": is_heavy,
            f"q hardly ever draws a value of a discrete latent that matters for p(x), for {{}}: "
            f"log p̂ ({samples}) may leave it out. Its standard error includes it.": rare,
            "k̂ is unknown for {}: all large weights are equal, but values of a discrete latent "
            "that were not drawn may have larger ones.": is_unknown & ~rare,
            f"AIS is not good for {{}}: the standard error is above "
            f"{self.settings.get('ladder', {}).get('max_error', math.nan):g} nats, or few chains "
            f"have most of the weight.": chains,
        }
        sentences = [
            reason.format(f"{rows.sum()} of {len(self)} examples")
            for reason, rows in reasons.items()
            if rows.any()
        ]
        remedies = [
            part.remedy
            for part in registered_parts()
            if part.remedy and any(row.name in self._rows for row in part.rows)
        ]
        remedy = remedies[0] if remedies else "Use more samples or a better guide."
        if chains.any():
            remedy = "Anneal for longer: Ladder(annealing=Annealing(num_temperatures=…))."
        return (
            f"{' '.join(sentences)} The ELBO and L_k remain lower bounds in expectation. "
            f"{remedy.removesuffix('.')} ({see('docs/how-to/read-khat.md')})."
        )

    def interval(
        self, name: str = "log_evidence", level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits of an interval that covers the quantity of each example.

        For estimates of log p(x) this is log p(x), for the ELBO its expectation, and for a gap
        the difference of the two. Not reliable where :meth:`flagged`.

        Arguments:
            name: a row of the table, such as ``log_evidence``, ``psis`` or ``gap``.
            level: the probability of covering it.

        Returns:
            The lower and upper limits in nats, ``(N,)`` each.

        Raises:
            ValueError: if there is no such row, or if the level is not between 0 and 1.
        """
        self._check_row(name)
        if not 0 < level < 1:
            raise ValueError(f"expected a level between 0 and 1; got {level}")
        values, variances, bias = self._columns(name)
        dof = self.per_datum.get(f"{name}_dof")
        if dof is not None:
            return student_interval(values, variances, dof, 0.0 if bias is None else bias, level)
        half = NormalDist().inv_cdf(0.5 + level / 2) * np.sqrt(variances)
        return values - half, values + half

    def correction_error(self, name: str = "log_evidence") -> float:
        """Return the standard error, in nats, of the correction of bfloat16 networks in a row.

        Both standard errors of the row include it. It is 0 without a correction.

        Arguments:
            name: a row of the table, such as ``elbo`` or ``log_evidence``.

        Raises:
            ValueError: if there is no such row.
        """
        self._check_row(name)
        shared = self._shared_errors(name)
        if shared is None or not shared.any():
            return 0.0
        rescored = self.per_datum["rescored"]
        return float(shared.max()) * math.sqrt(1 - float(rescored.mean()))

    @property
    def plateau(self) -> int | None:
        """The smallest k whose L_k is within the Monte Carlo noise of log p̂.

        The noise is twice the standard error of log p̂. ``None`` if no k < K qualifies, or if
        most k̂ are bad or missing, so that the noise is unknown.
        """
        if "khat" not in self.per_datum or 2 * len(self.unreliable) > len(self):
            return None
        evidence = self._estimate("log_evidence")
        for k, bound in self.iwae.items():
            if k < self.num_samples and evidence.value - bound <= 2 * evidence.se_monte_carlo:
                return k
        return None

    def merge(self, other: Bounds) -> Bounds:
        """Return the columns of two bounds on the same examples.

        ``num_samples``, ``seed`` and raw weights come from the one with importance sampling;
        from this one if both or neither have it.

        Raises:
            ValueError: if the numbers of examples differ, or if a common column has different
                values.
        """
        if len(self) != len(other):
            raise ValueError(
                f"expected bounds on the same examples; got {len(self)} and {len(other)} examples: "
                f"evaluate both on the same split"
            )
        sampled = [b for b in (self, other) if "log_evidence" in b.per_datum or b.iwae_per_datum]
        first = sampled[0] if sampled else self
        raw = other.log_weights if self.log_weights is None else self.log_weights
        return replace(
            first,
            per_datum=_merge_columns(self.per_datum, other.per_datum),
            iwae_per_datum=_merge_columns(self.iwae_per_datum, other.iwae_per_datum),
            iwae_variance=_merge_columns(self.iwae_variance, other.iwae_variance),
            log_weights=raw,
            seed=other.seed if first.seed is None else first.seed,
            settings={**other.settings, **self.settings},
        )

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the table for JSON; non-finite ones become null."""
        values: dict[str, Any] = {
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "units": "nats per datum",
            "estimates": {name: row.summary() for name, row in self.estimates.items()},
        }
        for part in registered_parts():
            values |= part.summarize(self)
        return values | ({"settings": self.settings} if self.settings else {})

    def make_table(self, ks: Sequence[int] | None = None) -> Table:
        """Return the estimates as a table.

        Arguments:
            ks: the L_k to show; all by default. The largest is always shown.
        """
        last = max(self.iwae_per_datum, default=0)
        hidden = {
            f"iwae_{k}" for k in self.iwae_per_datum if ks is not None and k not in ks and k != last
        }
        return Table(
            [
                Row(label, [self._estimate(name)], role, name in ("elbo", "log_evidence"))
                for name, (label, role) in self.labels.items()
                if name not in hidden
            ]
        )

    def table(self, ks: Sequence[int] | None = None) -> str:
        """Return the estimates as a text table, followed by the diagnostics.

        Arguments:
            ks: the L_k to show; :attr:`shown_ks` by default. The largest is always shown.
        """
        return "\n".join(map(str, self.parts(ks)))

    def parts(self, ks: Sequence[int] | None = None) -> Iterable[str | Table]:
        """Return the head, the table with the L_k of ``ks``, the diagnostics and the warning."""
        unit = next((row.unit for row in _known_rows() if row.name in self.per_datum), "samples")
        is_adaptive = "num_samples" in self.per_datum and "proposal" not in self.per_datum
        bound = "up to " if is_adaptive or "tolerance" in self.settings else ""
        yield (
            f"{len(self)} examples × {bound}{self.num_samples} {unit}; nats per datum, higher is "
            f"better"
        )
        yield self.make_table(self.shown_ks if ks is None else ks)
        yield from filter(None, (part.describe(self) for part in registered_parts()))
        if self.warning:
            yield Caution(self.warning)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return self.table(ks=())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot L_k against k with its errors, or the rows of the table if there is no L_k.

        Arguments:
            ax: Matplotlib axes to draw on; those of a new figure by default.
        """
        return (plot_bound_against_k if self.iwae_per_datum else plot_bounds)(self, ax)

    def to_datatree(self) -> xarray.DataTree:
        """Return the results per example as an ``xarray.DataTree``.

        Group ``bounds`` has ``elbo``, ``iwae`` (k, datum), ``log_evidence``, ``khat``, ``ess``,
        variances, and the columns of other estimators; its attribute ``settings`` is JSON.
        Group ``sample_stats`` has the raw ``log_weight`` (chain, draw, datum), if kept.
        """
        import xarray

        columns: dict[str, Any] = {n: ("datum", v) for n, v in self.per_datum.items()}
        if "proposal" in columns:
            names, codes = self.settings["proposals"], self.per_datum["proposal"]
            flags = {
                "flag_values": np.arange(len(names), dtype=codes.dtype),
                "flag_meanings": " ".join(names),
            }
            columns["proposal"] = ("datum", codes, flags)
        coords: dict[str, Any] = {"datum": np.arange(len(self))}
        if self.iwae_per_datum:
            coords = {"k": list(self.iwae_per_datum), **coords}
            columns["iwae"] = (("k", "datum"), np.stack(list(self.iwae_per_datum.values())))
            variances = [self.iwae_variance[k] for k in self.iwae_per_datum]
            columns["iwae_variance"] = (("k", "datum"), np.stack(variances))
        attributes: dict[str, Any] = {"num_samples": self.num_samples, "units": "nats"}
        if self.seed is not None:
            attributes["seed"] = self.seed
        if self.settings:
            attributes["settings"] = json.dumps(self.settings, ensure_ascii=False)
        if self.shown_ks is not None:
            attributes["shown_ks"] = json.dumps(self.shown_ks)
        groups = {"bounds": xarray.Dataset(columns, coords=coords, attrs=attributes)}
        if self.log_weights is not None:
            raw = {"log_weight": (("chain", "draw", "datum"), self.log_weights[None])}
            groups["sample_stats"] = xarray.Dataset(raw)
        return xarray.DataTree.from_dict(groups)

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Bounds:
        """Return the bounds in a tree made by :meth:`to_datatree`."""
        bounds = tree["bounds"].to_dataset()
        ks = [int(k) for k in bounds["k"]] if "iwae" in bounds else []
        raw = tree["sample_stats/log_weight"].to_numpy()[0] if "sample_stats" in tree else None
        shown = json.loads(bounds.attrs.get("shown_ks", "null"))
        return cls(
            num_samples=int(bounds.attrs["num_samples"]),
            per_datum={str(n): v.to_numpy() for n, v in bounds.items() if v.dims == ("datum",)},
            iwae_per_datum={k: bounds["iwae"].sel(k=k).to_numpy() for k in ks},
            iwae_variance={k: bounds["iwae_variance"].sel(k=k).to_numpy() for k in ks},
            log_weights=raw,
            seed=int(bounds.attrs["seed"]) if "seed" in bounds.attrs else None,
            settings=json.loads(bounds.attrs.get("settings", "{}")),
            shown_ks=None if shown is None else tuple(shown),
        )

    def _is_complete(self, name: str) -> bool:
        """Whether an estimator has a value for every example."""
        data = self.per_datum
        return {name, f"{name}_variance"} <= data.keys() and not np.isnan(data[name]).any()

    def _check_row(self, name: str) -> None:
        if name not in self._rows:
            raise ValueError(
                f"expected the name of a row ({', '.join(self._rows)}); got {name!r}"
                f"{did_you_mean(name, self._rows)}"
            )

    def _estimate(self, name: str) -> Estimate:
        return estimate_mean(*self._columns(name), self._shared_errors(name))

    def _shared_errors(self, name: str) -> np.ndarray | None:
        """Return the standard deviations of the error that the examples of a row share, ``(N,)``.

        ``None`` without a correction.
        """
        corrected = self.settings.get("precision", {}).get("rows", {})
        row = self._rows[name]
        parts = [name]
        if name not in corrected and row.gap is not None and row.gap[0] == name:
            parts = [row.name, row.gap[1]]  # of which one was not sampled from q
        errors = [corrected[part]["shift_se"] for part in parts if part in corrected]
        if not errors:
            return None
        total = math.nan if None in errors else math.hypot(*errors)
        return np.where(self.per_datum["rescored"], 0.0, total)

    def _columns(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return values, mean squared errors and biases (if known) of a row, ``(N,)`` each."""
        data, row = self.per_datum, self._rows[name]
        if row.role == "gap" and row.gap is not None:
            high, low = row.name, row.gap[1]
            with np.errstate(invalid="ignore"):  # the gap of −∞ and −∞ is NaN
                values = data[high] - data[low]
            # estimators with separate samples have independent errors
            independent = data[f"{high}_variance"] + data[f"{low}_variance"]
            bias = data.get(f"{name}_bias", data.get(f"{high}_bias"))
            return values, data.get(f"{name}_variance", independent), bias
        last = f"iwae_{self.num_samples}"
        if (
            name == last
            and "log_evidence" in self._rows
            and not {"num_samples", "proposal"} & {*data}
        ):
            name = "log_evidence"  # one number
        if name.startswith("iwae_"):
            k = int(name.removeprefix("iwae_"))
            return self.iwae_per_datum[k], self.iwae_variance[k], None
        return data[name], data[f"{name}_variance"], data.get(f"{name}_bias")


def _known_rows() -> list[BoundsRow]:
    return [row for part in registered_parts() for row in part.rows]


def _merge_columns(
    first: dict[_Key, np.ndarray], second: dict[_Key, np.ndarray]
) -> dict[_Key, np.ndarray]:
    for key in first.keys() & second.keys():
        if not np.array_equal(first[key], second[key], equal_nan=True):
            raise ValueError(
                f"expected bounds whose common columns agree; got different values of {key!r}: "
                f"drop the column from one of them"
            )
    return {**first, **second}


def _describe_weights(bounds: Bounds) -> str | None:
    if not {"khat", "ess"} <= bounds.per_datum.keys():
        return None
    khat, ess = bounds.per_datum["khat"], bounds.per_datum["ess"]
    if not bounds.proposals:
        return _format_weights(khat, ess)
    guide = _format_weights(bounds.per_datum["guide_khat"], bounds.per_datum["guide_ess"])
    is_sampled = ~np.isnan(ess)
    if not is_sampled.any():
        return f"L_k: {guide}"
    return f"L_k: {guide}\nlog p̂: {_format_weights(khat[is_sampled], ess[is_sampled])}"


def _format_weights(khat: np.ndarray, ess: np.ndarray) -> str:
    return (
        f"k̂ median {np.median(khat):.2f}, worst {khat.max():.2f}; "
        f"ESS median {np.median(ess):.1f}, worst {ess.min():.1f}"
    )


def _summarize_weights(bounds: Bounds) -> dict[str, Any]:
    data, values = bounds.per_datum, {}
    if "khat" in data:
        threshold = finite_or_none(khat_threshold(bounds.num_samples))
        values |= {"khat": median_and_worst(data["khat"]), "khat_threshold": threshold}
        values["unreliable"] = len(bounds.unreliable)
    if "ess" in data:
        values["ess"] = median_and_worst(data["ess"], lowest=True)
    return values


register(
    TablePart(
        order=0,
        rows=(
            BoundsRow("elbo", "ELBO", "lower bound"),
            BoundsRow("log_evidence", "log p̂", "lower bound", gap=("gap", "elbo")),
        ),
        describe=_describe_weights,
        summarize=_summarize_weights,
    )
)
