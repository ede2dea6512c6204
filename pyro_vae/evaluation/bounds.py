"""``Bounds``: what is known of log p(x), datum by datum, with errors and diagnostics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..core import files
from .estimates import Estimate, estimate, finite
from .importance.defensive import draws_of_prior
from .importance.psis import khat_limits, khat_threshold

if TYPE_CHECKING:
    import xarray

__all__ = ["PRINTED", "Bounds"]

_Key = TypeVar("_Key", str, int)

#: The L_k that papers print.
PRINTED = (5, 50, 500, 5000)

_LOWER, _ESTIMATE, _UPPER, _GAP = "lower bound", "estimate", "upper bound", "gap"

#: What a row of the table is called, and what it is to log p(x). L_k come after the ELBO.
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

#: Rows that are the difference of two others, if both are there.
_GAPS = {
    "gap": ("log_evidence", "elbo"),
    "ais_gap": ("ais", "elbo"),
    "bdmc_gap": ("upper", "ais"),
}


@dataclass(frozen=True)
class Bounds:
    """What several rulers say of log p(x), datum by datum.

    All values are in nats per datum; higher is better. The ELBO and every L_k are lower
    bounds of log p(x) in expectation; log p̂ is L_K, the tightest of them, read as an estimate
    whose bias is downwards. Other rulers add columns of their own.

    A row of the table is a column NAME with its Monte Carlo variance in NAME_variance; NaN
    where a datum was not judged by that ruler, and then there is no row. By name:

    ========================  ==========================================================
    ``elbo``                  the evidence lower bound
    ``psis``, ``jackknife``   log p̂ of smoothed weights, and with its bias corrected
    ``defensive``             log p̂ by a mixture of q and the prior
    ``log_evidence``          log p̂ = L_K
    ``refitted``, ``richer``  the ELBO of q refitted to each datum, of a richer family
    ``ais``                   annealed importance sampling
    ``escalated``             AIS where k̂ is bad, log p̂ elsewhere
    ``reciprocal``            the estimator of posterior draws and a fitted density
    ``upper``                 reverse annealing from exact posterior draws
    ========================  ==========================================================

    Attributes:
        num_samples: the number K of draws for each datum, the most where it was chosen datum
            by datum.
        per_datum: arrays of length N: those named above that there are, their variances,
            ``gap_variance``, and diagnostics such as ``khat``, ``ess`` and ``acceptance``.
        iwae_per_datum: L_k of each datum, ``(N,)``, by k.
        iwae_variance: their Monte Carlo variances, ``(N,)``, by k.
        log_weights: the raw log weights ``(K, N)``, if they were kept.
        seed: the seed of the draws.
        settings: how the rulers were set, as plain values for JSON.
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
        """log p̂(x), nats per datum: an estimate whose bias, of order 1/K, is downwards."""
        return self.estimates["log_evidence"].value

    @property
    def gap(self) -> float:
        """log p̂ − ELBO, nats per datum: about E_x KL(q(z|x) ‖ p(z|x))."""
        return self.estimates["gap"].value

    @property
    def estimates(self) -> dict[str, Estimate]:
        """``elbo``, ``iwae_5`` …, ``log_evidence``, ``gap`` and others with their errors."""
        return {name: self._estimate(name) for name in self.labels}

    @property
    def labels(self) -> dict[str, tuple[str, str]]:
        """What a table calls each of :attr:`estimates`, and what it is to log p(x)."""
        bounds = {f"iwae_{k}": (f"L_{k}", _LOWER) for k in self.iwae_per_datum}
        names = {name: told for name, told in _ROWS.items() if self._complete(name)}
        first = {name: names.pop(name) for name in ("elbo",) if name in names}
        gaps = {
            name: (f"{names[high][0]} − {(first | names)[low][0]}", _GAP)
            for name, (high, low) in _GAPS.items()
            if high in names and low in first | names
        }
        return first | bounds | names | gaps

    @property
    def draws(self) -> np.ndarray:
        """The number of draws of each datum, ``(N,)``."""
        return self.per_datum.get("num_samples", np.full(len(self), self.num_samples))

    @property
    def khat_limits(self) -> np.ndarray:
        """The k̂ above which log p̂ is not to be trusted, ``(N,)``."""
        return khat_limits(self.draws)

    @property
    def unreliable(self) -> np.ndarray:
        """The indices of the data whose k̂ says that log p̂ is not to be trusted.

        None where there is no k̂ because nothing was sampled by importance.
        """
        if "khat" not in self.per_datum:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(~(self.per_datum["khat"] < self.khat_limits))

    @property
    def warning(self) -> str | None:
        """One plain sentence if some estimates cannot be trusted, else ``None``."""
        count = len(self.unreliable)
        if not count:
            return None
        if np.isnan(self.per_datum["khat"]).all():
            return (
                f"With {self.num_samples} draws there is no k̂ (it needs 25 or more), so nothing is "
                f"known of the weights' tail: log p̂ is a lower bound in expectation, no more."
            )
        low, high = self.khat_limits.min(), self.khat_limits.max()
        limit = f"{high:.2f}" if low == high else f"its limit, {low:.2f} to {high:.2f}"
        draws = f"{self.num_samples} draws" if "num_samples" not in self.per_datum else "its draws"
        remedy = "More draws or a better guide would help."
        if "escalated" in self.labels or "ais" in self.labels:
            remedy = "AIS does not rest on these weights."
        return (
            f"For {count} of {len(self)} data k̂ is above {limit}: there the weights' tail "
            f"is so heavy that log p̂ from {draws}, and its Monte Carlo error, "
            f"cannot be trusted; ELBO and L_k remain lower bounds in expectation. {remedy}"
        )

    @property
    def plateau(self) -> int | None:
        """The smallest k from which L_k rises no further than log p̂ can be told from noise.

        L_k rises for ever, ever less: this is where log p̂ − L_k is at most twice the Monte
        Carlo standard error of log p̂. ``None`` if no k < K is there, or if most k̂ are bad or
        there are none, so that the noise is not known.
        """
        if "khat" not in self.per_datum or 2 * len(self.unreliable) > len(self):
            return None
        evidence = self._estimate("log_evidence")
        for k, bound in self.iwae.items():
            if k < self.num_samples and evidence.value - bound <= 2 * evidence.se_monte_carlo:
                return k
        return None

    def merged(self, other: Bounds) -> Bounds:
        """The columns of two bounds of the same data, side by side.

        What only one of them can say (the number of draws, raw weights) is taken from the one
        that sampled by importance, and from this one if both or neither did.

        Raises:
            ValueError: if they are of different numbers of data, or have a column in common
                whose values differ.
        """
        if len(self) != len(other):
            raise ValueError(
                f"expected bounds of the same data; got {len(self)} data and {len(other)}: "
                f"evaluate both on the same split"
            )
        columns = _joined(self.per_datum, other.per_datum)
        weighed = [b for b in (self, other) if "log_evidence" in b.per_datum or b.iwae_per_datum]
        first = weighed[0] if weighed else self
        raw = other.log_weights if self.log_weights is None else self.log_weights
        return Bounds(
            num_samples=first.num_samples,
            per_datum=columns,
            iwae_per_datum=_joined(self.iwae_per_datum, other.iwae_per_datum),
            iwae_variance=_joined(self.iwae_variance, other.iwae_variance),
            log_weights=raw,
            seed=other.seed if first.seed is None else first.seed,
            settings={**other.settings, **self.settings},
        )

    def summary(self) -> dict[str, Any]:
        """The figures of the table as plain numbers, for JSON. Non-finite ones become null."""
        data = self.per_datum
        told: dict[str, Any] = {
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "units": "nats per datum",
            "estimates": {name: row.summary() for name, row in self.estimates.items()},
        }
        if "khat" in data:
            limit = finite(khat_threshold(self.num_samples))
            told |= {"khat": _worst(data["khat"]), "khat_threshold": limit}
            told |= {"unreliable": len(self.unreliable)}
        if "ess" in data:
            told["ess"] = _worst(data["ess"], lowest=True)
        if "defensive_khat" in data:
            told["defensive_khat"] = _worst(data["defensive_khat"])
        if "ais_ess" in data:
            told["ais_ess"] = _worst(data["ais_ess"], lowest=True)
        if "acceptance" in data:
            told["acceptance"] = _worst(data["acceptance"], lowest=True)
        if "escalated" in data:
            told["escalated"] = len(self.unreliable)
        return told | ({"settings": self.settings} if self.settings else {})

    def table(self, ks: Sequence[int] | None = None) -> str:
        """The estimates as text.

        Arguments:
            ks: the L_k to show; all that there are if not given.
        """
        return _table(self, ks)

    def __str__(self) -> str:
        return self.table()

    def to_datatree(self) -> xarray.DataTree:
        """The results per datum as an ``xarray.DataTree``.

        Group ``bounds`` holds ``elbo``, ``iwae`` (k, datum), ``log_evidence``, ``khat``, ``ess``
        and variances, and the columns of other rulers; its attribute ``settings`` is JSON.
        Group ``sample_stats`` holds the raw ``log_weight`` (chain, draw, datum), if they were
        kept.
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
        """Writes :meth:`to_datatree` to a NetCDF file, whole or not at all; ArviZ reads it."""
        tree = self.to_datatree()
        files.write(Path(path), lambda file: tree.to_netcdf(file, engine="h5netcdf"))

    @classmethod
    def from_netcdf(cls, path: str | Path) -> Bounds:
        """Reads what :meth:`to_netcdf` wrote.

        Raises:
            ValueError: if the file is not one of these.
        """
        import xarray

        try:
            with xarray.open_datatree(path, engine="h5netcdf") as tree:
                tree.load()
            return cls.from_datatree(tree)
        except FileNotFoundError:
            raise
        except (OSError, KeyError, IndexError, json.JSONDecodeError) as error:
            raise ValueError(f"expected {path} to hold bounds from pyro_vae; {error}") from error

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Bounds:
        """Of what :meth:`to_datatree` made."""
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

    def _complete(self, name: str) -> bool:
        """Whether every datum was judged by a ruler."""
        data = self.per_datum
        judged = name in data and f"{name}_variance" in data
        return judged and not np.isnan(data[name]).any()

    def _estimate(self, name: str) -> Estimate:
        data = self.per_datum
        if name in _GAPS:
            high, low = _GAPS[name]
            with np.errstate(invalid="ignore"):  # a datum without density has no gap
                values = data[high] - data[low]
            # rulers with draws of their own have independent errors
            apart = data[f"{high}_variance"] + data[f"{low}_variance"]
            return estimate(values, data.get(f"{name}_variance", apart))
        if name.startswith("iwae_"):
            k = int(name.removeprefix("iwae_"))
            return estimate(self.iwae_per_datum[k], self.iwae_variance[k])
        return estimate(data[name], data[f"{name}_variance"])


def _joined(first: dict[_Key, np.ndarray], other: dict[_Key, np.ndarray]) -> dict[_Key, np.ndarray]:
    for key in first.keys() & other.keys():
        if not np.array_equal(first[key], other[key], equal_nan=True):
            raise ValueError(
                f"expected bounds with columns of their own; got different values of {key!r} in "
                f"both: leave one of them out"
            )
    return {**first, **other}


def _worst(values: np.ndarray, lowest: bool = False) -> dict[str, float | None]:
    """The median and the worst, of the data that have a value."""
    some = values if np.isnan(values).all() else values[~np.isnan(values)]
    return {
        "median": finite(np.median(some)),
        "worst": finite(some.min() if lowest else some.max()),
    }


_HAT = "\N{COMBINING CIRCUMFLEX ACCENT}"


def _table(bounds: Bounds, ks: Sequence[int] | None = None) -> str:
    """The estimates, a row each, and below them how far to trust them.

    Arguments:
        bounds: what to show.
        ks: the L_k to show; all that there are if not given. The largest is always shown.
    """
    last = max(bounds.iwae_per_datum, default=0)
    hidden = {
        f"iwae_{k}" for k in bounds.iwae_per_datum if ks is not None and k not in ks and k != last
    }
    labels = {name: told for name, told in bounds.labels.items() if name not in hidden}
    wide = max([14, *(2 + len(label) - label.count(_HAT) for label, _ in labels.values())])
    lines = [_head(bounds), f"{'':{wide}}{'mean':>11}{'± data':>10}{'± MC':>10}"]
    estimates = bounds.estimates
    for name, (label, role) in labels.items():
        row = estimates[name]
        numbers = f"{row.value:11.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"
        # the circumflex of p̂ takes no room of its own
        lines.append(f"{label:{wide + label.count(_HAT)}}{numbers}  {role}")
    return "\n".join([*lines, *_diagnostics(bounds)])


def _head(bounds: Bounds) -> str:
    what = f"{bounds.num_samples} draws"
    if "num_samples" in bounds.per_datum:
        what = f"at most {what}"
    elif "annealing" in bounds.settings and not {"elbo", "log_evidence"} & bounds.per_datum.keys():
        what = f"{bounds.settings['annealing']['num_chains']} chains"
    return f"{len(bounds)} data × {what}; nats per datum, higher is better"


def _diagnostics(bounds: Bounds) -> list[str]:
    data, lines = bounds.per_datum, []
    if {"khat", "ess"} <= data.keys():
        khat, ess = data["khat"], data["ess"]
        lines.append(
            f"k̂ median {np.median(khat):.2f}, worst {khat.max():.2f}; "
            f"ESS median {np.median(ess):.1f}, worst {ess.min():.1f}"
        )
    if "tolerance" in bounds.settings:
        lines.append(_adaptive_line(bounds))
    if "defensive_khat" in data:
        lines.append(_defensive_line(bounds))
    if "precision" in bounds.settings:
        lines.append(_precision_line(bounds))
    if "ais_ess" in data or "escalated" in data:
        lines.append(_ais_line(bounds))
    return [*lines, *([bounds.warning] if bounds.warning else [])]


def _adaptive_line(bounds: Bounds) -> str:
    tolerance, draws = bounds.settings["tolerance"], bounds.per_datum["num_samples"]
    errors = np.sqrt(bounds.per_datum["log_evidence_variance"])
    short = int((~(errors <= tolerance)).sum())
    low, high = draws.min(), draws.max()
    spread = f"{low} draws for every datum" if low == high else f"{low} to {high} draws for a datum"
    return (
        f"{spread}, {bounds.settings['total_draws']} in all with the pilots that chose how many; "
        f"for {short} of {len(bounds)} data the standard error of log p̂ is above {tolerance:g}"
    )


def _defensive_line(bounds: Bounds) -> str:
    share, khat = bounds.settings["defensive"], bounds.per_datum["defensive_khat"]
    draws = bounds.draws + np.array([draws_of_prior(share, int(n)) for n in bounds.draws])
    above = int((~(khat < khat_limits(draws))).sum())
    return (
        f"with {share:.1%} of draws from the prior: k̂ median {np.median(khat):.2f}, worst "
        f"{khat.max():.2f}, above its limit for {above} of {len(bounds)} data"
    )


def _precision_line(bounds: Bounds) -> str:
    told = bounds.settings["precision"]
    k = told["num_samples"]
    changes = ", ".join(
        f"{label} by {told[name]:+.4f} ± {told.get(f'{name}_se', np.nan):.4f}"
        for name, label in (("elbo", "the ELBO"), ("iwae", f"L_{k}"))
    )
    return (
        f"layers of networks in {told['name']}, which changes {changes} nats per datum "
        f"(the same {k} draws for {told['num_data']} data)"
    )


def _ais_line(bounds: Bounds) -> str:
    data, told = bounds.per_datum, ["AIS"]
    if "escalated" in data:
        told[0] = f"AIS took {(~np.isnan(data['ais'])).sum()} of {len(bounds)} data"
    if "annealing" in bounds.settings:
        told[0] += f", {bounds.settings['annealing']['num_chains']} chains each"
    for name, label in (("ais_ess", "ESS"), ("acceptance", "acceptance")):
        some = data.get(name, np.empty(0))
        some = some[~np.isnan(some)]
        if len(some):
            told.append(f"{label} median {np.median(some):.2f}, worst {some.min():.2f}")
    return "; ".join(told)
