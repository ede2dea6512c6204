"""Training: objectives, a fused optimizer, SVI steps and ``fit``."""

from .history import History
from .initialization import initialize
from .objectives.base import StepInfo
from .objectives.free_bits import FreeBits
from .optimizers import FusedOptimizer
from .schedules import Cyclical, LinearWarmUp, Schedule
from .svi import CompiledSVI
from .training import fit

__all__ = [
    "CompiledSVI",
    "Cyclical",
    "FreeBits",
    "FusedOptimizer",
    "History",
    "LinearWarmUp",
    "Schedule",
    "StepInfo",
    "fit",
    "initialize",
]
