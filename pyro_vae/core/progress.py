"""Progress bars: on the standard error of a terminal, as a widget in a notebook."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]

#: Seconds between two updates on a terminal or in a notebook, and in the file of a log.
_INTERVAL, _LOG_INTERVAL = 0.1, 10.0


def progress_bar(total: float, show: bool, **options: Any) -> tqdm:
    """Return a progress bar.

    Arguments:
        total: the value at which it is full.
        show: whether it is shown.
        **options: further arguments of ``tqdm``.
    """
    bar = _widget_class() if show else tqdm
    if bar is tqdm and not (sys.stderr and sys.stderr.isatty()):
        options = {"mininterval": _LOG_INTERVAL, **options}
    else:
        options = {"mininterval": _INTERVAL, **options}
    return bar(total=total, disable=not show, dynamic_ncols=True, **options)


def _widget_class() -> type[tqdm]:
    """Return the class for notebooks in a notebook with widgets, ``tqdm`` elsewhere."""
    with warnings.catch_warnings():
        # that the module is experimental, or that ipywidgets is missing
        warnings.simplefilter("ignore")
        from tqdm.autonotebook import tqdm as widget
    return widget
