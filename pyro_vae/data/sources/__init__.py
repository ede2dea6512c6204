"""Sources of the named data sets: one loader function each, registered in ``SOURCES``."""

from collections.abc import Callable

from .annotated import h5ad
from .arrays import array
from .base import RawData, SourceOptions, root_folder
from .bundled import digits, mnist5k, patches
from .channels import Channels
from .folders import images
from .published import binarized_mnist, frey, omniglot
from .simulated import cells, cells_log_prob
from .tables import table
from .torchvision_sets import celeba, cifar10, emnist, fashion_mnist, kmnist, mnist, svhn

__all__ = [
    "FILE_SOURCES",
    "SOURCES",
    "Channels",
    "RawData",
    "SourceOptions",
    "cells_log_prob",
    "root_folder",
]

#: The sources that read a user's file, ``data.path``.
FILE_SOURCES = ("array", "h5ad", "images", "table")

SOURCES: dict[str, Callable[[SourceOptions], RawData]] = {
    source.__name__: source
    for source in (
        *(array, binarized_mnist, celeba, cells, cifar10, digits, emnist, fashion_mnist, frey),
        *(h5ad, images, kmnist, mnist, mnist5k, omniglot, patches, svhn, table),
    )
}
