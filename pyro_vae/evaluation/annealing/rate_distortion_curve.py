"""Rate–distortion curve of a prior and a decoder by annealed importance sampling."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...core import files
from ...core.random import Stream
from ...data.splits import Split
from ...programs.base import Program
from ...programs.inputs import prepare
from ..estimates import Estimate, estimate_mean, finite_or_none
from ..importance.streaming import check_log_weights
from .path import AnnealingPath, run_pilot
from .sampler import Annealing, ProgressCallback, TunedSchedule, anneal_in_blocks
from .schedules import make_adaptive_betas

if TYPE_CHECKING:
    import xarray

__all__ = ["DEFAULT_BETAS", "RateDistortion", "rate_distortion"]

#: Default values of β.
DEFAULT_BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

#: Default settings: from the prior, with steps that each lose the same effective sample size.
_ANNEALING = Annealing(initial="prior", schedule="adaptive")
#: Pilots have a fifth of the temperatures of the run, but at least 30.
_MIN_PILOT_TEMPERATURES, _PILOT_DIVISOR = 30, 5
#: The pilot's first β, relative to the β at which the relative variance of the weights is 1.
_FIRST_BETA = 0.1


@dataclass(frozen=True)
class RateDistortion:
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

    References:
        Evaluating Lossy Compression Rates of Deep Generative Models (Huang, Cao & Grosse,
        2020), sections 4 and 5. https://arxiv.org/abs/2008.06653
    """

    betas: np.ndarray
    per_datum: Mapping[str, np.ndarray]
    acceptance: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

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

    def summary(self) -> dict[str, Any]:
        """Return numbers and lists by β for JSON; non-finite ones become null."""
        return {
            "num_data": len(self),
            "seed": self.seed,
            "units": "nats per datum",
            "settings": dict(self.settings),
            "betas": self.betas.tolist(),
            **{name: [row.summary() for row in rows] for name, rows in self.estimates.items()},
            "ess": [finite_or_none(float(v)) for v in np.median(self.per_datum["ess"], axis=0)],
            "acceptance": finite_or_none(float(self.acceptance.mean())),
        }

    def __str__(self) -> str:
        annealing = self.settings.get("annealing", {})
        lines = [
            f"{len(self)} examples × {annealing.get('num_chains', '?')} chains, "
            f"{annealing.get('num_temperatures', '?')} temperatures; nats per datum",
            f"{'β':>8}{'rate':>10}{'± data':>9}{'± MC':>9}{'distortion':>12}{'± data':>9}"
            f"{'± MC':>9}{'ESS':>8}",
        ]
        rows = self.estimates
        sizes = np.median(self.per_datum["ess"], axis=0)
        for beta, r, d, ess in zip(
            self.betas, rows["rate"], rows["distortion"], sizes, strict=True
        ):
            lines.append(
                f"{beta:8.3g}{r.value:10.3f}{r.se_data:9.3f}{r.se_monte_carlo:9.3f}"
                f"{d.value:12.3f}{d.se_data:9.3f}{d.se_monte_carlo:9.3f}{ess:8.2f}"
            )
        mean, worst = self.acceptance.mean(), self.acceptance.min()
        return "\n".join([*lines, f"acceptance mean {mean:.2f}, worst {worst:.2f}"])

    def to_dataset(self) -> xarray.Dataset:
        """Return the results per example and β as an ``xarray.Dataset``."""
        import xarray

        columns: dict[str, Any] = {n: (("datum", "beta"), v) for n, v in self.per_datum.items()}
        columns["acceptance"] = ("datum", self.acceptance)
        attributes: dict[str, Any] = {"units": "nats", "settings": json.dumps(self.settings)}
        if self.seed is not None:
            attributes["seed"] = self.seed
        coords = {"beta": self.betas, "datum": np.arange(len(self))}
        return xarray.Dataset(columns, coords=coords, attrs=attributes)

    def to_netcdf(self, path: str | Path) -> None:
        """Write :meth:`to_dataset` atomically to a NetCDF file."""
        dataset = self.to_dataset()
        files.atomic_write(Path(path), lambda file: dataset.to_netcdf(file, engine="h5netcdf"))

    @classmethod
    def from_netcdf(cls, path: str | Path) -> RateDistortion:
        """Read a file written by :meth:`to_netcdf`.

        Raises:
            ValueError: if the file is not in this format.
        """
        import xarray

        try:
            with xarray.open_dataset(path, engine="h5netcdf") as dataset:
                dataset.load()
            return cls(
                betas=dataset["beta"].to_numpy(),
                per_datum={
                    str(n): v.to_numpy() for n, v in dataset.items() if v.dims == ("datum", "beta")
                },
                acceptance=dataset["acceptance"].to_numpy(),
                settings=json.loads(dataset.attrs["settings"]),
                seed=int(dataset.attrs["seed"]) if "seed" in dataset.attrs else None,
            )
        except FileNotFoundError:
            raise
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"expected {path} to contain a rate–distortion curve saved by pyro_vae; {error}"
            ) from error


def rate_distortion(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
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
        program: anything with a ``model`` and a ``guide``, or a pair of them, with continuous
            latent sites. Noise sites count as latent sites here.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        betas: the positive β of the points; those above 1 have lower distortion at a higher rate.
        annealing: the settings: from the prior, with the adaptive schedule and at least two
            chains. The values of ``betas`` are added to ``num_temperatures``.
        seed: the random seed of the chains and of the binarisation.
        checkpoint: a file for finished blocks of examples, from which the same call resumes after
            an interruption.
        progress: show a progress bar on standard error.

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
    columns: dict[str, list[Tensor]] = {}
    acceptance = []
    for state in schedule.states(path, path.sample(num_chains)):
        if state.acceptance is not None:
            acceptance.append(state.acceptance.mean(0))
        if state.beta in points:
            check_log_weights(state.log_weights, rows.start)
            point = _estimate_point(state.beta, state.log_weights, -state.difference.double())
            for name, values in point.items():
                columns.setdefault(name, []).append(values)
        advance(1 / (len(schedule.betas) - 1))
    stacked = {name: torch.stack(values, 1) for name, values in columns.items()}
    # a single temperature has no transitions
    unknown = torch.full_like(stacked["rate"][:, 0], math.nan)
    mean = torch.stack(acceptance).mean(0) if acceptance else unknown
    return stacked | {"acceptance": mean}


def _estimate_point(beta: float, log_w: Tensor, distortion: Tensor) -> dict[str, Tensor]:
    """Return rate, distortion and log Ẑ of weighted chains with jackknife variances, ``(N,)``.

    Arguments:
        beta: β.
        log_w: log weights ``(C, N)``, float64.
        distortion: −log p(x|z) of each chain, ``(C, N)``.
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
