"""Variational autoencoders as Pyro programs, learned by SVI, judged by importance sampling."""

from . import (
    data,
    evaluation,
    learning,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    queries,
)
from .core import distributed
from .evaluation import (
    ActiveUnits,
    Annealing,
    Bounds,
    Gaps,
    Latents,
    RateDistortion,
    active_units,
    ais,
    bdmc,
    evaluate,
    gaps,
    latents,
    rate_distortion,
)
from .learning import History, fit, initialize, objectives
from .models import VAE, BayesianVAE, ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE
from .programs.importance_weights import log_weights

__all__ = [
    "VAE",
    "ActiveUnits",
    "Annealing",
    "BayesianVAE",
    "Bounds",
    "ConditionalVAE",
    "Gaps",
    "HierarchicalVAE",
    "History",
    "Latents",
    "RateDistortion",
    "SemiSupervisedVAE",
    "active_units",
    "ais",
    "bdmc",
    "data",
    "distributed",
    "evaluate",
    "evaluation",
    "fit",
    "gaps",
    "initialize",
    "latents",
    "learning",
    "likelihoods",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "posteriors",
    "priors",
    "queries",
    "rate_distortion",
]

__version__ = "0.1.0"
