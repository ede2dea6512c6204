"""Reports of a run: tables, pictures and self-contained HTML pages."""

from .explorer import explore
from .html import write_report

__all__ = ["explore", "write_report"]
