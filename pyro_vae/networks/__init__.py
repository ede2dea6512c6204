"""Networks: tensors to tensors. No distribution lives here."""

from .convolutional import ConvNet, ResNet
from .dense import MLP, GatedMLP

__all__ = ["MLP", "ConvNet", "GatedMLP", "ResNet"]
