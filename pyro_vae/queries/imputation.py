"""Imputation: samples from p(x_mis, z | x_obs) for any program, by importance sampling or HMC."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.links import see
from ..core.random import Stream
from ..core.validation import check_memory, non_negative_int, positive_int
from ..data import Split
from ..data.splits import contains_nan
from ..evaluation.importance.streaming import StreamingEstimates, khat_threshold
from ..programs.arguments import ProgramInputs
from ..programs.base import Program
from ..programs.context import evaluating
from ..programs.hmc import run_hmc
from ..programs.inputs import AnyData, prepare, read_with_arguments
from ..programs.kl import unwrap_independent
from ..programs.sites import SiteNames, data_first, find_data_sites
from .decoding import single_pixels
from .fitted_proposals import MAX_FULL_COVARIANCE_DIM, fit_mixture, make_unconstrained_density
from .pixels import Noise
from .proposals import (
    ProposalCounts,
    WeightedSamples,
    init_completions,
    propose,
    update_completions,
)
from .runner import PartialObservation, Runner

__all__ = ["Imputation", "MissingScore", "impute", "score_missing"]

#: Maximum number of pixels in all (sample, example) pairs held at once.
_MAX_ELEMENTS = 1 << 23
#: Candidates for each completion: prior samples for the first one, guide samples for later ones.
_NUM_PRIOR_CANDIDATES, _NUM_GUIDE_CANDIDATES = 20, 8
#: Fraction of the guide in the joint samples of the guide and the mixture fitted to it.
_GUIDE_FRACTION = 0.1
_HMC_DEFAULTS = {"warm_up": 100, "thin": 50}
#: Fields of :class:`Imputation` whose examples are along the second axis.
_PER_SAMPLE = ("x", "means", "latents")
#: Fields of :class:`Imputation` that are estimated from the log weights.
_ESTIMATES = ("log_evidence", "log_evidence_variance", "khat", "ess")


@dataclass(frozen=True)
class Imputation:
    """Samples from p(x, z | x_obs) with diagnostics.

    Attributes:
        x: samples of the whole example, ``(S, N, *event)``; pixels observed without noise are
            unchanged.
        means: the mean of x given the latents of each sample, ``(S, N, *event)``: the samples
            without the noise of p(x|z), for display.
        mean: E[x | x_obs], ``(N, *event)``, estimated from all K proposals or from the S chains.
        latents: the latents of each sample, by site, ``(S, N, *rest)``.
        log_evidence: log p̂(x_obs), ``(N,)``, nats, biased downwards.
        log_evidence_variance: its Monte Carlo variance, ``(N,)``.
        khat: k̂ of the weights, ``(N,)``.
        ess: their effective sample size, ``(N,)``, out of K.
        num_samples: the number K of proposals.
        acceptance: the acceptance rate of HMC, averaged over chains, ``(N,)``; ``None`` without
            HMC.
        rows: the row of each example in the file of the data, ``(N,)``; ``None`` if the examples
            are in its order, or unknown.
    """

    x: Tensor
    means: Tensor
    mean: Tensor
    latents: Mapping[str, Tensor]
    log_evidence: Tensor
    log_evidence_variance: Tensor
    khat: Tensor
    ess: Tensor
    num_samples: int
    acceptance: Tensor | None = None
    rows: Tensor | None = None

    @property
    def unreliable(self) -> Tensor:
        """The indices of the examples whose k̂ is too high for reliable importance sampling."""
        return (~(self.khat < khat_threshold(self.num_samples))).nonzero()[:, 0]

    @property
    def warning(self) -> str | None:
        """One sentence if some samples are unreliable, else ``None``."""
        count = len(self.unreliable)
        if not count:
            return None
        limit = khat_threshold(self.num_samples)
        remedy = (
            "the HMC chains started from these samples, and log p̂(x_obs) is unreliable"
            if self.acceptance is not None
            else "use more proposals or method 'hmc'"
        )
        return (
            f"k̂ is not below {limit:.2f} for {count} of {len(self.khat)} examples: their "
            f"{len(self.x)} samples come from few of the {self.num_samples} proposals; {remedy} "
            f"({see('docs/how-to/read-khat.md')})."
        )


class MissingScore(NamedTuple):
    """log p̂(x_mis | x_obs) of each example.

    Attributes:
        value: the estimate in nats, ``(N,)``.
        variance: its Monte Carlo variance, ``(N,)``.
        khat: the larger k̂ of the two estimates, ``(N,)``.
        rows: as of an :class:`Imputation`.
    """

    value: Tensor
    variance: Tensor
    khat: Tensor
    rows: Tensor | None = None


def impute(
    program: Program | tuple[Any, Any],
    x: AnyData,
    *args: Any,
    observed: Tensor | None = None,
    noise: Noise | None = None,
    site: SiteNames | None = None,
    draws: int = 16,
    num_samples: int = 1000,
    fills: int = 10,
    rounds: int = 5,
    refit_steps: int = 200,
    defence: float = 0.1,
    method: Literal["importance", "hmc"] = "importance",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Imputation:
    """Sample from p(x_mis, z | x_obs) ∝ p(z) p(x_obs | z) p(x_mis | z).

    Use a mask of observed pixels for inpainting and super-resolution (half of an image, every
    second pixel), and a :class:`~pyro_vae.queries.Noise` on the observed pixels for denoising.
    The likelihood scores only the observed pixels, so its pixels must be independent given z.

    The guide needs complete examples. It receives M completions of each example, with missing
    pixels sampled from the model at first and then, for a few rounds, from the weighted samples
    so far. If all latents are real-valued, a normal distribution of the latents starts at each
    completion, and their mixture is refitted to the example by maximising the ELBO of the
    observed pixels, for which the guide was not trained. The proposal is the mixture of

    * this fitted mixture, with Student's t tails;
    * q(z | x_obs, x_mis^m) over all completions m;
    * the prior, which keeps the weights bounded.

    Each sample is weighted by the whole mixture. A guide that can score only its own samples (a
    flow without an inverse) is omitted. If there is no fitted mixture either, each sample is
    weighted by its own component of the guide, without the prior.

    Arguments:
        program: any object with a ``model`` and a ``guide``, or a pair of them.
        x: the examples, a tensor ``(N, *event)`` or anything that
            :func:`~pyro_vae.data.as_split` accepts. NaN is missing; other values of missing pixels
            are ignored.
        *args: additional arguments of model and guide, as are ``**kwargs``; tensors of leading
            size N are per example.
        observed: boolean mask of the observed pixels, ``(N, *event)`` or ``event``; by default
            all pixels that are not NaN.
        noise: the noise on the observed pixels; samples of x are then of the clean data.
        site: the observed site whose values are x, or those whose values are parts of x, of which
            some are missing; by default as for :func:`~pyro_vae.queries.reconstruct`.
        draws: the number S of returned samples.
        num_samples: the number K of proposals for each example.
        fills: the number M of completions of each example.
        rounds: how often the completions are updated.
        refit_steps: gradient steps of the fitted mixture; 0 disables it.
        defence: the fraction of proposals from the prior.
        method: ``"importance"`` for resampling; ``"hmc"`` for S chains that start from the
            resampled latents.
        options: arguments of :func:`~pyro_vae.programs.hmc.run_hmc`; by default 100 warm-up
            transitions and 50 samples.
        seed: seed of all samples; global generators are not affected.

    Returns:
        The :class:`Imputation`.

    Raises:
        ValueError: if shapes do not match, a number is out of range, the examples cannot be
            scored, a missing value is no part of a data site, the likelihood's pixels are not
            independent, the noise does not match the
            likelihood, or HMC is requested for latents that are not real-valued.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende
        et al., 2014), appendix F. https://arxiv.org/abs/1401.4082
        Leveraging the Exact Likelihood of Deep Latent Variable Models (Mattei & Frellsen,
        2018), section 3. https://arxiv.org/abs/1802.04826
        Automatic Differentiation Variational Inference with Mixtures (Morningstar et al.,
        2021). https://arxiv.org/abs/2003.01687
        Safe and effective importance sampling (Owen & Zhou, 2000).
        https://doi.org/10.1080/01621459.2000.10473909

    Example:
        >>> observed = pv.queries.mask("lower-half", (1, 8, 8))
        >>> result = pv.queries.impute(vae, x[:2], observed=observed, draws=5, num_samples=100)
        >>> bool((result.x[:, :, observed] == x[:2, observed]).all())  # 5 samples of 2 examples
        True
    """
    if method not in ("importance", "hmc"):
        raise ValueError(f"expected method to be 'importance' or 'hmc'; got {method!r}")
    if options is not None and method != "hmc":
        raise ValueError("expected method 'hmc' with options of HMC; got 'importance'")
    positive_int("draws", draws)
    settings = _ImputationSettings(num_samples, fills, rounds, refit_steps, defence)
    data = read_with_arguments(program, x, kwargs)
    _check_size(data, draws)
    inputs = prepare(program, data, args, check=False)
    hmc_options = None if method == "importance" else options or {}
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.IMPUTE):
        observation = _observe(program, inputs, observed, noise, site)
        parts = [
            {
                **_estimate(weighted, start),
                **_resample(part, weighted, draws, hmc_options),
            }
            for start, part, weighted in _iterate_blocks(observation, settings)
        ]
    return Imputation(**_concatenate(parts), rows=getattr(data, "rows", None))


def score_missing(
    program: Program | tuple[Any, Any],
    x: AnyData,
    *args: Any,
    observed: Tensor,
    site: SiteNames | None = None,
    num_samples: int = 1000,
    fills: int = 10,
    rounds: int = 5,
    refit_steps: int = 200,
    defence: float = 0.1,
    seed: int = 0,
    **kwargs: Any,
) -> MissingScore:
    """Estimate log p(x_mis | x_obs) = log p(x) − log p(x_obs) of known missing pixels.

    Both terms are estimated as in :func:`impute`. One of the M completions for the second term
    is x itself, which is valid because a proposal may use any information. The second estimate
    then covers the latents that the first one found; otherwise the score would be too high.

    Arguments:
        program, *args, site, num_samples, fills, rounds, refit_steps, defence, seed, **kwargs:
            as in :func:`impute`.
        x: complete examples, ``(N, *event)``.
        observed: boolean mask of the pixels to condition on, ``(N, *event)`` or ``event``.

    Returns:
        A :class:`MissingScore`.

    Raises:
        ValueError: as for :func:`impute`; or if an example has NaN.
    """
    settings = _ImputationSettings(num_samples, fills, rounds, refit_steps, defence)
    data = read_with_arguments(program, x, kwargs)
    inputs = prepare(program, data, args, check=False)
    if contains_nan(inputs.x):
        raise ValueError(
            "expected complete examples, whose missing pixels are known and scored; got NaN: pass "
            "the mask of the missing pixels as observed, and examples without NaN"
        )
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.SCORE_MISSING):
        partial = _observe(program, inputs, observed, None, site)
        runner = partial.runner.with_data(inputs.x)
        complete = PartialObservation(runner, inputs.x, torch.ones_like(partial.observed))
        joint, marginal = (
            _concatenate(
                [
                    _estimate(weighted, start)
                    for start, _, weighted in _iterate_blocks(observation, settings, truth)
                ]
            )
            for observation, truth in ((complete, None), (partial, inputs.x))
        )
    return MissingScore(
        joint["log_evidence"] - marginal["log_evidence"],
        joint["log_evidence_variance"] + marginal["log_evidence_variance"],
        torch.maximum(joint["khat"], marginal["khat"]),
        getattr(data, "rows", None),
    )


@dataclass(frozen=True)
class _ImputationSettings:
    """Number of proposals and their origin."""

    num_samples: int
    fills: int
    rounds: int
    refit_steps: int
    defence: float

    def __post_init__(self) -> None:
        for name in ("num_samples", "fills"):
            positive_int(name, getattr(self, name))
        for name in ("rounds", "refit_steps"):
            non_negative_int(name, getattr(self, name))
        if not 0 <= self.defence < 1:
            raise ValueError(f"expected defence to be a fraction in [0, 1); got {self.defence}")
        if self.num_samples < 2 * self.fills:
            raise ValueError(
                f"expected num_samples ≥ 2 × fills; got {self.num_samples} for {self.fills} fills"
            )

    def count_proposals(self, num_components: int, has_fitted: bool) -> ProposalCounts:
        """Return the number of samples from each part of the proposal, about K in total."""
        per_component = (1 - self.defence) * self.num_samples / num_components
        guide = max(1, int(_GUIDE_FRACTION * per_component if has_fitted else per_component))
        fitted = max(1, int(per_component) - guide) if has_fitted else 0
        prior = self.num_samples - (guide + fitted) * num_components
        return ProposalCounts(guide, fitted, prior if self.defence else 0)


def _check_size(data: Split | Tensor, draws: int) -> None:
    """Raise a ``ValueError`` if the examples, the samples and their means exceed the memory."""
    values = data.values if isinstance(data, Split) else data
    size = 4 * (2 * draws + 2) * math.prod(values.shape)
    check_memory("the samples", size, "use fewer draws, or pass some of the examples")


def _observe(
    program: Any,
    inputs: ProgramInputs,
    observed: Tensor | None,
    noise: Noise | None,
    site: SiteNames | None,
) -> PartialObservation:
    """Return the observation, with model samples in place of missing pixels."""
    model, _, x, args, _ = inputs
    if observed is None:
        observed = torch.ones(x.shape[1:], dtype=torch.bool)
    if observed.dtype != torch.bool or observed.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"expected observed to be booleans of shape {tuple(x.shape)} or {tuple(x.shape[1:])}; "
            f"got {observed.dtype} of shape {tuple(observed.shape)}"
        )
    observed = observed.to(x.device).expand(x.shape) & ~x.isnan()
    data, sites = find_data_sites(model, (x, *args), site=site)
    if data.argument != 0:
        reason = data.no_argument_reason or "parts of another argument"
        raise ValueError(
            f"expected sites that observe different parts of x, to impute the missing ones; got "
            f"{reason}"
        )
    values = {name: data_first(sites[name], sites[name]["value"]) for name in data.sites}
    sample = data.assemble({name: v.reshape(len(x), -1) for name, v in values.items()}, x)
    no_site = ~observed & ~data.is_observed(x)
    if no_site.any():
        raise ValueError(
            f"expected missing values that a data site ({', '.join(map(repr, data.sites))}) "
            f"observes, to sample them from it; got {int(no_site.sum())} that none of these does: "
            f"mark them as observed, and replace NaN"
        )
    for name, part in data.sites.items():
        fn, seen = sites[name]["fn"], part.take(observed)
        is_whole = bool((seen.all(-1) | ~seen.any(-1)).all())
        if not (is_whole or hasattr(unwrap_independent(fn), "observed_log_prob")):
            single_pixels(fn)  # raises if parts of a value depend on each other
    completed = torch.where(observed, x, sample.to(x.dtype))
    # copied columns may coincide in completed examples
    runner = Runner.create(prepare(program, completed, args), site, data)
    return PartialObservation(runner, completed, observed, noise)


def _split_rows(size: int, elements: int) -> list[slice]:
    """Split the examples into blocks that fit in memory, given the elements per example."""
    block = max(1, _MAX_ELEMENTS // max(1, elements))
    return [slice(i, min(i + block, size)) for i in range(0, size, block)]


def _iterate_blocks(
    observation: PartialObservation, settings: _ImputationSettings, truth: Tensor | None = None
) -> Iterator[tuple[int, PartialObservation, WeightedSamples]]:
    """Yield K weighted samples of each example: the first index of a block, and its samples."""
    size, pixels = len(observation.x), observation.x[0].numel()
    num_completions = settings.fills if observation.is_incomplete else 1
    prior = observation.runner.sample_prior(1)
    latent_dim = sum(value.numel() for value in prior.values()) // size
    has_factors = settings.refit_steps and latent_dim <= MAX_FULL_COVARIANCE_DIM
    elements = max(_NUM_PRIOR_CANDIDATES * pixels, latent_dim**2 if has_factors else latent_dim)
    for rows in _split_rows(size, num_completions * elements):
        block = observation.select(rows)
        block_truth = None if truth is None else truth[rows]
        completions = _make_completions(block, settings, block_truth)
        fitted = (
            fit_mixture(block, completions, settings.refit_steps) if settings.refit_steps else None
        )
        counts = settings.count_proposals(num_completions, fitted is not None)
        for chunk in _split_rows(len(block.x), settings.num_samples * pixels):
            start = rows.start + chunk.start
            part = observation.select(slice(start, rows.start + chunk.stop))
            proposal = fitted and fitted.select(chunk, make_unconstrained_density(part))
            yield start, part, propose(part, completions[:, chunk], counts, proposal)


def _make_completions(
    observation: PartialObservation, settings: _ImputationSettings, truth: Tensor | None
) -> Tensor:
    """Return the completions of a block of examples, ``(M, N, *event)``."""
    if not observation.is_incomplete:
        return observation.x[None]
    completions = init_completions(observation, settings.fills, _NUM_PRIOR_CANDIDATES)
    for _ in range(settings.rounds):
        completions = update_completions(observation, completions, _NUM_GUIDE_CANDIDATES)
    return completions if truth is None else torch.cat([completions[:-1], truth[None]])


def _estimate(weighted: WeightedSamples, start: int) -> dict[str, Tensor]:
    """Return the estimates of log p(x_obs) by field of :class:`Imputation`, each ``(N,)``."""
    log_w = weighted.log_weights.double().cpu()
    estimates = StreamingEstimates(log_w.shape[1], len(log_w), ())
    estimates.update(log_w, start)
    columns = estimates.result()
    return {name: columns[name] for name in _ESTIMATES}


def _resample(
    observation: PartialObservation,
    weighted: WeightedSamples,
    draws: int,
    hmc_options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Resample by weight, and run HMC from there with the given options unless ``None``.

    Returns:
        The other fields of :class:`Imputation`.
    """
    weights = weighted.log_weights.softmax(0)
    proposal_means = observation.mean(weighted.decoded)
    weights_shape = (*weights.shape, *(1,) * (proposal_means.ndim - 2))
    mean = (weights.reshape(weights_shape) * proposal_means).sum(0)
    latents, acceptance = weighted.resample(draws), None
    if hmc_options is not None:
        # a different seed for each block of examples
        options = {**_HMC_DEFAULTS, "seed": int(torch.randint(1 << 31, ())), **hmc_options}
        chains = run_hmc(make_unconstrained_density(observation), latents, **options)
        latents, acceptance = chains.last, chains.acceptance.mean(0)
    decoded = observation.runner.decode(latents)
    means = observation.mean(decoded)
    return {
        "x": observation.sample(decoded),
        "means": means,
        "mean": mean if hmc_options is None else means.mean(0),
        "latents": latents,
        "num_samples": len(weights),
        "acceptance": acceptance,
    }


def _concatenate(parts: Sequence[Any], dim: int = 0) -> Any:
    """Concatenate tensors, or the fields of results, along the axis of the examples."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {
            name: _concatenate([part[name] for part in parts], dim or int(name in _PER_SAMPLE))
            for name in first
        }
    return torch.cat(list(parts), dim) if isinstance(first, Tensor) else first
