"""Result of the calibration checks: verdicts, tables and files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ...core.validation import did_you_mean
from ..estimates import finite_or_none
from ..importance.psis import khat_threshold
from ..results import Result
from ..tables import TextTable
from .predictive_checks import PREDICTIVES, PredictiveChecks
from .rank_plots import plot_ranks
from .simulated_ranks import POSTERIORS, QUANTITIES, Ranks
from .uniformity import Band, describe_shape, measure_shape

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

__all__ = ["LEVELS", "Calibration", "Coverage"]

#: Nominal levels of the credible regions.
LEVELS = (0.5, 0.8, 0.9, 0.95)
#: Rows of the printed table: with more latents, those that deviate least are left out.
_MAX_ROWS = 24
#: The same for the short `repr()`.
_MAX_REPR_ROWS = 3
#: Labels in tables.
_LABELS = {
    "guide": "guide",
    "resampled": "guide, weighted",
    "laplace": "Laplace, weighted",
    "log_likelihood": "log p(x|z)",
    "log_joint": "log p(x, z)",
    "log_q": "log q(z|x)",
    "tarp": "TARP distance",
    "hpd": "HPD",
    "loo": "left out",
    "posterior": "posterior",
    "zero_fraction": "zero fraction",
}
_UNIFORM = "ok"
_CONSTANT = "constant"
_FEW = "too few samples"
#: Median ESS below which ranks of weighted samples have no verdict.
_MIN_ESS = 20


class Coverage(NamedTuple):
    """Share of simulated latents in credible regions of a nominal level.

    Attributes:
        nominal: the level.
        actual: the share.
        se: its binomial standard error if the region is right.
    """

    nominal: float
    actual: float
    se: float

    @property
    def is_off(self) -> bool:
        """Whether the share differs from the level by more than three standard errors."""
        return abs(self.actual - self.nominal) > 3 * self.se


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """Calibration of posterior approximations and of predictive distributions.

    Attributes:
        posteriors: ranks of simulated latents, by the name of the posterior approximation:
            ``guide``, the guide; ``resampled``, its samples with importance weights;
            ``laplace``, weighted samples of a Laplace approximation.
        predictive: statistics of held-out data, with their ranks among replicates; ``None``
            without held-out data.
        bands: the band for each of the ranks of ``posteriors`` and of ``predictive``, under these
            names.
        skipped: the reason by posterior approximation that could not be checked.
        settings: the settings, as JSON values.
        seed: the random seed.
    """

    contents: ClassVar[str] = "calibration checks"

    posteriors: Mapping[str, Ranks]
    predictive: PredictiveChecks | None
    bands: Mapping[str, Band]
    skipped: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.predictive) if self.predictive is not None else self.num_simulated

    @property
    def num_simulated(self) -> int:
        """The number of simulated examples."""
        return max((len(ranks) for ranks in self.posteriors.values()), default=0)

    @property
    def verdicts(self) -> dict[str, dict[str, str]]:
        """How each posterior approximation differs from the posterior, by name and quantity.

        ``ok`` if the ranks are inside the band; otherwise from the ranks, as in ``too narrow
        ×0.5, too low 0.3``: the standard deviation is half of the posterior's, and the mean 0.3
        standard deviations of the posterior too low. ``too few samples`` if the median ESS of the
        weights is below 20.
        """

        def judge(ranks: Ranks, pit: np.ndarray) -> str:
            if ranks.is_weighted and np.median(ranks.ess) < _MIN_ESS:
                return _FEW
            return describe_shape(pit) if self.bands["posteriors"].excludes(pit) else _UNIFORM

        return {
            name: {label: judge(ranks, pit) for label, pit in ranks.columns.items()}
            for name, ranks in self.posteriors.items()
        }

    @property
    def predictive_verdicts(self) -> dict[str, dict[str, str]]:
        """How each predictive distribution of a statistic differs from that of the data.

        As :attr:`verdicts`. The ranks of the posterior predictive distribution are not uniform
        even for the true model, which has seen the example: they are closer to ½, and ``ok``
        unless too many are close to 0 or 1.
        """
        if self.predictive is None:
            return {}
        band, constant = self.bands["predictive"], self.predictive.constant

        def judge(predictive: str, name: str, pit: np.ndarray) -> str:
            if name in constant:
                return _CONSTANT
            excludes = band.excludes if predictive == "loo" else band.excludes_extremes
            return describe_shape(pit) if excludes(pit) else _UNIFORM

        return {
            predictive: {name: judge(predictive, name, pit) for name, pit in columns.items()}
            for predictive, columns in self.predictive.pit.items()
        }

    @property
    def coverage(self) -> dict[str, dict[str, list[Coverage]]]:
        """Coverage at :data:`LEVELS`, by posterior approximation and kind of region.

        ``hpd``: regions of highest density; ``tarp``: central intervals of the distance from a
        reference point.
        """
        return {
            name: {
                kind: [
                    Coverage(
                        level,
                        float((values <= level).mean()),
                        math.sqrt(level * (1 - level) / len(values)),
                    )
                    for level in LEVELS
                ]
                for kind, values in ranks.levels.items()
            }
            for name, ranks in self.posteriors.items()
        }

    @property
    def is_calibrated(self) -> dict[str, bool]:
        """Whether all ranks of a posterior approximation or predictive distribution are ``ok``."""
        return {
            name: not any(_is_flagged(v) or v == _FEW for v in column.values())
            for verdicts in (self.verdicts, self.predictive_verdicts)
            for name, column in verdicts.items()
        }

    def summary(self) -> dict[str, Any]:
        """Return verdicts, coverage and diagnostics of the weights for JSON."""
        posteriors = {
            name: {
                "quantities": {
                    label: {
                        "verdict": verdict,
                        **_summarize_shape(self.posteriors[name].columns[label]),
                    }
                    for label, verdict in column.items()
                },
                "outside": sum(map(_is_flagged, column.values())),
                "coverage": {
                    kind: [row._asdict() for row in rows]
                    for kind, rows in self.coverage[name].items()
                },
                **self._summarize_weights(name),
            }
            for name, column in self.verdicts.items()
        }
        return {
            "seed": self.seed,
            "num_simulated": self.num_simulated,
            "settings": dict(self.settings),
            "posteriors": posteriors,
            "skipped": dict(self.skipped),
            "predictive": {
                name: {
                    label: {
                        "verdict": verdict,
                        **_summarize_shape(self.predictive.pit[name][label]),  # type: ignore
                    }
                    for label, verdict in column.items()
                }
                for name, column in self.predictive_verdicts.items()
            },
        }

    def _summarize_weights(self, name: str) -> dict[str, Any]:
        ranks = self.posteriors[name]
        if not ranks.is_weighted:
            return {}
        return {
            "ess": {"median": float(np.median(ranks.ess)), "worst": float(ranks.ess.min())},
            "bad_khat": self._count_bad_khat(ranks),
        }

    def _count_bad_khat(self, ranks: Ranks) -> int:
        return int((~(ranks.khat < khat_threshold(self.settings["num_samples"]))).sum())

    def label_columns(self, name: str) -> dict[str, np.ndarray]:
        """Return the ranks of a posterior approximation or predictive distribution by label.

        Without those of statistics that are constant.
        """
        if name in self.posteriors:
            columns: Mapping[str, np.ndarray] = self.posteriors[name].columns
            return {_LABELS.get(label, label): values for label, values in columns.items()}
        verdicts = self.predictive_verdicts[name]
        assert self.predictive is not None
        columns = {str(n): c for n, c in self.predictive.pit.items()}[name]
        return {
            _LABELS.get(label, label): values
            for label, values in columns.items()
            if verdicts[label] != _CONSTANT
        }

    def plot(self, name: str | None = None, ax: Axes | None = None) -> Axes:
        """Plot the ECDF of the ranks minus that of uniform ones, and their band.

        A curve that leaves the band has a colour and a label. It rises first if the distribution
        is too narrow, falls first if it is too wide, is above 0 if it is too high and below if
        it is too low.

        Arguments:
            name: a posterior approximation (``guide``, ``resampled``, ``laplace``) or a
                predictive distribution (``loo``, ``posterior``); the first one by default.
            ax: Matplotlib axes to draw on; those of a new figure by default.

        Raises:
            ValueError: if ``name`` was not checked, or if all of its statistics are constant.
        """
        known = [*self.posteriors, *self.predictive_verdicts]
        name = known[0] if name is None else name
        if name not in known:
            raise ValueError(
                f"expected a checked distribution ({', '.join(known)}); got {name!r}"
                f"{did_you_mean(name, known)}"
            )
        columns, is_posterior = self.label_columns(name), name in self.posteriors
        if not columns:
            raise ValueError(f"expected statistics to plot; those of {name!r} are all constant")
        axes = plot_ranks(columns, self.bands["posteriors" if is_posterior else "predictive"], ax)
        ranked = "simulated latents" if is_posterior else "statistics"
        axes.set_xlabel(f"rank of {ranked}, {_LABELS[name]}")
        return axes

    def make_rank_table(self, max_rows: int | None = None) -> TextTable:
        """Return the verdict of each quantity and posterior approximation.

        Arguments:
            max_rows: leave out the latents that deviate least, down to this number of rows.
        """
        verdicts = self.verdicts
        first = next(iter(self.posteriors.values()))
        latents = [name for name in first.columns if name not in QUANTITIES]
        quantities = [q for q in QUANTITIES if any(q in v for v in verdicts.values())]
        hidden = 0
        if max_rows is not None and len(latents) > max_rows - len(quantities):
            hidden = len(latents) - max(1, max_rows - len(quantities))
            deviation = {name: self._deviation(name) for name in latents}
            kept = sorted(latents, key=lambda name: -deviation[name])[: len(latents) - hidden]
            latents = [name for name in latents if name in kept]
        rows = [
            [_LABELS.get(q, q), *(v.get(q, "–") for v in verdicts.values())]
            for q in [*latents, *quantities]
        ]
        if hidden:
            rows.append([f"{hidden} more, which deviate less", *[""] * len(verdicts)])
        counts = [
            "–"
            if _FEW in v.values()
            else f"{sum(map(_is_flagged, v.values()))} of {len(v)} flagged"
            for v in verdicts.values()
        ]
        rows.append(["all quantities", *counts])
        return TextTable(["ranks", *(_LABELS[name] for name in verdicts)], rows)

    def _deviation(self, label: str) -> float:
        columns = [ranks.columns[label] for ranks in self.posteriors.values()]
        shapes = [measure_shape(column) for column in columns]
        return max(abs(s.shift) + abs(math.log(max(s.spread, 1e-3))) for s in shapes)

    def make_coverage_table(self) -> TextTable:
        """Return the coverage of credible regions at :data:`LEVELS`; ``*`` is three errors off."""
        rows = [
            [
                f"{_LABELS[name]}: {_LABELS.get(kind, kind).removesuffix(' distance')}",
                *(f"{c.actual:.3f} ± {c.se:.3f}{'*' if c.is_off else ' '}" for c in values),
            ]
            for name, kinds in self.coverage.items()
            for kind, values in kinds.items()
        ]
        return TextTable(["coverage", *(f"{level:.0%}" for level in LEVELS)], rows)

    def make_predictive_table(self) -> TextTable:
        """Return the verdict of each statistic and predictive distribution."""
        verdicts = self.predictive_verdicts
        names = list(next(iter(verdicts.values())))
        rows = [[_LABELS.get(n, n), *(v[n] for v in verdicts.values())] for n in names]
        return TextTable(["statistic", *(_LABELS[name] for name in verdicts)], rows)

    def __str__(self) -> str:
        return "\n\n".join("\n".join(map(str, part)) for part in self._paragraphs())

    def __repr__(self) -> str:
        lines = []
        if self.posteriors:
            lines += [self.rank_head, str(self.make_rank_table(_MAX_REPR_ROWS)), *self.notes]
        for name, verdicts in self.predictive_verdicts.items():
            flagged = [_LABELS.get(n, n) for n, v in verdicts.items() if _is_flagged(v)]
            some = f": {', '.join(flagged)}" if flagged else ""
            lines.append(
                f"statistics, {_LABELS[name]}: {len(flagged)} of {len(verdicts)} flagged{some}"
            )
        return "\n".join(lines)

    def parts(self) -> Iterable[str | TextTable]:
        """Return the heads, the tables and the notes."""
        return [part for paragraph in self._paragraphs() for part in paragraph]

    def _paragraphs(self) -> Iterator[list[str | TextTable]]:
        if self.posteriors:
            yield [self.rank_head, self.make_rank_table(_MAX_ROWS)]
            yield [self.make_coverage_table(), *self.notes]
        if self.predictive is not None:
            yield [self.predictive_head, self.make_predictive_table()]

    @property
    def rank_head(self) -> str:
        """What was simulated, and the false-alarm rate."""
        return (
            f"{self.num_simulated} simulated examples × {self.settings['num_samples']} samples of "
            f"each posterior. Ranks of the simulated latents: ok if uniform, with "
            f"{self.settings['false_alarm_rate']:.0%} false alarms per column"
        )

    @property
    def predictive_head(self) -> str:
        """What was replicated, and the false-alarm rate."""
        return (
            f"{len(self)} examples × {self.settings['num_replicates']} replicates. Ranks of the "
            f"statistics of the data: ok if uniform (left out) or not too extreme (posterior), "
            f"with {self.settings['false_alarm_rate']:.0%} false alarms per column"
        )

    @property
    def notes(self) -> list[str]:
        """Lines on the weights, and on what was skipped."""
        lines = []
        if any(c.is_off for kinds in self.coverage.values() for v in kinds.values() for c in v):
            lines.append("* more than three standard errors from the nominal level")
        for name, ranks in self.posteriors.items():
            if ranks.is_weighted:
                bad = self._count_bad_khat(ranks)
                note = (
                    ": the posterior has mass that q hardly ever draws"
                    if bad > len(ranks) / 20
                    else ""
                )
                lines.append(
                    f"{_LABELS[name]}: ESS median {np.median(ranks.ess):.1f}, worst "
                    f"{ranks.ess.min():.1f} of {self.settings['num_samples']}; k̂ bad for {bad} of "
                    f"{len(ranks)}{note}"
                )
        return lines + [f"no {_LABELS[name]}: {why}" for name, why in self.skipped.items()]

    def to_datatree(self) -> xarray.DataTree:
        """Return the ranks and the statistics, in groups that ArviZ reads.

        ``guide``, ``resampled`` and ``laplace``: the ranks, for ``arviz_plots.plot_ecdf_pit(tree,
        group="guide")``; a draw is a simulated example. ``observed_data``,
        ``posterior_predictive`` and ``prior_predictive``: the statistics, for
        ``arviz_plots.plot_ppc_pit``. ``loo_pit`` and ``posterior_pit``: their ranks.
        """
        import xarray

        attributes: dict[str, Any] = {
            "settings": json.dumps(self.settings),
            "skipped": json.dumps(self.skipped, ensure_ascii=False),
        }
        if self.seed is not None:
            attributes["seed"] = self.seed
        groups = {"/": xarray.Dataset(attrs=attributes)}
        for name, ranks in self.posteriors.items():
            groups[name] = _make_ranks(dict(ranks.latents) | dict(ranks.quantities))
            if ranks.is_weighted:
                columns = {"ess": ("draw", ranks.ess), "khat": ("draw", ranks.khat)}
                groups[f"{name}_weights"] = xarray.Dataset(columns)
        for name, band in self.bands.items():
            columns = {"lower": ("point", band.lower), "upper": ("point", band.upper)}
            groups[f"{name}_band"] = xarray.Dataset(columns, coords={"point": band.points})
        if self.predictive is not None:
            checks = self.predictive
            groups["observed_data"] = xarray.Dataset(
                {n: ("datum", v) for n, v in checks.observed.items()}
            )
            for name in PREDICTIVES:
                groups[_GROUPS[name]] = xarray.Dataset(
                    {
                        n: (("chain", "draw", "datum"), v[None])
                        for n, v in checks.replicated[name].items()
                    }
                )
                groups[f"{name}_pit"] = _make_ranks(checks.pit[name])
        return xarray.DataTree.from_dict(groups)

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Calibration:
        """Return the result in a tree made by :meth:`to_datatree`."""

        def columns(group: str) -> dict[str, np.ndarray]:
            return {str(n): v.to_numpy() for n, v in tree[group].to_dataset().data_vars.items()}

        def ranks(group: str) -> dict[str, np.ndarray]:
            return {name: value[0] for name, value in columns(group).items()}

        posteriors = {}
        for name in POSTERIORS:
            if name in tree.children:
                parts = ranks(name)
                weights = columns(f"{name}_weights") if f"{name}_weights" in tree.children else {}
                posteriors[name] = Ranks(
                    {n: v for n, v in parts.items() if n not in QUANTITIES},
                    {n: parts[n] for n in QUANTITIES if n in parts},
                    **weights,
                )
        bands = {
            group.removesuffix("_band"): Band(node["point"].to_numpy(), **columns(group))
            for group, node in tree.children.items()
            if group.endswith("_band")
        }
        predictive = None
        if "observed_data" in tree.children:
            predictive = PredictiveChecks(
                columns("observed_data"),
                {name: ranks(_GROUPS[name]) for name in PREDICTIVES},
                {name: ranks(f"{name}_pit") for name in PREDICTIVES},
            )
        return cls(
            posteriors=posteriors,
            predictive=predictive,
            bands=bands,
            skipped=json.loads(tree.attrs["skipped"]),
            settings=json.loads(tree.attrs["settings"]),
            seed=int(tree.attrs["seed"]) if "seed" in tree.attrs else None,
        )


#: Groups of the replicates: those with an example left out are samples of the prior predictive.
_GROUPS = {"loo": "prior_predictive", "posterior": "posterior_predictive"}


def _is_flagged(verdict: str) -> bool:
    return verdict not in (_UNIFORM, _CONSTANT, _FEW)


def _summarize_shape(pit: np.ndarray) -> dict[str, float | None]:
    return {name: finite_or_none(value) for name, value in measure_shape(pit)._asdict().items()}


def _make_ranks(columns: Mapping[str, np.ndarray]) -> xarray.Dataset:
    """Return ranks ``(N, *rest)`` by name as one chain of N draws."""
    import xarray

    return xarray.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_dim_{i}" for i in range(v.ndim - 1))), v[None])
            for name, v in columns.items()
        }
    )
