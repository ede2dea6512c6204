"""Bounds on log p(x), estimates of it, and diagnostics of their reliability."""

from .annealing.bidirectional import bdmc
from .annealing.rate_distortion_curve import RateDistortion, rate_distortion
from .annealing.sampler import Annealing, ais
from .bounds import Bounds
from .evaluator import evaluate
from .importance.reciprocal_sampling import reciprocal
from .inference_gaps.estimator import Gaps, gaps
from .latent_diagnostics.elbo_surgery import Surgery, surgery
from .latent_diagnostics.kl import Divergences, divergences
from .latent_diagnostics.summary import ActiveUnits, Latents, active_units, latents

__all__ = [
    "ActiveUnits",
    "Annealing",
    "Bounds",
    "Divergences",
    "Gaps",
    "Latents",
    "RateDistortion",
    "Surgery",
    "active_units",
    "ais",
    "bdmc",
    "divergences",
    "evaluate",
    "gaps",
    "latents",
    "rate_distortion",
    "reciprocal",
    "surgery",
]
