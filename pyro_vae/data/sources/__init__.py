"""Sources of the named data sets: one loader function each, registered in ``SOURCES``."""

from collections.abc import Callable
from typing import Any

from ...core.validation import did_you_mean
from .annotated import h5ad
from .arrays import array
from .base import RawData, SourceOptions, root_folder
from .bundled import digits, mnist5k, patches
from .channels import Channels
from .datasets_of_plugins import make_source
from .folders import images
from .published import binarized_mnist, frey, omniglot
from .simulated import cells, cells_log_prob
from .tables import table
from .torchvision_sets import (
    celeba,
    cifar10,
    emnist,
    fashion_mnist,
    kmnist,
    mnist,
    omniglot105,
    svhn,
)

__all__ = [
    "FILE_SOURCES",
    "PATH_SOURCES",
    "SOURCES",
    "Channels",
    "RawData",
    "SourceOptions",
    "cells_log_prob",
    "find_source",
    "register_dataset",
    "root_folder",
]

#: The sources that read a user's file, ``data.path``.
FILE_SOURCES = ("array", "h5ad", "images", "table")
#: The sources for which ``data.path`` names a file.
PATH_SOURCES = (*FILE_SOURCES, "binarized_mnist", "frey", "omniglot")

SOURCES: dict[str, Callable[[SourceOptions], RawData]] = {
    source.__name__: source
    for source in (
        *(array, binarized_mnist, celeba, cells, cifar10, digits, emnist, fashion_mnist, frey),
        *(h5ad, images, kmnist, mnist, mnist5k, omniglot, omniglot105, patches, svhn, table),
    )
}

#: The data sets of plugins that configurations name.
_registered: dict[str, Callable[[SourceOptions], RawData]] = {}


def register_dataset(name: str, cls: Callable[..., Any]) -> None:
    """Make a ``Dataset`` class of a plugin known by its import path."""
    _registered[name] = make_source(cls)


def find_source(name: str) -> Callable[[SourceOptions], RawData]:
    """Return the source with a name.

    Raises:
        ValueError: if the name is unknown; the message suggests the closest one.
    """
    if name in _registered:
        return _registered[name]
    if name not in SOURCES:
        raise ValueError(
            f"expected data set to be one of {', '.join(SOURCES)}; got {name!r}"
            f"{did_you_mean(name, SOURCES)}"
        )
    return SOURCES[name]
