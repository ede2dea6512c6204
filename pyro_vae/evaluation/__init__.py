"""Judging a program: bounds on log p(x), estimates of it, and how far to trust them."""

from .annealing import Annealing, ais
from .bdmc import bdmc
from .bounds import Bounds
from .divergences import Divergences, divergences
from .gaps import Gaps, gaps
from .judging import evaluate
from .latents import ActiveUnits, Latents, active_units, latents
from .rate_distortion import RateDistortion, rate_distortion
from .reciprocal import reciprocal
from .surgery import Surgery, surgery

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
