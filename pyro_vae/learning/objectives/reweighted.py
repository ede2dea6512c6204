"""Reweighted wake-sleep: fit the guide by the inclusive KL divergence."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ...core.validation import positive_int
from ...programs.base import is_latent, sample_sites, site_log_prob
from ...programs.particles import scale_in_data, total_log_prob
from ..schedules import check_number
from .base import DataPlateChecker
from .weighted import WeightObjective, auxiliary_loss, drop_negligible, log_mean_exp

__all__ = ["ReweightedWakeSleep"]


class ReweightedWakeSleep(WeightObjective):
    """Reweighted wake-sleep: train the model on weighted samples and fit q to the model.

    The k samples z_i ~ q(z|x) of each example have weights w̄_i ∝ p(x, z_i)/q(z_i|x), normalised
    per example, so minibatches are allowed. The model follows Σ_i w̄_i ∇ log p(x, z_i), the guide
    a mixture of two gradients:

    * wake: Σ_i w̄_i ∇ log q(z_i|x), which minimises KL(p(z|x) ‖ q(z|x)) as k grows;
    * sleep: ∇ log q(z̃|x̃) at one sample (x̃, z̃) ~ p per example, which minimises the mean of that
      KL over x̃ ~ p for any k. Other arguments of the program, such as labels to condition on,
      are those of the minibatch.

    Samples are detached, so latent sites may be discrete. A parameter used by both programs
    follows the sum of their gradients. With ``poutine.scale``, scaled log-densities take the place
    of log p and log q, in the weights too. The value returned is L_k of the minibatch, unscaled.

    Arguments:
        k: number of samples per example.
        wake: weight of the wake phase in the guide's gradient, in [0, 1]: 1 for the wake phase
            only, 0 for the sleep phase only.

    Raises:
        ValueError: if ``k`` is not a positive integer or ``wake`` is not in [0, 1]; at the first
            step, if the guide can only score its own cached samples, or if ``wake`` < 1 and the
            model cannot generate the first argument of the guide.

    References:
        Reweighted Wake-Sleep (Bornschein & Bengio, 2014), equations 11, 13 and 14.
        https://arxiv.org/abs/1406.2751
        Revisiting Reweighted Wake-Sleep (Le et al., 2018), section 3.
        https://arxiv.org/abs/1805.10469
    """

    def __init__(self, k: int = 5, wake: float = 0.5) -> None:
        super().__init__(positive_int("k", k))
        check_number("wake", wake, maximum=1.0)
        self.k, self.wake = k, wake

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return super().terms(model, guide, *args, **kwargs)
        try:
            with DataPlateChecker(), _DetachSamples():
                particles = self.run(model, guide, args, kwargs)
            sleep_term = _sleep_log_prob(model, guide, args, kwargs) if self.wake < 1 else 0.0
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                "expected a guide that can score any sample; a flow without an inverse can only "
                "score its own cached samples: use IWAE"
            ) from error
        objective = total_log_prob(particles.scaled_log_p)
        if self.wake:
            objective = objective + self.wake * total_log_prob(particles.scaled_log_q)
        weights = drop_negligible(particles.scaled_log_weights.detach()).softmax(0)
        total = (weights * objective).sum() + (1 - self.wake) * sleep_term
        loss = -self.bound(particles.log_weights.detach()).sum()
        return loss, auxiliary_loss(particles, scored=False) - total


class _DetachSamples(Messenger):
    """Detach every sample, both where it is scored and where it is used."""

    def _pyro_post_sample(self, msg: Any) -> None:
        # detach() also makes a copy, which misses the cache of a flow without an inverse
        if not msg["is_observed"]:
            msg["value"] = msg["value"].detach()


def _sleep_log_prob(model: Any, guide: Any, args: tuple, kwargs: dict) -> Tensor:
    """Σ_n log q(z̃_n | x̃_n), scaled, of samples (x̃_n, z̃_n) ~ p, one per example."""
    x, *other_args = args
    with torch.no_grad():
        generated = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    sites: dict[str, Any] = sample_sites(prune_subsample_sites(generated).nodes)  # type: ignore[arg-type]
    observed = [name for name, site in sites.items() if site["infer"].get("was_observed")]
    if len(observed) != 1 or sites[observed[0]]["value"].shape != x.shape:
        shapes = ", ".join(f"{n!r} of shape {tuple(sites[n]['value'].shape)}" for n in observed)
        raise ValueError(
            f"expected a model with one observed site of shape {tuple(x.shape)}, the shape of the "
            f"data, for the sleep phase; got {shapes}: use wake=1"
        )
    x_generated = sites[observed[0]]["value"].to(x.dtype)
    replayed = poutine.trace(poutine.replay(guide, trace=generated))
    guide_trace = prune_subsample_sites(replayed.get_trace(x_generated, *other_args, **kwargs))
    nodes: dict[str, Any] = sample_sites(guide_trace.nodes)  # type: ignore[arg-type]
    guide_sites = {name: site for name, site in nodes.items() if is_latent(site)}
    extra = [name for name in guide_sites if name not in sites]
    if extra:
        raise ValueError(
            f"expected a guide that samples only the model's latent sites, for the sleep phase; "
            f"it also samples {', '.join(map(repr, extra))}: use wake=1"
        )
    terms = [site_log_prob(site) * scale_in_data(site) for site in guide_sites.values()]
    return torch.stack([term.sum() for term in terms]).sum()
