"""Data sets as tensors: loading, splitting, binarisation and dequantisation."""

from .datasets import Dataset, load
from .kinds import Kind, kind_of
from .pixel_values import Binarize, Values
from .splits import Split, as_split

__all__ = ["Binarize", "Dataset", "Kind", "Split", "Values", "as_split", "kind_of", "load"]
