"""Data sets as tensors: what they hold, how they become 0/1 or real, where they come from."""

from .binarize import Binarize
from .datasets import Dataset, load
from .dequantize import Values
from .kinds import Kind, kind_of
from .splits import Split

__all__ = ["Binarize", "Dataset", "Kind", "Split", "Values", "kind_of", "load"]
