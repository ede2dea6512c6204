"""The evidence lower bound, by either SGVB estimator."""

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
from ...programs.importance_weights import Layout, find_layout
from ...programs.pathwise import run_pathwise
from ..schedules import Schedule, check_number
from .base import Objective, PerDatum, log_weight_prior, plate_nesting
from .free_bits import FreeBits, rescored

__all__ = ["ELBO"]

_log = logging.getLogger("pyro_vae")

#: Minus the ELBO, a tensor with the gradient asked for, and what the model and the guide
#: computed on the way.
_Run = tuple[float, Tensor, list[Tensor], list[Tensor]]


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x, z) − log q(z|x)], by either SGVB estimator.

    Estimator A samples the whole expectation and is Pyro's ``Trace_ELBO``; estimator B has
    KL(q ‖ p) in closed form and is Pyro's ``TraceMeanField_ELBO``. B is right only if every
    latent site is reparameterised and the guide draws them in the model's order, so that
    what p(z_i | …) depends on is there when q(z_i | …) is drawn.

    What it returns is always the ELBO. Its gradient is that of
    E_q[log p(x|z)] − β Σ_groups max(λ, KL_group) + log p(θ): β multiplies the terms of all
    latent sites, λ is that of free bits, and p(θ) = N(0, I) is there if it is asked for. All
    options combine, except that ``stl`` goes with neither free bits nor an analytic KL.

    Arguments:
        num_particles: draws of z for each datum.
        analytic_kl: ``True`` for estimator B, ``False`` for A; ``None`` chooses B where it is
            right and a closed form exists. A latent site that is sampled instead is logged.
        beta: β, a number ≥ 0 or a schedule of it over the epochs, for instance
            ``LinearWarmUp``.
        free_bits: λ in nats for each latent dimension, or ``FreeBits`` to give it to groups
            of them; 0 for none.
        gradient: ``standard``, or ``stl`` for estimator A without the score of q at fixed
            draws, which has mean zero and so much less noise as q is near the posterior.
        map_weights: also climb log N(θ; 0, I) of the model's own parameters θ (unconstrained,
            without those that the guide uses too), of which a minibatch has its share of the
            training data.

    Raises:
        ValueError: if a number is out of range, ``gradient`` is another word, or options do
            not combine; when used, if the program does not allow one of them, or if a schedule
            has not been told the epoch, or ``map_weights`` the number of training data.

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
        return "free bits look at the mean over a minibatch" if self.free_bits.nats else None

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        return self.estimator(model, guide, args, kwargs).loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        beta = self._now()
        if self._is_plain(beta):
            estimator = self.estimator(model, guide, args, kwargs)
            return estimator.differentiable_loss(model, guide, *args, **kwargs)
        loss, surrogate = self._run(beta, model, guide, args, kwargs)
        return surrogate - surrogate.detach() + loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        beta = self._now()
        if self._is_plain(beta):
            estimator = self.estimator(model, guide, args, kwargs)
            return estimator.loss_and_grads(model, guide, *args, **kwargs)
        loss, surrogate = self._run(beta, model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return loss

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        beta = self._now()
        if self._is_plain(beta):
            estimator: Any = self.estimator(model, guide, args, kwargs)
            (run,) = estimator._get_traces(model, guide, args, kwargs)
            loss, surrogate = estimator._differentiable_loss_particle(*run)
            loss, surrogate = loss / self.num_particles, surrogate / self.num_particles
        else:
            loss, surrogate = self._run(beta, model, guide, args, kwargs)
        return torch.as_tensor(loss, dtype=surrogate.dtype, device=surrogate.device), surrogate

    def _now(self) -> float:
        """β at this step."""
        return self._scheduled(self.beta)

    def _is_plain(self, beta: float) -> bool:
        """Whether the gradient is that of the ELBO itself, as Pyro has it."""
        standard = self.gradient == "standard" and not self.map_weights
        return standard and self.free_bits.nats == 0 and isinstance(beta, Real) and beta == 1

    def _run(
        self, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[float, Tensor]:
        """Minus the ELBO, and a tensor with the gradient that is asked for, of the same draws."""
        estimator, layout = self._choice(model, guide, args, kwargs)
        share = self._share(args) if self.map_weights else 0.0
        program = model, guide, args, kwargs
        if self.gradient == "stl":
            loss, surrogate, *computed = self._run_pathwise(layout, beta, *program)
        else:
            loss, surrogate, *computed = self._run_weighed(estimator, beta, *program)
        if self.map_weights:
            surrogate = surrogate - share * log_weight_prior(*computed)
        return loss, surrogate

    def _run_weighed(
        self, estimator: Any, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> _Run:
        """Pyro's estimator, on a run whose latent sites are weighed after they were measured."""
        (run,) = estimator._get_traces(model, guide, args, kwargs)
        loss, _ = estimator._differentiable_loss_particle(*run)
        modelled, guided = map(_log_probs, run)
        guided += [site["value"] for site in sample_sites(run[1].nodes).values()]
        run = self.free_bits.apart(*run)
        free = self.free_bits.weights(*run, isinstance(estimator, TraceMeanField_ELBO))
        for_model, for_guide = (_weighed(trace, beta, free) for trace in run)
        for_model.compute_log_prob()
        for_guide.compute_score_parts()
        _, surrogate = estimator._differentiable_loss_particle(for_model, for_guide)
        return loss / self.num_particles, surrogate / self.num_particles, modelled, guided

    def _run_pathwise(
        self, layout: Layout, beta: float, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> _Run:
        count = self.num_particles
        with PerDatum():
            particles = run_pathwise(
                model, guide, *args, num_samples=count, layout=layout, **kwargs
            )
        log_w, latents = particles.log_weights, particles.latents
        log_x = torch.stack([v for n, v in particles.log_p.items() if n not in latents]).sum(0)
        weighed = log_x + beta * (log_w - log_x)
        guided = [*particles.log_q.values(), *latents.values()]
        modelled = list(particles.log_p.values())
        return -log_w.mean(0).sum().item(), -weighed.mean(0).sum(), modelled, guided

    def _share(self, args: tuple) -> float:
        """The minibatch's share of the training data."""
        if self._moment.num_data is None:
            raise ValueError(
                "expected to be told the number of training data, of which a minibatch has its "
                "share of log p(θ); got none: call objective.at(StepInfo(num_data=…)) before the "
                "step, as fit does, or leave map_weights out"
            )
        return len(args[0]) / self._moment.num_data

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        return self.estimator(model, guide, args, kwargs)._get_trace(model, guide, args, kwargs)

    def estimator(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Trace_ELBO:
        """Pyro's ``ELBO`` that does the work for this program, called with these arguments."""
        return self._choice(model, guide, args, kwargs)[0]

    def _choice(
        self, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[Trace_ELBO, Layout]:
        def look() -> tuple[Trace_ELBO, Layout]:
            kind, layout, nesting = Trace_ELBO, Layout(), math.inf
            with poutine.block():
                if self.gradient == "stl":
                    with eval_mode(model, guide):
                        layout = find_layout(model, guide, *args, **kwargs)
                elif self.analytic_kl is not False:
                    kind = self._choose(*trace_program(model, guide, args, kwargs))
            several = self.num_particles > 1
            if several:
                nesting = plate_nesting(model, guide, args, kwargs)
            estimator = kind(
                num_particles=self.num_particles,
                max_plate_nesting=nesting,
                vectorize_particles=several,
            )
            return estimator, layout

        return self._once(look, model, guide, args, kwargs)

    def _choose(self, guide: Mapping[str, Site], model: Mapping[str, Site]) -> type[Trace_ELBO]:
        guide, model = sample_sites(dict(guide)), sample_sites(dict(model))
        obstacle = _obstacle(guide, model)
        if obstacle is None:
            closed, sampled = _closed_forms(guide, model)
            for name, pair in sampled.items():
                _log.warning(
                    "site %r has no analytic KL (%s): it is estimated by sampling", name, pair
                )
            return TraceMeanField_ELBO if closed or self.analytic_kl else Trace_ELBO
        if self.analytic_kl:
            raise ValueError(f"expected a program whose KL is analytic; {obstacle}")
        _log.warning("the KL is estimated by sampling: %s", obstacle)
        return Trace_ELBO


def _check_gradient(gradient: str, analytic_kl: bool | None, free_bits: FreeBits) -> None:
    if gradient not in ("standard", "stl"):
        raise ValueError(f"expected gradient to be standard or stl; got {gradient!r}")
    if gradient == "stl" and analytic_kl:
        raise ValueError(
            "expected analytic_kl false or null with gradient 'stl', which leaves the score out of "
            "a sampled log q; got True: a KL in closed form has none, use gradient 'standard'"
        )
    if gradient == "stl" and free_bits.nats > 0:
        raise ValueError(
            f"expected no free bits with gradient 'stl', whose KL is not parted into groups; got "
            f"{free_bits}: use gradient 'standard'"
        )


def _weighed(trace: poutine.Trace, beta: float, free: Mapping[str, Tensor]) -> poutine.Trace:
    """A run of a model or a guide whose latent terms are multiplied by β and what is not free."""
    latent = {
        name: {"scale": site["scale"] * (beta * free.get(name, 1.0))}
        for name, site in sample_sites(cast("dict[str, Site]", trace.nodes)).items()
        if not site["is_observed"]
    }
    return rescored(trace, latent)


def _log_probs(trace: Any) -> list[Tensor]:
    """The log-densities of a run of a model or a guide."""
    return [site["log_prob"] for site in sample_sites(trace.nodes).values()]


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
