"""Data sets as tensors: what they hold, how they become 0/1 or real, where they come from."""

from .datasets import Dataset, load
from .kinds import Kind, kind_of
from .pixel_values import Binarize, Values
from .splits import Split

__all__ = ["Binarize", "Dataset", "Kind", "Split", "Values", "kind_of", "load"]
