"""Map-style torch ``Dataset`` classes of plugins as sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..conversion import open_examples
from .arrays import levels_of
from .base import RawData, SourceOptions

__all__ = ["make_source"]


def make_source(cls: Callable[..., Any]) -> Callable[[SourceOptions], RawData]:
    """Return a source that reads a data set of a class.

    The class is called with ``path`` if it is set, and otherwise without arguments. Items are x, or
    (x, y) with labels y, or mappings, of which ``key`` and ``labels_key`` name the parts.
    """

    def source(options: SourceOptions) -> RawData:
        dataset = cls() if options.path is None else cls(options.path)
        values, labels, classes = open_examples(
            dataset, type(dataset).__name__, x=options.key, labels=options.labels_key
        )
        return RawData(values, labels, levels_of(values), classes=classes)

    return source
