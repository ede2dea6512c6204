"""Distributions missing from torch and Pyro, or numerically unstable there, by their values."""

from .colour import ColourLogisticMixture, ObservedColours, check_whole_pixels
from .columns import Concatenated
from .counts import ConditionedOnTotal, NegativeBinomial, Poisson, sum_counts
from .levels import Binomial, CategoricalLevels, DiscretizedLogistic, log1mexp
from .missing import PartiallyObserved
from .real import LogNormal, LowRankMultivariateNormal, MultivariateNormal, OptimalScale, StudentT
from .sphere import PowerSpherical, UniformSphere, check_sphere_dim, log_sphere_area, unit_vector
from .unit import Beta, ContinuousBernoulli, IndependentBernoulli

__all__ = [
    "Beta",
    "Binomial",
    "CategoricalLevels",
    "ColourLogisticMixture",
    "Concatenated",
    "ConditionedOnTotal",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "IndependentBernoulli",
    "LogNormal",
    "LowRankMultivariateNormal",
    "MultivariateNormal",
    "NegativeBinomial",
    "ObservedColours",
    "OptimalScale",
    "PartiallyObserved",
    "Poisson",
    "PowerSpherical",
    "StudentT",
    "UniformSphere",
    "check_sphere_dim",
    "check_whole_pixels",
    "log1mexp",
    "log_sphere_area",
    "sum_counts",
    "unit_vector",
]
