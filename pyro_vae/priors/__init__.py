"""Priors p(z) over the latent variables."""

from .base import Prior
from .flow import FlowPrior, ZukoPrior
from .mixtures import MixtureOfNormals, VampPrior
from .simple import DiagonalNormal, Laplace, StandardNormal, StudentT, UniformSphere

__all__ = [
    "DiagonalNormal",
    "FlowPrior",
    "Laplace",
    "MixtureOfNormals",
    "Prior",
    "StandardNormal",
    "StudentT",
    "UniformSphere",
    "VampPrior",
    "ZukoPrior",
]
