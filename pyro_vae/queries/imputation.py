"""Imputation: samples from p(x_mis, z | x_obs) for any program, by importance sampling or HMC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.random import Stream
from ..core.validation import positive_int
from ..evaluation.importance.streaming import StreamingEstimates, khat_threshold
from ..programs.base import Program
from ..programs.context import evaluating
from ..programs.hmc import run_hmc
from ..programs.sites import find_data_site
from .fitted_proposals import MAX_FULL_COVARIANCE_DIM, fit_mixture, make_unconstrained_density
from .noise import Noise
from .proposals import (
    PartialObservation,
    ProposalCounts,
    WeightedSamples,
    init_completions,
    propose,
    update_completions,
    weight_samples,
)
from .runner import Runner, move_to_device, slice_args, unpack_program

__all__ = ["Imputation", "MissingScore", "impute", "score_missing"]

#: Maximum number of pixels in all (sample, example) pairs held at once.
_MAX_ELEMENTS = 1 << 23
#: Candidates for each completion: prior samples for the first one, guide samples for later ones.
_NUM_PRIOR_CANDIDATES, _NUM_GUIDE_CANDIDATES = 20, 8
#: Fraction of the guide in the joint samples of the guide and the mixture fitted to it.
_GUIDE_FRACTION = 0.1
_HMC_DEFAULTS = {"warm_up": 100, "thin": 50}
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
            f"{len(self.x)} samples come from few of the {self.num_samples} proposals; {remedy}."
        )


class MissingScore(NamedTuple):
    """log p̂(x_mis | x_obs) of each example.

    Attributes:
        value: the estimate in nats, ``(N,)``.
        variance: its Monte Carlo variance, ``(N,)``.
        khat: the larger k̂ of the two estimates, ``(N,)``.
    """

    value: Tensor
    variance: Tensor
    khat: Tensor


def impute(
    program: Program | tuple[Any, Any],
    x: Tensor,
    *args: Any,
    observed: Tensor | None = None,
    noise: Noise | None = None,
    draws: int = 16,
    num_samples: int = 1000,
    fills: int = 10,
    rounds: int = 5,
    refit_steps: int = 200,
    defence: float = 0.1,
    method: Literal["importance", "hmc"] = "importance",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
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
        x: the examples, ``(N, *event)``; values of missing pixels are ignored and may be NaN.
        *args: additional arguments of model and guide; tensors of leading size N are per
            example.
        observed: boolean mask of the observed pixels, ``(N, *event)`` or ``event``; all pixels by
            default.
        noise: the noise on the observed pixels; samples of x are then of the clean data.
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
            scored, the likelihood's pixels are not independent, the noise does not match the
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
    """
    if method not in ("importance", "hmc"):
        raise ValueError(f"expected method to be 'importance' or 'hmc'; got {method!r}")
    if options is not None and method != "hmc":
        raise ValueError("expected method 'hmc' with options of HMC; got 'importance'")
    positive_int("draws", draws)
    settings = _ImputationSettings(num_samples, fills, rounds, refit_steps, defence)
    x, args = move_to_device(program, x, args)
    with evaluating(*unpack_program(program), seed=seed, stream=Stream.IMPUTE):
        runner, observation = _prepare(program, x, args, observed, noise)
        blocks = []
        for block in _iterate_blocks(runner, observation, settings):
            estimates = _estimate(block.weighted, block.start, len(x))
            samples = _resample(block, draws, method, options or {})
            blocks.append({**samples, **estimates})
    return _concatenate(blocks)


def score_missing(
    program: Program | tuple[Any, Any],
    x: Tensor,
    *args: Any,
    observed: Tensor,
    num_samples: int = 1000,
    fills: int = 10,
    rounds: int = 5,
    refit_steps: int = 200,
    defence: float = 0.1,
    seed: int = 0,
) -> MissingScore:
    """Estimate log p(x_mis | x_obs) = log p(x) − log p(x_obs) of known missing pixels.

    Both terms are estimated as in :func:`impute`. One of the M completions for the second term
    is x itself, which is valid because a proposal may use any information. The second estimate
    then covers the latents that the first one found; otherwise the score would be too high.

    Arguments:
        program, *args, num_samples, fills, rounds, refit_steps, defence, seed: as in
            :func:`impute`.
        x: complete examples, ``(N, *event)``.
        observed: boolean mask of the pixels to condition on, ``(N, *event)`` or ``event``.

    Returns:
        A :class:`MissingScore`.

    Raises:
        ValueError: as for :func:`impute`.
    """
    settings = _ImputationSettings(num_samples, fills, rounds, refit_steps, defence)
    x, args = move_to_device(program, x, args)
    with evaluating(*unpack_program(program), seed=seed, stream=Stream.SCORE_MISSING):
        runner, partial = _prepare(program, x, args, observed, None)
        complete = PartialObservation(x, torch.ones_like(partial.observed))
        runner = runner.with_data(x, runner.args)
        joint, marginal = (
            _concatenate_estimates(_iterate_blocks(runner, observation, settings, truth), len(x))
            for observation, truth in ((complete, None), (partial, x))
        )
    return MissingScore(
        joint["log_evidence"] - marginal["log_evidence"],
        joint["log_evidence_variance"] + marginal["log_evidence_variance"],
        torch.maximum(joint["khat"], marginal["khat"]),
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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"expected {name} to be an integer ≥ 0; got {value!r}")
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


class _Block(NamedTuple):
    """Weighted samples of a block of examples, of which the first has index ``start``."""

    start: int
    runner: Runner
    observation: PartialObservation
    weighted: WeightedSamples


def _prepare(
    program: Any, x: Tensor, args: tuple, observed: Tensor | None, noise: Noise | None
) -> tuple[Runner, PartialObservation]:
    """Return the runner and the observation, with model samples in place of missing pixels."""
    if observed is None:
        observed = torch.ones(x.shape[1:], dtype=torch.bool)
    if observed.dtype != torch.bool or observed.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"expected observed to be booleans of shape {tuple(x.shape)} or {tuple(x.shape[1:])}; "
            f"got {observed.dtype} of shape {tuple(observed.shape)}"
        )
    observed = observed.to(x.device).expand(x.shape)
    _, sample = find_data_site(unpack_program(program)[0], x, *args)
    completed = torch.where(observed, x, sample.to(x.dtype))
    if hasattr(program, "check"):
        program.check(completed, *args)
    runner = Runner.create(program, completed, args)
    return runner, PartialObservation(completed, observed, noise)


def _split_rows(size: int, elements: int) -> list[slice]:
    """Split the examples into blocks that fit in memory, given the elements per example."""
    block = max(1, _MAX_ELEMENTS // max(1, elements))
    return [slice(i, min(i + block, size)) for i in range(0, size, block)]


def _iterate_blocks(
    runner: Runner,
    observation: PartialObservation,
    settings: _ImputationSettings,
    truth: Tensor | None = None,
) -> Iterator[_Block]:
    """Yield K weighted samples of each example, block by block."""
    size, pixels = len(observation.x), observation.x[0].numel()
    num_completions = settings.fills if observation.is_incomplete else 1
    latent_dim = sum(value.numel() for value in runner.sample_prior(1).values()) // size
    has_factors = settings.refit_steps and latent_dim <= MAX_FULL_COVARIANCE_DIM
    elements = max(_NUM_PRIOR_CANDIDATES * pixels, latent_dim**2 if has_factors else latent_dim)

    def select(rows: slice) -> tuple[Runner, PartialObservation]:
        part = observation.select(rows)
        return runner.with_data(part.x, slice_args(rows, size, runner.args)), part

    for rows in _split_rows(size, num_completions * elements):
        block_runner, part = select(rows)
        block_truth = None if truth is None else truth[rows]
        completions = _make_completions(block_runner, part, settings, block_truth)
        fitted = (
            fit_mixture(block_runner, part, completions, settings.refit_steps)
            if settings.refit_steps
            else None
        )
        counts = settings.count_proposals(num_completions, fitted is not None)
        for chunk in _split_rows(len(part.x), settings.num_samples * pixels):
            start = rows.start + chunk.start
            chunk_runner, chunk_part = select(slice(start, rows.start + chunk.stop))
            proposal = fitted and fitted.select(
                chunk, make_unconstrained_density(chunk_runner, chunk_part)
            )
            samples = propose(chunk_runner, completions[:, chunk], counts, proposal)
            weighted = weight_samples(chunk_part, samples)
            yield _Block(start, chunk_runner, chunk_part, weighted)


def _make_completions(
    runner: Runner,
    observation: PartialObservation,
    settings: _ImputationSettings,
    truth: Tensor | None,
) -> Tensor:
    """Return the completions of a block of examples, ``(M, N, *event)``."""
    if not observation.is_incomplete:
        return observation.x[None]
    completions = init_completions(runner, observation, settings.fills, _NUM_PRIOR_CANDIDATES)
    for _ in range(settings.rounds):
        completions = update_completions(runner, observation, completions, _NUM_GUIDE_CANDIDATES)
    return completions if truth is None else torch.cat([completions[:-1], truth[None]])


def _concatenate_estimates(blocks: Iterable[_Block], size: int) -> dict[str, Tensor]:
    parts = [_estimate(block.weighted, block.start, size) for block in blocks]
    return {name: torch.cat([part[name] for part in parts]) for name in _ESTIMATES}


def _estimate(weighted: WeightedSamples, start: int, size: int) -> dict[str, Tensor]:
    log_w = weighted.log_weights.double().cpu()
    estimates = StreamingEstimates(log_w.shape[1], len(log_w), (), size)
    estimates.update(log_w, start)
    columns = estimates.result()
    return {name: columns[name] for name in _ESTIMATES}


def _resample(block: _Block, draws: int, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``draws`` samples, and the mean over all proposals or chains."""
    _, runner, observation, weighted = block
    weights = weighted.log_weights.softmax(0)
    proposal_means = observation.mean(weighted.decoded)
    weights_shape = (*weights.shape, *(1,) * (proposal_means.ndim - 2))
    mean = (weights.reshape(weights_shape) * proposal_means).sum(0)
    latents = weighted.resample(draws)
    acceptance = None
    if method == "hmc":
        latents, acceptance = _run_chains(runner, observation, latents, options)
    decoded = runner.decode(latents)
    means = observation.mean(decoded)
    if method == "hmc":
        mean = means.mean(0)
    return {
        "x": observation.sample(decoded),
        "means": means,
        "mean": mean,
        "latents": latents,
        "acceptance": acceptance,
        "num_samples": len(weighted.log_weights),
    }


def _run_chains(
    runner: Runner,
    observation: PartialObservation,
    latents: dict[str, Tensor],
    options: Mapping[str, Any],
) -> tuple[dict[str, Tensor], Tensor]:
    """Run HMC from the given latents; return the last ones and the acceptance per example."""
    # a different seed for each block of examples
    seed = int(torch.randint(1 << 31, ()))
    density = make_unconstrained_density(runner, observation)
    chains = run_hmc(density, latents, **{**_HMC_DEFAULTS, "seed": seed, **options})
    return chains.last, chains.acceptance.mean(0)


def _concatenate(blocks: list[dict[str, Any]]) -> Imputation:
    def cat(key: str, dim: int) -> Tensor:
        return torch.cat([block[key] for block in blocks], dim)

    names = blocks[0]["latents"]
    return Imputation(
        x=cat("x", 1),
        means=cat("means", 1),
        mean=cat("mean", 0),
        latents={n: torch.cat([block["latents"][n] for block in blocks], 1) for n in names},
        **{name: cat(name, 0) for name in _ESTIMATES},
        num_samples=blocks[0]["num_samples"],
        acceptance=None if blocks[0]["acceptance"] is None else cat("acceptance", 0),
    )
