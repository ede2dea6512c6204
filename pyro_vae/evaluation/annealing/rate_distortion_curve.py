"""The rate–distortion curve of a prior and a decoder, by annealed importance sampling."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...core import files
from ...data.splits import Split
from ...programs.base import Program
from ...programs.inputs import prepare
from ..estimates import Estimate, estimate, finite
from ..importance.streaming import refuse_nan
from .path import Path, explored
from .sampler import Advance, Annealing, Plan, over_paths
from .schedules import at_equal_loss

if TYPE_CHECKING:
    import xarray

__all__ = ["BETAS", "RateDistortion", "rate_distortion"]

#: The β that are looked at unless others are named.
BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

#: How the path of β is walked: from the prior, by steps that lose the same sample size each.
_ANNEALING = Annealing(initial="prior", schedule="adaptive")
#: Temperatures of a pilot: a fifth of those to come, and no fewer than these.
_FEWEST, _SHARE = 30, 5
#: The pilot's first β, of what turns equal weights into ones of relative variance 1.
_FIRST = 0.1


@dataclass(frozen=True)
class RateDistortion:
    """Points of the rate–distortion curve of a prior and a decoder, in nats per datum.

    The channel that spends the least rate KL(q(z|x) ‖ p(z)) on its distortion
    −E_q log p(x|z), whatever the guide can do, is p_β(z|x) ∝ p(z) p(x|z)^β, one for each slope
    −1/β of the curve:

        D_β = −E_{p_β} log p(x|z),    R_β = −log Z_β − β D_β,    Z_β = E_{p(z)} p(x|z)^β.

    The draws of C annealed chains, chosen by their weights, are a channel too: ``distortion``
    is that one's own, and ``rate`` is in expectation no less than what it spends, because
    log Ẑ is in expectation no more than log Z. The points lie on the curve or above it, the
    closer the more temperatures and chains there are. At β = 1, −(R + D) is the lower bound of
    log p(x) that AIS gives, and R that of the exact posterior.

    Attributes:
        betas: the β, rising, ``(B,)``.
        per_datum: ``rate``, ``distortion``, ``log_normalizer`` (log Ẑ_β), each with its Monte
            Carlo variance in ``…_variance``, and ``ess``, the effective number of chains; all
            ``(N, B)``.
        acceptance: of the transitions, the mean over the path, ``(N,)``; NaN if there were none.
        settings: how it was made, as plain JSON values.
        seed: of the draws.

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
        """R_β, the mean over data, ``(B,)``."""
        return self.per_datum["rate"].mean(0)

    @property
    def distortion(self) -> np.ndarray:
        """D_β, the mean over data, ``(B,)``."""
        return self.per_datum["distortion"].mean(0)

    @property
    def estimates(self) -> dict[str, list[Estimate]]:
        """``rate``, ``distortion`` and ``log_normalizer`` at each β, with standard errors."""
        data = self.per_datum
        return {
            name: [
                estimate(data[name][:, i], data[f"{name}_variance"][:, i])
                for i in range(len(self.betas))
            ]
            for name in ("rate", "distortion", "log_normalizer")
        }

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers and lists by β, for JSON. Non-finite ones become null."""
        return {
            "num_data": len(self),
            "seed": self.seed,
            "units": "nats per datum",
            "settings": dict(self.settings),
            "betas": self.betas.tolist(),
            **{name: [row.summary() for row in rows] for name, rows in self.estimates.items()},
            "ess": [finite(float(v)) for v in np.median(self.per_datum["ess"], axis=0)],
            "acceptance": finite(float(self.acceptance.mean())),
        }

    def __str__(self) -> str:
        chosen = self.settings.get("annealing", {})
        lines = [
            f"{len(self)} data × {chosen.get('num_chains', '?')} chains, "
            f"{chosen.get('num_temperatures', '?')} temperatures; nats per datum",
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
        accepted = f"acceptance mean {self.acceptance.mean():.2f}, worst"
        return "\n".join([*lines, f"{accepted} {self.acceptance.min():.2f}"])

    def to_dataset(self) -> xarray.Dataset:
        """The results per datum and β as an ``xarray.Dataset``."""
        import xarray

        columns: dict[str, Any] = {n: (("datum", "beta"), v) for n, v in self.per_datum.items()}
        columns["acceptance"] = ("datum", self.acceptance)
        attributes: dict[str, Any] = {"units": "nats", "settings": json.dumps(self.settings)}
        if self.seed is not None:
            attributes["seed"] = self.seed
        coords = {"beta": self.betas, "datum": np.arange(len(self))}
        return xarray.Dataset(columns, coords=coords, attrs=attributes)

    def to_netcdf(self, path: str | File) -> None:
        """Writes :meth:`to_dataset` to a NetCDF file, whole or not at all."""
        dataset = self.to_dataset()
        files.write(File(path), lambda file: dataset.to_netcdf(file, engine="h5netcdf"))

    @classmethod
    def from_netcdf(cls, path: str | File) -> RateDistortion:
        """Reads what :meth:`to_netcdf` wrote.

        Raises:
            ValueError: if the file is not one of these.
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
                f"expected {path} to hold a rate–distortion curve from pyro_vae; {error}"
            ) from error


def rate_distortion(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    betas: Sequence[float] = BETAS,
    annealing: Annealing = _ANNEALING,
    seed: int = 0,
    checkpoint: File | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> RateDistortion:
    """The best trade between rate and distortion that a prior and a decoder allow.

    Chains walk from the prior along p(z) p(x|z)^β to the largest β, and are looked at where
    they pass one of those named. A pilot spaces the temperatures between and tunes step sizes;
    both are frozen in the run that counts. The guide is only asked for the layout of
    particles: the curve is that of the model.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them, whose latent
            sites are continuous. Noise sites count among them here.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        betas: where to look, positive numbers; above 1 distortion is bought at a higher rate.
        annealing: how to walk, ``num_temperatures`` in all besides those of ``betas``; from
            the prior, with the adaptive schedule and two or more chains.
        seed: of the draws and of the binarisation.
        checkpoint: a file to keep finished blocks of data in, so that the same call goes on
            where it was interrupted.
        progress: show a progress bar on the standard error.

    Returns:
        The :class:`RateDistortion`.

    Raises:
        ValueError: if a β is not positive and finite; if the path does not begin at the prior;
            if a latent site is discrete or on a sphere; if a weight is NaN; and as for
            :func:`~pyro_vae.evaluate`.

    References:
        Evaluating Lossy Compression Rates of Deep Generative Models (Huang, Cao & Grosse,
        2020), section 5 and algorithm 1. https://arxiv.org/abs/2008.06653
    """
    listed = _checked(betas, annealing)
    columns = over_paths(
        partial(_looked, listed=listed, num_chains=annealing.num_chains),
        prepare(program, data, args, kwargs, seed),
        annealing,
        seed=seed,
        name="rate and distortion",
        plan=partial(_planned, listed=listed),
        checkpoint=checkpoint,
        progress=progress,
    )
    return RateDistortion(
        betas=np.array(listed),
        per_datum={name: v for name, v in columns.items() if name != "acceptance"},
        acceptance=columns["acceptance"],
        settings={"annealing": asdict(annealing)},
        seed=seed,
    )


def _checked(betas: Sequence[float], annealing: Annealing) -> tuple[float, ...]:
    """The β in order, each once."""
    listed = sorted({float(beta) for beta in betas})
    if not listed or not (listed[0] > 0 and math.isfinite(listed[-1])):
        raise ValueError(f"expected one or more β > 0 and finite; got {tuple(betas)}")
    if annealing.initial != "prior" or annealing.schedule != "adaptive":
        raise ValueError(
            f"expected annealing from the prior with the adaptive schedule, on which a curve of "
            f"rate and distortion is made; got {annealing.initial!r} and {annealing.schedule!r}: "
            f"give Annealing(initial='prior', schedule='adaptive')"
        )
    return tuple(listed)


def _planned(path: Path, annealing: Annealing, listed: tuple[float, ...]) -> Plan:
    """Temperatures from 0 to the largest β, those listed among them, and their step sizes."""
    _, difference = path.at(0.0, path.draw(annealing.num_chains))
    spread = float(difference.double().var(0).mean().sqrt().nan_to_num(nan=1.0, posinf=1e9))
    first = min(listed[0], _FIRST / max(spread, _FIRST), listed[-1] / 2)
    count = max(_FEWEST, annealing.num_temperatures // _SHARE)
    rough = (0.0, *np.geomspace(first, listed[-1], count)[:-1].tolist(), listed[-1])
    pilot = explored(path, rough, annealing.num_chains, annealing.num_steps, annealing.target)
    betas = sorted({*at_equal_loss(pilot, annealing.num_temperatures), *listed})
    return Plan(tuple(betas), pilot.step_sizes_at(betas), annealing.num_steps)


def _looked(
    path: Path,
    plan: Plan,
    rows: slice,
    advance: Advance,
    listed: tuple[float, ...],
    num_chains: int,
) -> dict[str, Tensor]:
    """What chains are like at the β listed, ``(N, B)``, and how they moved, ``(N,)``."""
    found: dict[str, list[Tensor]] = {}
    accepted = []
    for moment in plan.moments(path, path.draw(num_chains)):
        if moment.acceptance is not None:
            accepted.append(moment.acceptance.mean(0))
        if moment.beta in listed:
            refuse_nan(moment.log_weights, rows.start)
            here = _point(moment.beta, moment.log_weights, -moment.difference.double())
            for name, values in here.items():
                found.setdefault(name, []).append(values)
        advance(1 / (len(plan.betas) - 1))
    columns = {name: torch.stack(values, 1) for name, values in found.items()}
    # a single temperature moves nothing
    still = torch.full_like(columns["rate"][:, 0], math.nan)
    return columns | {"acceptance": torch.stack(accepted).mean(0) if accepted else still}


def _point(beta: float, log_w: Tensor, distortion: Tensor) -> dict[str, Tensor]:
    """Rate, distortion and log Ẑ by weighted chains, with the jackknife's variances, ``(N,)``.

    Arguments:
        beta: β.
        log_w: ``(C, N)`` float64.
        distortion: −log p(x|z) of each chain, ``(C, N)``.
    """
    count = len(log_w)
    values = _weighted(beta, log_w, distortion)
    others = [
        _weighted(beta, log_w[keep], distortion[keep])
        for keep in ~torch.eye(count, dtype=torch.bool, device=log_w.device)
    ]
    for name in tuple(values):
        left_out = torch.stack([other[name] for other in others])
        values[f"{name}_variance"] = left_out.var(0, correction=0) * (count - 1)
    values["ess"] = 1 / log_w.softmax(0).square().sum(0)
    return values


def _weighted(beta: float, log_w: Tensor, distortion: Tensor) -> dict[str, Tensor]:
    shares = log_w.softmax(0)
    # a chain of weight zero may be where the datum is impossible
    mean = torch.where(shares > 0, shares * distortion, 0.0).sum(0)
    log_z = log_w.logsumexp(0) - math.log(len(log_w))
    return {"rate": -log_z - beta * mean, "distortion": mean, "log_normalizer": log_z}
