"""Training objectives for SVI."""

from .base import Objective
from .baselines import MonteCarloEM, WakeSleep
from .elbo import ELBO
from .enumerated import EnumeratedELBO
from .reweighted import ReweightedWakeSleep
from .weighted import CIWAE, IWAE, MIWAE, PIWAE, Renyi

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "EnumeratedELBO",
    "MonteCarloEM",
    "Objective",
    "Renyi",
    "ReweightedWakeSleep",
    "WakeSleep",
]
