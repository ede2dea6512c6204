"""Variational autoencoders as Pyro programs, learned by SVI, judged by importance sampling."""

from . import data, likelihoods, models, networks, posteriors, priors
from .evaluation import ActiveUnits, Bounds, active_units, evaluate
from .learning import History, fit, initialize, objectives
from .models import VAE
from .particles import log_weights

__all__ = [
    "VAE",
    "ActiveUnits",
    "Bounds",
    "History",
    "active_units",
    "data",
    "evaluate",
    "fit",
    "initialize",
    "likelihoods",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "posteriors",
    "priors",
]

__version__ = "0.1.0"
