"""Run folders: training, evaluation, files and provenance."""

from .comparison import compare
from .exported_functions import ExportError, export
from .files import RunError
from .run import Run, load

__all__ = ["ExportError", "Run", "RunError", "compare", "export", "load"]
