"""What the latents carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._component import positive
from .._inputs import fixed, inputs
from .._programs import Program, evaluating, own_parameters, samples, traces
from .._random import seeded
from ..data.datasets import Split
from ..particles import Layout, inspect, run

__all__ = ["ActiveUnits", "active_units"]

#: (draw, datum) pairs of one run of the guide.
_PAIRS = 1 << 15


@dataclass(frozen=True)
class ActiveUnits:
    """How far each latent unit's posterior mean moves with the datum.

    Attributes:
        variance: Var_x(E_q[u | x]) of every unit of every continuous latent site, ``(D,)``, by
            site. An unbiased estimate: that of a dead unit may be a little below zero. Sites
            with ``infer={"is_noise": True}`` are no latents and are left out.
        threshold: above which a unit is called active.
        num_data: the number of data.
        num_samples: draws for each.
    """

    variance: Mapping[str, np.ndarray]
    threshold: float
    num_data: int
    num_samples: int

    @property
    def counts(self) -> dict[str, int]:
        """The number of active units of each site."""
        return {site: int((v > self.threshold).sum()) for site, v in self.variance.items()}

    def __str__(self) -> str:
        parts = (f"{site} {n} of {len(self.variance[site])}" for site, n in self.counts.items())
        return f"active units (variance of the posterior mean > {self.threshold:g}): " + ", ".join(
            parts
        )


@torch.no_grad()
def active_units(
    program: Program,
    data: Split | Tensor,
    *args: Any,
    num_samples: int = 64,
    threshold: float = 0.01,
    seed: int = 0,
) -> ActiveUnits:
    """The units u with Var_x(E_{q(u|x)}[u]) > ``threshold``, by draws of any guide.

    The mean of a flow, or of a layer that depends on another's draw, is in no closed form. Two
    means of half the draws each have independent errors, so that their covariance over the
    data is the variance sought, without bias.

    Arguments:
        program: anything with a ``model`` and a ``guide``.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide; tensors of leading size N are per datum.
        num_samples: draws for each datum, 2 or more.
        threshold: as in the paper, 0.01.
        seed: of the draws and of the binarisation.

    Returns:
        The :class:`ActiveUnits`.

    Raises:
        ValueError: if there are fewer than two data or draws, or if the program's weights do
            not exist per datum.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.2.
        https://arxiv.org/abs/1509.00519
    """
    half = positive("num_samples", num_samples) // 2
    if half < 1 or len(data) < 2:
        raise ValueError(
            f"expected 2 or more draws of 2 or more data, or there is no variance; got "
            f"{num_samples} of {len(data)}"
        )
    given = (fixed(data, seed), *args) if args else inputs(program, data, seed)
    if isinstance(program, torch.nn.Module):
        device = next((p.device for p in program.parameters()), given[0].device)
        given = tuple(a.to(device) if isinstance(a, Tensor) else a for a in given)
    model, guide = program.model, program.guide
    with seeded(seed, 2), own_parameters(model, guide), evaluating(model, guide):
        size = max(1, _PAIRS // num_samples)
        blocks = [
            tuple(a[i : i + size] if _per_datum(a, len(data)) else a for a in given)
            for i in range(0, len(data), size)
        ]
        layout = inspect(model, guide, *blocks[0])
        sites = _continuous(model, guide, blocks[0])
        means = [_means(guide, block, sites, half, layout) for block in blocks]
    joined = {site: torch.cat([m[site] for m in means], 1).double() for site in sites}
    return ActiveUnits(
        variance={site: _covariance(m).cpu().numpy() for site, m in joined.items()},
        threshold=threshold,
        num_data=len(data),
        num_samples=2 * half,
    )


def _means(guide: Any, block: tuple, sites: list[str], half: int, layout: Layout) -> Any:
    """Two means of ``half`` draws each of every site, ``(2, N, D)``."""
    drawn = run(_nothing, guide, *block, num_samples=2 * half, layout=layout).latents
    return {site: drawn[site].unflatten(0, (2, half)).mean(1).flatten(2) for site in sites}


def _covariance(means: Tensor) -> Tensor:
    """Of the first means with the second over the data, ``(D,)``."""
    first, second = means - means.mean(1, keepdim=True)
    return (first * second).sum(0) / (means.shape[1] - 1)


def _continuous(model: Any, guide: Any, block: tuple) -> list[str]:
    """The guide's latent sites of numbers that have a mean, but for noise that is no latent."""
    sites, _ = map(samples, traces(model, guide, block, {}))
    return [
        name
        for name, site in sites.items()
        if not (
            site["is_observed"] or site["fn"].has_enumerate_support or site["infer"].get("is_noise")
        )
    ]


def _per_datum(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A model without sites."""
