"""The evidence lower bound, by either SGVB estimator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from ..._component import positive
from ..._programs import Site, samples, traces
from ..schedules import Schedule
from .base import Objective

__all__ = ["ELBO"]

_log = logging.getLogger("pyro_vae")


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x, z) − log q(z|x)], by either SGVB estimator.

    Estimator A samples the whole expectation and is Pyro's ``Trace_ELBO``; estimator B has
    KL(q ‖ p) in closed form and is Pyro's ``TraceMeanField_ELBO``. B is right only if every
    latent site is reparameterised and the guide draws them in the model's order, so that
    what p(z_i | …) depends on is there when q(z_i | …) is drawn.

    What it returns is always the ELBO. With ``beta`` the gradient is that of
    E_q[log p(x|z)] − β (…), the terms of all latent sites being multiplied by β.

    Arguments:
        num_particles: draws of z for each datum.
        analytic_kl: ``True`` for estimator B, ``False`` for A; ``None`` chooses B where it is
            right and a closed form exists. A latent site that is sampled instead is logged.
        beta: β, a number ≥ 0 or a schedule of it over the epochs, for instance
            ``LinearWarmUp``.

    Raises:
        ValueError: if ``num_particles`` is not a positive integer, if ``beta`` is negative, or
            if ``analytic_kl`` is asked for where it would be wrong.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), equations 6 and 7.
        https://arxiv.org/abs/1312.6114
        β-VAE (Higgins et al., 2017), equation 4. https://openreview.net/forum?id=Sy2fzU9gl
    """

    def __init__(
        self,
        num_particles: int = 1,
        analytic_kl: bool | None = None,
        beta: float | Schedule = 1.0,
    ) -> None:
        super().__init__(positive("num_particles", num_particles), vectorize_particles=True)
        if not isinstance(beta, Schedule) and (isinstance(beta, bool) or not 0 <= beta < math.inf):
            raise ValueError(f"expected beta ≥ 0 and finite, or a schedule; got {beta!r}")
        self.beta = beta
        self.analytic_kl = analytic_kl
        self._chosen: tuple[Any, Any, Trace_ELBO] | None = None

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        return self.estimator(model, guide, args, kwargs).loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        estimator, weigh = self.estimator(model, guide, args, kwargs), self._weigh()
        if weigh is None:
            return estimator.differentiable_loss(model, guide, *args, **kwargs)
        loss = self.loss(model, guide, *args, **kwargs)
        surrogate = estimator.differentiable_loss(weigh(model), weigh(guide), *args, **kwargs)
        return surrogate - surrogate.detach() + loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        estimator, weigh = self.estimator(model, guide, args, kwargs), self._weigh()
        if weigh is None:
            return estimator.loss_and_grads(model, guide, *args, **kwargs)
        with torch.no_grad():
            loss = self.loss(model, guide, *args, **kwargs)
        estimator.loss_and_grads(weigh(model), weigh(guide), *args, **kwargs)
        return loss

    def _weigh(self) -> _WeighLatents | None:
        beta = self.beta(self._moment.epoch) if isinstance(self.beta, Schedule) else self.beta
        return None if beta == 1 else _WeighLatents(beta)

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        return self.estimator(model, guide, args, kwargs)._get_trace(model, guide, args, kwargs)

    def estimator(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Trace_ELBO:
        """Pyro's ``ELBO`` that does the work for this program, called with these arguments."""
        # compared by ==, because vae.model is a new bound method at every access
        if self._chosen is None or self._chosen[:2] != (model, guide):
            self._chosen = (model, guide, self._choose(model, guide, args, kwargs))
        return self._chosen[2]

    def _choose(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Trace_ELBO:
        kind = Trace_ELBO
        if self.analytic_kl is not False:
            with poutine.block():
                guide_sites, model_sites = map(samples, traces(model, guide, args, kwargs))
            obstacle = _obstacle(guide_sites, model_sites)
            if obstacle is None:
                closed, sampled = _closed_forms(guide_sites, model_sites)
                for name, pair in sampled.items():
                    _log.warning(
                        "site %r has no analytic KL (%s): it is estimated by sampling", name, pair
                    )
                if closed or self.analytic_kl:
                    kind = TraceMeanField_ELBO
            elif self.analytic_kl:
                raise ValueError(f"expected a program whose KL is analytic; {obstacle}")
            else:
                _log.warning("the KL is estimated by sampling: %s", obstacle)
        # Pyro's vectorised particles guess the plates' depth by themselves at the first call
        return kind(num_particles=self.num_particles, vectorize_particles=self.num_particles > 1)


class _WeighLatents(Messenger):
    """Multiplies the log-density of every latent site, of a model or of its guide."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        # not poutine.scale, which scales the observations too and does not allow zero
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight


def _obstacle(guide: Mapping[str, Site], model: Mapping[str, Site]) -> str | None:
    """Why ``TraceMeanField_ELBO`` would be wrong for a program, if it would.

    Pyro checks this too, but only while validation is on, and then warns or asserts.
    """
    for name, site in guide.items():
        if not (site["is_observed"] or site["fn"].has_rsample):
            return f"site {name!r} of the guide ({_family(site['fn'])}) is not reparameterised"
    latent = [name for name, site in model.items() if not site["is_observed"]]
    drawn = [name for name in guide if name in latent]
    if drawn != latent:
        return (
            f"the guide draws {', '.join(drawn)} in this order and the model "
            f"{', '.join(latent)}, so KL(q ‖ p) of a site depends on later ones"
        )
    return None


def _closed_forms(
    guide: Mapping[str, Site], model: Mapping[str, Site]
) -> tuple[set[str], dict[str, str]]:
    """The latent sites with an analytic KL, and those without, with their distributions."""
    closed: set[str] = set()
    sampled: dict[str, str] = {}
    for name, site in model.items():
        if site["is_observed"]:
            continue
        q, p = guide[name]["fn"], site["fn"]
        try:
            kl_divergence(q, p)
            closed.add(name)
        except NotImplementedError:
            sampled[name] = f"{_family(q)} to {_family(p)}"
    return closed, sampled


def _family(fn: Any) -> str:
    # what .to_event() and .mask() wrap
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("Independent", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
