"""Learning a program: objectives, one optimiser for all parameters, and ``fit``."""

from .fit import fit
from .history import History
from .initialize import initialize
from .objectives.base import Moment
from .objectives.free_bits import FreeBits
from .schedules import Cyclical, LinearWarmUp, Schedule
from .svi import CompiledSVI

__all__ = [
    "CompiledSVI",
    "Cyclical",
    "FreeBits",
    "History",
    "LinearWarmUp",
    "Moment",
    "Schedule",
    "fit",
    "initialize",
]
