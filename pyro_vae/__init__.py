"""Variational autoencoders as Pyro programs, learned by SVI, judged by importance sampling."""

from . import data, learning, likelihoods, models, networks, posteriors, priors, queries
from .evaluation import ActiveUnits, Bounds, active_units, evaluate
from .learning import History, fit, initialize, objectives
from .models import VAE, BayesianVAE, ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE
from .particles import log_weights

__all__ = [
    "VAE",
    "ActiveUnits",
    "BayesianVAE",
    "Bounds",
    "ConditionalVAE",
    "HierarchicalVAE",
    "History",
    "SemiSupervisedVAE",
    "active_units",
    "data",
    "evaluate",
    "fit",
    "initialize",
    "learning",
    "likelihoods",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "posteriors",
    "priors",
    "queries",
]

__version__ = "0.1.0"
