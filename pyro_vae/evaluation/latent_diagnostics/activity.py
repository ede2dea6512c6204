"""Active units: latent units whose posterior mean varies over the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.random import Stream
from ...core.validation import positive_int
from ...programs.arguments import ProgramInputs
from ...programs.base import Site, empty_program, is_latent, sample_sites, trace_program
from ...programs.context import evaluating, inspecting
from ...programs.importance_weights import find_layout
from ...programs.inputs import AnyData, AnyProgram, prepare
from ...programs.masks import unscored_values
from ...programs.particles import run_particles

__all__ = ["ActiveUnits", "active_units"]

#: (sample, example) pairs in one run of the guide.
_PAIRS = 1 << 15


@dataclass(frozen=True, repr=False)
class ActiveUnits:
    """Variance over the data of each latent unit's posterior mean.

    Attributes:
        variance: Var_x(E_q[u | x]) of each unit of each continuous latent site, ``(D,)``, by
            site, over the examples for which the unit is not masked. The estimate is unbiased, so
            that of an inactive unit may be slightly negative. Sites with
            ``infer={"is_noise": True}`` are not latents and are omitted.
        se: its standard error over the data, ``(D,)``, by site.
        threshold: the variance above which a unit is active.
        num_data: the number of examples.
        num_samples: samples for each example.
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

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        parts = [f"{site} {n} of {len(self.variance[site])}" for site, n in self.counts.items()]
        head = f"active units (variance of the posterior mean > {self.threshold:g})"
        return f"{head}: {', '.join(parts)}"


@torch.no_grad()
def active_units(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    num_samples: int = 64,
    threshold: float = 0.01,
    seed: int = 0,
    **kwargs: Any,
) -> ActiveUnits:
    """Find the units u with Var_x(E_{q(u|x)}[u]) > ``threshold``, for any guide.

    The posterior mean of a flow, or of a layer that depends on the sample of another, has no
    closed form. It is estimated twice, from half of the samples each. The two errors are
    independent, so the covariance of the two estimates over the data is an unbiased estimate of
    the variance.

    Arguments as for :func:`~pyro_vae.evaluation.latents`. The paper has the threshold 0.01.

    Raises:
        ValueError: if ``threshold`` is negative or not finite, if there are fewer than two
            examples or samples, if the program rejects the
            data, or if its weights per example are not defined.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.2.
        https://arxiv.org/abs/1509.00519

    Example:
        >>> pv.active_units(vae, x).variance["z"].shape
        (2,)
    """
    if not 0 <= threshold < math.inf:
        raise ValueError(f"expected threshold ≥ 0 and finite; got {threshold}")
    inputs = prepare(program, data, args, kwargs, seed)
    half = positive_int("num_samples", num_samples) // 2
    if half < 1 or len(inputs.x) < 2:
        raise ValueError(
            f"expected at least 2 samples of at least 2 examples to estimate a variance; got "
            f"{num_samples} of {len(inputs.x)}"
        )
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.ACTIVE_UNITS):
        blocks = [block for _, block in inputs.blocks(max(1, _PAIRS // num_samples))]
        model, guide, x, args, kwargs = blocks[0]
        layout = find_layout(model, guide, x, *args, **kwargs)
        sites = [_sites_with_mean(blocks[0])]
        with inspecting():  # a time series may have more sites in other blocks
            sites += map(_sites_with_mean, blocks[1:])
        means: dict[str, list[Tensor]] = {name: [] for part in sites for name in part}
        for part, (_, guide, x, args, kwargs) in zip(sites, blocks, strict=True):
            latents = run_particles(
                empty_program, guide, x, *args, num_samples=2 * half, layout=layout, **kwargs
            ).latents
            for name, site in part.items():  # two estimates of each mean, (2, N, D)
                mean = latents[name].reshape(2, half, len(x), -1).mean(1)
                masked = unscored_values(site)
                if masked is not None:
                    mean = mean.masked_fill(masked.reshape(len(x), -1), math.nan)
                means[name].append(mean)
    variance, se = {}, {}
    for name, parts in means.items():
        both = torch.cat(parts, 1).double()
        if both.isnan().any():
            units = [unit[:, ~unit.isnan().any(0)] for unit in both.unbind(2)]
            moments = [_covariance(unit[..., None]) for unit in units]
            variance[name], se[name] = map(np.concatenate, zip(*moments, strict=True))
        else:
            variance[name], se[name] = _covariance(both)
    return ActiveUnits(variance, se, threshold, len(inputs.x), 2 * half)


def _sites_with_mean(inputs: ProgramInputs) -> dict[str, Site]:
    """Return the continuous latent sites of a run of the guide, without noise."""
    model, guide, x, args, kwargs = inputs
    guided, _ = trace_program(model, guide, (x, *args), kwargs, sum_out=False)
    return {
        name: site
        for name, site in sample_sites(guided).items()
        if is_latent(site)
        and not (site["fn"].has_enumerate_support or site["infer"].get("is_noise"))
    }


def _covariance(both: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of two estimates ``(2, N, D)`` and its standard error, ``(D,)``."""
    size = both.shape[1]
    first, second = both - both.mean(1, keepdim=True)
    products = first * second
    covariance = products.sum(0) / (size - 1) if size > 1 else products.sum(0) * math.nan
    return covariance.cpu().numpy(), (products.std(0) / size**0.5).cpu().numpy()
