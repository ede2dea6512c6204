"""Objectives: what SVI maximises."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from .._component import positive
from ..particles import samples, traces

__all__ = ["ELBO", "Objective"]

_log = logging.getLogger("pyro_vae")


class Objective(PyroELBO):
    """The base of all objectives: a Pyro ``ELBO``, so ``SVI(…, loss=objective)`` takes it.

    A new objective defines :meth:`estimator`, the Pyro ``ELBO`` that does the work for one
    program.
    """

    @abstractmethod
    def estimator(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Trace_ELBO:
        """The estimator for this program, called with these arguments."""

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the objective, summed over the data, in nats."""
        return self.estimator(model, guide, args, kwargs).loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """:meth:`loss` as a tensor whose gradient is the estimator's."""
        estimator = self.estimator(model, guide, args, kwargs)
        return estimator.differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """:meth:`loss`, after adding its gradient to every parameter's ``grad``."""
        estimator = self.estimator(model, guide, args, kwargs)
        return estimator.loss_and_grads(model, guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        return self.estimator(model, guide, args, kwargs)._get_trace(model, guide, args, kwargs)


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x, z) − log q(z|x)], by either SGVB estimator.

    Estimator A samples the whole expectation and is Pyro's ``Trace_ELBO``; estimator B has
    KL(q ‖ p) in closed form and is Pyro's ``TraceMeanField_ELBO``.

    Arguments:
        num_particles: draws of z for each datum.
        analytic_kl: ``True`` for estimator B, ``False`` for A; ``None`` chooses B where a
            closed form exists. A latent site without one is sampled, and this is logged.

    Raises:
        ValueError: if ``num_particles`` is not a positive integer.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), equations 6 and 7.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(self, num_particles: int = 1, analytic_kl: bool | None = None) -> None:
        super().__init__(positive("num_particles", num_particles), vectorize_particles=True)
        self.analytic_kl = analytic_kl
        self._chosen: tuple[Any, Any, Trace_ELBO] | None = None

    def estimator(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Trace_ELBO:
        # compared by ==, because vae.model is a new bound method at every access
        if self._chosen is None or self._chosen[:2] != (model, guide):
            self._chosen = (model, guide, self._choose(model, guide, args, kwargs))
        return self._chosen[2]

    def _choose(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Trace_ELBO:
        kind: type[Trace_ELBO] = Trace_ELBO
        if self.analytic_kl is not False:
            closed, sampled = _closed_forms(model, guide, args, kwargs)
            for name, pair in sampled.items():
                _log.warning(
                    "site %r has no analytic KL (%s): it is estimated by sampling", name, pair
                )
            if closed or self.analytic_kl:
                kind = TraceMeanField_ELBO
        # Pyro's vectorised particles guess the plates' depth by themselves at the first call
        return kind(num_particles=self.num_particles, vectorize_particles=self.num_particles > 1)


def _closed_forms(
    model: Any, guide: Any, args: tuple, kwargs: dict
) -> tuple[set[str], dict[str, str]]:
    """The latent sites with an analytic KL, and those without, with their distributions."""
    with poutine.block():
        guide_sites, model_sites = map(samples, traces(model, guide, args, kwargs))
    closed: set[str] = set()
    sampled: dict[str, str] = {}
    for name, site in model_sites.items():
        if site["is_observed"] or name not in guide_sites:
            continue
        q, p = guide_sites[name]["fn"], site["fn"]
        try:
            if not q.has_rsample:
                raise NotImplementedError
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
