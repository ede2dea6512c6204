"""Evidence lower bound with either SGVB estimator."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, is_validation_enabled
from pyro.poutine import Trace
from pyro.util import check_if_enumerated
from torch import Tensor
from torch.distributions import kl_divergence

from ...core.validation import positive_int
from ...programs.base import Site, is_latent, sample_sites, trace_program
from ...programs.kl import analytic_kl
from ...programs.particles import run_particles, total_log_prob
from ...programs.pathwise import run_pathwise
from ..schedules import Schedule, check_number
from .base import (
    DataPlateChecker,
    Objective,
    find_max_plate_nesting,
    log_parameter_prior,
    reported_scale,
)
from .free_bits import PARTICLE_PLATE, FreeBits
from .weighted import auxiliary_loss, score_function_term

__all__ = ["ELBO"]

_log = logging.getLogger("pyro_vae")

#: The ELBO, a surrogate with the requested gradient, and the tensors computed by the model and by
#: the guide.
_RunResult = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]


class ELBO(Objective):
    """Evidence lower bound, E_q[log p(x, z) − log q(z|x)], with either SGVB estimator.

    Estimator A samples the whole expectation (Pyro's ``Trace_ELBO``). Estimator B computes
    KL(q ‖ p) in closed form (Pyro's ``TraceMeanField_ELBO``); it requires that every latent site
    is reparameterised and that the guide samples the sites in the model's order, so that q(z_i | …)
    is sampled after everything that p(z_i | …) depends on.

    The value returned is always the ELBO. The gradient is that of
    E_q[log p(x|z)] − β Σ_groups max(λ, KL_group) + log p(θ), where β multiplies the terms of all
    latent sites, λ is the number of free bits and p(θ) = N(0, I) is optional. All options can be
    combined, except ``stl`` with free bits or an analytic KL. A ``poutine.scale`` multiplies the
    gradient of its sites further. Sites of the model that the guide lacks and that are marked for
    enumeration are summed out exactly; the KL is then that of estimator A, without free bits.

    Arguments:
        num_particles: number of samples of z per example.
        analytic_kl: ``True`` for estimator B, ``False`` for A; ``None`` chooses B if it is valid
            and a closed form exists. Latent sites that are sampled instead are logged.
        beta: weight β of the KL: a number ≥ 0, or a schedule over epochs such as
            ``LinearWarmUp``.
        free_bits: free nats λ per latent dimension, or ``FreeBits`` for groups of dimensions; 0
            for none.
        gradient: ``standard``, or ``stl`` for estimator A without the score of q at fixed
            samples; the score has mean zero, and dropping it removes the more noise, the closer q
            is to the posterior.
        map_weights: add log N(θ; 0, I) of the parameters θ that only the model uses
            (unconstrained); each minibatch gets the fraction ``batch / num_data`` of it. For a
            prior on all parameters, and with any objective, give the optimizer a ``weight_decay``
            of this size.

    Raises:
        ValueError: if a number is out of range, ``gradient`` is unknown, or options cannot be
            combined; at the first step, if the program does not support an option, if a schedule
            is used without the epoch, or ``map_weights`` without the size of the training set.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), equations 6 and 7.
        https://arxiv.org/abs/1312.6114
        β-VAE (Higgins et al., 2017), equation 4. https://openreview.net/forum?id=Sy2fzU9gl
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        appendix C.8. https://arxiv.org/abs/1606.04934
        Sticking the Landing (Roeder et al., 2017), equation 8. https://arxiv.org/abs/1703.09194
    """

    def __init__(
        self,
        num_particles: int = 1,
        analytic_kl: bool | None = None,
        beta: float | Schedule = 1.0,
        free_bits: float | FreeBits = 0.0,
        gradient: Literal["standard", "stl"] = "standard",
        map_weights: bool = False,
    ) -> None:
        super().__init__(positive_int("num_particles", num_particles), vectorize_particles=True)
        check_number("beta", beta, or_schedule=True)
        self.beta = beta
        self.analytic_kl = analytic_kl
        self.free_bits = free_bits if isinstance(free_bits, FreeBits) else FreeBits(free_bits)
        self.gradient = gradient
        self.map_weights = map_weights
        if gradient not in ("standard", "stl"):
            raise ValueError(f"expected gradient to be standard or stl; got {gradient!r}")
        if gradient == "stl" and analytic_kl:
            raise ValueError(
                "expected analytic_kl false or null with gradient 'stl', which drops the score of "
                "a sampled log q; got True: a KL in closed form has no score, use gradient "
                "'standard'"
            )
        if gradient == "stl" and self.free_bits.nats > 0:
            raise ValueError(
                f"expected no free bits with gradient 'stl', which has no KL per group; got "
                f"{self.free_bits}: use gradient 'standard'"
            )
        if not isinstance(map_weights, bool):
            raise ValueError(f"expected map_weights to be true or false; got {map_weights!r}")

    @property
    def not_decomposable_reason(self) -> str | None:
        return "free bits depend on the mean over a minibatch" if self.free_bits.nats else None

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        training = torch.is_grad_enabled()
        beta = self._current_value(self.beta) if training else 1.0
        run = self._run_sites
        if self.gradient == "stl" or self._has_enumerated(model, guide, args, kwargs):
            run = self._run_particles
        bound, surrogate, *tensors = run(beta, model, guide, args, kwargs)
        if self.map_weights and training:
            surrogate = surrogate + self._data_fraction(args) * log_parameter_prior(*tensors)
        return -bound.detach(), -surrogate

    def _run_sites(
        self, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> _RunResult:
        """Sum the log-densities and analytic KLs of one run, with latent terms weighted."""
        analytic, nesting = self._estimator(model, guide, args, kwargs)
        if self.num_particles > 1:
            plate = pyro.plate(PARTICLE_PLATE, self.num_particles, dim=-1 - int(nesting))
            model, guide, nesting = plate(model), plate(guide), nesting + 1
        run = get_importance_trace("flat", nesting, model, guide, args, kwargs)
        if is_validation_enabled():
            check_if_enumerated(run[1])
        p, q = (sample_sites(cast("dict[str, Site]", trace.nodes)).values() for trace in run)
        model_tensors = [site["log_prob"] for site in p]
        guide_tensors = [site[key] for key in ("log_prob", "value") for site in q]
        run = self.free_bits.split_sites(*run)
        bits = self.free_bits.weights(*run, analytic)
        latent = [site["name"] for site in q if is_latent(site)]
        weights = {name: beta * bits.get(name, 1.0) for name in latent}
        bound, surrogate = estimate_elbo(*run, weights, analytic)
        count = self.num_particles
        return bound / count, surrogate / count, model_tensors, guide_tensors

    def _run_particles(
        self, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> _RunResult:
        """Sum the log-densities of every example, in which enumerated sites are summed out."""
        try:
            layout = self.layout(model, guide, args, kwargs)
        except ValueError as error:
            if self.gradient == "stl":
                raise
            raise ValueError(
                f"expected weights of each example, to sum out "
                f"{', '.join(map(repr, self.enumerated_sites(model, guide, args, kwargs)))}; got "
                f"an error ({error}): use EnumeratedELBO, which needs none"
            ) from error
        run = run_pathwise if self.gradient == "stl" else run_particles
        with DataPlateChecker():
            particles = run(
                model, guide, *args, num_samples=self.num_particles, layout=layout, **kwargs
            )
        log_w, latents = particles.scaled_log_weights, particles.latents
        observed = {n: v for n, v in particles.scaled_log_p.items() if n not in latents}
        log_x = total_log_prob(observed)
        objective = log_x + beta * (log_w - log_x)
        surrogate = objective.mean(0).sum() - auxiliary_loss(particles)
        if self.gradient != "stl":
            surrogate = surrogate + score_function_term(particles, lambda v: v.mean(0), objective)
        guide_tensors = [*particles.log_q.values(), *latents.values()]
        model_tensors = list(particles.log_p.values())
        return particles.log_weights.mean(0).sum(), surrogate, model_tensors, guide_tensors

    def _has_enumerated(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> bool:
        """Whether sites of the model are summed out.

        Raises:
            ValueError: if they are, and the options need the KL of a single site.
        """
        names = self.enumerated_sites(model, guide, args, kwargs)
        for wanted, option in (
            (self.analytic_kl, "analytic_kl false or null"),
            (self.free_bits.nats > 0, "no free bits"),
        ):
            if names and wanted:
                raise ValueError(
                    f"expected {option} if a site of the model is summed out, because the KL to "
                    f"the prior that it leaves has no closed form; got {names[0]!r}, which is "
                    f"marked for enumeration: change the option, or sample the site in the guide"
                )
        return bool(names)

    def _data_fraction(self, args: tuple) -> float:
        """Return the size of the minibatch as a fraction of the training set."""
        if self._step_info.num_data is None:
            raise ValueError(
                "expected the size of the training set, to scale log p(θ) to a minibatch; got "
                "none: call objective.set_step(StepInfo(num_data=…)) before the step, as fit "
                "does, or leave map_weights out"
            )
        return len(args[0]) / self._step_info.num_data

    def uses_analytic_kl(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether estimator B is used for this program, called with these arguments."""
        if self.gradient == "stl" or self._has_enumerated(model, guide, args, kwargs):
            return False
        return self._estimator(model, guide, args, kwargs)[0]

    def _estimator(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[bool, float]:
        """Return whether the KL is analytic, and the depth of the plates (cached)."""

        def compute() -> tuple[bool, float]:
            analytic, nesting = False, math.inf
            if self.analytic_kl is not False:
                with poutine.block():
                    analytic = self._select_analytic(*trace_program(model, guide, args, kwargs))
            if self.num_particles > 1:
                nesting = find_max_plate_nesting(model, guide, args, kwargs)
            return analytic, nesting

        return self._cached(compute, model, guide, args, kwargs)

    def _select_analytic(self, guide: Mapping[str, Site], model: Mapping[str, Site]) -> bool:
        guide, model = sample_sites(guide), sample_sites(model)
        reason = _analytic_kl_obstacle(guide, model)
        if reason is not None:
            if self.analytic_kl:
                raise ValueError(f"expected a program whose KL is analytic; {reason}")
            _log.warning("the KL is estimated by sampling: %s", reason)
            return False
        any_closed = False
        for name, site in model.items():
            if site["is_observed"]:
                continue
            q, p = guide[name]["fn"], site["fn"]
            try:
                kl_divergence(q, p)
                any_closed = True
            except NotImplementedError:
                pair = f"{_distribution_name(q)} to {_distribution_name(p)}"
                _log.warning(
                    "site %r has no analytic KL (%s): estimating it by sampling", name, pair
                )
        return bool(any_closed or self.analytic_kl)


def estimate_elbo(
    model: Trace, guide: Trace, weights: Mapping[str, Any], analytic: bool
) -> tuple[Tensor, Tensor]:
    """Return the ELBO of one run, and a surrogate whose latent terms are weighted.

    The surrogate has the gradient of Pyro's ``Trace_ELBO``, or ``TraceMeanField_ELBO`` if
    ``analytic``: pathwise where the samples are reparameterised, and the score function with the
    costs in the same plates for the other sites of the guide.

    Arguments:
        model, guide: traces of one run, with their log-densities.
        weights: weight of each latent site, a number or a tensor that broadcasts with its
            log-density.
        analytic: whether to use the KL in closed form where there is one.
    """
    p, q = (sample_sites(cast("dict[str, Site]", trace.nodes)) for trace in (model, guide))
    bound = surrogate = cast("Tensor", 0.0)
    closed = set()
    for name, site in p.items():
        term, reported, weight = site["log_prob"], _unscaled_log_prob(site), weights.get(name, 1.0)
        kl = analytic_kl(q[name], site) if analytic and is_latent(site) else None
        if kl is not None:
            closed.add(name)
            reported = -scale_and_mask(kl, reported_scale(q[name]))
            term = _scale_kl(kl, q[name], site)
        bound = bound + reported.detach().sum()
        surrogate = surrogate + scale_and_mask(term, weight).sum()
    for name, site in q.items():
        if name in closed:
            continue
        if not is_latent(site):
            # an auxiliary loss, not a part of q
            surrogate = surrogate - site["log_prob"].sum()
            continue
        _, score, entropy = site["score_parts"]
        bound = bound - _unscaled_log_prob(site).detach().sum()
        if not is_identically_zero(entropy):
            surrogate = surrogate - scale_and_mask(entropy, weights.get(name, 1.0)).sum()
        if not is_identically_zero(score):
            signal = _plate_costs(p, q, weights).sum_to(site["cond_indep_stack"])
            surrogate = surrogate + (signal * score).sum()
    return bound, surrogate


def _unscaled_log_prob(site: Site) -> Tensor:
    """Return the log-density of a site, masked, with its :func:`reported_scale`."""
    reported = reported_scale(site)
    if reported is site["scale"]:
        return site["log_prob"]
    return scale_and_mask(site["unscaled_log_prob"], reported, site["mask"])


def _scale_kl(kl: Tensor, q: Site, p: Site) -> Tensor:
    """Return s_p E_q[log p] − s_q E_q[log q] at the scales of both sites."""
    term = -scale_and_mask(kl, q["scale"])
    excess: Any = p["scale"] - q["scale"]
    if isinstance(excess, Tensor) or excess != 0:
        # the cross-entropy has no closed form in general: sample it
        term = term + scale_and_mask(p["unscaled_log_prob"], cast("float", excess), p["mask"])
    return term


def _plate_costs(
    p: Mapping[str, Site], q: Mapping[str, Site], weights: Mapping[str, Any]
) -> MultiFrameTensor:
    """Return the weighted, detached log p − log q by plate, minus the guide's observed sites."""
    costs = MultiFrameTensor()
    for name, site in p.items():
        cost = site["log_prob"] - q[name]["log_prob"] if is_latent(site) else site["log_prob"]
        cost = scale_and_mask(cost.detach(), weights.get(name, 1.0))
        costs.add((site["cond_indep_stack"], cost))
    for site in q.values():
        if not is_latent(site):
            costs.add((site["cond_indep_stack"], -site["log_prob"].detach()))
    return costs


def _analytic_kl_obstacle(guide: Mapping[str, Site], model: Mapping[str, Site]) -> str | None:
    """Return the reason why ``TraceMeanField_ELBO`` is invalid for a program, or ``None``.

    Pyro checks this only with validation enabled, and then warns or asserts.
    """
    for name, site in guide.items():
        if not (site["is_observed"] or site["fn"].has_rsample):
            family = _distribution_name(site["fn"])
            return f"site {name!r} of the guide ({family}) is not reparameterised"
    latent = [name for name, site in model.items() if not site["is_observed"]]
    guide_order = [name for name in guide if name in latent]
    if guide_order != latent:
        return (
            f"the guide samples {', '.join(guide_order)} in this order and the model "
            f"{', '.join(latent)}, so KL(q ‖ p) of a site depends on later sites"
        )
    return None


def _distribution_name(fn: Any) -> str:
    # unwrap .to_event() and .mask()
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("Independent", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
