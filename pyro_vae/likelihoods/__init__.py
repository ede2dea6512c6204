"""Likelihoods p(x|z): how a decoder's outputs score a datum."""

from .base import Likelihood
from .counts import Binomial, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .real import Gaussian, Laplace, StudentT
from .unit import Bernoulli, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
