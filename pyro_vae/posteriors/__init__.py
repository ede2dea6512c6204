"""Approximate posteriors q(z|x), amortised by an encoder network."""

from .base import Posterior
from .flows import (
    HouseholderFlow,
    InverseAutoregressiveFlow,
    PlanarFlow,
    RadialFlow,
    SplineFlow,
    SylvesterFlow,
    ZukoFlow,
)
from .normal import DiagonalNormal, FullCovarianceNormal, LowRankNormal
from .semi_amortized import SemiAmortized
from .sphere import PowerSpherical

__all__ = [
    "DiagonalNormal",
    "FullCovarianceNormal",
    "HouseholderFlow",
    "InverseAutoregressiveFlow",
    "LowRankNormal",
    "PlanarFlow",
    "Posterior",
    "PowerSpherical",
    "RadialFlow",
    "SemiAmortized",
    "SplineFlow",
    "SylvesterFlow",
    "ZukoFlow",
]
