"""Likelihoods p(x|z): how a decoder's outputs score a datum."""

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
