"""Data sets as tensors: loading, splitting, binarisation and dequantisation."""

from .columns import Column, decode_columns
from .datasets import Dataset
from .kinds import Kind, kind_of
from .loading import load
from .pixel_values import Binarize, Values
from .splits import Split, as_split

__all__ = [
    "Binarize",
    "Column",
    "Dataset",
    "Kind",
    "Split",
    "Values",
    "as_split",
    "decode_columns",
    "kind_of",
    "load",
]
