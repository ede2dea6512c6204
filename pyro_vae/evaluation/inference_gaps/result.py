"""``Gaps``: log p̂ − ELBO taken apart, with errors, and read in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core import files
from ..bounds import Bounds
from ..estimates import Estimate, estimate, finite

if TYPE_CHECKING:
    import xarray

__all__ = ["PROPOSALS", "Gaps", "highest"]

#: Whose draws importance sampling may use: the encoder's q, the refitted one, a richer one.
PROPOSALS = ("elbo", "refitted", "richer")
#: So many standard errors apart two means are told from each other: those that heavy-tailed
#: weights state of themselves are too small.
_ERRORS = 5


@dataclass(frozen=True)
class Gaps:
    """log p̂ − ELBO of some data, as the sum of approximation and amortisation gap.

    Attributes:
        bounds: by datum, the rows ``elbo``, ``refitted``, ``richer``, ``log_evidence`` (L_K from
            the best of these three q) and ``ais``. Columns ``…_late`` are what the last tenth
            of the steps gained, ``…_better`` whether a refit was better than its start.
        train: ``elbo``, ``refitted`` and ``log_evidence`` of training data.
    """

    bounds: Bounds
    train: Bounds | None = None

    def __len__(self) -> int:
        return len(self.bounds)

    def __str__(self) -> str:
        return _text(self)

    @property
    def family(self) -> str:
        """The name of the family that was refitted."""
        return self.bounds.settings["gaps"]["family"]

    @property
    def richer(self) -> str | None:
        """The name of the richer family, if there is one."""
        return self.bounds.settings["gaps"]["richer"]

    @property
    def ruler(self) -> str:
        """Which row is taken for log p̂: ``ais`` or ``log_evidence``, the :func:`highest`."""
        data = self.bounds.per_datum
        rows = [name for name in ("log_evidence", "ais") if name in data]
        return highest({name: (data[name], data[f"{name}_variance"]) for name in rows})

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The differences, in nats per datum, with paired standard errors over the data.

        * ``approximation``: log p̂ − refitted;
        * ``amortisation``: refitted − ELBO;
        * ``total``: log p̂ − ELBO;
        * ``closed``: richer − refitted, and ``remaining``: log p̂ − richer;
        * ``train_amortisation``, and ``generalisation``: amortisation less that.
        """
        rows = {
            "approximation": self._less(self.ruler, "refitted"),
            "amortisation": self._less("refitted", "elbo"),
            "total": self._less(self.ruler, "elbo"),
        }
        if self.richer is not None:
            rows["closed"] = self._less("richer", "refitted")
            rows["remaining"] = self._less(self.ruler, "richer")
        if self.train is not None:
            there = rows["train_amortisation"] = Gaps(self.train)._less("refitted", "elbo")
            here = rows["amortisation"]
            rows["generalisation"] = Estimate(
                here.value - there.value,
                math.hypot(here.se_data, there.se_data),
                math.hypot(here.se_monte_carlo, there.se_monte_carlo),
            )
        return rows

    @property
    def share(self) -> Estimate:
        """What share of the gap is amortisation: the ratio of the two means."""
        data = self.bounds.per_datum
        part, whole = data["refitted"] - data["elbo"], data[self.ruler] - data["elbo"]
        total = whole.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            share = part.mean() / total
            # of refitted − (1 − share) ELBO − share log p̂, the delta method's numerator
            noise = (
                data["refitted_variance"]
                + (1 - share) ** 2 * data["elbo_variance"]
                + share**2 * data[f"{self.ruler}_variance"]
            )
            rest = estimate(part - share * whole, noise)
            return Estimate(
                float(share),
                float(np.divide(rest.se_data, abs(total))),
                float(np.divide(rest.se_monte_carlo, abs(total))),
            )

    @property
    def reading(self) -> str:
        """What the numbers, as far as their errors let them, say in a sentence."""
        return _reading(self)

    def _less(self, high: str, low: str) -> Estimate:
        """The mean of one row less another."""
        data = self.bounds.per_datum
        apart = data[f"{high}_variance"] + data[f"{low}_variance"]
        if high == "log_evidence" and low == self.bounds.settings["gaps"]["proposal"]:
            apart = data[f"{low}_rise_variance"]  # of the same draws
        with np.errstate(invalid="ignore"):  # a datum without density has no gap
            return estimate(data[high] - data[low], apart)

    def summary(self) -> dict[str, Any]:
        """The figures of the table as plain numbers, for JSON. Non-finite ones become null."""
        data, told = self.bounds.per_datum, self.bounds.summary()
        rows = {"share": self.share, **self.estimates}
        late = [name for name in ("refitted", "richer") if f"{name}_late" in data]
        return {
            **told,
            "family": self.family,
            "richer": self.richer,
            "ruler": self.ruler,
            "gaps": {name: row.summary() for name, row in rows.items()},
            "late": {name: finite(data[f"{name}_late"].mean()) for name in late},
            "better": {name: int(data[f"{name}_better"].sum()) for name in late},
            "train": None if self.train is None else self.train.summary(),
            "reading": self.reading,
        }

    def to_datatree(self) -> xarray.DataTree:
        """The results per datum: group ``bounds``, and ``train/bounds`` for the training data."""
        import xarray

        groups = {"bounds": self.bounds.to_datatree()["bounds"].to_dataset()}
        if self.train is not None:
            groups["train/bounds"] = self.train.to_datatree()["bounds"].to_dataset()
        return xarray.DataTree.from_dict(groups)

    def to_netcdf(self, path: str | Path) -> None:
        """Writes :meth:`to_datatree` to a NetCDF file, whole or not at all.

        :meth:`Bounds.from_netcdf` reads the bounds alone.
        """
        tree = self.to_datatree()
        files.write(Path(path), lambda file: tree.to_netcdf(file, engine="h5netcdf"))

    @classmethod
    def from_netcdf(cls, path: str | Path) -> Gaps:
        """Reads what :meth:`to_netcdf` wrote.

        Raises:
            ValueError: if the file is not one of these.
        """
        import xarray

        bounds = Bounds.from_netcdf(path)
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            there = tree.children.get("train")
            train = None if there is None else Bounds.from_datatree(there.load())
        if "gaps" not in bounds.settings:
            raise ValueError(
                f"expected {path} to hold gaps from pyro_vae; got bounds: read it by Bounds"
            )
        return cls(bounds, train)


def highest(bounds: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """The lower bound of log p(x) with the largest mean over the data.

    Of those that their noise does not tell from it, the one with the least noise: the largest
    of several equally good means would flatter.

    Arguments:
        bounds: by name, the values and their Monte Carlo variances, each ``(N,)``.
    """
    means = {name: float(values.mean()) for name, (values, _) in bounds.items()}
    errors = {n: float(np.sqrt(v.sum()) / len(v)) for n, (_, v) in bounds.items()}
    top = max(means, key=lambda name: means[name])
    level = {
        name: errors[name]
        for name in means
        if means[top] - means[name] <= _ERRORS * math.hypot(errors[name], errors[top])
    }
    return min(level, key=lambda name: level[name]) if level else top


#: So many standard errors from what is to be told from noise.
_NOISE = 2
#: Shares above a half, in words.
_WORDS = {
    0.5: "A little over half",
    0.6: "Three fifths",
    2 / 3: "Two thirds",
    0.7: "Seven tenths",
    0.75: "Three quarters",
    0.8: "Four fifths",
    0.9: "Nine tenths",
    1.0: "Nearly all",
}
_PROPOSALS = {"elbo": "the encoder's q", "refitted": "the refitted q", "richer": "the richer q"}
_WIDE = 30
#: Nats that the last tenth of the steps may gain before it is told.
_SLOW = 0.01
#: The effective share of draws whose weights are nearly equal.
_EVEN = 0.99


def _text(gaps: Gaps) -> str:
    """Bounds, differences and shares, a row each, and below them what they say."""
    bounds, told = gaps.bounds, gaps.bounds.settings["gaps"]
    rows, share = gaps.estimates, gaps.share
    lines = [
        f"{len(gaps)} data × {bounds.num_samples} draws; {gaps.family} refitted by "
        f"{told['num_steps']} steps; nats per datum",
        f"{'':{_WIDE}}{'mean':>11}{'± data':>10}{'± MC':>10}",
    ]
    found = bounds.estimates
    labels = {
        "elbo": "ELBO",
        "refitted": f"refitted {gaps.family}",
        "richer": f"refitted {gaps.richer}",
        "log_evidence": f"L_{bounds.num_samples}, {_PROPOSALS[told['proposal']]}",
        "ais": "AIS",
    }
    for name, label in labels.items():
        if name in found:
            what = ", taken for log p̂" if name == gaps.ruler else ""
            lines.append(_row(label, found[name], f"lower bound{what}"))
    parts = {"approximation": 1 - share.value, "amortisation": share.value}
    for name, part in parts.items():
        error = "" if math.isnan(share.se_data) else f" ± {share.se_data:.0%}"
        lines.append(_row(f"{name} gap", rows[name], f"{part:.0%}{error} of log p̂ − ELBO"))
    lines.append(_row("log p̂ − ELBO", rows["total"], "gap"))
    if "closed" in rows:
        lines.append(_row(f"left by {gaps.richer}", rows["remaining"], "gap"))
    if "generalisation" in rows:
        lines.append(_row("amortisation gap, train", rows["train_amortisation"], "gap"))
        lines.append(_row("encoder's generalisation", rows["generalisation"], "test − train"))
    return "\n".join([*lines, _found(gaps), *_doubts(gaps), gaps.reading])


def _row(label: str, row: Estimate, role: str) -> str:
    wide = _WIDE + label.count("\N{COMBINING CIRCUMFLEX ACCENT}")  # it takes no room of its own
    numbers = f"{row.value:11.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"
    return f"{label:{wide}}{numbers}  {role}"


def _found(gaps: Gaps) -> str:
    """How the refits ended."""
    data, told = gaps.bounds.per_datum, []
    for name, family in (("refitted", gaps.family), ("richer", gaps.richer)):
        if f"{name}_late" in data:
            gain, better = data[f"{name}_late"].mean(), int(data[f"{name}_better"].sum())
            told.append(f"{family} {gain:+.3f}, better than its start for {better} of {len(gaps)}")
    return f"the last tenth of the steps gained: {'; '.join(told)}"


def _doubts(gaps: Gaps) -> list[str]:
    bounds, doubts = gaps.bounds, []
    # of weights that are nearly equal the tail is of no weight
    bad = bounds.per_datum["ess"][bounds.unreliable] < _EVEN * bounds.num_samples
    if gaps.ruler == "log_evidence" and bad.any():
        tell = "AIS does not rest on it" if "ais" in bounds.estimates else "annealing would tell"
        doubts.append(
            f"For {bad.sum()} of {len(gaps)} data k̂ is bad: there log p̂ may fall short of "
            f"log p(x), and the approximation gap with it; {tell}."
        )
    for name, family in (("refitted", gaps.family), ("richer", gaps.richer)):
        late = bounds.per_datum.get(f"{name}_late")
        if late is None:
            continue
        noise = late.std(ddof=1) / len(late) ** 0.5 if len(late) > 1 else 0.0
        if late.mean() > max(_SLOW, _NOISE * noise):
            doubts.append(f"{family} was still gaining when its refit ended: take more steps.")
    return doubts


def _reading(gaps: Gaps) -> str:
    """One sentence of the gap's shares, as far as their errors let them be told."""
    rows, share = gaps.estimates, gaps.share
    total, amortised = rows["total"], rows["amortisation"]
    if not total.value > _NOISE * _error(total):
        return "The gap is too small to be told from noise."
    if amortised.value < -_NOISE * _error(amortised):
        return (
            f"The refitted {gaps.family} is worse than the guide, which it cannot say: nothing is "
            f"known of amortisation; name a family that holds the guide."
        )
    error = _NOISE * _error(share)
    if share.value - error > 0.5:
        return (
            f"{_words(share.value)} of the gap is amortisation: a bigger encoder or "
            f"semi-amortisation would help."
        )
    if share.value + error < 0.5:
        return f"{_words(1 - share.value)} of the gap is approximation: {_remedy(gaps)}."
    return (
        f"Amortisation ({share.value:.0%}) and approximation ({1 - share.value:.0%}) share the "
        f"gap; which is the larger cannot be told from {len(gaps)} data."
    )


def _remedy(gaps: Gaps) -> str:
    rows, help_ = gaps.estimates, "a richer posterior family would help"
    if "closed" not in rows:
        return help_
    closed = rows["closed"]
    if closed.value <= _NOISE * _error(closed):
        return f"{help_}, but {gaps.richer} closes nothing that could be told from noise"
    return f"{help_}; {gaps.richer} closes {closed.value / rows['approximation'].value:.0%} of it"


def _error(row: Estimate) -> float:
    """The error of a mean over other data; of a single datum, that of its draws."""
    return row.se_monte_carlo if np.isnan(row.se_data) else row.se_data


def _words(share: float) -> str:
    return _WORDS[min(_WORDS, key=lambda known: abs(known - share))]
