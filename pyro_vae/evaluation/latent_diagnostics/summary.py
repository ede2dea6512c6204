"""All latent diagnostics of a program: active units, KL per latent, rate and ELBO surgery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...core import files
from ...data.splits import Split
from ...programs.base import Program
from .activity import ActiveUnits, active_units
from .elbo_surgery import NoAggregateError, Surgery, surgery
from .kl import Divergences, divergences

if TYPE_CHECKING:
    import xarray

__all__ = ["ActiveUnits", "Latents", "active_units", "latents"]


@dataclass(frozen=True)
class Latents:
    """Active units, KL of each latent, and mutual information of data and latents.

    Attributes:
        active: variance over the data of each unit's posterior mean.
        divergences: KL of each site and dimension; rate and distortion.
        surgery: mutual information, and KL of the aggregate posterior to the prior; ``None`` if
            the aggregate posterior has no tractable density.
        no_surgery_reason: the reason if ``surgery`` is ``None``.
    """

    active: ActiveUnits
    divergences: Divergences
    surgery: Surgery | None
    no_surgery_reason: str | None = None

    def summary(self) -> dict[str, Any]:
        """The values as plain numbers and lists for JSON. Non-finite values become null."""
        summary = self.divergences.summary()
        sites = {
            name: {
                **site,
                **self._summarize_activity(name),
                "sorted": _sort_dimensions(self.divergences, name),
            }
            for name, site in summary.pop("sites").items()
        }
        return {
            **summary,
            "threshold": self.active.threshold,
            "sites": sites,
            "surgery": None if self.surgery is None else self.surgery.summary(),
            "without_surgery": self.no_surgery_reason,
        }

    def _summarize_activity(self, name: str) -> dict[str, Any]:
        """Return the activity of a site's units, null for a discrete site, which has no mean."""
        variance = self.active.variance.get(name)
        if variance is None:
            return {"variance": None, "active": None, "units": None}
        count = self.active.counts[name]
        return {"variance": variance.tolist(), "active": count, "units": len(variance)}

    def __str__(self) -> str:
        parts = [str(self.divergences), str(self.active)]
        if self.surgery is None:
            parts.append(f"no ELBO surgery: {self.no_surgery_reason}")
        else:
            parts.append(str(self.surgery))
        return "\n\n".join(parts)

    def to_datatree(self) -> xarray.DataTree:
        """The results per example as an ``xarray.DataTree``.

        Group ``divergences`` holds ``rate``, ``distortion`` and ``elbo``. Group ``surgery``, if
        present, holds ``divergence``, ``mutual_information`` and ``marginal`` of the evaluated
        examples. Each column comes with its Monte Carlo variance.
        """
        import xarray

        divergences, surgery = self.divergences, self.surgery
        index = np.arange(len(divergences))
        groups = {"divergences": _make_dataset(divergences.per_datum, index)}
        groups["divergences"].attrs = {"num_samples": divergences.num_samples, "units": "nats"}
        if surgery is not None:
            groups["surgery"] = _make_dataset(surgery.per_datum, surgery.index)
            groups["surgery"].attrs = {
                "num_samples": surgery.num_samples,
                "num_data": surgery.num_data,
                "units": "nats",
            }
        return xarray.DataTree.from_dict(groups)

    def to_netcdf(self, path: str | Path) -> None:
        """Write :meth:`to_datatree` to a NetCDF file atomically. ArviZ can read it."""
        tree = self.to_datatree()
        files.atomic_write(Path(path), lambda file: tree.to_netcdf(file, engine="h5netcdf"))


def latents(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    num_samples: int = 64,
    num_draws: int = 10_000,
    threshold: float = 0.01,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Latents:
    """Run all latent diagnostics on the same data with the same seed.

    These are :func:`active_units`, :func:`~pyro_vae.evaluation.divergences` and
    :func:`~pyro_vae.evaluation.surgery`. The last is skipped for a program whose aggregate
    posterior has no tractable density.

    Arguments:
        program: any object with a ``model`` and a ``guide``, or a pair of them.
        data: the examples, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`, two or more.
        *args: additional arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        num_samples: samples for each example, two or more, for active units, rate and
            distortion.
        num_draws: total number of samples from the aggregate posterior.
        threshold: the variance of its posterior mean above which a unit is active.
        seed: seed of all samples and of the binarisation.
        progress: show progress bars on standard error.

    Returns:
        The :class:`Latents`.

    Raises:
        ValueError: if there are fewer than two examples or samples, or as for
            :func:`~pyro_vae.evaluate`.
    """
    active = active_units(
        program, data, *args, num_samples=num_samples, threshold=threshold, seed=seed, **kwargs
    )
    kl = divergences(
        program, data, *args, num_samples=num_samples, seed=seed, progress=progress, **kwargs
    )
    try:
        parts = surgery(
            program, data, *args, num_draws=num_draws, seed=seed, progress=progress, **kwargs
        )
    except NoAggregateError as error:
        return Latents(active, kl, None, str(error))
    return Latents(active, kl, parts)


def _sort_dimensions(divergences: Divergences, name: str) -> list[float] | None:
    """Return the KL of each dimension in descending order."""
    values = divergences.sites[name].dimensions
    return None if values is None else sorted(values.tolist(), reverse=True)


def _make_dataset(columns: Mapping[str, np.ndarray], index: np.ndarray) -> xarray.Dataset:
    import xarray

    return xarray.Dataset({n: ("datum", v) for n, v in columns.items()}, coords={"datum": index})
