"""Evidence lower bound with discrete latents summed out."""

from __future__ import annotations

from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.ops import packed
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ...core.validation import positive_int
from ...programs.base import Site, is_latent, sample_sites
from ..schedules import Schedule, check_number
from .base import Objective, find_max_plate_nesting, reported_scale

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
    ``classification_weight`` trains the classifier with it. A factor that is not masked is an
    auxiliary loss, as for every objective.

    The value returned is always the bound itself, −U or −L. The gradient on labelled examples is
    that of −L(x, y) + α log q(y|x); ``beta`` multiplies the terms of all latent sites of the guide.

    Arguments:
        num_particles: number of samples per example of the latents that are not enumerated.
        classification_weight: weight α ≥ 0 of the guide's masked factors, per labelled example. The
            paper's 0.1 N applies to a mean over labelled examples; it corresponds to
            0.1 N / N_labelled here if every epoch sees each of them once.
        beta: weight β of the latent terms: a number ≥ 0, or a schedule over epochs such as
            ``LinearWarmUp``.

    Raises:
        ValueError: if a number is out of range; at the first step, if a factor of the guide
            depends on an enumerated latent, if ``beta`` is not 1 and a site is enumerated in the
            model only, or if a schedule is used without the epoch.

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
            if beta != 1:
                _check_beta(*run)
            _remove_factor_scores(run[1])
            trained = [_report(trace, trace is run[1]) for trace in run]
            value = torch.as_tensor(_compute_dice_elbo(*run))
            bound = bound + value.detach()
            if any(trained) or beta != 1:
                latent = [name for name, s in sample_sites(run[1].nodes).items() if is_latent(s)]
                for trace, terms in zip(run, trained, strict=True):
                    _replace_terms(trace, terms)
                    _scale_log_probs(trace, latent, beta)
                value = torch.as_tensor(_compute_dice_elbo(*run))
            surrogate = surrogate + value
        if factors.log_q:
            surrogate = surrogate + self.classification_weight * torch.stack(factors.log_q).sum()
        return -bound / self.num_particles, -surrogate / self.num_particles

    def _estimator(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> TraceEnum_ELBO:
        """Return Pyro's estimator with the plate depth of this program (cached)."""

        def compute() -> TraceEnum_ELBO:
            self.checked_sites(model, guide, args, kwargs)
            return TraceEnum_ELBO(
                num_particles=self.num_particles,
                max_plate_nesting=find_max_plate_nesting(model, guide, args, kwargs),
                vectorize_particles=self.num_particles > 1,
                strict_enumeration_warning=False,  # nothing to enumerate if all classes are known
            )

        return self._cached(compute, model, guide, args, kwargs)


def _check_beta(model: Trace, guide: Trace) -> None:
    """Raise if the prior of a latent is a sum over sites of the model, which β does not reach."""
    sites = sample_sites(cast("dict[str, Site]", model.nodes))
    for name, site in sites.items():
        if name not in guide.nodes and site["infer"].get("_enumerate_dim") is not None:
            raise ValueError(
                f"expected beta 1 if a site is enumerated in the model only; got site {name!r}: "
                f"use ELBO, which sums it out with any beta, or sample the site in the guide"
            )


#: Scale and packed log-density of some sites of a trace, by name.
_Terms = dict[str, tuple[Any, Tensor]]


def _report(trace: Trace, is_guide: bool) -> _Terms:
    """Replace the terms of a trace that the bound does not contain; return the replaced ones."""
    terms: _Terms = {}
    for name, site in sample_sites(cast("dict[str, Site]", trace.nodes)).items():
        scale, tensors = reported_scale(site), site["packed"]
        if is_guide and not is_latent(site):
            if site["mask"] is False:
                continue
            terms[name] = scale, packed.scale_and_mask(tensors["log_prob"], mask=False)
        elif scale is not site["scale"]:
            masked = packed.scale_and_mask(tensors["unscaled_log_prob"], mask=tensors["mask"])
            terms[name] = scale, packed.scale_and_mask(masked, scale=scale)
    return _replace_terms(trace, terms)


def _replace_terms(trace: Trace, terms: _Terms) -> _Terms:
    """Replace terms in place; return the replaced ones."""
    replaced: _Terms = {}
    for name, (scale, log_prob) in terms.items():
        site: Any = trace.nodes[name]
        replaced[name] = site["scale"], site["packed"]["log_prob"]
        site["scale"], site["packed"]["log_prob"] = scale, log_prob
    return replaced


def _remove_factor_scores(guide: Trace) -> None:
    """Remove the score function of observed sites, which Pyro takes for the density of samples."""
    for site in sample_sites(cast("dict[str, Site]", guide.nodes)).values():
        if not is_latent(site):
            parts = site["packed"]["score_parts"]
            site["packed"]["score_parts"] = parts._replace(score_function=0)


def _scale_log_probs(trace: Trace, names: list[str], weight: float) -> None:
    """Multiply the log-densities of the named sites by a weight, in place."""
    for name in filter(trace.nodes.__contains__, names):
        tensors: Any = trace.nodes[name]["packed"]  # type: ignore[typeddict-item]
        tensors["log_prob"] = packed.scale_and_mask(tensors["log_prob"], scale=weight)


class _FactorRecorder(Messenger):
    """Record the masked factors of a guide; the others are auxiliary losses as they are.

    Attributes:
        log_q: each factor, summed over examples and particles, in nats.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_q: list[Tensor] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], dist.Unit) or msg["mask"] is not False:
            return
        log_q = msg["fn"].log_prob(msg["value"])
        plates = {f.dim for f in msg["cond_indep_stack"] if f.vectorized}
        if any(n > 1 and d not in plates for d, n in enumerate(log_q.shape, -log_q.ndim)):
            raise ValueError(
                f"expected factors of the guide not to depend on enumerated latents; "
                f"{msg['name']!r} does: set classification_weight to 0"
            )
        self.log_q.append((log_q * msg["scale"]).sum())
