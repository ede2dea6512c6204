"""KL divergence of each latent site and dimension, rate and distortion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.random import Stream
from ...core.validation import positive_int
from ...programs.context import evaluating
from ...programs.inputs import AnyData, AnyProgram, prepare
from ..estimates import Estimate, estimate_mean, finite_or_none
from ..resumable import compute_in_blocks
from ..tables import Row, Table
from .site_terms import compute_site_terms, plan_particles

__all__ = ["Divergences", "SiteDivergence", "divergences"]

#: Label and role of each row of the table.
_ROWS = {
    "elbo": ("ELBO = −(R + D)", "lower bound"),
    "rate": ("rate R", "E KL(q(z|x) ‖ p(z))"),
    "distortion": ("distortion D", "−E log p(x|z)"),
}
#: Number of dimensions that the table lists for each site.
_MAX_LISTED = 8


@dataclass(frozen=True)
class SiteDivergence:
    """E_x KL(q ‖ p) of one latent site, in nats per datum.

    In a hierarchy, the prior of a lower site is conditional on the samples of the sites above.

    Attributes:
        total: KL of the whole site.
        dimensions: KL of each of its D dimensions, ``(D,)``; ``None`` if q or p does not
            factorise over the dimensions (a flow, a full covariance, a mixture).
        errors: standard errors of ``dimensions`` over the data, ``(D,)``, or ``None``.
        closed_form: whether the KL is in closed form given the samples of other sites; otherwise
            it is the mean of log q − log p over the samples.
    """

    total: Estimate
    dimensions: np.ndarray | None
    errors: np.ndarray | None
    closed_form: bool


@dataclass(frozen=True, repr=False)
class Divergences:
    """Rate and distortion of a program, and the contribution of each latent site to the rate.

    R = E_x KL(q(z|x) ‖ p(z)) and D = −E_x E_q log p(x|z), over all latent sites together; the
    ELBO is −(R + D). Sites with ``infer={"is_noise": True}`` are not latents: their KL, which is
    zero unless the guide trains them, is part of D.

    Attributes:
        sites: by name, in the order in which the guide samples them.
        per_datum: arrays of length N, ``rate``, ``distortion`` and ``elbo``, with their Monte
            Carlo variances in ``…_variance``.
        num_samples: samples for each example.
        seed: seed of the samples.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018), section 2. https://arxiv.org/abs/1711.00464
    """

    sites: Mapping[str, SiteDivergence]
    per_datum: Mapping[str, np.ndarray]
    num_samples: int
    seed: int

    def __len__(self) -> int:
        return len(self.per_datum["rate"])

    @property
    def rate(self) -> float:
        """R, nats per datum."""
        return float(self.per_datum["rate"].mean())

    @property
    def distortion(self) -> float:
        """D, nats per datum."""
        return float(self.per_datum["distortion"].mean())

    @property
    def estimates(self) -> dict[str, Estimate]:
        """``elbo``, ``rate`` and ``distortion`` with their standard errors."""
        data = self.per_datum
        return {name: estimate_mean(data[name], data[f"{name}_variance"]) for name in _ROWS}

    def summary(self) -> dict[str, Any]:
        """The values as plain numbers for JSON. Non-finite values become null."""
        return {
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "units": "nats per datum",
            "estimates": {name: row.summary() for name, row in self.estimates.items()},
            "sites": {
                name: {
                    "total": site.total.summary(),
                    "dimensions": _to_list(site.dimensions),
                    "errors": _to_list(site.errors),
                    "closed_form": site.closed_form,
                }
                for name, site in self.sites.items()
            },
        }

    def make_table(self) -> Table:
        """Return ELBO, rate and distortion as a table."""
        return Table([Row(_ROWS[n][0], [e], _ROWS[n][1]) for n, e in self.estimates.items()])

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        head = f"{len(self)} examples × {self.num_samples} samples; nats per datum"
        sites = map(_format_site, self.sites, self.sites.values())
        return "\n".join([head, str(self.make_table()), *sites])


def divergences(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    num_samples: int = 64,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Divergences:
    """Estimate E_x KL(q ‖ p) of each latent site and dimension, rate and distortion.

    Arguments as for :func:`~pyro_vae.evaluation.latents`; one example or sample is enough here.

    Raises:
        ValueError: if ``num_samples`` is not a positive integer, or as for
            :func:`~pyro_vae.evaluate`.

    References:
        ELBO surgery (Hoffman & Johnson, 2016), section 1.1.
        https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        Fixing a Broken ELBO (Alemi et al., 2018), section 2. https://arxiv.org/abs/1711.00464
    """
    positive_int("num_samples", num_samples)
    inputs = prepare(program, data, args, kwargs, seed)
    size = len(inputs.x)
    flags: dict[str, tuple[bool, bool]] = {}

    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.DIVERGENCES_SETUP):
        layout, pairs, min_block = plan_particles(inputs)
        block = min(size, max(min_block, pairs // num_samples))

        def compute(rows: slice, advance: Callable[[float], None]) -> dict[str, Tensor]:
            examples = inputs.select(rows)
            moments = defaultdict[str, _RunningMoments](_RunningMoments)
            chunk = max(1, pairs // len(examples.x))
            for first in range(0, num_samples, chunk):
                count = min(chunk, num_samples - first)
                terms = compute_site_terms(examples, count, layout)
                rate, log_likelihood = terms.divergence, terms.log_likelihood
                columns = {
                    "rate": rate,
                    "distortion": -log_likelihood,
                    "elbo": log_likelihood - rate,
                }
                for name, term in terms.sites.items():
                    flags[name] = (term.per_dimension, term.closed_form)
                    columns |= {f"site {name}": term.values, f"total {name}": term.values.sum(2)}
                for name, values in columns.items():
                    moments[name].update(values.double())
                advance(count / num_samples)
            means = {name: m.mean for name, m in moments.items()}
            return means | {f"{name}_variance": m.variance_of_mean for name, m in moments.items()}

        columns = compute_in_blocks(
            compute,
            size,
            block=block,
            entropy=(seed, Stream.DIVERGENCES),
            progress=progress,
            desc="divergences",
            absent=0.0,  # a site that a block does not have, such as a later time, has no KL
        )
    return Divergences(
        sites={name: _make_site_divergence(name, columns, *flag) for name, flag in flags.items()},
        per_datum={n: v for n, v in columns.items() if not n.startswith(("site ", "total "))},
        num_samples=int(num_samples),
        seed=seed,
    )


class _RunningMoments:
    """Elementwise mean and variance of values ``(draws, …)`` that arrive in chunks."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros(())

    def update(self, values: Tensor) -> None:
        count, mean = len(values), values.mean(0)
        total, delta = self.count + count, mean - self.mean
        correction = delta.square() * (self.count * count / total) if self.count else 0.0
        self._squares = self._squares + (values - mean).square().sum(0) + correction
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def variance_of_mean(self) -> Tensor:
        """The variance of the mean; NaN for a single sample."""
        if self.count < 2:
            return torch.full_like(self.mean, torch.nan)
        return self._squares / (self.count * (self.count - 1))


def _make_site_divergence(
    name: str, columns: Mapping[str, np.ndarray], per_dimension: bool, closed_form: bool
) -> SiteDivergence:
    total = estimate_mean(columns[f"total {name}"], columns[f"total {name}_variance"])
    if not per_dimension:
        return SiteDivergence(total, None, None, closed_form)
    values = columns[f"site {name}"]
    # the standard error of a single example is unknown
    errors = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else values[0] * np.nan
    return SiteDivergence(total, values.mean(0), errors, closed_form)


def _format_site(name: str, site: SiteDivergence) -> str:
    method = "closed form" if site.closed_form else "Monte Carlo"
    head = f"KL of {name} ({method}): {site.total.value:.3f} ± {site.total.se_data:.3f}"
    if site.dimensions is None:
        return f"{head}; it does not factorise over dimensions"
    values = np.sort(site.dimensions)[::-1]
    if len(values) == 1:
        return head
    listed = [f"{value:.2f}" for value in values[:_MAX_LISTED]]
    listed += ["…"] * (len(values) > _MAX_LISTED)
    return f"{head}; {len(values)} dimensions, largest first: {', '.join(listed)}"


def _to_list(values: np.ndarray | None) -> list[float | None] | None:
    return None if values is None else [finite_or_none(float(value)) for value in values]
