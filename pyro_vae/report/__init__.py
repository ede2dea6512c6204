"""Reports of a run: tables, pictures and a self-contained HTML page."""

from .html import write_report

__all__ = ["write_report"]
