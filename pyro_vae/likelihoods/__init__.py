"""Likelihoods p(x|z), parameterised by the outputs of a decoder."""

from .base import Likelihood
from .columns import Columns
from .counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .levels import (
    Binomial,
    Categorical,
    DiscretizedLogistic,
    MixtureOfDiscretizedLogistics,
    Ordinal,
)
from .real import Gaussian, Laplace, LogNormal, StudentT
from .unit import Bernoulli, Beta, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "MixtureOfDiscretizedLogistics",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
