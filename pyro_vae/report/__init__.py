"""What a run looks like: tables, pictures, and one HTML file that holds them all."""

from .html import write_report

__all__ = ["write_report"]
