"""Objectives: what SVI maximises."""

from .base import Objective
from .elbo import ELBO
from .weighted import CIWAE, IWAE, MIWAE, Renyi

__all__ = ["CIWAE", "ELBO", "IWAE", "MIWAE", "Objective", "Renyi"]
