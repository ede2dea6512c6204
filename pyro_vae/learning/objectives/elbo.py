"""Evidence lower bound with either SGVB estimator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Literal, cast

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from ...core.evaluation_mode import eval_mode
from ...core.validation import positive_int
from ...programs.base import Site, sample_sites, trace_program
from ...programs.importance_weights import find_layout
from ...programs.particles import Layout
from ...programs.pathwise import run_pathwise
from ..schedules import Schedule, check_number
from .base import DataPlateChecker, Objective, find_max_plate_nesting, log_parameter_prior
from .free_bits import FreeBits, replace_sites

__all__ = ["ELBO"]

_log = logging.getLogger("pyro_vae")

#: Minus the ELBO, a surrogate with the requested gradient, and the tensors computed by the model
#: and by the guide.
_RunResult = tuple[float, Tensor, list[Tensor], list[Tensor]]


class ELBO(Objective):
    """Evidence lower bound, E_q[log p(x, z) − log q(z|x)], with either SGVB estimator.

    Estimator A samples the whole expectation (Pyro's ``Trace_ELBO``). Estimator B computes
    KL(q ‖ p) in closed form (Pyro's ``TraceMeanField_ELBO``); it requires that every latent site
    is reparameterised and that the guide samples the sites in the model's order, so that q(z_i | …)
    is sampled after everything that p(z_i | …) depends on.

    The value returned is always the ELBO. The gradient is that of
    E_q[log p(x|z)] − β Σ_groups max(λ, KL_group) + log p(θ), where β multiplies the terms of all
    latent sites, λ is the number of free bits and p(θ) = N(0, I) is optional. All options can be
    combined, except ``stl`` with free bits or an analytic KL.

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
            (unconstrained); each minibatch gets the fraction ``batch / num_data`` of it.

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
        _check_gradient(gradient, analytic_kl, self.free_bits)
        if not isinstance(map_weights, bool):
            raise ValueError(f"expected map_weights to be true or false; got {map_weights!r}")

    @property
    def not_decomposable_reason(self) -> str | None:
        return "free bits depend on the mean over a minibatch" if self.free_bits.nats else None

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        return self.estimator(model, guide, args, kwargs).loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        beta = self._current_value(self.beta)
        if self._is_plain(beta):
            estimator = self.estimator(model, guide, args, kwargs)
            return estimator.differentiable_loss(model, guide, *args, **kwargs)
        loss, surrogate = self._run(beta, model, guide, args, kwargs)
        return surrogate - surrogate.detach() + loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        beta = self._current_value(self.beta)
        if self._is_plain(beta):
            estimator = self.estimator(model, guide, args, kwargs)
            return estimator.loss_and_grads(model, guide, *args, **kwargs)
        loss, surrogate = self._run(beta, model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return loss

    def loss_and_surrogate(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        beta = self._current_value(self.beta)
        if self._is_plain(beta):
            estimator: Any = self.estimator(model, guide, args, kwargs)
            (run,) = estimator._get_traces(model, guide, args, kwargs)
            loss, surrogate = estimator._differentiable_loss_particle(*run)
            loss, surrogate = loss / self.num_particles, surrogate / self.num_particles
        else:
            loss, surrogate = self._run(beta, model, guide, args, kwargs)
        return torch.as_tensor(loss, dtype=surrogate.dtype, device=surrogate.device), surrogate

    def _is_plain(self, beta: float) -> bool:
        """Whether the gradient is that of the plain ELBO, as computed by Pyro."""
        standard = self.gradient == "standard" and not self.map_weights
        return standard and self.free_bits.nats == 0 and isinstance(beta, Real) and beta == 1

    def _run(
        self, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[float, Tensor]:
        """Return minus the ELBO and a surrogate with the requested gradient, from one run."""
        estimator, layout = self._estimator_and_layout(model, guide, args, kwargs)
        fraction = self._data_fraction(args) if self.map_weights else 0.0
        program = model, guide, args, kwargs
        if self.gradient == "stl":
            loss, surrogate, *computed = self._run_pathwise(layout, beta, *program)
        else:
            loss, surrogate, *computed = self._run_reweighted(estimator, beta, *program)
        if self.map_weights:
            surrogate = surrogate - fraction * log_parameter_prior(*computed)
        return loss, surrogate

    def _run_reweighted(
        self, estimator: Any, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> _RunResult:
        """Apply Pyro's estimator, with the latent terms reweighted by β and free bits."""
        (run,) = estimator._get_traces(model, guide, args, kwargs)
        loss, _ = estimator._differentiable_loss_particle(*run)
        model_tensors, guide_tensors = map(_log_probs, run)
        guide_tensors += [site["value"] for site in sample_sites(run[1].nodes).values()]
        run = self.free_bits.split_sites(*run)
        weights = self.free_bits.weights(*run, isinstance(estimator, TraceMeanField_ELBO))
        model_trace, guide_trace = (_scale_latents(trace, beta, weights) for trace in run)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        _, surrogate = estimator._differentiable_loss_particle(model_trace, guide_trace)
        count = self.num_particles
        return loss / count, surrogate / count, model_tensors, guide_tensors

    def _run_pathwise(
        self, layout: Layout, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> _RunResult:
        count = self.num_particles
        with DataPlateChecker():
            particles = run_pathwise(
                model, guide, *args, num_samples=count, layout=layout, **kwargs
            )
        log_w, latents = particles.log_weights, particles.latents
        log_x = torch.stack([v for n, v in particles.log_p.items() if n not in latents]).sum(0)
        objective = log_x + beta * (log_w - log_x)
        guide_tensors = [*particles.log_q.values(), *latents.values()]
        model_tensors = list(particles.log_p.values())
        loss, surrogate = -log_w.mean(0).sum().item(), -objective.mean(0).sum()
        return loss, surrogate, model_tensors, guide_tensors

    def _data_fraction(self, args: tuple) -> float:
        """Return the size of the minibatch as a fraction of the training set."""
        if self._step_info.num_data is None:
            raise ValueError(
                "expected the size of the training set, to scale log p(θ) to a minibatch; got "
                "none: call objective.set_step(StepInfo(num_data=…)) before the step, as fit "
                "does, or leave map_weights out"
            )
        return len(args[0]) / self._step_info.num_data

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        return self.estimator(model, guide, args, kwargs)._get_trace(model, guide, args, kwargs)

    def estimator(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Trace_ELBO:
        """Return Pyro's estimator for this program, called with these arguments."""
        return self._estimator_and_layout(model, guide, args, kwargs)[0]

    def _estimator_and_layout(
        self, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[Trace_ELBO, Layout]:
        def compute() -> tuple[Trace_ELBO, Layout]:
            estimator_class, layout, nesting = Trace_ELBO, Layout(), math.inf
            with poutine.block():
                if self.gradient == "stl":
                    with eval_mode(model, guide):
                        layout = find_layout(model, guide, *args, **kwargs)
                elif self.analytic_kl is not False:
                    traces = trace_program(model, guide, args, kwargs)
                    estimator_class = self._select_estimator(*traces)
            vectorize = self.num_particles > 1
            if vectorize:
                nesting = find_max_plate_nesting(model, guide, args, kwargs)
            estimator = estimator_class(
                num_particles=self.num_particles,
                max_plate_nesting=nesting,
                vectorize_particles=vectorize,
            )
            return estimator, layout

        return self._cached(compute, model, guide, args, kwargs)

    def _select_estimator(
        self, guide: Mapping[str, Site], model: Mapping[str, Site]
    ) -> type[Trace_ELBO]:
        guide, model = sample_sites(dict(guide)), sample_sites(dict(model))
        reason = _analytic_kl_obstacle(guide, model)
        if reason is None:
            closed, sampled = _closed_forms(guide, model)
            for name, pair in sampled.items():
                _log.warning(
                    "site %r has no analytic KL (%s): estimating it by sampling", name, pair
                )
            return TraceMeanField_ELBO if closed or self.analytic_kl else Trace_ELBO
        if self.analytic_kl:
            raise ValueError(f"expected a program whose KL is analytic; {reason}")
        _log.warning("the KL is estimated by sampling: %s", reason)
        return Trace_ELBO


def _check_gradient(gradient: str, analytic_kl: bool | None, free_bits: FreeBits) -> None:
    if gradient not in ("standard", "stl"):
        raise ValueError(f"expected gradient to be standard or stl; got {gradient!r}")
    if gradient == "stl" and analytic_kl:
        raise ValueError(
            "expected analytic_kl false or null with gradient 'stl', which drops the score of a "
            "sampled log q; got True: a KL in closed form has no score, use gradient 'standard'"
        )
    if gradient == "stl" and free_bits.nats > 0:
        raise ValueError(
            f"expected no free bits with gradient 'stl', which has no KL per group; got "
            f"{free_bits}: use gradient 'standard'"
        )


def _scale_latents(
    trace: poutine.Trace, beta: float, weights: Mapping[str, Tensor]
) -> poutine.Trace:
    """Return a copy of the trace with the latent terms scaled by β and the free-bits weights."""
    latent = {
        name: {"scale": site["scale"] * (beta * weights.get(name, 1.0))}
        for name, site in sample_sites(cast("dict[str, Site]", trace.nodes)).items()
        if not site["is_observed"]
    }
    return replace_sites(trace, latent)


def _log_probs(trace: Any) -> list[Tensor]:
    """Return the log-densities of a trace."""
    return [site["log_prob"] for site in sample_sites(trace.nodes).values()]


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


def _closed_forms(
    guide: Mapping[str, Site], model: Mapping[str, Site]
) -> tuple[set[str], dict[str, str]]:
    """Return the latent sites with an analytic KL, and the distribution pairs of the others."""
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
            sampled[name] = f"{_distribution_name(q)} to {_distribution_name(p)}"
    return closed, sampled


def _distribution_name(fn: Any) -> str:
    # unwrap .to_event() and .mask()
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("Independent", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
