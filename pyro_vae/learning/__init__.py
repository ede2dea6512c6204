"""Learning a program: objectives, one optimiser for all parameters, and ``fit``."""

from .fit import History, fit

__all__ = ["History", "fit"]
