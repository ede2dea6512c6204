"""Ranks of simulated latents among samples of each posterior approximation."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.progress import progress_bar
from ...core.random import Stream
from ...programs.arguments import ProgramInputs
from ...programs.base import empty_program, trace_sites
from ...programs.checks import check_has_latents
from ...programs.chunking import max_chain_pairs, max_streamed_pairs
from ...programs.context import evaluating
from ...programs.importance_weights import find_layout, stream_particles
from ...programs.masks import unscored_values
from ...programs.particles import (
    Layout,
    UnscorableError,
    guide_log_prob_at,
    log_probs_at,
    run_particles,
    total_log_prob,
)
from ...programs.unconstrained import check_not_circular, flatten_sites, site_transforms
from ..importance.laplace_proposals import Laplace, sample_posteriors
from ..importance.psis import ParetoTail
from ..importance.streaming import check_log_weights

__all__ = [
    "POSTERIORS",
    "QUANTITIES",
    "PosteriorName",
    "Ranks",
    "no_laplace_reason",
    "normalize_weights",
    "rank_simulated",
    "weighted_ranks",
]

#: Name of a posterior approximation.
PosteriorName = Literal["guide", "resampled", "laplace"]
#: All posterior approximations.
POSTERIORS: tuple[PosteriorName, ...] = ("guide", "resampled", "laplace")
#: Names of the quantities besides the latents.
QUANTITIES = ("log_likelihood", "log_joint", "log_q", "tarp")
#: Relative and absolute difference up to which computed quantities count as equal. Rounding
#: depends on the shape of a batch, and would break the ties of discrete latents in one direction.
_RTOL, _ATOL = 1e-5, 1e-5
#: Maximum weight of the truth, in effective samples.
_MAX_TRUTH = 4.0


@dataclass(frozen=True)
class Ranks:
    """Ranks of N simulated examples among samples of a posterior approximation, in [0, 1].

    Attributes:
        latents: by site, ``(N, *rest)``.
        quantities: ``log_likelihood``, log p(x|z); ``log_joint``, log p(x, z); ``log_q``,
            log q(z|x), of the guide only; ``tarp``, the distance from a reference point, each
            ``(N,)``.
        ess: effective sample size of the weights, ``(N,)``; empty for unweighted samples.
        khat: k̂ of the weights, ``(N,)``; empty for unweighted samples.
    """

    latents: Mapping[str, np.ndarray]
    quantities: Mapping[str, np.ndarray]
    ess: np.ndarray = field(default_factory=lambda: np.empty(0))
    khat: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.quantities["log_joint"])

    @property
    def is_weighted(self) -> bool:
        return len(self.ess) > 0

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """All ranks by name, each ``(N,)``; those of a latent are ``site[index]``."""
        columns = {}
        for site, values in self.latents.items():
            for index in np.ndindex(values.shape[1:]):
                label = f"{site}[{', '.join(map(str, index))}]" if index else site
                columns[label] = values[:, *index]
        return {**columns, **self.quantities}

    @property
    def levels(self) -> dict[str, np.ndarray]:
        """The levels of the smallest credible regions that contain the simulated latents.

        Returns:
            ``hpd``: of the region of highest density, log q(z|x) of the guide and log p(x, z) of
            weighted samples; not for a guide that only scores its own samples. ``tarp``: of the
            central interval of the distances from the reference point. Each ``(N,)``.
        """
        density = self.quantities.get("log_joint" if self.is_weighted else "log_q")
        levels = {} if density is None else {"hpd": 1 - density}
        return {**levels, "tarp": np.abs(2 * self.quantities["tarp"] - 1)}


class _Samples(NamedTuple):
    """K samples of a posterior approximation for each of n examples.

    Attributes:
        latents: by site, ``(K, n, *rest)``.
        terms: ``log_likelihood``, ``log_joint`` and possibly ``log_q``, each ``(K, n)``.
    """

    latents: dict[str, Tensor]
    terms: dict[str, Tensor]


class _Block(NamedTuple):
    """Weighted samples of the guide for a block of examples.

    Attributes:
        rows: the examples.
        inputs: the program with these examples.
        layout: the layout of the particles.
        samples: the samples.
        log_weights: log p(x, z) − log q(z|x), ``(K, n)``.
        truth: the log weight of the simulated latents, ``(n,)``; ``None`` for samples of the guide.
    """

    rows: slice
    inputs: ProgramInputs
    layout: Layout
    samples: _Samples
    log_weights: Tensor
    truth: Tensor | None = None


def rank_simulated(
    inputs: ProgramInputs,
    simulated: Mapping[str, Tensor],
    *,
    posteriors: Sequence[PosteriorName],
    num_samples: int,
    laplace: Laplace,
    seed: int,
    progress: bool = False,
) -> dict[PosteriorName, Ranks]:
    """Rank simulated latents among the samples of posterior approximations.

    Arguments:
        inputs: the program with the simulated data, in normal form.
        simulated: the latents from which the data were simulated, ``(1, N, *rest)`` by site.
        posteriors: ``guide`` and ``resampled``: samples of the guide without and with their
            importance weights; ``laplace``: weighted samples of a Laplace approximation.
        num_samples: the number K of samples of the guide.
        laplace: settings of the Laplace approximation, with the number of its samples.
        seed: the random seed.
        progress: show a progress bar.

    Raises:
        ValueError: if a weight is NaN, or if a site has the name of another quantity.
    """
    simulated, sites = _tested_sites(inputs, simulated)
    flat = flatten_sites({n: simulated[n].double() for n in sites})[0]
    scale = torch.where(flat.std(0) > 0, flat.std(0), 1.0)
    parts: dict[PosteriorName, list[Ranks]] = {name: [] for name in posteriors}
    sources: tuple[tuple[Stream, Generator[_Block], tuple[PosteriorName, ...]], ...] = (
        (Stream.CALIBRATION, _sample_guide(inputs, num_samples), ("guide", "resampled")),
        (
            Stream.CALIBRATION_LAPLACE,
            _sample_laplace(inputs, simulated, laplace),
            ("laplace",),
        ),
    )
    for stream, blocks, kinds in sources:
        names: list[PosteriorName] = [name for name in kinds if name in parts]
        if not names:
            continue
        label = "Laplace" if "laplace" in names else "ranks"
        bar = progress_bar(len(inputs.x), progress, desc=label)
        with evaluating(inputs.model, inputs.guide, seed=seed, stream=stream), bar, closing(blocks):
            for block in blocks:
                check_log_weights(block.log_weights, block.rows.start)
                ranker = _Ranker.create(block, simulated, sites, scale)
                for name in names:
                    parts[name].append(ranker.rank(block, is_weighted=name != "guide"))
                bar.update(block.rows.stop - block.rows.start)
    return {name: _concatenate(blocks) for name, blocks in parts.items()}


def no_laplace_reason(inputs: ProgramInputs) -> str | None:
    """Return why a program has no Laplace approximation, or ``None``."""
    model, _, x, args, kwargs = inputs
    with evaluating(model):
        sites = trace_sites(model, x, *args, **kwargs)
        if noise := [name for name, site in sites.items() if site["infer"].get("is_noise")]:
            return (
                f"expected latents of the example only; got the noise of sampled weights at site "
                f"{noise[0]!r}, which has far more dimensions"
            )
        try:
            transforms = site_transforms(model, x, *args, **kwargs)
            check_not_circular(transforms, "a Laplace approximation")
        except ValueError as error:
            return str(error)
    return None


def _tested_sites(
    inputs: ProgramInputs, simulated: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the latents that are not summed out, and the sites of those to rank.

    The noise of sampled weights is not ranked.
    """
    model, _, x, args, kwargs = inputs
    with evaluating(model):
        sites = trace_sites(model, x, *args, **kwargs)
    latents = {name: value for name, value in simulated.items() if name in sites}
    names = [n for n in latents if not sites[n]["infer"].get("is_noise")]
    check_has_latents(names, "ranks of latents")
    if wrong := [n for n in names if n in QUANTITIES]:
        raise ValueError(
            f"expected latent sites with other names than {', '.join(QUANTITIES)}; got "
            f"{wrong[0]!r}: rename the site"
        )
    if masked := [n for n in names if unscored_values(sites[n]) is not None]:
        raise ValueError(
            f"expected the same latents in all examples, to rank them; got site {masked[0]!r}, "
            f"which is masked in some of them, such as at late times of short series: pass "
            f"examples of one length"
        )
    return latents, names


def _sample_guide(inputs: ProgramInputs, num_samples: int) -> Generator[_Block]:
    """Yield blocks of examples with all their samples of the guide."""
    chunks = stream_particles(inputs, num_samples)
    latents: list[Mapping[str, Tensor]] = []
    terms: list[dict[str, Tensor]] = []
    with closing(chunks):
        for chunk in chunks:
            particles = chunk.particles
            log_q = total_log_prob(particles.log_q)
            latents.append({n: z.clone() for n, z in particles.latents.items()})
            terms.append({**_model_terms(particles.log_p, particles.latents), "log_q": log_q})
            if chunk.draws.stop == num_samples:
                samples = _Samples(_stack(latents), _stack(terms))
                log_w = samples.terms["log_joint"] - samples.terms["log_q"]
                yield _Block(chunk.data, chunk.inputs, chunk.layout, samples, log_w.double().cpu())
                latents, terms = [], []


def _sample_laplace(
    inputs: ProgramInputs, simulated: Mapping[str, Tensor], settings: Laplace
) -> Generator[_Block]:
    """Yield blocks of examples with weighted samples of their Laplace approximations."""
    size = max(1, min(100, max_chain_pairs(inputs.x) // 16))
    for rows, block in inputs.blocks(size):
        model, guide, x, args, kwargs = block
        layout = find_layout(model, guide, x, *args, **kwargs)
        truth = {name: value[:, rows] for name, value in simulated.items()}
        # the truth is the last sample
        latents, log_w = sample_posteriors(block, settings, truth)
        latents, log_w = {name: z[:-1] for name, z in latents.items()}, log_w.double().cpu()
        count = max(1, max_streamed_pairs(x) // len(x))
        terms = []
        for first in range(0, settings.num_samples, count):
            part = {name: z[first : first + count] for name, z in latents.items()}
            log_p = log_probs_at(model, part, x, *args, layout=layout, **kwargs)
            terms.append(_model_terms(log_p, part))
        samples = _Samples(latents, _stack(terms))
        yield _Block(rows, block, layout, samples, log_w[:-1], log_w[-1])


def _model_terms(log_p: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return log p(x|z) and log p(x, z), ``(K, n)``, from the terms of the sites of the model."""
    observed = {name: term for name, term in log_p.items() if name not in latents}
    return {"log_likelihood": total_log_prob(observed), "log_joint": total_log_prob(log_p)}


def _stack(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class _Ranker:
    """Ranks the simulated latents of a block of n examples.

    Attributes:
        truth: the simulated latents as samples with K = 1; without ``log_q`` if the guide can
            only score its own samples.
        reference: reference points for the distances, ``(1, n, D)``.
        scale: the prior standard deviation of each latent, ``(D,)``.
    """

    truth: _Samples
    reference: Tensor
    scale: Tensor

    @classmethod
    def create(
        cls, block: _Block, simulated: Mapping[str, Tensor], sites: Sequence[str], scale: Tensor
    ) -> _Ranker:
        model, guide, x, args, kwargs = block.inputs
        options = {"layout": block.layout, **kwargs}
        z = {name: value[:, block.rows] for name, value in simulated.items()}
        terms = _model_terms(log_probs_at(model, z, x, *args, **options), z)
        with suppress(UnscorableError):
            terms["log_q"] = guide_log_prob_at(guide, z, x, *args, **options)
        run = run_particles(empty_program, model, x, *args, num_samples=1, **options)
        reference = flatten_sites({n: run.latents[n].double() for n in sites})
        return cls(_Samples({n: z[n] for n in sites}, terms), reference, scale)

    def rank(self, block: _Block, is_weighted: bool) -> Ranks:
        """Rank the truth among the samples of a block, with or without their weights."""
        count, size = block.log_weights.shape
        weights = torch.full((count, size), 1 / count, dtype=torch.float64)
        own, ess, khat = weights[0], np.empty(0), np.empty(0)
        if is_weighted:
            tail = ParetoTail(count, size)
            tail.update(block.log_weights)
            weights, own = normalize_weights(block.log_weights, self._log_weight(block))
            ess, khat = (1 / weights.square().sum(0)).numpy(), tail.khat.numpy()
        latents = {}
        for name, truth in self.truth.latents.items():
            values = block.samples.latents[name]
            latents[name] = weighted_ranks(values, truth, weights, own).numpy()
        quantities = {}
        for name, truth in self.truth.terms.items():
            if name in block.samples.terms and (name != "log_q" or not is_weighted):
                values = block.samples.terms[name]
                ranks = weighted_ranks(values, truth, weights, own, _RTOL, _ATOL)
                quantities[name] = ranks.numpy()
        distance, truth = (self._distance(part.latents) for part in (block.samples, self.truth))
        quantities["tarp"] = weighted_ranks(distance, truth, weights, own, _RTOL, _ATOL).numpy()
        return Ranks(latents, quantities, ess, khat)

    def _log_weight(self, block: _Block) -> Tensor:
        """Return the log weight of the truth, ``(n,)``; NaN if the guide cannot score it."""
        if block.truth is not None:
            return block.truth
        terms = self.truth.terms
        if "log_q" not in terms:
            return torch.full_like(block.log_weights[0], math.nan)
        return (terms["log_joint"] - terms["log_q"])[0].double().cpu()

    def _distance(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return the distance of samples from the reference points, ``(K, n)``."""
        total: Tensor | None = None
        first = 0
        for name in self.truth.latents:
            z = latents[name].double().flatten(2) if latents[name].ndim > 2 else latents[name]
            z = z[..., None] if z.ndim == 2 else z
            part = slice(first, first + z.shape[2])
            square = ((z - self.reference[..., part]) / self.scale[part]).square().sum(2)
            total, first = square if total is None else total + square, part.stop
        assert total is not None  # a model has latents
        return total.sqrt()


def weighted_ranks(
    values: Tensor,
    truth: Tensor,
    weights: Tensor,
    own: Tensor,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Tensor:
    """Return the rank of the truth among K weighted samples, in [0, 1].

    It is (s + u (t + w)) / (1 + w) with the weight s of the samples below the truth, the weight t
    of those that are equal to it, its own weight w, and a uniform u. That is uniform if a truth
    from the posterior is among K samples of any q, all with the importance weights of q: given
    all of them, each is the truth with a probability that is proportional to its weight. Among
    equally weighted samples it is the usual rank, with ties broken at random.

    Arguments:
        values: a quantity of the samples, ``(K, n, *rest)``.
        truth: the same of the truth, ``(1, n, *rest)``.
        weights, own: weights of the samples, ``(K, n)`` with the sum 1, and of the truth, ``(n,)``,
            in float64; see :func:`normalize_weights`.
        rtol, atol: values count as equal up to a relative or absolute difference.

    Returns:
        ``(n, *rest)`` in float64, on the CPU.
    """
    tolerance = atol + rtol * truth.abs() if rtol or atol else 0
    below, above = values < truth - tolerance, values > truth + tolerance
    weights = weights.to(values.device)
    share, tied = (
        torch.einsum("kn,kn...->n...", weights, part.double()).cpu()
        for part in (below, ~(below | above))
    )
    own = own.reshape(-1, *(1,) * (values.ndim - 2))
    noise = torch.rand(share.shape, dtype=torch.float64)
    return (share + noise * (tied + own)) / (1 + own)


def normalize_weights(log_weights: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of the samples, which sum to 1, and that of the truth.

    With its own weight the rank of the truth would be uniform for any q. A weight far above those
    of the samples is that of a value which they miss: the truth counts at most as four samples of
    the (Σw)² / Σw² to which the samples amount.

    Arguments:
        log_weights: log weights of the samples, ``(K, n)`` in float64.
        truth: the log weight of the truth, ``(n,)``; NaN if unknown, which counts as one sample.

    Returns:
        ``(K, n)`` and ``(n,)`` in float64.
    """
    # samples of an example whose weights are all zero count as unweighted; their k̂ is bad
    is_zero = log_weights.amax(0) == -math.inf
    weights = torch.where(is_zero, 0.0, log_weights).softmax(0)
    one = weights.square().sum(0)
    own = (truth - log_weights.logsumexp(0)).exp()
    own = torch.where(own.isnan() | is_zero, one, own)
    return weights, torch.minimum(own, _MAX_TRUTH * one)


def _concatenate(blocks: Sequence[Ranks]) -> Ranks:
    first = blocks[0]

    def merge(name: str, keys: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: np.concatenate([getattr(b, name)[key] for b in blocks]) for key in keys}

    return Ranks(
        merge("latents", first.latents),
        merge("quantities", first.quantities),
        np.concatenate([block.ess for block in blocks]),
        np.concatenate([block.khat for block in blocks]),
    )
