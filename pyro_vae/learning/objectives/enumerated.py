"""The evidence lower bound with discrete latents summed out."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ...core.validation import positive_int
from ...programs.base import sample_sites
from ..schedules import Schedule, check_number
from .base import Objective, plate_nesting

__all__ = ["EnumeratedELBO"]


class EnumeratedELBO(Objective):
    """The evidence lower bound with discrete latents summed out, by Pyro's ``TraceEnum_ELBO``.

    Every site of the guide with ``infer={"enumerate": "parallel"}`` takes all its values at
    once, each weighed by its probability under q, and no noise of a draw is in the gradient. For
    :class:`~pyro_vae.SemiSupervisedVAE` and −L(x, y) = E_q(z|x,y)[log p(x, y, z) − log q(z|x, y)]
    that is, of a datum whose class is not known,

        −U(x) = Σ_y q(y|x) (−L(x, y)) + H(q(y|x)),

    and −L(x, y) of one whose class is. There a guide may say how probable it finds what is known
    by ``pyro.factor(name, log_q, has_rsample=True)``, masked because it is no part of a bound:
    ``classification_weight`` teaches it that.

    What it returns is always the bound itself, −U or −L. The gradient is that of
    −L(x, y) + α log q(y|x) on data whose class is known, and with ``beta`` the terms of all
    latent sites of the guide are multiplied by β.

    Arguments:
        num_particles: draws of the latents that are not summed out, for each datum.
        classification_weight: α, the weight of the factors of the guide, for each datum, a
            number ≥ 0. The paper's 0.1 N is that of a mean over the data whose class is known:
            0.1 N / N_known here, if a pass over the data meets each of them once.
        beta: β, a number ≥ 0 or a schedule of it over the epochs, for instance
            ``LinearWarmUp``.

    Raises:
        ValueError: if a number is out of range; when used, if a factor of the guide depends on
            a latent that is summed out, or if a schedule has not been told the epoch.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014), equations 6
        to 9. https://arxiv.org/abs/1406.5298
    """

    not_traceable_reason = (
        "Pyro leaves out of the sum what has probability zero, as the numbers have it"
    )

    def __init__(
        self,
        num_particles: int = 1,
        classification_weight: float = 0.0,
        beta: float | Schedule = 1.0,
    ) -> None:
        super().__init__(positive_int("num_particles", num_particles), vectorize_particles=True)
        check_number("classification_weight", classification_weight)
        check_number("beta", beta, or_schedule=True)
        self.classification_weight = classification_weight
        self.beta = beta

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        estimator = self._estimator(model, guide, args, kwargs)
        with torch.no_grad():
            return float(estimator.loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        estimator = self._estimator(model, guide, args, kwargs)
        beta = self._scheduled(self.beta)
        factors = _Factors()
        watched = factors(guide) if self.classification_weight else guide
        if beta == 1:
            loss = estimator.differentiable_loss(model, watched, *args, **kwargs)
        else:
            loss = self._weighed(estimator, beta, model, watched, args, kwargs)
        if factors.log_q:
            known = torch.stack(factors.log_q).sum() / self.num_particles
            loss = loss - self.classification_weight * (known - known.detach())
        return loss

    def _estimator(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> TraceEnum_ELBO:
        """Pyro's, one for each program, because the depth of its plates is looked at once."""

        def look() -> TraceEnum_ELBO:
            return TraceEnum_ELBO(
                num_particles=self.num_particles,
                max_plate_nesting=plate_nesting(model, guide, args, kwargs),
                vectorize_particles=self.num_particles > 1,
                strict_enumeration_warning=False,  # where all classes are known, nothing is left
            )

        return self._once(look, model, guide, args, kwargs)

    def _weighed(
        self, estimator: Any, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> Tensor:
        """Minus the bound, whose gradient is that of the run with its latent terms weighed."""
        loss: Any = 0.0
        surrogate: Any = 0.0
        for run in estimator._get_traces(model, guide, args, kwargs):
            bound: Any = _compute_dice_elbo(*run)
            loss = loss - bound.detach()
            latent = [n for n, s in sample_sites(run[1].nodes).items() if not s["is_observed"]]
            for trace in run:
                _weigh(trace, latent, beta)
            surrogate = surrogate - _compute_dice_elbo(*run)
        return (surrogate - surrogate.detach() + loss) / self.num_particles


def _weigh(trace: Trace, names: list[str], weight: float) -> None:
    """Multiplies the log-densities of some sites by a number, in place."""
    for name in filter(trace.nodes.__contains__, names):
        packed: Any = trace.nodes[name]["packed"]  # type: ignore[typeddict-item]
        weighed = weight * packed["log_prob"]
        weighed._pyro_dims = packed["log_prob"]._pyro_dims
        packed["log_prob"] = weighed


class _Factors(Messenger):
    """Notes the factors of a guide, masked or not.

    Attributes:
        log_q: each factor, summed over data and particles, in nats.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_q: list[Tensor] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], dist.Unit):
            return
        log_q = msg["fn"].log_prob(msg["value"])
        plates = {f.dim for f in msg["cond_indep_stack"] if f.vectorized}
        if any(n > 1 and d not in plates for d, n in enumerate(log_q.shape, -log_q.ndim)):
            raise ValueError(
                f"expected factors of the guide to depend on no latent that is summed out; "
                f"{msg['name']!r} does: set classification_weight to 0"
            )
        self.log_q.append((log_q * msg["scale"]).sum())
