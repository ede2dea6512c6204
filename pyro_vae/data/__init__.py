"""Data sets as tensors: what they hold, how they are binarised, where they come from."""

from .binarize import Binarize
from .datasets import Dataset, Split, load
from .kinds import Kind, kind_of

__all__ = ["Binarize", "Dataset", "Kind", "Split", "kind_of", "load"]
