"""Pyro programs: a ``model`` and a ``guide`` with all per-datum sites in the plate "data"."""

from . import inference
from .base import Autoencoder
from .bayesian import BayesianVAE
from .conditional import ConditionalVAE
from .hierarchical import HierarchicalVAE
from .semi_supervised import SemiSupervisedVAE
from .vae import VAE

__all__ = [
    "VAE",
    "Autoencoder",
    "BayesianVAE",
    "ConditionalVAE",
    "HierarchicalVAE",
    "SemiSupervisedVAE",
    "inference",
]
