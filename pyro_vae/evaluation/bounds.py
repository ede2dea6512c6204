"""Bounds on log p(x) and estimates of it, per example, with errors and diagnostics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..core import files
from .estimates import Estimate, estimate_mean, finite_or_none
from .importance.defensive import count_prior_samples
from .importance.psis import khat_threshold, khat_thresholds

if TYPE_CHECKING:
    import xarray

__all__ = ["DEFAULT_KS", "Bounds"]

_Key = TypeVar("_Key", str, int)

#: Values of k reported by default, as is common in papers.
DEFAULT_KS = (5, 50, 500, 5000)

_LOWER, _ESTIMATE, _UPPER, _GAP = "lower bound", "estimate", "upper bound", "gap"

#: Label and role of each row of the table. The rows L_k follow the ELBO.
_ROWS = {
    "elbo": ("ELBO", _LOWER),
    "psis": ("log p̂ PSIS", _ESTIMATE),
    "jackknife": ("log p̂ JVI", _ESTIMATE),
    "defensive": ("log p̂ defensive", _LOWER),
    "log_evidence": ("log p̂", _ESTIMATE),
    "refitted": ("ELBO refitted", _LOWER),
    "richer": ("ELBO richer q", _LOWER),
    "ais": ("AIS", _LOWER),
    "escalated": ("log p̂ or AIS", _ESTIMATE),
    "reciprocal": ("reciprocal", _ESTIMATE),
    "upper": ("BDMC", _UPPER),
}

#: Rows that are the difference of two others: shown if both are available.
_GAPS = {
    "gap": ("log_evidence", "elbo"),
    "ais_gap": ("ais", "elbo"),
    "bdmc_gap": ("upper", "ais"),
}


@dataclass(frozen=True)
class Bounds:
    """Bounds on log p(x) and estimates of it, per example.

    All values are in nats per datum; higher is better. The ELBO and every L_k are lower
    bounds on log p(x) in expectation. log p̂ is L_K, the tightest of them, read as an estimate
    with a downward bias. Other estimators add columns.

    Each row of the table is a column NAME with its Monte Carlo variance in NAME_variance. A
    column with NaN, for examples that an estimator skipped, has no row. Columns:

    ========================  ==========================================================
    ``elbo``                  evidence lower bound
    ``psis``, ``jackknife``   log p̂ from smoothed weights; log p̂ with its bias corrected
    ``defensive``             log p̂ with a mixture of q and the prior as proposal
    ``log_evidence``          log p̂ = L_K
    ``refitted``, ``richer``  ELBO with q refitted per example; with a richer family
    ``ais``                   annealed importance sampling
    ``escalated``             AIS where k̂ is bad, log p̂ elsewhere
    ``reciprocal``            reciprocal importance sampling from posterior samples
    ``upper``                 reverse annealing from exact posterior samples
    ========================  ==========================================================

    Attributes:
        num_samples: the number K of samples per example; the maximum if it varies.
        per_datum: arrays of length N: the available columns of those above, their variances,
            ``gap_variance``, and diagnostics such as ``khat``, ``ess`` and ``acceptance``.
        iwae_per_datum: L_k of each example, ``(N,)``, by k.
        iwae_variance: their Monte Carlo variances, ``(N,)``, by k.
        log_weights: the raw log weights ``(K, N)``, if kept.
        seed: the random seed.
        settings: the settings of the estimators, as JSON-serialisable values.
    """

    num_samples: int
    per_datum: dict[str, np.ndarray]
    iwae_per_datum: dict[int, np.ndarray] = field(default_factory=dict)
    iwae_variance: dict[int, np.ndarray] = field(default_factory=dict)
    log_weights: np.ndarray | None = None
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

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
        """log p̂(x), nats per datum; it has a downward bias of order 1/K."""
        return self.estimates["log_evidence"].value

    @property
    def gap(self) -> float:
        """log p̂ − ELBO, nats per datum: approximately E_x KL(q(z|x) ‖ p(z|x))."""
        return self.estimates["gap"].value

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Mean and standard errors by row: ``elbo``, ``iwae_5``, …, ``log_evidence``, ``gap``."""
        return {name: self._estimate(name) for name in self.labels}

    @property
    def labels(self) -> dict[str, tuple[str, str]]:
        """Label and role (lower bound, estimate, …) of each of :attr:`estimates`."""
        bounds = {f"iwae_{k}": (f"L_{k}", _LOWER) for k in self.iwae_per_datum}
        rows = {name: row for name, row in _ROWS.items() if self._is_complete(name)}
        first = {name: rows.pop(name) for name in ("elbo",) if name in rows}
        gaps = {
            name: (f"{rows[high][0]} − {(first | rows)[low][0]}", _GAP)
            for name, (high, low) in _GAPS.items()
            if high in rows and low in first | rows
        }
        return first | bounds | rows | gaps

    @property
    def sample_counts(self) -> np.ndarray:
        """The number of samples of each example, ``(N,)``."""
        return self.per_datum.get("num_samples", np.full(len(self), self.num_samples))

    @property
    def khat_thresholds(self) -> np.ndarray:
        """The k̂ of each example above which log p̂ is unreliable, ``(N,)``."""
        return khat_thresholds(self.sample_counts)

    @property
    def unreliable(self) -> np.ndarray:
        """Indices of the examples whose k̂ is too high for log p̂ to be reliable.

        Empty if there is no k̂ because no importance sampling was done.
        """
        if "khat" not in self.per_datum:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(~(self.per_datum["khat"] < self.khat_thresholds))

    @property
    def warning(self) -> str | None:
        """A warning if some estimates are unreliable, else ``None``."""
        count = len(self.unreliable)
        if not count:
            return None
        if np.isnan(self.per_datum["khat"]).all():
            return (
                f"k̂ needs at least 25 samples, but there are {self.num_samples}: the reliability "
                f"of log p̂ is unknown; it is a lower bound in expectation."
            )
        low, high = self.khat_thresholds.min(), self.khat_thresholds.max()
        excess = (
            f"k̂ > {high:.2g}" if low == high else f"k̂ above its threshold ({low:.2g}–{high:.2g})"
        )
        samples = f"{'up to ' * ('num_samples' in self.per_datum)}{self.num_samples} samples"
        remedy = "Use more samples or a better guide."
        if "escalated" in self.labels or "ais" in self.labels:
            remedy = "AIS does not use these weights."
        return (
            f"{excess} for {count} of {len(self)} examples: the importance weights are too "
            f"heavy-tailed for log p̂ ({samples}) or its standard error to be reliable. The ELBO "
            f"and L_k remain lower bounds in expectation. {remedy}"
        )

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
        columns = _merge_columns(self.per_datum, other.per_datum)
        sampled = [b for b in (self, other) if "log_evidence" in b.per_datum or b.iwae_per_datum]
        first = sampled[0] if sampled else self
        raw = other.log_weights if self.log_weights is None else self.log_weights
        return Bounds(
            num_samples=first.num_samples,
            per_datum=columns,
            iwae_per_datum=_merge_columns(self.iwae_per_datum, other.iwae_per_datum),
            iwae_variance=_merge_columns(self.iwae_variance, other.iwae_variance),
            log_weights=raw,
            seed=other.seed if first.seed is None else first.seed,
            settings={**other.settings, **self.settings},
        )

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the table for JSON; non-finite ones become null."""
        data = self.per_datum
        values: dict[str, Any] = {
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "units": "nats per datum",
            "estimates": {name: row.summary() for name, row in self.estimates.items()},
        }
        if "khat" in data:
            threshold = finite_or_none(khat_threshold(self.num_samples))
            values |= {"khat": _median_and_worst(data["khat"]), "khat_threshold": threshold}
            values |= {"unreliable": len(self.unreliable)}
        if "ess" in data:
            values["ess"] = _median_and_worst(data["ess"], lowest=True)
        if "defensive_khat" in data:
            values["defensive_khat"] = _median_and_worst(data["defensive_khat"])
        if "ais_ess" in data:
            values["ais_ess"] = _median_and_worst(data["ais_ess"], lowest=True)
        if "acceptance" in data:
            values["acceptance"] = _median_and_worst(data["acceptance"], lowest=True)
        if "escalated" in data:
            values["escalated"] = len(self.unreliable)
        return values | ({"settings": self.settings} if self.settings else {})

    def table(self, ks: Sequence[int] | None = None) -> str:
        """Return the estimates as a text table.

        Arguments:
            ks: the L_k to show; all by default.
        """
        return _format_bounds(self, ks)

    def __str__(self) -> str:
        return self.table()

    def to_datatree(self) -> xarray.DataTree:
        """Return the results per example as an ``xarray.DataTree``.

        Group ``bounds`` has ``elbo``, ``iwae`` (k, datum), ``log_evidence``, ``khat``, ``ess``,
        variances, and the columns of other estimators; its attribute ``settings`` is JSON.
        Group ``sample_stats`` has the raw ``log_weight`` (chain, draw, datum), if kept.
        """
        import xarray

        columns: dict[str, Any] = {n: ("datum", v) for n, v in self.per_datum.items()}
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
        groups = {"bounds": xarray.Dataset(columns, coords=coords, attrs=attributes)}
        if self.log_weights is not None:
            raw = {"log_weight": (("chain", "draw", "datum"), self.log_weights[None])}
            groups["sample_stats"] = xarray.Dataset(raw)
        return xarray.DataTree.from_dict(groups)

    def to_netcdf(self, path: str | Path) -> None:
        """Write :meth:`to_datatree` atomically to a NetCDF file, which ArviZ can read."""
        tree = self.to_datatree()
        files.atomic_write(Path(path), lambda file: tree.to_netcdf(file, engine="h5netcdf"))

    @classmethod
    def from_netcdf(cls, path: str | Path) -> Bounds:
        """Read a file written by :meth:`to_netcdf`.

        Raises:
            ValueError: if the file is not in this format.
        """
        import xarray

        try:
            with xarray.open_datatree(path, engine="h5netcdf") as tree:
                tree.load()
            return cls.from_datatree(tree)
        except FileNotFoundError:
            raise
        except (OSError, KeyError, IndexError, json.JSONDecodeError) as error:
            raise ValueError(
                f"expected {path} to contain bounds saved by pyro_vae; {error}"
            ) from error

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Bounds:
        """Return the bounds in a tree made by :meth:`to_datatree`."""
        bounds = tree["bounds"].to_dataset()
        ks = [int(k) for k in bounds["k"]] if "iwae" in bounds else []
        raw = tree["sample_stats/log_weight"].to_numpy()[0] if "sample_stats" in tree else None
        return cls(
            num_samples=int(bounds.attrs["num_samples"]),
            per_datum={str(n): v.to_numpy() for n, v in bounds.items() if v.dims == ("datum",)},
            iwae_per_datum={k: bounds["iwae"].sel(k=k).to_numpy() for k in ks},
            iwae_variance={k: bounds["iwae_variance"].sel(k=k).to_numpy() for k in ks},
            log_weights=raw,
            seed=int(bounds.attrs["seed"]) if "seed" in bounds.attrs else None,
            settings=json.loads(bounds.attrs.get("settings", "{}")),
        )

    def _is_complete(self, name: str) -> bool:
        """Whether an estimator has a value for every example."""
        data = self.per_datum
        exists = name in data and f"{name}_variance" in data
        return exists and not np.isnan(data[name]).any()

    def _estimate(self, name: str) -> Estimate:
        data = self.per_datum
        if name in _GAPS:
            high, low = _GAPS[name]
            with np.errstate(invalid="ignore"):  # the gap of −∞ and −∞ is NaN
                values = data[high] - data[low]
            # estimators with separate samples have independent errors
            independent = data[f"{high}_variance"] + data[f"{low}_variance"]
            return estimate_mean(values, data.get(f"{name}_variance", independent))
        if name.startswith("iwae_"):
            k = int(name.removeprefix("iwae_"))
            return estimate_mean(self.iwae_per_datum[k], self.iwae_variance[k])
        return estimate_mean(data[name], data[f"{name}_variance"])


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


def _median_and_worst(values: np.ndarray, lowest: bool = False) -> dict[str, float | None]:
    """Return the median and the maximum (minimum if ``lowest``), ignoring NaN."""
    known = values if np.isnan(values).all() else values[~np.isnan(values)]
    return {
        "median": finite_or_none(np.median(known)),
        "worst": finite_or_none(known.min() if lowest else known.max()),
    }


_HAT = "\N{COMBINING CIRCUMFLEX ACCENT}"


def _format_bounds(bounds: Bounds, ks: Sequence[int] | None = None) -> str:
    """Return one row per estimate, followed by the diagnostics.

    Arguments:
        bounds: the bounds.
        ks: the L_k to show; all by default. The largest is always shown.
    """
    last = max(bounds.iwae_per_datum, default=0)
    hidden = {
        f"iwae_{k}" for k in bounds.iwae_per_datum if ks is not None and k not in ks and k != last
    }
    labels = {name: row for name, row in bounds.labels.items() if name not in hidden}
    width = max([14, *(2 + len(label) - label.count(_HAT) for label, _ in labels.values())])
    lines = [_format_head(bounds), f"{'':{width}}{'mean':>11}{'± data':>10}{'± MC':>10}"]
    estimates = bounds.estimates
    for name, (label, role) in labels.items():
        row = estimates[name]
        numbers = f"{row.value:11.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"
        # the combining circumflex of p̂ has no width
        lines.append(f"{label:{width + label.count(_HAT)}}{numbers}  {role}")
    return "\n".join([*lines, *_format_diagnostics(bounds)])


def _format_head(bounds: Bounds) -> str:
    size = f"{bounds.num_samples} samples"
    if "num_samples" in bounds.per_datum:
        size = f"up to {size}"
    elif "annealing" in bounds.settings and not {"elbo", "log_evidence"} & bounds.per_datum.keys():
        size = f"{bounds.settings['annealing']['num_chains']} chains"
    return f"{len(bounds)} examples × {size}; nats per datum, higher is better"


def _format_diagnostics(bounds: Bounds) -> list[str]:
    data, lines = bounds.per_datum, []
    if {"khat", "ess"} <= data.keys():
        khat, ess = data["khat"], data["ess"]
        lines.append(
            f"k̂ median {np.median(khat):.2f}, worst {khat.max():.2f}; "
            f"ESS median {np.median(ess):.1f}, worst {ess.min():.1f}"
        )
    if "tolerance" in bounds.settings:
        lines.append(_format_tolerance(bounds))
    if "defensive_khat" in data:
        lines.append(_format_defensive(bounds))
    if "precision" in bounds.settings:
        lines.append(_format_precision(bounds))
    if "ais_ess" in data or "escalated" in data:
        lines.append(_format_ais(bounds))
    return [*lines, *([bounds.warning] if bounds.warning else [])]


def _format_tolerance(bounds: Bounds) -> str:
    tolerance, counts = bounds.settings["tolerance"], bounds.per_datum["num_samples"]
    errors = np.sqrt(bounds.per_datum["log_evidence_variance"])
    above = int((~(errors <= tolerance)).sum())
    low, high = counts.min(), counts.max()
    samples = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"{samples} samples per example, {bounds.settings['total_draws']} in total including "
        f"pilots; standard error of log p̂ above {tolerance:g} for {above} of {len(bounds)} examples"
    )


def _format_defensive(bounds: Bounds) -> str:
    share, khat = bounds.settings["defensive"], bounds.per_datum["defensive_khat"]
    counts = bounds.sample_counts
    counts = counts + np.array([count_prior_samples(share, int(n)) for n in counts])
    above = int((~(khat < khat_thresholds(counts))).sum())
    return (
        f"defensive mixture with {share:.1%} of samples from the prior: k̂ median "
        f"{np.median(khat):.2f}, worst {khat.max():.2f}, above its threshold for {above} of "
        f"{len(bounds)} examples"
    )


def _format_precision(bounds: Bounds) -> str:
    change = bounds.settings["precision"]
    k = change["num_samples"]
    changes = ", ".join(
        f"{label} by {change[name]:+.4f} ± {change.get(f'{name}_se', np.nan):.4f}"
        for name, label in (("elbo", "the ELBO"), ("iwae", f"L_{k}"))
    )
    return (
        f"network layers in {change['name']} change {changes} nats per datum "
        f"(same {k} samples for {change['num_data']} examples)"
    )


def _format_ais(bounds: Bounds) -> str:
    data, parts = bounds.per_datum, ["AIS"]
    if "escalated" in data:
        parts[0] = f"AIS used for {(~np.isnan(data['ais'])).sum()} of {len(bounds)} examples"
    if "annealing" in bounds.settings:
        parts[0] += f", {bounds.settings['annealing']['num_chains']} chains each"
    for name, label in (("ais_ess", "ESS"), ("acceptance", "acceptance")):
        values = data.get(name, np.empty(0))
        values = values[~np.isnan(values)]
        if len(values):
            parts.append(f"{label} median {np.median(values):.2f}, worst {values.min():.2f}")
    return "; ".join(parts)
