"""Wake-sleep: objectives that teach the guide by the model's inclusive divergence."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ...core.validation import positive_int
from ...programs.base import sample_sites
from ...programs.importance_weights import log_prob_of, run_particles
from .weighted import WeightObjective, log_mean_exp

__all__ = ["ReweightedWakeSleep"]


class ReweightedWakeSleep(WeightObjective):
    """Reweighted wake-sleep: Σ_i w̄_i ∇ log p(x, z_i) for the model, and q learns from p.

    The k draws z_i ~ q(z|x) of each datum have weights w̄_i ∝ p(x, z_i)/q(z_i|x), normalised
    datum by datum, so that minibatches are allowed. The model follows Σ_i w̄_i ∇ log p(x, z_i),
    the guide a mixture of two:

    * awake, Σ_i w̄_i ∇ log q(z_i|x), which falls along KL(p(z|x) ‖ q(z|x)) as k grows;
    * asleep, ∇ log q(z̃|x̃) of one dream (x̃, z̃) ~ p for each datum, which falls along it in
      the mean over what the model believes in, whatever k is. Other arguments of the program
      (labels to condition on) stay those of the minibatch.

    No gradient goes through a draw, so latent sites may be discrete. A parameter that both
    programs use follows the sum of both. What is returned is L_k of the minibatch.

    Arguments:
        k: the number of draws for each datum.
        wake: the share of the wake phase in what the guide follows, in [0, 1]: 1 for the wake
            phase alone, 0 for the sleep phase alone.

    Raises:
        ValueError: if ``k`` is not a positive integer or ``wake`` is not in [0, 1]; when used,
            if the guide has no density at a draw that is not its own memory's, or if with
            ``wake`` < 1 the model cannot dream up the first argument of the guide.

    References:
        Reweighted Wake-Sleep (Bornschein & Bengio, 2014), equations 11, 13 and 14.
        https://arxiv.org/abs/1406.2751
        Revisiting Reweighted Wake-Sleep (Le et al., 2018), section 3.
        https://arxiv.org/abs/1805.10469
    """

    def __init__(self, k: int = 5, wake: float = 0.5) -> None:
        super().__init__(positive_int("k", k))
        if isinstance(wake, bool) or not 0 <= wake <= 1:
            raise ValueError(f"expected wake in [0, 1]; got {wake!r}")
        self.k, self.wake = k, wake

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def _surrogate(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Tensor:
        layout = self.layout(model, guide, args, kwargs)
        try:
            with _HoldDraws():
                particles = run_particles(
                    model, guide, *args, num_samples=self.k, layout=layout, **kwargs
                )
            dreamt = _dreamt(model, guide, args, kwargs) if self.wake < 1 else 0.0
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                "expected a guide with a density at any draw; a flow without an inverse scores "
                "its own memory's only: use IWAE"
            ) from error
        log_w = particles.log_weights.detach()
        followed = torch.stack(tuple(particles.log_p.values())).sum(0)
        if self.wake:
            followed = followed + self.wake * torch.stack(tuple(particles.log_q.values())).sum(0)
        total = (log_w.softmax(0) * followed).sum() + (1 - self.wake) * dreamt
        return total.detach() - total - self.bound(log_w).sum()


class _HoldDraws(Messenger):
    """Cuts the gradient at every draw, on its way to what is scored and what depends on it."""

    def _pyro_post_sample(self, msg: Any) -> None:
        # a copy, too: the memory of a flow without an inverse must not take it for its own
        if not msg["is_observed"]:
            msg["value"] = msg["value"].detach()


def _dreamt(model: Any, guide: Any, args: tuple, kwargs: dict) -> Tensor:
    """Σ_n log q(z̃_n | x̃_n) of a dream (x̃_n, z̃_n) ~ p in the place of each datum."""
    x, *others = args
    with torch.no_grad():
        dream = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    sites: dict[str, Any] = sample_sites(prune_subsample_sites(dream).nodes)  # type: ignore[arg-type]
    seen = [name for name, site in sites.items() if site["infer"].get("was_observed")]
    if len(seen) != 1 or sites[seen[0]]["value"].shape != x.shape:
        told = ", ".join(f"{name!r} of shape {tuple(sites[name]['value'].shape)}" for name in seen)
        raise ValueError(
            f"expected a model that observes one site, of the shape {tuple(x.shape)} of the data, "
            f"to dream of; got {told}: use wake=1"
        )
    dreamt = sites[seen[0]]["value"].to(x.dtype)
    replayed = poutine.trace(poutine.replay(guide, trace=dream))
    trace = prune_subsample_sites(replayed.get_trace(dreamt, *others, **kwargs))
    scored: dict[str, Any] = sample_sites(trace.nodes)  # type: ignore[arg-type]
    own = [name for name in scored if name not in sites]
    if own:
        raise ValueError(
            f"expected a guide that samples the model's latent sites alone, to score dreams; it "
            f"also samples {', '.join(map(repr, own))}: use wake=1"
        )
    terms = [log_prob_of(site, None, (1, len(x))).sum() for site in scored.values()]
    return torch.stack(terms).sum()
