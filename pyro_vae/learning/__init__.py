"""Learning a program: objectives, one optimiser for all parameters, and ``fit``."""

from .history import History
from .initialization import initialize
from .objectives.base import StepInfo
from .objectives.free_bits import FreeBits
from .schedules import Cyclical, LinearWarmUp, Schedule
from .svi import CompiledSVI
from .training import fit

__all__ = [
    "CompiledSVI",
    "Cyclical",
    "FreeBits",
    "History",
    "LinearWarmUp",
    "Schedule",
    "StepInfo",
    "fit",
    "initialize",
]
