"""What the latents carry."""

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
    """How many latent units are active, what each costs, and what all of them tell of the data.

    Attributes:
        active: how far each unit's posterior mean moves with the datum.
        divergences: KL of each site and dimension; rate and distortion.
        surgery: mutual information and the aggregate posterior's KL to the prior; ``None`` if
            the program has none.
        without: why there is no ``surgery``, in one sentence.
    """

    active: ActiveUnits
    divergences: Divergences
    surgery: Surgery | None
    without: str | None = None

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers and lists, for JSON. Non-finite ones become null."""
        costs = self.divergences.summary()
        sites = {
            name: {**site, **self._activity(name), "sorted": _sorted(self.divergences, name)}
            for name, site in costs.pop("sites").items()
        }
        return {
            **costs,
            "threshold": self.active.threshold,
            "sites": sites,
            "surgery": None if self.surgery is None else self.surgery.summary(),
            "without_surgery": self.without,
        }

    def _activity(self, name: str) -> dict[str, Any]:
        """What is known of a site's units; nothing of a discrete one, which has no mean."""
        variance = self.active.variance.get(name)
        if variance is None:
            return {"variance": None, "active": None, "units": None}
        count = self.active.counts[name]
        return {"variance": variance.tolist(), "active": count, "units": len(variance)}

    def __str__(self) -> str:
        parts = [str(self.divergences), str(self.active)]
        parts.append(f"no surgery: {self.without}" if self.surgery is None else str(self.surgery))
        return "\n\n".join(parts)

    def to_datatree(self) -> xarray.DataTree:
        """What is known datum by datum, as an ``xarray.DataTree``.

        Group ``divergences`` holds ``rate``, ``distortion`` and ``elbo``; group ``surgery``
        ``divergence``, ``mutual_information`` and ``marginal`` of the data looked at, if there
        is one; each with its Monte Carlo variance.
        """
        import xarray

        every, cut = self.divergences, self.surgery
        groups = {"divergences": _dataset(every.per_datum, np.arange(len(every)))}
        groups["divergences"].attrs = {"num_samples": every.num_samples, "units": "nats"}
        if cut is not None:
            groups["surgery"] = _dataset(cut.per_datum, cut.index)
            groups["surgery"].attrs = {
                "num_samples": cut.num_samples,
                "num_data": cut.num_data,
                "units": "nats",
            }
        return xarray.DataTree.from_dict(groups)

    def to_netcdf(self, path: str | Path) -> None:
        """Writes :meth:`to_datatree` to a NetCDF file, whole or not at all; ArviZ reads it."""
        tree = self.to_datatree()
        files.write(Path(path), lambda file: tree.to_netcdf(file, engine="h5netcdf"))


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
    """All that is known of what the latents carry.

    :func:`active_units`, :func:`~pyro_vae.evaluation.divergences` and
    :func:`~pyro_vae.evaluation.surgery`, of the same data with the same seed. A program
    whose aggregate posterior has no density that could be summed goes without the last.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`, two or more.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        num_samples: draws for each datum, two or more, for active units, rate and distortion.
        num_draws: draws from the aggregate posterior in all.
        threshold: of the variance of a unit's posterior mean, above which it is active.
        seed: of all draws and of the binarisation.
        progress: show progress bars on the standard error.

    Returns:
        The :class:`Latents`.

    Raises:
        ValueError: if there are fewer than two data or draws, or as for
            :func:`~pyro_vae.evaluate`.
    """
    found = active_units(
        program, data, *args, num_samples=num_samples, threshold=threshold, seed=seed, **kwargs
    )
    costs = divergences(
        program, data, *args, num_samples=num_samples, seed=seed, progress=progress, **kwargs
    )
    try:
        cut = surgery(
            program, data, *args, num_draws=num_draws, seed=seed, progress=progress, **kwargs
        )
    except NoAggregateError as error:
        return Latents(found, costs, None, str(error))
    return Latents(found, costs, cut)


def _sorted(found: Divergences, name: str) -> list[float] | None:
    """The KL of each dimension, the largest first."""
    values = found.sites[name].dimensions
    return None if values is None else sorted(values.tolist(), reverse=True)


def _dataset(columns: Mapping[str, np.ndarray], index: np.ndarray) -> xarray.Dataset:
    import xarray

    return xarray.Dataset({n: ("datum", v) for n, v in columns.items()}, coords={"datum": index})
