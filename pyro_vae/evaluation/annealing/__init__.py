"""Annealed importance sampling, bidirectional Monte Carlo and rate-distortion curves."""

from .sampler import Annealing, ais

__all__ = ["Annealing", "ais"]
