"""Learning a program: objectives, one optimiser for all parameters, and ``fit``."""

from .fit import History, fit
from .initialize import initialize

__all__ = ["History", "fit", "initialize"]
