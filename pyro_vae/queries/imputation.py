"""Inferring the unseen: p(x_mis, z | x_obs) for any program, by importance sampling or HMC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.validation import positive_int
from ..evaluation.importance.streaming import Block, khat_threshold
from ..programs.base import Program
from ..programs.hmc import sample as run_chains
from ..programs.sites import find_site
from .fitted_proposals import MOST_FULL, refit, space_of
from .noise import Noise
from .proposals import Seen, Shares, Weighted, first_fills, propose, refilled, weigh
from .runner import Runner, as_pair, placed, rows_of, running

__all__ = ["Imputation", "MissingScore", "impute", "score_missing"]

#: (draw, datum) pairs of so many pixels are held at once.
_NUMBERS = 1 << 23
#: Draws of the prior behind each of the first fills, and of the guide behind each later one.
_FIRST, _SCOUTS = 20, 8
#: The guide's own part in what it and the mixture fitted to it draw together.
_GUIDED = 0.1
_CHAINS = {"warm_up": 100, "thin": 50}
_ESTIMATES = ("log_evidence", "log_evidence_variance", "khat", "ess")


@dataclass(frozen=True)
class Imputation:
    """Draws from p(x, z | what was seen), and how far to trust them.

    Attributes:
        x: draws of the whole datum, ``(S, N, *event)``: what was seen without noise is as it was.
        means: the mean of x given the latents of each draw, ``(S, N, *event)``: the same images
            without the noise of p(x|z), for pictures.
        mean: E[x | what was seen], ``(N, *event)``, estimated from all K proposals, or from the
            S chains.
        latents: of each draw, by site, ``(S, N, *rest)``.
        log_evidence: log p̂(x_obs), ``(N,)``, nats; its bias is downwards.
        log_evidence_variance: its Monte Carlo variance, ``(N,)``.
        khat: k̂ of the weights, ``(N,)``.
        ess: their effective sample size, ``(N,)``, of K.
        num_samples: K.
        acceptance: of HMC, averaged over chains, ``(N,)``; ``None`` without.
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
        """The indices of the data whose k̂ says that the importance draws are not to be trusted."""
        return (~(self.khat < khat_threshold(self.num_samples))).nonzero()[:, 0]

    @property
    def warning(self) -> str | None:
        """One plain sentence if some draws cannot be trusted, else ``None``."""
        count = len(self.unreliable)
        if not count:
            return None
        limit = khat_threshold(self.num_samples)
        remedy = (
            "the chains of HMC started there, and log p̂(x_obs) is not to be trusted"
            if self.acceptance is not None
            else "use more proposals or method 'hmc'"
        )
        return (
            f"For {count} of {len(self.khat)} data k̂ is not below {limit:.2f}: the {len(self.x)} "
            f"draws come from few of {self.num_samples} proposals: {remedy}."
        )


class MissingScore(NamedTuple):
    """log p̂(x_mis | x_obs) of each datum.

    Attributes:
        value: in nats, ``(N,)``.
        variance: its Monte Carlo variance, ``(N,)``.
        khat: the larger of the two estimates' k̂, ``(N,)``.
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
    """Draws from p(x_mis, z | x_obs) ∝ p(z) p(x_obs | z) p(x_mis | z).

    In-painting and super-resolution are a mask of observed pixels (half an image, every second
    pixel); denoising is a :class:`~pyro_vae.queries.Noise` on what was observed. The likelihood
    scores the observed pixels alone, so its pixels must be independent given z.

    The guide needs whole data. It gets M of them, whose missing pixels are at first the
    model's own and then, in a few rounds, those of the weighted draws so far. At each of them
    starts a normal distribution of all latents, if they are real, and the mixture of these is
    refitted to the datum: it climbs the ELBO of what was seen, which the guide was never
    taught. The proposal is the mixture of that, with the tails of Student's t, of q(z | x_obs,
    x_mis^m) over all m, and of the prior, which keeps the weights bounded; each draw is weighed
    by the whole mixture. A guide that can score nothing but its own draws (a flow without an
    inverse) is left out of it; where nothing was refitted either, each draw is weighed by its
    own component of the guide, without the prior.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        x: the data, ``(N, *event)``; whatever stands at missing pixels (NaN, too) is not read.
        *args: further arguments of both; tensors of leading size N are per datum.
        observed: which pixels are seen, booleans of shape ``(N, *event)`` or ``event``; all if
            not given.
        noise: what the observed pixels went through; x then means the clean data.
        draws: the number S of draws that are returned.
        num_samples: the number K of proposals for each datum.
        fills: the number M of data that the guide is shown for each datum.
        rounds: how often their missing pixels are drawn anew.
        refit_steps: gradient steps of the refitted mixture; 0 for none.
        defence: the fraction of proposals from the prior.
        method: ``"importance"`` for resampling; ``"hmc"`` for S chains that start there.
        options: arguments of :func:`~pyro_vae.programs.hmc.sample`; by default 100 warm-up
            transitions and 50 draws.
        seed: of all draws; global generators are left as they were.

    Returns:
        The :class:`Imputation`.

    Raises:
        ValueError: if shapes do not fit, a number is out of range, the data cannot be scored,
            the likelihood's pixels are not independent, the noise does not go with it, or HMC
            is asked for latents that are not real.

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
        raise ValueError("expected method 'hmc' where options of HMC are given; got 'importance'")
    positive_int("draws", draws)
    plan = _Plan(num_samples, fills, rounds, refit_steps, defence)
    x, args = placed(program, x, args)
    with running(program, seed, 21):
        runner, seen = _start(program, x, args, observed, noise)
        parts = []
        for start, here, some, weighted in _weighings(runner, seen, plan):
            estimates = _estimates(weighted, start, len(x))
            drawn = _resampled(here, some, weighted, draws, method, options or {})
            parts.append({**drawn, **estimates})
    return _joined(parts)


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
    """log p̂(x_mis | x_obs) = log p̂(x) − log p̂(x_obs) of data whose missing pixels are known.

    Both terms are estimated as in :func:`impute`. One of the M data behind the proposals for
    the second is x itself: a proposal may know anything, and so the second estimate does not
    miss what the first one found, which would flatter the model.

    Arguments:
        program, *args, num_samples, fills, rounds, refit_steps, defence, seed: as of
            :func:`impute`.
        x: whole data, ``(N, *event)``.
        observed: which of their pixels are conditioned on, ``(N, *event)`` or ``event``.

    Returns:
        A :class:`MissingScore`.

    Raises:
        ValueError: as :func:`impute`.
    """
    plan = _Plan(num_samples, fills, rounds, refit_steps, defence)
    x, args = placed(program, x, args)
    with running(program, seed, 22):
        runner, seen = _start(program, x, args, observed, None)
        whole = Seen(x, torch.ones_like(seen.observed))
        every, some = (
            _all_estimates(_weighings(runner.on(x, runner.args), part, plan, truth), len(x))
            for part, truth in ((whole, None), (seen, x))
        )
    return MissingScore(
        every["log_evidence"] - some["log_evidence"],
        every["log_evidence_variance"] + some["log_evidence_variance"],
        torch.maximum(every["khat"], some["khat"]),
    )


@dataclass(frozen=True)
class _Plan:
    """How many proposals, and from where."""

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

    def shares(self, components: int, fitted: bool) -> Shares:
        """The draws of each component of the guide and of what was fitted; about K in all."""
        each = (1 - self.defence) * self.num_samples / components
        guide = max(1, int(_GUIDED * each if fitted else each))
        other = max(1, int(each) - guide) if fitted else 0
        rest = self.num_samples - (guide + other) * components
        return Shares(guide, other, rest if self.defence else 0)


def _start(
    program: Any, x: Tensor, args: tuple, observed: Tensor | None, noise: Noise | None
) -> tuple[Runner, Seen]:
    """The runner, and what was seen, with draws of the model where nothing was."""
    if observed is None:
        observed = torch.ones(x.shape[1:], dtype=torch.bool)
    if observed.dtype != torch.bool or observed.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"expected observed to be booleans of shape {tuple(x.shape)} or {tuple(x.shape[1:])}; "
            f"got {observed.dtype} of shape {tuple(observed.shape)}"
        )
    observed = observed.to(x.device).expand(x.shape)
    _, drawn = find_site(as_pair(program)[0], x, *args)
    filled = torch.where(observed, x, drawn.to(x.dtype))
    if hasattr(program, "check"):
        program.check(filled, *args)
    return Runner.of(program, filled, args), Seen(filled, observed, noise)


def _blocks(size: int, numbers: int) -> list[slice]:
    """Rows of so many data that the numbers of each are in memory at once."""
    at_once = max(1, _NUMBERS // max(1, numbers))
    return [slice(i, min(i + at_once, size)) for i in range(0, size, at_once)]


def _weighings(
    runner: Runner, seen: Seen, plan: _Plan, truth: Tensor | None = None
) -> Iterator[tuple[int, Runner, Seen, Weighted]]:
    """K weighted draws of each datum, block by block, with the first row of each block."""
    size, pixels = len(seen.x), seen.x[0].numel()
    many = plan.fills if seen.incomplete else 1
    latents = sum(value.numel() for value in runner.prior(1).values()) // size
    factors = latents**2 if plan.refit_steps and latents <= MOST_FULL else latents

    def at(rows: slice) -> tuple[Runner, Seen]:
        some = seen.rows(rows)
        return runner.on(some.x, rows_of(rows, size, runner.args)), some

    for rows in _blocks(size, many * max(_FIRST * pixels, factors)):
        here, some = at(rows)
        fills = _fills(here, some, plan, None if truth is None else truth[rows])
        fitted = refit(here, some, fills, plan.refit_steps) if plan.refit_steps else None
        shares = plan.shares(many, fitted is not None)
        for part in _blocks(len(some.x), plan.num_samples * pixels):
            start = rows.start + part.start
            here, some = at(slice(start, rows.start + part.stop))
            own = fitted and fitted.rows(part, space_of(here, some))
            yield start, here, some, weigh(some, propose(here, fills[:, part], shares, own))


def _fills(runner: Runner, seen: Seen, plan: _Plan, truth: Tensor | None) -> Tensor:
    """The versions of a block of data that the guide is shown."""
    if not seen.incomplete:
        return seen.x[None]
    fills = first_fills(runner, seen, plan.fills, _FIRST)
    for _ in range(plan.rounds):
        fills = refilled(runner, seen, fills, _SCOUTS)
    return fills if truth is None else torch.cat([fills[:-1], truth[None]])


def _all_estimates(
    weighings: Iterable[tuple[int, Runner, Seen, Weighted]], size: int
) -> dict[str, Tensor]:
    parts = [_estimates(weighted, start, size) for start, _, _, weighted in weighings]
    return {name: torch.cat([part[name] for part in parts]) for name in _ESTIMATES}


def _estimates(weighted: Weighted, start: int, size: int) -> dict[str, Tensor]:
    log_w = weighted.log_weights.double().cpu()
    block = Block(log_w.shape[1], len(log_w), (), size)
    block.update(log_w, start)
    columns = block.result()
    return {name: columns[name] for name in _ESTIMATES}


def _resampled(
    runner: Runner,
    seen: Seen,
    weighted: Weighted,
    draws: int,
    method: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Draws, and their mean over all proposals."""
    shares = weighted.log_weights.softmax(0)
    clean = seen.clean_mean(weighted.decoded)
    mean = (shares.reshape(*shares.shape, *(1,) * (clean.ndim - 2)) * clean).sum(0)
    latents = weighted.resampled(draws)
    acceptance = None
    if method == "hmc":
        latents, acceptance = _moved(runner, seen, latents, options)
    decoded = runner.decode(latents)
    means = seen.clean_mean(decoded)
    if method == "hmc":
        mean = means.mean(0)
    return {
        "x": seen.filled(decoded),
        "means": means,
        "mean": mean,
        "latents": latents,
        "acceptance": acceptance,
        "num_samples": len(weighted.log_weights),
    }


def _moved(
    runner: Runner, seen: Seen, latents: dict[str, Tensor], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Tensor]:
    """Latents after HMC from where they were, and the acceptance rate of each datum."""
    # each block of data has numbers of its own
    seed = int(torch.randint(1 << 31, ()))
    chains = run_chains(space_of(runner, seen), latents, **{**_CHAINS, "seed": seed, **options})
    return chains.last, chains.acceptance.mean(0)


def _joined(parts: list[dict[str, Any]]) -> Imputation:
    def cat(key: str, dim: int) -> Tensor:
        return torch.cat([part[key] for part in parts], dim)

    names = parts[0]["latents"]
    return Imputation(
        x=cat("x", 1),
        means=cat("means", 1),
        mean=cat("mean", 0),
        latents={n: torch.cat([part["latents"][n] for part in parts], 1) for n in names},
        **{name: cat(name, 0) for name in _ESTIMATES},
        num_samples=parts[0]["num_samples"],
        acceptance=None if parts[0]["acceptance"] is None else cat("acceptance", 0),
    )
