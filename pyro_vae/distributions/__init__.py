"""Distributions that torch and Pyro do not have, or not for all numbers, by what they are of."""

from .counts import GivenTotal, NegativeBinomial, Poisson, total_of
from .levels import CategoricalLevels, DiscretizedLogistic, log1mexp
from .real import BestScale
from .sphere import PowerSpherical, UniformSphere, check_dim, log_area, unit_vector
from .unit import Beta, ContinuousBernoulli, IndependentBernoulli

__all__ = [
    "BestScale",
    "Beta",
    "CategoricalLevels",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GivenTotal",
    "IndependentBernoulli",
    "NegativeBinomial",
    "Poisson",
    "PowerSpherical",
    "UniformSphere",
    "check_dim",
    "log1mexp",
    "log_area",
    "total_of",
    "unit_vector",
]
