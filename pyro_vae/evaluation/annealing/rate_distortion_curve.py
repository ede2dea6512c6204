"""Rate–distortion curve of a prior and a decoder by annealed importance sampling."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...core.figures import MUTED, get_axes
from ...core.random import Stream
from ...data import Dataset
from ...programs.base import Program
from ...programs.inputs import AnyData, AnyProgram, prepare
from ..estimates import Estimate, estimate_mean, finite_or_none
from ..importance.streaming import check_log_weights
from ..latent_diagnostics.kl import divergences
from ..results import Result
from ..sections import Picture, Section
from ..slices import Evaluation, SplitName
from ..tables import Row, Table
from .path import AnnealingPath, ProgressCallback, TunedSchedule, run_pilot
from .sampler import Annealing, anneal_in_blocks
from .schedules import make_adaptive_betas

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

__all__ = [
    "DEFAULT_BETAS",
    "RATE_DISTORTION",
    "RateDistortion",
    "plot_rate_distortion",
    "rate_distortion",
]

#: Default values of β.
DEFAULT_BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

#: Default settings: from the prior, with steps that each lose the same effective sample size.
_ANNEALING = Annealing(initial="prior", schedule="adaptive")
#: Pilots have a fifth of the temperatures of the run, but at least 30.
_MIN_PILOT_TEMPERATURES, _PILOT_DIVISOR = 30, 5
#: The pilot's first β, relative to the β at which the relative variance of the weights is 1.
_FIRST_BETA = 0.1


@dataclass(frozen=True, repr=False)
class RateDistortion(Result):
    """Points of the rate–distortion curve of a prior and a decoder, in nats per datum.

    The optimal channel, independent of the guide, minimises the rate KL(q(z|x) ‖ p(z)) for its
    distortion −E_q log p(x|z). It is p_β(z|x) ∝ p(z) p(x|z)^β at the slope −1/β of the curve:

        D_β = −E_{p_β} log p(x|z),    R_β = −log Z_β − β D_β,    Z_β = E_{p(z)} p(x|z)^β.

    Resampling C annealed chains by their weights is also a channel. ``distortion`` is its
    distortion, and ``rate`` is an upper bound on its rate in expectation, because log Ẑ is a
    lower bound on log Z in expectation. The points lie on or above the curve, and approach it
    with more temperatures and chains. At β = 1, −(R + D) is the AIS lower bound on log p(x), and
    R is the rate of the exact posterior.

    Attributes:
        betas: the values of β, ascending, ``(B,)``.
        per_datum: ``rate``, ``distortion``, ``log_normalizer`` (log Ẑ_β), each with its Monte
            Carlo variance in ``…_variance``, and ``ess``, the effective number of chains; all
            ``(N, B)``.
        acceptance: the mean acceptance of the transitions, ``(N,)``; NaN without transitions.
        settings: the settings, as JSON values.
        seed: the random seed.
        own: rate and distortion of q(z|x) itself on the same examples, each ``(N,)`` with its
            Monte Carlo variance in ``…_variance``, if they were estimated.

    References:
        Evaluating Lossy Compression Rates of Deep Generative Models (Huang, Cao & Grosse,
        2020), sections 4 and 5. https://arxiv.org/abs/2008.06653
    """

    contents: ClassVar[str] = "a rate–distortion curve"

    betas: np.ndarray
    per_datum: Mapping[str, np.ndarray]
    acceptance: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    own: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.acceptance)

    @property
    def rate(self) -> np.ndarray:
        """R_β, averaged over the examples, ``(B,)``."""
        return self.per_datum["rate"].mean(0)

    @property
    def distortion(self) -> np.ndarray:
        """D_β, averaged over the examples, ``(B,)``."""
        return self.per_datum["distortion"].mean(0)

    @property
    def estimates(self) -> dict[str, list[Estimate]]:
        """``rate``, ``distortion`` and ``log_normalizer`` at each β, with standard errors."""
        data = self.per_datum
        return {
            name: [
                estimate_mean(data[name][:, i], data[f"{name}_variance"][:, i])
                for i in range(len(self.betas))
            ]
            for name in ("rate", "distortion", "log_normalizer")
        }

    @property
    def own_estimates(self) -> dict[str, Estimate]:
        """``rate`` and ``distortion`` of q(z|x) itself, if they were estimated."""
        own = self.own
        names = [name for name in ("rate", "distortion") if name in own]
        return {name: estimate_mean(own[name], own[f"{name}_variance"]) for name in names}

    def summary(self) -> dict[str, Any]:
        """Return numbers and lists by β for JSON; non-finite ones become null."""
        own = {name: row.summary() for name, row in self.own_estimates.items()}
        return {
            "num_data": len(self),
            "seed": self.seed,
            "units": "nats per datum",
            "settings": dict(self.settings),
            "betas": self.betas.tolist(),
            **{name: [row.summary() for row in rows] for name, rows in self.estimates.items()},
            "ess": [finite_or_none(float(v)) for v in np.median(self.per_datum["ess"], axis=0)],
            "acceptance": finite_or_none(float(self.acceptance.mean())),
            **({"own": own} if own else {}),
        }

    def make_table(self) -> Table:
        """Return rate and distortion at each β, and those of q(z|x) itself if known."""
        rows, own = self.estimates, self.own_estimates
        sizes = np.median(self.per_datum["ess"], axis=0)
        points = zip(self.betas, rows["rate"], rows["distortion"], sizes, strict=True)
        table = [Row(f"{beta:.3g}", (r, d), f"ESS {ess:.2f}") for beta, r, d, ess in points]
        if own:
            note = "on or above the curve"
            table.append(Row("q itself", (own["rate"], own["distortion"]), note, is_main=True))
        return Table(table, ("rate", "distortion"), "β")

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts()))

    def parts(self) -> Iterable[str | Table]:
        """Return the head, the table and the acceptance."""
        annealing = self.settings.get("annealing", {})
        yield (
            f"{len(self)} examples × {annealing.get('num_chains', '?')} chains, "
            f"{annealing.get('num_temperatures', '?')} temperatures; nats per datum"
        )
        yield self.make_table()
        mean, worst = self.acceptance.mean(), self.acceptance.min()
        yield f"acceptance mean {mean:.2f}, worst {worst:.2f}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot distortion against rate by β, and the point of q.

        Arguments:
            ax: Matplotlib axes to draw on; those of a new figure by default.
        """
        return plot_rate_distortion(self, ax)

    def to_datatree(self) -> xarray.DataTree:
        """Return the results per example and β; those of q itself are in group ``own``."""
        import xarray

        columns: dict[str, Any] = {n: (("datum", "beta"), v) for n, v in self.per_datum.items()}
        columns["acceptance"] = ("datum", self.acceptance)
        attributes: dict[str, Any] = {"units": "nats", "settings": json.dumps(self.settings)}
        if self.seed is not None:
            attributes["seed"] = self.seed
        coords = {"beta": self.betas, "datum": np.arange(len(self))}
        groups = {"/": xarray.Dataset(columns, coords=coords, attrs=attributes)}
        if self.own:
            groups["own"] = xarray.Dataset({n: ("datum", v) for n, v in self.own.items()})
        return xarray.DataTree.from_dict(groups)

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> RateDistortion:
        """Return the curve in a tree made by :meth:`to_datatree`."""
        dataset, own = tree.to_dataset(), tree.children.get("own")
        return cls(
            betas=dataset["beta"].to_numpy(),
            per_datum={
                str(n): v.to_numpy() for n, v in dataset.items() if v.dims == ("datum", "beta")
            },
            acceptance=dataset["acceptance"].to_numpy(),
            settings=json.loads(dataset.attrs["settings"]),
            seed=int(dataset.attrs["seed"]) if "seed" in dataset.attrs else None,
            own={} if own is None else {str(n): v.to_numpy() for n, v in own.data_vars.items()},
        )


def rate_distortion(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    betas: Sequence[float] = DEFAULT_BETAS,
    annealing: Annealing = _ANNEALING,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> RateDistortion:
    """Estimate the rate–distortion curve of a prior and a decoder.

    Chains move from the prior along p(z) p(x|z)^β to the largest β, and are recorded at each of
    ``betas``. A pilot run places the temperatures in between and tunes the step sizes; both are
    fixed in the actual run. The guide only determines the layout of the particles: the curve is
    a property of the model.

    Arguments:
        program, data, *args, **kwargs: as for :func:`~pyro_vae.evaluation.ais`. Noise sites count
            as latent sites here.
        betas: the positive β of the points; those above 1 have lower distortion at a higher rate.
        annealing: the settings: from the prior, with the adaptive schedule and at least two
            chains. The values of ``betas`` are added to ``num_temperatures``.
        seed: the random seed of the chains and of the binarisation.
        checkpoint, progress: as for :func:`~pyro_vae.evaluation.ais`.

    Returns:
        The :class:`RateDistortion`.

    Raises:
        ValueError: if a β is not positive and finite; if the path does not start at the prior;
            if a latent site is discrete or on a sphere; if a weight is NaN; and as for
            :func:`~pyro_vae.evaluate`.

    References:
        Evaluating Lossy Compression Rates of Deep Generative Models (Huang, Cao & Grosse,
        2020), section 5 and algorithm 1. https://arxiv.org/abs/2008.06653
    """
    points = _check_betas(betas, annealing)
    columns = anneal_in_blocks(
        partial(_compute_point_columns, points=points, num_chains=annealing.num_chains),
        prepare(program, data, args, kwargs, seed),
        annealing,
        seed=seed,
        name="rate and distortion",
        stream=Stream.RATE_DISTORTION,
        make_schedule=partial(_tune_schedule, points=points),
        checkpoint=checkpoint,
        progress=progress,
    )
    return RateDistortion(
        betas=np.array(points),
        per_datum={name: v for name, v in columns.items() if name != "acceptance"},
        acceptance=columns["acceptance"],
        settings={"annealing": asdict(annealing)},
        seed=seed,
    )


def _check_betas(betas: Sequence[float], annealing: Annealing) -> tuple[float, ...]:
    """Return the unique β in ascending order; raise if they or the settings are invalid."""
    points = sorted({float(beta) for beta in betas})
    if not points or not (points[0] > 0 and math.isfinite(points[-1])):
        raise ValueError(f"expected one or more β > 0 and finite; got {tuple(betas)}")
    if annealing.initial != "prior" or annealing.schedule != "adaptive":
        raise ValueError(
            f"expected annealing from the prior with the adaptive schedule for a rate–distortion "
            f"curve; got {annealing.initial!r} and {annealing.schedule!r}: use "
            f"Annealing(initial='prior', schedule='adaptive')"
        )
    return tuple(points)


def _tune_schedule(
    path: AnnealingPath, annealing: Annealing, points: tuple[float, ...]
) -> TunedSchedule:
    """Return a tuned schedule from 0 to the largest β that includes all ``points``."""
    _, difference = path.evaluate(0.0, path.sample(annealing.num_chains))
    spread = float(difference.double().var(0).mean().sqrt().nan_to_num(nan=1.0, posinf=1e9))
    first = min(points[0], _FIRST_BETA / max(spread, _FIRST_BETA), points[-1] / 2)
    count = max(_MIN_PILOT_TEMPERATURES, annealing.num_temperatures // _PILOT_DIVISOR)
    coarse = (0.0, *np.geomspace(first, points[-1], count)[:-1].tolist(), points[-1])
    pilot = run_pilot(path, coarse, annealing.num_chains, annealing.num_steps, annealing.target)
    betas = sorted({*make_adaptive_betas(pilot, annealing.num_temperatures), *points})
    return TunedSchedule(tuple(betas), pilot.step_sizes_at(betas), annealing.num_steps)


def _compute_point_columns(
    path: AnnealingPath,
    schedule: TunedSchedule,
    rows: slice,
    advance: ProgressCallback,
    points: tuple[float, ...],
    num_chains: int,
) -> dict[str, Tensor]:
    """Return the columns at all ``points``, ``(N, B)``, and the mean acceptance, ``(N,)``."""
    columns: list[dict[str, Tensor]] = []

    def record(beta: float, log_weights: Tensor, difference: Tensor) -> None:
        if beta in points:
            check_log_weights(log_weights, rows.start)
            columns.append(_estimate_point(beta, log_weights, -difference.double()))

    _, acceptance = schedule.run(path, path.sample(num_chains), advance, record)
    stacked = {name: torch.stack([column[name] for column in columns], 1) for name in columns[0]}
    return stacked | {"acceptance": acceptance}


def _estimate_point(beta: float, log_w: Tensor, distortion: Tensor) -> dict[str, Tensor]:
    """Return rate, distortion and log Ẑ with their jackknife variances, and the ESS, ``(N,)``.

    The chains have the weights ``log_w`` and the distortions −log p(x|z), ``(C, N)`` float64.
    """
    count = len(log_w)
    values = _weighted_means(beta, log_w, distortion)
    others = [
        _weighted_means(beta, log_w[keep], distortion[keep])
        for keep in ~torch.eye(count, dtype=torch.bool, device=log_w.device)
    ]
    for name in tuple(values):
        left_out = torch.stack([other[name] for other in others])
        values[f"{name}_variance"] = left_out.var(0, correction=0) * (count - 1)
    values["ess"] = 1 / log_w.softmax(0).square().sum(0)
    return values


def _weighted_means(beta: float, log_w: Tensor, distortion: Tensor) -> dict[str, Tensor]:
    shares = log_w.softmax(0)
    # the distortion of a chain with weight zero may be infinite
    mean = torch.where(shares > 0, shares * distortion, 0.0).sum(0)
    log_z = log_w.logsumexp(0) - math.log(len(log_w))
    return {"rate": -log_z - beta * mean, "distortion": mean, "log_normalizer": log_z}


def _make_section(curve: RateDistortion) -> Section:
    caption = "The ELBO, −(R + D), is constant along the dotted line and equal to that of q."
    if 1.0 in curve.betas and curve.own:
        index = curve.betas.tolist().index(1.0)
        own = sum(row.value for row in curve.own_estimates.values())
        if own < curve.rate[index] + curve.distortion[index]:
            caption += (
                " At β = 1 the annealed chains are worse than q: use more temperatures or chains "
                "to lower the curve."
            )
    about = (
        "In expectation the points lie on or above the optimal curve of this prior and decoder; "
        "nats per datum."
    )
    picture = Picture(
        "rate-distortion", "Rate–distortion curve", caption, plot_rate_distortion(curve)
    )
    return Section([curve.make_table()], [picture], about)


def plot_rate_distortion(curve: RateDistortion, ax: Axes | None = None) -> Axes:
    """Plot distortion against rate by β, ± 2 Monte Carlo standard errors, and the point of q."""
    axes = get_axes(ax, height=4.2)
    errors = (
        2 * np.nan_to_num([row.se_monte_carlo for row in curve.estimates[name]])
        for name in ("distortion", "rate")
    )
    points = curve.rate, curve.distortion
    vertical, horizontal = errors
    axes.errorbar(
        *points,
        yerr=vertical,
        xerr=horizontal,
        marker="o",
        ms=4,
        label="rate–distortion curve, by AIS",
    )
    for beta, x, y in zip(curve.betas, *points, strict=True):
        axes.annotate(
            f"β = {beta:g}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8
        )
    if curve.own:
        x, y = (row.value for row in curve.own_estimates.values())
        axes.plot(x, y, "*", color="C3", ms=12, label="q itself")
        ends = np.array([0.0, x + y])  # rate and distortion with the same sum
        low, high = axes.get_xlim(), axes.get_ylim()
        axes.plot(ends, ends[::-1], color=MUTED, ls=":", lw=1, label="ELBO of q, −(R + D)")
        axes.set_xlim(low)
        axes.set_ylim(high)
    axes.set_xlabel("rate (nats per datum)")
    axes.set_ylabel("distortion (nats per datum)")
    axes.legend(frameon=False)
    return axes


def _compute(
    program: Program,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    num_data: int | None = 100,
    seed: int = 0,
    **options: Any,
) -> RateDistortion:
    """Compute the rate–distortion curve of the prior and the decoder by AIS.

    Arguments:
        split: data split.
        num_data: use only the first examples of the split.
        seed: seed of sampling and binarisation.
    """
    examples = dataset.take(split, num_data)
    own = divergences(program, examples, seed=seed).per_datum
    curve = rate_distortion(program, examples, seed=seed, **options)
    return replace(curve, own={name: own[name] for name in own if not name.startswith("elbo")})


RATE_DISTORTION = Evaluation(
    name="rate_distortion",
    title="Rate and distortion",
    compute=_compute,
    function=rate_distortion,
    result=RateDistortion,
    make_section=_make_section,
)
