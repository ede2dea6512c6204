"""Importance sampling from a Laplace approximation of each posterior p(z|x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.random import Stream
from ...core.validation import non_negative_int, positive_int
from ...programs.arguments import ProgramInputs
from ...programs.chunking import max_chain_pairs
from ...programs.context import evaluating
from ...programs.enumeration.discrete_latents import sum_out_discrete
from ...programs.inputs import AnyData, AnyProgram, prepare
from ..bounds import Bounds
from ..estimators import EstimationTask, Estimator
from ..normalization import normalization_settings
from ..resumable import compute_in_blocks
from ..table_parts import BoundsRow, TablePart, register
from .errors import estimate_errors, tail_statistics
from .posterior_target import PosteriorTarget, colour, factorize, whiten
from .psis import ParetoTail, khat_threshold
from .streaming import GroupedBound, WeightMoments, check_log_weights

__all__ = ["Laplace", "laplace", "predict_tail_index", "sample_posteriors"]

#: Samples of the guide, and of the prior, among which a start for a second mode is chosen.
_NUM_STARTS = 32
#: A sample of the prior is a start if its log-density is lower than that of the known mode by less
#: than this number plus D: otherwise it lies on a slope, and Newton's method from it is in vain.
_START_DEPTH = 10.0
#: Share of the samples of a normal that come from its wider component.
_WIDE_SHARE = 0.1
#: Share of the samples from the guide: it bounds the weights where the guide has mass.
_GUIDE_SHARE = 0.05
#: Newton steps after which a start that leads to a known mode is given up.
_FIRST_STEPS = 4
#: Maximum number of modes per example, and the distance between two, in standard deviations.
_MAX_MODES, _MIN_DISTANCE = 4, 2.0
#: Minimum share of a component.
_MIN_SHARE = 0.05
#: Minimum number of samples of a pilot, which decides whether a proposal is adapted.
_MIN_PILOT = 250
#: The k̂ of a pilot from which the proposal is adapted: lower than the threshold for reported
#: samples, as the k̂ of few samples is noisy.
_PILOT_KHAT = 0.4
#: Effective samples per number in a covariance at which its moments weigh one half.
_COVARIANCE_TRUST = 0.25


@dataclass(frozen=True)
class Laplace(Estimator):
    """Importance sampling from a Laplace approximation, see :func:`laplace`: the row ``laplace``.

    Attributes:
        num_samples: the number K of reported samples per example.
        num_steps: the maximum number of Newton steps to a mode of p(z|x).
        num_rounds: the maximum number of rounds that adapt the proposal where k̂ is bad.

    Raises:
        ValueError: if a number is out of range.
    """

    num_samples: int = 2000
    num_steps: int = 20
    num_rounds: int = 3

    def __post_init__(self) -> None:
        positive_int("num_samples", self.num_samples)
        positive_int("num_steps", self.num_steps)
        non_negative_int("num_rounds", self.num_rounds)

    def check(self, task: EstimationTask) -> None:
        short = replace(self, num_samples=2, num_steps=1, num_rounds=0)
        task.trial().run(laplace, "laplace", settings=short)

    def estimate(self, task: EstimationTask, bounds: Bounds) -> Bounds:
        return bounds.merge(task.run(laplace, "laplace", settings=self))


def laplace(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    settings: Laplace = Laplace(),
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """Estimate log p(x) by importance sampling around the modes of each posterior.

    From the guide's mean, damped Newton steps lead to a mode of p(u|x), the posterior of the
    unconstrained latents, and a few more steps to the normal that is closest to the posterior near
    that mode. A sample of the guide or of the prior far from it is the start for a second mode. The
    proposal is a mixture of these normals, at two scales, and of the guide, which bounds the
    weights where the guide has mass. Where the k̂ of a pilot is bad, a step of M-PMC adapts shares,
    means and covariances to the weighted samples of all pilots, and the sample with the largest
    weight is the start for a further mode. The reported samples are fresh: the mean of their
    weights is p(x) in expectation, and its logarithm a lower bound on log p(x) in expectation.

    A mode that no sample of the guide, and no likely sample of the prior, leads to is missed.

    Discrete latents with finitely many values are summed out of model and guide.

    A Newton step takes one gradient of the gradient per latent dimension, for all examples at once;
    above 100 dimensions the curvature is that of the prior plus a term of rank 50, and more than
    500 are refused.

    Arguments:
        program, data, *args, seed, checkpoint, progress, **kwargs: as for
            :func:`~pyro_vae.evaluation.ais`.
        settings: the settings.

    Returns:
        :class:`Bounds` with the row ``laplace`` and, per example, ``laplace_khat``,
        ``laplace_ess``, ``laplace_modes``, the number of modes, and ``laplace_round``, the number
        of adaptations of the proposal.

    Raises:
        ValueError: if all latents are discrete, one of them has infinitely many values, or one is
            on a sphere, if an example has more than 500 latent dimensions, and as for
            :func:`~pyro_vae.evaluate`.

    References:
        Adaptive Importance Sampling in General Mixture Classes (Cappé et al., 2008), section 3.
        https://arxiv.org/abs/0710.4242
        Implicitly Adaptive Importance Sampling (Paananen et al., 2021).
        https://arxiv.org/abs/1906.08850
    """
    inputs = sum_out_discrete(prepare(program, data, args, kwargs, seed))

    def compute(rows: slice, advance: Callable[[float], None]) -> Mapping[str, Tensor]:
        return _estimate(PosteriorTarget.create(inputs.select(rows)), settings, rows.start)

    with evaluating(inputs.model, inputs.guide):
        columns = compute_in_blocks(
            compute,
            len(inputs.x),
            block=_block_size(inputs),
            entropy=(seed, Stream.LAPLACE),
            checkpoint=checkpoint,
            key=("Laplace", asdict(settings), *inputs),
            progress=progress,
            desc="Laplace",
        )
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return Bounds(
        num_samples=settings.num_samples,
        per_datum={name: value.numpy() for name, value in estimate_errors(tensors).items()},
        seed=seed,
        settings={"laplace": asdict(settings), **normalization_settings(inputs)},
    )


def sample_posteriors(
    inputs: ProgramInputs, settings: Laplace, further: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return weighted samples of each posterior: latents by site, and log weights.

    To be called in :func:`~pyro_vae.programs.context.evaluating`, with few examples at a time.

    Arguments:
        inputs: the program and the examples.
        settings: the settings.
        further: J latents by site, ``(J, N, *event)``, to weigh in addition to the samples.

    Returns:
        The latents ``(K + J, N, *event)`` by site, and log p(x, z) − log proposal, ``(K + J, N)``.

    Raises:
        ValueError: as for :func:`laplace`.
    """
    target = PosteriorTarget.create(inputs)
    proposal = _adapt_proposal(target, settings)[0]
    v = proposal.sample(settings.num_samples)
    if further is not None:
        v = torch.cat([v, target.unconstrain(further)])
    return target.constrain(v), target.evaluate(target.log_density, v) - proposal.log_prob(v)


def predict_tail_index(inputs: ProgramInputs, settings: Laplace, seed: int = 0) -> Tensor:
    """Return the tail index of the weights of the guide's samples, as normals predict it, ``(N,)``.

    If q and the posterior are normals, the weights p(x, z)/q(z|x) have a tail of index
    1 − λ, where λ is the smallest ratio of precisions, the posterior's to q's, in any direction.
    Unlike k̂ it needs no sample of the tail: a q that is too narrow never draws the samples from
    which k̂ would see it. Negative where q is wider than the posterior in every direction; infinite
    where the posterior has several modes, as q may never draw one of them; NaN if the guide can
    only score its own samples.

    Raises:
        ValueError: as for :func:`laplace`.
    """

    def compute(rows: slice, advance: Callable[[float], None]) -> Mapping[str, Tensor]:
        target = PosteriorTarget.create(inputs.select(rows))
        if not target.has_guide:
            return {"index": torch.full((len(target.scale),), math.nan)}
        proposal = _Proposal.create(target, settings.num_steps)
        root, info = torch.linalg.cholesky_ex(target.guide_precision(target.guide_mean()))
        # its eigenvalues are the ratios of the variances of q to those of the posterior
        ratios = proposal.factors[0].inverse() @ root.inverse().transpose(1, 2)
        smallest = torch.linalg.svdvals(ratios.nan_to_num())[:, -1].square()
        index = torch.where(info == 0, 1 - smallest, math.nan)
        return {"index": torch.where(proposal.num_modes > 1, math.inf, index).double()}

    inputs = sum_out_discrete(inputs)
    with evaluating(inputs.model, inputs.guide):
        columns = compute_in_blocks(
            compute, len(inputs.x), block=_block_size(inputs), entropy=(seed, Stream.TAIL_INDEX)
        )
    return torch.from_numpy(columns["index"])


@dataclass(frozen=True)
class _Proposal:
    """Mixture of normals and the guide for each of N examples.

    Attributes:
        target: the posteriors.
        log_shares: log share of each normal among the normals, ``(M, N)``; −inf for none.
        means: ``(M, N, D)``.
        factors: Cholesky factors of the covariances, ``(M, N, D, D)``.
    """

    target: PosteriorTarget
    log_shares: Tensor
    means: Tensor
    factors: Tensor

    @classmethod
    def create(cls, target: PosteriorTarget, num_steps: int) -> _Proposal:
        mode, precision, value = target.find_modes(target.guide_mean(), num_steps)
        mean, precision = target.fit_normals(mode, precision)
        factor = factorize(precision)
        proposal = cls(target, torch.zeros_like(mean[None, :, 0]), mean[None], factor[None])
        # a narrow mode that no sample hits would leave no trace in k̂
        draws = torch.cat([target.sample_guide(_NUM_STARTS), target.sample_prior(_NUM_STARTS)])
        density = target.evaluate(target.log_density, draws)
        is_start = proposal.distances(draws) > _MIN_DISTANCE
        is_start[_NUM_STARTS:] &= (density > value - _START_DEPTH - mode.shape[1])[_NUM_STARTS:]
        log_normal = proposal.log_probs(draws)[0]
        ratio = torch.where(is_start, density - log_normal, -math.inf)
        rows = (ratio.amax(0) > -math.inf).nonzero()[:, 0]
        if not len(rows):
            return proposal
        part = proposal.select(rows).add_mode(_best(draws[:, rows], ratio[:, rows]), num_steps)
        return proposal.update(rows, part)

    @property
    def num_modes(self) -> Tensor:
        """The number of normals of each example, ``(N,)``."""
        return (self.log_shares > -math.inf).sum(0)

    def select(self, rows: Tensor) -> _Proposal:
        """Return the proposals of a subset of the examples."""
        parts = (part[:, rows] for part in (self.log_shares, self.means, self.factors))
        return _Proposal(self.target.select(rows), *parts)

    def update(self, rows: Tensor, other: _Proposal) -> _Proposal:
        """Return these proposals with those of a subset of the examples replaced."""
        missing = len(other.means) - len(self.means)
        merged = []
        for fill, old, new in (
            (-math.inf, self.log_shares, other.log_shares),
            (0.0, self.means, other.means),
            (None, self.factors, other.factors),
        ):
            if fill is None:
                padding = old[:1].expand(missing, *old.shape[1:])
            else:
                padding = old.new_full((missing, *old.shape[1:]), fill)
            result = torch.cat([old, padding])
            result[:, rows] = new
            merged.append(result)
        return replace(self, log_shares=merged[0], means=merged[1], factors=merged[2])

    def sample(self, count: int) -> Tensor:
        """Return samples, ``(K, N, D)``."""
        size, dim = self.means.shape[1:]
        num_guide = max(1, round(_GUIDE_SHARE * count))
        (narrow, _), (wide, share) = _scales(dim)
        is_wide = torch.rand(count - num_guide, size, 1) < share
        scales = torch.where(is_wide, wide, narrow).to(self.means)
        noise = torch.randn(count - num_guide, size, dim).to(self.means) * scales
        chosen = torch.distributions.Categorical(logits=self.log_shares.T).sample((len(noise),))
        v = torch.zeros_like(noise)
        for m, (mean, factor) in enumerate(zip(self.means, self.factors, strict=True)):
            v = torch.where((chosen == m)[..., None], mean + colour(noise, factor), v)
        v = torch.cat([v, self.target.sample_guide(num_guide)])
        # in random order, as the tail and the groups of weights take them to be exchangeable
        return v[torch.randperm(count)]

    def log_probs(self, v: Tensor) -> Tensor:
        """Return the log-density of each normal and of the guide, times its share.

        Returns:
            ``(M + 1, K, N)``.
        """
        dim = v.shape[-1]
        parts = []
        for log_share, mean, factor in zip(self.log_shares, self.means, self.factors, strict=True):
            square = whiten(v - mean, factor).square().sum(-1)
            log_det = factor.diagonal(dim1=1, dim2=2).log().sum(-1)
            scales = [
                math.log(share) - square / (2 * s**2) - dim * math.log(s)
                for s, share in _scales(dim)
            ]
            constant = log_det + 0.5 * dim * math.log(2 * math.pi)
            normal = torch.stack(scales).logsumexp(0) - constant + log_share
            parts.append(normal + math.log(1 - _GUIDE_SHARE))
        guide = self.target.evaluate(self.target.guide_log_prob, v)
        return torch.stack([*parts, guide + math.log(_GUIDE_SHARE)])

    def log_prob(self, v: Tensor) -> Tensor:
        """Return the log-density, ``(K, N)``."""
        return self.log_probs(v).logsumexp(0)

    def weigh(self, count: int) -> tuple[Tensor, Tensor]:
        """Return samples and their log weights, ``(K, N)``."""
        v = self.sample(count)
        return v, self.target.evaluate(self.target.log_density, v) - self.log_prob(v)

    def distances(self, v: Tensor) -> Tensor:
        """Return the distance to the nearest mean in standard deviations, ``(K, N)``."""
        distances = []
        for log_share, mean, factor in zip(self.log_shares, self.means, self.factors, strict=True):
            distance = whiten(v - mean, factor).square().mean(-1).sqrt()
            distances.append(torch.where(log_share > -math.inf, distance, math.inf))
        return torch.stack(distances).amin(0)

    def add_mode(self, start: Tensor, num_steps: int) -> _Proposal:
        """Add the mode to which Newton's method leads from ``(N, D)``, where it is a new one."""
        if len(self.means) >= _MAX_MODES:
            return self
        mode, precision, value = self.target.find_modes(start, min(_FIRST_STEPS, num_steps))
        # most starts lead back to a known mode, as a few steps show
        rows = (self.distances(mode[None])[0] > _MIN_DISTANCE).nonzero()[:, 0]
        if not len(rows):
            return self
        part = self.target.select(rows)
        for old, new in zip(
            (mode, precision, value), part.find_modes(mode[rows], num_steps), strict=True
        ):
            old[rows] = new
        factor = factorize(precision)
        is_new = self.distances(mode[None])[0] > _MIN_DISTANCE
        # shares by Laplace's approximation of the mass of each mode
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        old_det = self.factors.diagonal(dim1=2, dim2=3).log().sum(-1)
        old_value = torch.stack(
            [self.target.evaluate(self.target.log_density, mean[None])[0] for mean in self.means]
        )
        old_mass = torch.where(self.log_shares > -math.inf, old_value + old_det, -math.inf)
        mass = torch.cat([old_mass, torch.where(is_new, value + log_det, -math.inf)[None]])
        return replace(
            self,
            log_shares=_limit_shares(mass.log_softmax(0)),
            means=torch.cat([self.means, mode[None]]),
            factors=torch.cat([self.factors, factor[None]]),
        )

    def adapt(self, v: Tensor, log_w: Tensor) -> _Proposal:
        """Return the mixture after a step of M-PMC, shrunk towards this one.

        Large weights are truncated at their mean times √K (Ionides, 2008), which bounds the
        variance of the moments.
        """
        count, dim = len(v), v.shape[-1]
        weights = log_w.softmax(0).clamp(max=count**-0.5)
        responsibilities = self.log_probs(v).softmax(0)[:-1]
        masses, means, factors = [], [], []
        for r, mean, factor in zip(responsibilities, self.means, self.factors, strict=True):
            part = weights * r
            mass = part.sum(0)
            shares = part / mass.clamp(min=1e-30)
            ess = 1 / shares.square().sum(0).clamp(min=1e-30)
            ess = torch.where(mass > 1e-3, ess, 0.0)[:, None]
            # a covariance has D (D + 1) / 2 numbers, a mean D
            trust = ess / (ess + dim)
            centre = trust * torch.einsum("kn,knd->nd", shares, v) + (1 - trust) * mean
            deviation = v - centre
            moments = torch.einsum("kn,knd,kne->nde", shares, deviation, deviation)
            trust = (ess / (ess + _COVARIANCE_TRUST * dim * (dim + 1) / 2))[..., None]
            covariance = trust * moments + (1 - trust) * factor @ factor.transpose(1, 2)
            masses.append(mass)
            means.append(centre)
            new_factor, info = torch.linalg.cholesky_ex(covariance)
            factors.append(torch.where((info == 0)[:, None, None], new_factor, factor))
        log_shares = torch.stack(masses).clamp(min=1e-30).log()
        log_shares = torch.where(self.log_shares > -math.inf, log_shares, -math.inf)
        return replace(
            self,
            log_shares=_limit_shares(log_shares.log_softmax(0)),
            means=torch.stack(means),
            factors=torch.stack(factors),
        )


def _scales(dim: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the factors on the standard deviations of a normal, and their shares of its samples.

    Weights of a normal have lighter tails if it is wider than the posterior. A factor s costs an
    ESS that depends on D (s² − 1)², so it shrinks with the number D of dimensions.
    """
    return (
        (1 + min(0.3, 0.67 / math.sqrt(dim)), 1 - _WIDE_SHARE),
        (1 + min(1.0, 2.2 / math.sqrt(dim)), _WIDE_SHARE),
    )


def _block_size(inputs: ProgramInputs) -> int:
    return max(1, min(100, max_chain_pairs(inputs.x) // 16))


def _best(v: Tensor, score: Tensor) -> Tensor:
    """Return the sample with the highest score of each example, ``(N, D)``."""
    return v.gather(0, score.argmax(0)[None, :, None].expand(1, *v.shape[1:]))[0]


def _limit_shares(log_shares: Tensor) -> Tensor:
    limited = torch.where(
        log_shares > -math.inf, log_shares.clamp(min=math.log(_MIN_SHARE)), -math.inf
    )
    return limited.log_softmax(0)


def _estimate(target: PosteriorTarget, settings: Laplace, start: int) -> dict[str, Tensor]:
    """Return the columns of :func:`laplace` for a block of examples."""
    proposal, rounds = _adapt_proposal(target, settings)
    _, log_w = proposal.weigh(settings.num_samples)
    columns = _summarize_weights(log_w.double().cpu(), start)
    modes = proposal.num_modes.double().cpu()
    return columns | {"laplace_round": rounds, "laplace_modes": modes}


def _adapt_proposal(target: PosteriorTarget, settings: Laplace) -> tuple[_Proposal, Tensor]:
    """Return the proposal, and the number of adaptations of each example, ``(N,)``."""
    proposal = _Proposal.create(target, settings.num_steps)
    size = len(target.scale)
    rounds = torch.zeros(size)
    remaining = torch.arange(size)
    part = proposal
    history: list[_Pilot] = []
    count = max(_MIN_PILOT, settings.num_samples // 4)
    for index in range(settings.num_rounds):
        pilot = _Pilot.draw(part, count)
        bad = (~(pilot.khat < _PILOT_KHAT)).nonzero()[:, 0]
        if not len(bad):
            break
        remaining = remaining[bad]
        rounds[remaining] = index + 1
        bad = bad.to(target.scale.device)
        part = part.select(bad)
        history = [old.select(bad) for old in [*history, pilot]]
        v, log_w = _Pilot.pool(history)
        best = history[-1].v, history[-1].log_w
        part = part.adapt(v, log_w).add_mode(_best(*best), settings.num_steps)
        proposal = proposal.update(remaining.to(bad.device), part)
    return proposal, rounds


@dataclass(frozen=True)
class _Pilot:
    """Samples ``(K, N, D)`` of a proposal, with log p(x, v) and log weights, ``(K, N)``."""

    proposal: _Proposal
    v: Tensor
    log_p: Tensor
    log_w: Tensor

    @classmethod
    def draw(cls, proposal: _Proposal, count: int) -> _Pilot:
        v, log_w = proposal.weigh(count)
        return cls(proposal, v, log_w + proposal.log_prob(v), log_w)

    @property
    def khat(self) -> Tensor:
        tail = ParetoTail(*self.log_w.shape)
        tail.update(self.log_w.double().cpu())
        return tail.khat

    def select(self, rows: Tensor) -> _Pilot:
        parts = (part[:, rows] for part in (self.v, self.log_p, self.log_w))
        return _Pilot(self.proposal.select(rows), *parts)

    @staticmethod
    def pool(pilots: Sequence[_Pilot]) -> tuple[Tensor, Tensor]:
        """Return all samples, and their log weights as samples of the mixture of the proposals.

        References:
            Adaptive Multiple Importance Sampling (Cornuet et al., 2012).
            https://arxiv.org/abs/0907.1254
        """
        v = torch.cat([pilot.v for pilot in pilots])
        log_q = [math.log(len(pilot.v) / len(v)) + pilot.proposal.log_prob(v) for pilot in pilots]
        log_p = torch.cat([pilot.log_p for pilot in pilots])
        return v, log_p - torch.stack(log_q).logsumexp(0)


def _summarize_weights(log_w: Tensor, start: int) -> dict[str, Tensor]:
    check_log_weights(log_w, start)
    count, size = log_w.shape
    moments, tail = WeightMoments(size), ParetoTail(count, size)
    tenths = GroupedBound(max(1, count // 10), count, size)
    for estimate in (moments, tail, tenths):
        estimate.update(log_w)
    statistics = tail_statistics(
        "laplace",
        tail,
        moments.log_mean_exp,
        moments.variance_of_log_mean_exp,
        tenths.mean,
        tenths.variance_of_mean * tenths.count,
    )
    return {
        "laplace": moments.log_mean_exp,
        "laplace_khat": tail.khat,
        "laplace_ess": moments.effective_sample_size,
        **statistics,
    }


def _describe(bounds: Bounds) -> str | None:
    if "laplace_khat" not in bounds.per_datum:
        return None
    data = bounds.per_datum
    count = bounds.settings["laplace"]["num_samples"]
    bad = int((~(data["laplace_khat_pooled"] < khat_threshold(count))).sum())
    adapted = int((data["laplace_round"] > 0).sum())
    return (
        f"Laplace: {count} samples per example, proposal adapted for {adapted} examples, several "
        f"modes for {int((data['laplace_modes'] > 1).sum())}; k̂ median "
        f"{np.median(data['laplace_khat']):.2f}, bad for {bad} of {len(bounds)}; ESS median "
        f"{np.median(data['laplace_ess']):.1f}, worst {data['laplace_ess'].min():.1f}"
    )


register(
    TablePart(
        order=50,
        rows=(BoundsRow("laplace", "Laplace", "lower bound", gap=("laplace_gap", "elbo")),),
        describe=_describe,
    )
)
