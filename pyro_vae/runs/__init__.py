"""Run folders: training, evaluation, files and provenance."""

from .comparison import compare
from .files import RunError
from .run import Run, load

__all__ = ["Run", "RunError", "compare", "load"]
