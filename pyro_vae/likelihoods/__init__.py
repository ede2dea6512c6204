"""Likelihoods p(x|z), parameterised by the outputs of a decoder."""

from .base import Likelihood
from .counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .levels import Binomial, Categorical, DiscretizedLogistic, MixtureOfDiscretizedLogistics
from .real import Gaussian, Laplace, StudentT
from .unit import Bernoulli, Beta, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "MixtureOfDiscretizedLogistics",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
