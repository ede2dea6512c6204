"""ELBO surgery: the rate, taken apart into mutual information and a distance of marginals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...core.evaluation_mode import eval_mode
from ...core.random import seeded
from ...core.validation import positive_int
from ...data.splits import Split
from ...programs.base import Program, use_own_parameters
from ...programs.importance_weights import Layout, log_probs_at
from ...programs.inputs import ProgramInputs, prepare
from ...programs.particles import guide_scorer, map_batched
from ..estimates import Estimate
from ..resumable import in_blocks
from .site_terms import looked_at, terms

__all__ = ["NoAggregateError", "Surgery", "surgery"]

#: The share of log N from which the mutual information is said to be capped.
_NEAR = 0.9
#: Draws that are scored at once: many, where the guide runs once for all of them.
_DRAWS, _DRAWS_TILED = 512, 16
#: Draws and data by which it is seen whether the prior is the same for all data.
_LOOK = (8, 16)

_ROWS = {
    "divergence": ("E KL(q(z|x) ‖ p(z))", ""),
    "mutual_information": ("= I_q(x; z)", "of these data; more data have more"),
    "marginal": ("+ KL(q(z) ‖ p(z))", "of these data; more data have less"),
}


class NoAggregateError(ValueError):
    """The aggregate posterior of a program has no density that could be summed."""


@dataclass(frozen=True)
class Surgery:
    """E_x KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)), in nats per datum.

    q(z) = 1/N Σ_n q(z|x_n) is the aggregate posterior of the N data given, and z all latent
    sites together; x is the datum with all that the program is conditioned on. Of these data
    as they are, nothing is biased. As estimates for the population that they come from, both
    are, by as much: KL is convex, so that KL(q(z) ‖ p(z)) of N data is in expectation *above*
    that of the population and falls as N grows; I_q(x; z) is *below*, rises with N, and can
    never be above log N.

    Attributes:
        per_datum: of the data looked at, ``divergence``, ``mutual_information`` (which is
            KL(q(z|x_n) ‖ q(z))) and ``marginal``, with Monte Carlo variances in
            ``…_variance``.
        index: which of the data those are, ``(M,)``, rising.
        num_data: the number N of data in q(z).
        num_samples: draws from each of the M data.
        seed: of the choice of data and of the draws.

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
        """log N, above which the mutual information of N data can never be."""
        return math.log(self.num_data)

    @property
    def mutual_information(self) -> float:
        """I_q(x; z) of the data given, nats."""
        return float(self.per_datum["mutual_information"].mean())

    @property
    def marginal(self) -> float:
        """KL(q(z) ‖ p(z)) of the data given, nats."""
        return float(self.per_datum["marginal"].mean())

    @property
    def estimates(self) -> dict[str, Estimate]:
        """``divergence``, ``mutual_information`` and ``marginal`` with their standard errors."""
        return {name: self._estimate(name) for name in _ROWS}

    def _estimate(self, name: str) -> Estimate:
        # how q(z) moves with the data has no effect of first order on either mean, so that the
        # spread over data is all there is to se_data
        values, count = self.per_datum[name], len(self)
        drawn = float(self.per_datum[f"{name}_variance"].mean()) / count
        spread = float(values.var(ddof=1)) / count
        share = count / self.num_data  # the rest were left out by chance
        noise = math.sqrt((1 - share) * spread + share * drawn)
        return Estimate(float(values.mean()), math.sqrt(spread), noise)

    @property
    def warning(self) -> str | None:
        """One sentence if the mutual information is near the most that N data can show."""
        if self.mutual_information < _NEAR * self.limit:
            return None
        return (
            f"the mutual information is capped by log N = {self.limit:.1f} nats, the most that "
            f"{self.num_data} data can show, and is within {1 - _NEAR:.0%} of it: give more data"
        )

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers, for JSON. Non-finite ones become null."""
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

    def __str__(self) -> str:
        lines = [
            f"q(z) of {self.num_data} data, by {self.num_samples} draws from {len(self)} of them; "
            f"nats per datum, log N = {self.limit:.3f}",
            f"{'':22}{'mean':>9}{'± data':>10}{'± MC':>10}",
        ]
        for name, row in self.estimates.items():
            label, meaning = _ROWS[name]
            numbers = f"{row.value:9.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"
            lines.append(f"{label:22}{numbers}  {meaning}".rstrip())
        return "\n".join([*lines, *([self.warning] if self.warning else [])])


def surgery(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    num_draws: int = 10_000,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Surgery:
    """Mutual information of data and latents, and KL of the aggregate posterior to the prior.

    log q(z) of every draw is the exact sum over all N data, streamed: ``num_draws`` × N
    densities in memory that depends on neither.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        num_draws: draws from q(z) in all: the same number, two or more, from each datum, or
            from as many data as that allows, chosen by chance.
        seed: of the choice, the draws and the binarisation.
        progress: show progress bars on the standard error.

    Returns:
        The :class:`Surgery`.

    Raises:
        NoAggregateError: a ``ValueError``, if q has no density at other data's draws (a flow
            without an inverse), if the guide draws more than the model's latents, or if the
            prior is another one for each datum.
        ValueError: if there are fewer than two data or draws, or as for
            :func:`~pyro_vae.evaluate`.

    References:
        ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman
        & Johnson, 2016), section 2.
        https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """
    given = prepare(program, data, args, kwargs, seed)
    size = len(given.x)
    if positive_int("num_draws", num_draws) < 2 or size < 2:
        raise ValueError(
            f"expected 2 or more draws of 2 or more data, or there is nothing to take apart; got "
            f"{num_draws} of {size}"
        )
    each = max(2, num_draws // size)
    count = min(size, num_draws // each)
    chosen = np.random.default_rng([seed, 4]).permutation(size)[:count]
    index = torch.from_numpy(np.sort(chosen))
    both = given.model, given.guide
    with torch.no_grad(), seeded(seed, 6), use_own_parameters(*both), eval_mode(*both):
        columns = _columns(given, index, each, seed, progress)
    return Surgery(
        per_datum=columns,
        index=index.numpy(),
        num_data=size,
        num_samples=each,
        seed=seed,
    )


def _columns(
    given: ProgramInputs, index: Tensor, each: int, seed: int, progress: bool
) -> dict[str, np.ndarray]:
    layout, pairs, least = looked_at(*given)
    drawn = _draws(given, index, each, layout, max(least, pairs // each), seed, progress)
    latents = {
        name.removeprefix("latent "): torch.from_numpy(value).flatten(0, 1).to(given.x.device)
        for name, value in drawn.items()
        if name.startswith("latent ")
    }
    _check_prior(given, latents, layout, least)
    log_q = _log_aggregate(given, latents, layout, pairs, least, progress)
    information = drawn["log_q"] - log_q.cpu().numpy().reshape(-1, each)
    terms_of = {
        "divergence": drawn["divergence"],
        "mutual_information": information,
        "marginal": drawn["divergence"] - information,
    }
    means = {name: values.mean(1) for name, values in terms_of.items()}
    noise = {f"{n}_variance": values.var(1, ddof=1) / each for n, values in terms_of.items()}
    return means | noise


def _draws(
    given: ProgramInputs,
    index: Tensor,
    each: int,
    layout: Layout,
    block: int,
    seed: int,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Draws from the data at ``index``, and their terms, ``(M, each, …)``."""
    model, guide, x, args, kwargs = given
    everything = block >= len(x)  # a guide of these very data cannot be called with some

    def compute(rows: slice, advance: Callable[[float], None]) -> dict[str, Tensor]:
        of = slice(None) if everything else index[rows]
        inputs, named = map_batched(lambda t: t[of], len(x), (x, *args), kwargs)
        run = terms(model, guide, *inputs, num_samples=each, layout=layout, **named)
        columns = {"divergence": run.divergence.double(), "log_q": run.log_q.double()}
        columns |= {f"latent {name}": value for name, value in run.latents.items()}
        kept = index[rows] if everything else slice(None)
        return {name: value.movedim(1, 0)[kept] for name, value in columns.items()}

    return in_blocks(
        compute, len(index), block=block, entropy=(seed, 5), progress=progress, desc="draws"
    )


def _log_aggregate(
    given: ProgramInputs,
    latents: Mapping[str, Tensor],
    layout: Layout,
    pairs: int,
    least: int,
    progress: bool,
) -> Tensor:
    """log 1/N Σ_n q(z_b | x_n) of B draws, ``(B,)`` float64."""
    _, guide, x, args, kwargs = given
    size, count = len(x), len(next(iter(latents.values())))
    at_once = min(count, _DRAWS_TILED if layout.tiled else _DRAWS, pairs)
    block = min(size, max(least, pairs // at_once))
    log_sum = torch.full((count,), -math.inf, dtype=torch.float64, device=x.device)
    with tqdm(
        total=size, desc="q(z)", unit=" data", disable=not progress, dynamic_ncols=True
    ) as bar:
        for start in range(0, size, block):
            rows = slice(start, start + block)
            inputs, named = map_batched(lambda t: t[rows], size, (x, *args), kwargs)  # noqa: B023
            density, width = guide_scorer(guide, *inputs, layout=layout, **named), len(inputs[0])
            for first in range(0, count, at_once):
                some = slice(first, first + at_once)
                try:
                    log_q = density(_for_all(latents, some, width))
                except ValueError as error:
                    raise NoAggregateError(str(error)) from error
                log_sum[some] = torch.logaddexp(log_sum[some], log_q.double().logsumexp(1))
            bar.update(width)
    return log_sum - math.log(size)


def _check_prior(
    given: ProgramInputs, latents: Mapping[str, Tensor], layout: Layout, least: int
) -> None:
    """Refuses a program of which there is no one p(z) to compare q(z) with.

    Raises:
        NoAggregateError: in one sentence.
    """
    model, _, x, args, kwargs = given
    size, (draws, data) = len(x), _LOOK
    rows = torch.linspace(0, size - 1, min(size, data)).long() if least < size else slice(None)
    inputs, named = map_batched(lambda t: t[rows], size, (x, *args), kwargs)
    count = len(next(iter(latents.values())))
    some = torch.linspace(0, count - 1, min(count, draws)).long()
    log_p = log_probs_at(
        model, _for_all(latents, some, len(inputs[0])), *inputs, layout=layout, **named
    )
    more = latents.keys() - log_p.keys()
    if more:
        raise NoAggregateError(
            f"expected a guide that draws the model's latents and no more; got "
            f"{', '.join(map(repr, sorted(more)))} besides: what it draws q(z|x) is not known"
        )
    prior = torch.stack([log_p[name] for name in latents]).sum(0)
    if not torch.allclose(prior, prior[:, :1].expand_as(prior), rtol=1e-4, atol=1e-3):
        raise NoAggregateError(
            "expected one prior p(z) for all data; this program's depends on the datum, or on "
            "what it is conditioned on, so that there is no KL(q(z) ‖ p(z)): ask for rate and "
            "distortion alone"
        )


def _for_all(latents: Mapping[str, Tensor], some: Any, size: int) -> dict[str, Tensor]:
    """Some draws, each for so many data, ``(B, size, *event)``."""
    chosen = {name: value[some] for name, value in latents.items()}
    return {n: z[:, None].expand(len(z), size, *z.shape[1:]) for n, z in chosen.items()}
