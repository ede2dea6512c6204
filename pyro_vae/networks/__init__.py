"""Neural networks for encoders and decoders."""

from .convolutional import ConvNet, ResNet
from .dense import MLP, GatedMLP

__all__ = ["MLP", "ConvNet", "GatedMLP", "ResNet"]
