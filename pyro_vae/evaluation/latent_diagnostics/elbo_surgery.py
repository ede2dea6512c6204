"""ELBO surgery: the rate as mutual information plus KL of the aggregate posterior to the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.progress import progress_bar
from ...core.random import Stream
from ...core.validation import positive_int
from ...programs.arguments import ProgramInputs
from ...programs.context import evaluating
from ...programs.inputs import AnyData, AnyProgram, prepare
from ...programs.masks import scored_latents
from ...programs.particles import Layout, guide_scorer, log_probs_at
from ..estimates import Estimate
from ..resumable import compute_in_blocks
from ..tables import Row, Table
from .site_terms import compute_site_terms, plan_particles

__all__ = ["NoAggregateError", "Surgery", "surgery"]

#: Fraction of log N from which the mutual information is reported as saturated.
_SATURATION = 0.9
#: Samples scored at once; the tiled layout runs the guide for each of them.
_DRAWS, _DRAWS_TILED = 512, 16
#: Largest rounding error, in nats, of the density of a sample.
_MAX_EXCESS = 0.1
#: Numbers of samples and examples that check whether all examples have the same prior.
_PRIOR_CHECK_SIZES = (8, 16)

_ROWS = {
    "divergence": ("E KL(q(z|x) ‖ p(z))", ""),
    "mutual_information": ("= I_q(x; z)", "grows with N, at most log N"),
    "marginal": ("+ KL(q(z) ‖ p(z))", "shrinks as N grows"),
}


class NoAggregateError(ValueError):
    """The aggregate posterior of a program has no tractable density."""


@dataclass(frozen=True, repr=False)
class Surgery:
    """E_x KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)), in nats per datum.

    q(z) = 1/N Σ_n q(z|x_n) is the aggregate posterior of the N given examples, z is all latent
    sites together, and x includes all inputs that the program conditions on. Both terms are
    unbiased for the given examples. As estimates for the population they have opposite biases of
    equal size. KL is convex, so KL(q(z) ‖ p(z)) of N examples is in expectation *above* that of
    the population and falls as N grows. I_q(x; z) is *below*, rises with N, and never exceeds
    log N.

    Attributes:
        per_datum: for the evaluated examples, ``divergence``, ``mutual_information`` (which is
            KL(q(z|x_n) ‖ q(z))) and ``marginal``, with Monte Carlo variances in
            ``…_variance``.
        index: the indices of the evaluated examples, ``(M,)``, ascending.
        num_data: the number N of examples in q(z).
        num_samples: samples from each of the M examples.
        seed: seed of the choice of examples and of the samples.

    References:
        ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman
        & Johnson, 2016), section 2.
        https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """

    per_datum: Mapping[str, np.ndarray]
    index: np.ndarray
    num_data: int
    num_samples: int
    seed: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def limit(self) -> float:
        """log N, the maximum of the mutual information of N examples."""
        return math.log(self.num_data)

    @property
    def mutual_information(self) -> float:
        """I_q(x; z) of the given examples, nats."""
        return float(self.per_datum["mutual_information"].mean())

    @property
    def marginal(self) -> float:
        """KL(q(z) ‖ p(z)) of the given examples, nats."""
        return float(self.per_datum["marginal"].mean())

    @property
    def estimates(self) -> dict[str, Estimate]:
        """``divergence``, ``mutual_information`` and ``marginal`` with their standard errors."""
        count, estimates = len(self), {}
        fraction = count / self.num_data  # the examples are a random subset
        for name in _ROWS:
            # the variation of q(z) with the data has no first-order effect on either mean, so
            # se_data needs only the spread over the examples
            values = self.per_datum[name]
            sampling = float(self.per_datum[f"{name}_variance"].mean()) / count
            spread = float(values.var(ddof=1)) / count
            noise = math.sqrt((1 - fraction) * spread + fraction * sampling)
            estimates[name] = Estimate(float(values.mean()), math.sqrt(spread), noise)
        return estimates

    @property
    def warning(self) -> str | None:
        """A warning if the mutual information is close to its maximum log N, else ``None``."""
        if self.mutual_information < _SATURATION * self.limit:
            return None
        return (
            f"the mutual information is within {1 - _SATURATION:.0%} of log N = {self.limit:.1f} "
            f"nats, its maximum for {self.num_data} examples: use more examples"
        )

    def summary(self) -> dict[str, Any]:
        """The values as plain numbers for JSON. Non-finite values become null."""
        return {
            "num_data": self.num_data,
            "num_judged": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "units": "nats per datum",
            "limit": self.limit,
            "estimates": {name: row.summary() for name, row in self.estimates.items()},
            "warning": self.warning,
        }

    def make_table(self) -> Table:
        """Return the three terms as a table."""
        return Table([Row(_ROWS[n][0], [e], _ROWS[n][1]) for n, e in self.estimates.items()])

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        head = (
            f"aggregate posterior q(z) of {self.num_data} examples, {self.num_samples} samples "
            f"from each of {len(self)}; nats per datum; log N = {self.limit:.3f}"
        )
        return "\n".join([head, str(self.make_table()), *filter(None, [self.warning])])


def surgery(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    num_draws: int = 10_000,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Surgery:
    """Estimate the mutual information of data and latents, and KL(q(z) ‖ p(z)).

    log q(z) of each sample is the exact sum over all N examples. It takes ``num_draws`` × N
    density evaluations, streamed so that memory depends on neither number.

    Further arguments as for :func:`~pyro_vae.evaluation.latents`.

    Arguments:
        num_draws: total number of samples from q(z): equally many, two or more, from each
            example, or from a random subset of the examples if there are too many of them.

    Raises:
        NoAggregateError: a ``ValueError``, if q has no density at the samples of other examples
            (a flow without an inverse), if the guide samples more sites than the model's
            latents, or if the prior differs between examples.
        ValueError: if there are fewer than two examples or samples, or as for
            :func:`~pyro_vae.evaluate`.
    """
    inputs = prepare(program, data, args, kwargs, seed)
    size = len(inputs.x)
    if positive_int("num_draws", num_draws) < 2 or size < 2:
        raise ValueError(
            f"expected at least 2 samples of at least 2 examples for an ELBO surgery; got "
            f"{num_draws} of {size}"
        )
    num_samples = max(2, num_draws // size)
    count = min(size, num_draws // num_samples)
    subset = np.random.default_rng([seed, Stream.SURGERY_SUBSET]).permutation(size)[:count]
    index = torch.from_numpy(np.sort(subset))
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.SURGERY_SETUP):
        columns = _compute_columns(inputs, index, num_samples, seed, progress)
    return Surgery(columns, index.numpy(), size, num_samples, seed)


def _compute_columns(
    inputs: ProgramInputs, index: Tensor, num_samples: int, seed: int, progress: bool
) -> dict[str, np.ndarray]:
    """Return the terms of the examples at ``index`` with their Monte Carlo variances."""
    layout, pairs, min_block = plan_particles(inputs)
    block = max(min_block, pairs // num_samples)
    _check_masks(inputs, block)
    use_all = block >= len(inputs.x)  # a guide with parameters per example cannot run on a subset

    def sample(rows: slice, advance: Callable[[float], None]) -> dict[str, Tensor]:
        examples = inputs if use_all else inputs.select(index[rows])
        terms = compute_site_terms(examples, num_samples, layout)
        columns = {"divergence": terms.divergence.double(), "log_q": terms.log_q.double()}
        columns |= {f"latent {name}": value for name, value in terms.latents.items()}
        kept = index[rows] if use_all else slice(None)
        return {name: value.movedim(1, 0)[kept] for name, value in columns.items()}

    samples = compute_in_blocks(
        sample,
        len(index),
        block=block,
        entropy=(seed, Stream.SURGERY),
        progress=progress,
        desc="samples",
    )
    latents = {
        name.removeprefix("latent "): torch.from_numpy(value).flatten(0, 1).to(inputs.x.device)
        for name, value in samples.items()
        if name.startswith("latent ")
    }
    _check_prior(inputs, latents, layout, min_block)
    log_q = _compute_log_aggregate(inputs, latents, layout, pairs, min_block, progress)
    information = samples["log_q"] - log_q.cpu().numpy().reshape(-1, num_samples)
    _check_information(information, len(inputs.x))
    terms = {
        "divergence": samples["divergence"],
        "mutual_information": information,
        "marginal": samples["divergence"] - information,
    }
    means = {name: values.mean(1) for name, values in terms.items()}
    noise = {f"{n}_variance": values.var(1, ddof=1) / num_samples for n, values in terms.items()}
    return means | noise


def _check_information(information: np.ndarray, size: int) -> None:
    """Raise if a sample is less probable under q(z) than its own term in the sum over examples.

    q(z) ≥ q(z|x_n) / N. A flow scores its samples with their noise, and those of other examples by
    its inverse. These differ if z does not have the digits to recover the noise.
    """
    excess = float(information.max()) - math.log(size)
    if not excess <= _MAX_EXCESS:
        raise NoAggregateError(
            f"expected q(z|x) that can be evaluated at its own samples; got one that is too narrow "
            f"for the precision of z: the density of a sample changes by {excess:.3g} nats when it "
            f"is scored again: evaluate program and data in float64, or use another posterior"
        )


def _compute_log_aggregate(
    inputs: ProgramInputs,
    latents: Mapping[str, Tensor],
    layout: Layout,
    pairs: int,
    min_block: int,
    progress: bool,
) -> Tensor:
    """Return log 1/N Σ_n q(z_b | x_n) of B samples, ``(B,)``, in float64."""
    size, count = len(inputs.x), len(next(iter(latents.values())))
    chunk = min(count, _DRAWS_TILED if layout.tiled else _DRAWS, pairs)
    log_sum = torch.full((count,), -math.inf, dtype=torch.float64, device=inputs.x.device)
    with progress_bar(size, progress, desc="q(z)", unit=" examples") as bar:
        blocks = inputs.blocks(min(size, max(min_block, pairs // chunk)))
        for _, (_, guide, x, args, kwargs) in blocks:
            scorer = guide_scorer(guide, x, *args, layout=layout, **kwargs)
            for first in range(0, count, chunk):
                subset = slice(first, first + chunk)
                try:
                    log_q = scorer(_expand_latents(latents, subset, len(x)))
                except ValueError as error:
                    raise NoAggregateError(str(error)) from error
                log_sum[subset] = torch.logaddexp(log_sum[subset], log_q.double().logsumexp(1))
            bar.update(len(x))
    return log_sum - math.log(size)


def _check_masks(inputs: ProgramInputs, block: int) -> None:
    """Raise if examples have different latents."""
    for name, scored in scored_latents(inputs, block).items():
        if not (scored == scored[:1]).all():
            raise NoAggregateError(
                f"expected the same latents for all examples; got site {name!r}, which is masked "
                f"or absent for some of them, so that q(z) is not defined: use rate and distortion "
                f"instead"
            )


def _check_prior(
    inputs: ProgramInputs, latents: Mapping[str, Tensor], layout: Layout, min_block: int
) -> None:
    """Raise if examples have different priors p(z), or if the guide samples additional sites."""
    size, (max_samples, max_examples) = len(inputs.x), _PRIOR_CHECK_SIZES
    if min_block < size:
        inputs = inputs.select(torch.linspace(0, size - 1, min(size, max_examples)).long())
    model, _, x, args, kwargs = inputs
    count = len(next(iter(latents.values())))
    subset = torch.linspace(0, count - 1, min(count, max_samples)).long()
    z = _expand_latents(latents, subset, len(x))
    log_p = log_probs_at(model, z, x, *args, layout=layout, **kwargs)
    additional = latents.keys() - log_p.keys()
    if additional:
        raise NoAggregateError(
            f"expected a guide that samples only the model's latents; got additional sites "
            f"{', '.join(map(repr, sorted(additional)))}, so that q(z|x) has no known density: "
            f"use rate and distortion instead"
        )
    prior = torch.stack([log_p[name] for name in latents]).sum(0)
    if not torch.allclose(prior, prior[:, :1].expand_as(prior), rtol=1e-4, atol=1e-3):
        raise NoAggregateError(
            "expected the same prior p(z) for all examples; got a prior that depends on the "
            "example or its conditioning inputs, so that KL(q(z) ‖ p(z)) is not defined: use "
            "rate and distortion instead"
        )


def _expand_latents(latents: Mapping[str, Tensor], subset: Any, size: int) -> dict[str, Tensor]:
    """Repeat a subset of the samples for ``size`` examples, ``(B, size, *event)``."""
    chosen = {name: value[subset] for name, value in latents.items()}
    return {n: z[:, None].expand(len(z), size, *z.shape[1:]) for n, z in chosen.items()}
