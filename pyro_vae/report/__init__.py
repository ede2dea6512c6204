"""Reports of runs and the latent explorer: self-contained HTML pages, and pictures of samples."""

from .comparison import write_comparison
from .explorer import explore
from .html import write_report

__all__ = ["explore", "write_comparison", "write_report"]
