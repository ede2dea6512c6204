"""Active units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.random import seeded
from ...core.validation import positive_int
from ...data.datasets import Split
from ...programs.base import (
    Program,
    Site,
    empty_program,
    sample_sites,
    trace_program,
    use_own_parameters,
)
from ...programs.importance_weights import Layout, find_layout, run_particles
from ...programs.inputs import prepare
from ...programs.particles import map_batched

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
        se: its standard error over the data, likewise.
        threshold: above which a unit is called active.
        num_data: the number of data.
        num_samples: draws for each.
    """

    variance: Mapping[str, np.ndarray]
    se: Mapping[str, np.ndarray]
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
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    num_samples: int = 64,
    threshold: float = 0.01,
    seed: int = 0,
    **kwargs: Any,
) -> ActiveUnits:
    """The units u with Var_x(E_{q(u|x)}[u]) > ``threshold``, by draws of any guide.

    The mean of a flow, or of a layer that depends on another's draw, is in no closed form. Two
    means of half the draws each have independent errors, so that their covariance over the
    data is the variance sought, without bias.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs``; tensors of leading
            size N are per datum.
        num_samples: draws for each datum, 2 or more.
        threshold: as in the paper, 0.01.
        seed: of the draws and of the binarisation.

    Returns:
        The :class:`ActiveUnits`.

    Raises:
        ValueError: if there are fewer than two data or draws, if the program refuses the data,
            or if its weights do not exist per datum.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.2.
        https://arxiv.org/abs/1509.00519
    """
    half = positive_int("num_samples", num_samples) // 2
    if half < 1 or len(data) < 2:
        raise ValueError(
            f"expected 2 or more draws of 2 or more data, or there is no variance; got "
            f"{num_samples} of {len(data)}"
        )
    model, guide, x, args, kwargs = prepare(program, data, args, kwargs, seed)
    with seeded(seed, 2), use_own_parameters(model, guide), eval_mode(model, guide):
        size = max(1, _PAIRS // num_samples)
        blocks = [
            map_batched(lambda tensor: tensor[i : i + size], len(x), (x, *args), kwargs)  # noqa: B023
            for i in range(0, len(x), size)
        ]
        inputs, named = blocks[0]
        layout = find_layout(model, guide, *inputs, **named)
        guided, _ = trace_program(model, guide, inputs, named)
        sites = _continuous(guided)
        means = [_means(guide, *block, sites, half, layout) for block in blocks]
    joined = {site: torch.cat([m[site] for m in means], 1).double() for site in sites}
    found = {site: _covariance(m) for site, m in joined.items()}
    return ActiveUnits(
        variance={site: value.cpu().numpy() for site, (value, _) in found.items()},
        se={site: se.cpu().numpy() for site, (_, se) in found.items()},
        threshold=threshold,
        num_data=len(data),
        num_samples=2 * half,
    )


def _means(
    guide: Any, args: tuple, kwargs: Mapping[str, Any], sites: list[str], half: int, layout: Layout
) -> dict[str, Tensor]:
    """Two means of ``half`` draws each of every site, ``(2, N, D)``."""
    drawn = run_particles(
        empty_program, guide, *args, num_samples=2 * half, layout=layout, **kwargs
    ).latents
    return {site: drawn[site].unflatten(0, (2, half)).mean(1).flatten(2) for site in sites}


def _covariance(means: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first means with the second over the data, ``(D,)``, and its standard error."""
    first, second = means - means.mean(1, keepdim=True)
    products, size = first * second, means.shape[1]
    return products.sum(0) / (size - 1), products.std(0) / size**0.5


def _continuous(guided: Mapping[str, Site]) -> list[str]:
    """The latent sites of numbers that have a mean, but for noise that is no latent."""
    return [
        name
        for name, site in sample_sites(guided).items()
        if not (
            site["is_observed"] or site["fn"].has_enumerate_support or site["infer"].get("is_noise")
        )
    ]
