"""Evidence lower bound with discrete latents summed out."""

from __future__ import annotations

from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ...core.validation import positive_int
from ...programs.base import is_latent, sample_sites
from ..schedules import Schedule, check_number
from .base import Objective, find_max_plate_nesting

__all__ = ["EnumeratedELBO"]


class EnumeratedELBO(Objective):
    """Evidence lower bound with discrete latents summed out (Pyro's ``TraceEnum_ELBO``).

    Guide sites with ``infer={"enumerate": "parallel"}`` are enumerated: all values at once,
    weighted by their probabilities under q, without sampling noise in the gradient. For
    :class:`~pyro_vae.SemiSupervisedVAE`, let
    −L(x, y) = E_q(z|x,y)[log p(x, y, z) − log q(z|x, y)]. The bound of an unlabelled example is

        −U(x) = Σ_y q(y|x) (−L(x, y)) + H(q(y|x)),

    and that of a labelled example is −L(x, y). The guide may report log q(y|x) of the known label
    with ``pyro.factor(name, log_q, has_rsample=True)``, masked because it is not part of the bound;
    ``classification_weight`` trains the classifier with it.

    The value returned is always the bound itself, −U or −L. The gradient on labelled examples is
    that of −L(x, y) + α log q(y|x); ``beta`` multiplies the terms of all latent sites of the guide.

    Arguments:
        num_particles: number of samples per example of the latents that are not enumerated.
        classification_weight: weight α ≥ 0 of the guide's factors, per labelled example. The
            paper's 0.1 N applies to a mean over labelled examples; it corresponds to
            0.1 N / N_labelled here if every epoch sees each of them once.
        beta: weight β of the latent terms: a number ≥ 0, or a schedule over epochs such as
            ``LinearWarmUp``.

    Raises:
        ValueError: if a number is out of range; at the first step, if a factor of the guide
            depends on an enumerated latent, or if a schedule is used without the epoch.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014), equations 6
        to 9. https://arxiv.org/abs/1406.5298
    """

    not_traceable_reason = (
        "Pyro drops terms of probability zero from the sum, depending on their values"
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

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        estimator: Any = self._estimator(model, guide, args, kwargs)
        training = torch.is_grad_enabled()
        beta = self._current_value(self.beta) if training else 1.0
        factors = _FactorRecorder()
        if self.classification_weight and training:
            guide = factors(guide)
        bound = surrogate = cast("Tensor", 0.0)
        for run in estimator._get_traces(model, guide, args, kwargs):
            value = torch.as_tensor(_compute_dice_elbo(*run))
            bound = bound + value.detach()
            if beta != 1:
                latent = [name for name, s in sample_sites(run[1].nodes).items() if is_latent(s)]
                for trace in run:
                    _scale_log_probs(trace, latent, beta)
                value = torch.as_tensor(_compute_dice_elbo(*run))
            surrogate = surrogate + value
        if factors.log_q:
            surrogate = surrogate + self.classification_weight * torch.stack(factors.log_q).sum()
        return -bound / self.num_particles, -surrogate / self.num_particles

    def _estimator(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> TraceEnum_ELBO:
        """Return Pyro's estimator with the plate depth of this program (cached)."""

        def compute() -> TraceEnum_ELBO:
            return TraceEnum_ELBO(
                num_particles=self.num_particles,
                max_plate_nesting=find_max_plate_nesting(model, guide, args, kwargs),
                vectorize_particles=self.num_particles > 1,
                strict_enumeration_warning=False,  # nothing to enumerate if all classes are known
            )

        return self._cached(compute, model, guide, args, kwargs)


def _scale_log_probs(trace: Trace, names: list[str], weight: float) -> None:
    """Multiply the log-densities of the named sites by a weight, in place."""
    for name in filter(trace.nodes.__contains__, names):
        packed: Any = trace.nodes[name]["packed"]  # type: ignore[typeddict-item]
        scaled = weight * packed["log_prob"]
        scaled._pyro_dims = packed["log_prob"]._pyro_dims
        packed["log_prob"] = scaled


class _FactorRecorder(Messenger):
    """Record the factors of a guide, masked or not.

    Attributes:
        log_q: each factor, summed over examples and particles, in nats.
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
                f"expected factors of the guide not to depend on enumerated latents; "
                f"{msg['name']!r} does: set classification_weight to 0"
            )
        self.log_q.append((log_q * msg["scale"]).sum())
