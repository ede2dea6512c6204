"""Convolutional networks: strided convolutions for encoders, transposed ones for decoders."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from ..core.components import Shape
from ..core.validation import as_shape, positive_int
from .base import Bias, Init, Network, Norm, OutputBias, add_mask, norm_activation_dropout
from .dense import make_hidden_layers

__all__ = ["ConvNet", "ResNet"]

#: Channels, height and width.
ImageShape = tuple[int, int, int]


class ConvolutionalNetwork(Network):
    """Base class of networks for images.

    Arguments:
        in_shape: the shape of one input: an image ``(*channels, H, W)``, where all dimensions
            before the last two are channels, or fewer than two dimensions.
        channels: the number of channels after each level, starting at the image.
        hidden: the widths of the fully connected hidden layers, starting at the image.
        kernel: the kernel size of the convolutions, odd.
        activation: the activation module.
        norm: normalisation before every activation: ``layer`` (over channels and pixels) or
            ``batch`` (over the minibatch and pixels).
        dropout: the dropout probability.
        output_bias: ``data`` initialises the output bias such that the mean of p(x|z) is close to
            the mean of the training data. A decoder then has one bias per output element instead
            of one per channel.

    Raises:
        ValueError: if neither side is an image, a size is not a positive integer, or an option is
            invalid; when called, if the trailing dimensions of an input are not ``in_shape``.
    """

    images_only = True


class ConvNet(ConvolutionalNetwork):
    """Strided convolutions from an image to a vector, or transposed convolutions back.

    The same arguments describe encoder and decoder. If ``in_shape`` has a height and a width, the
    network is an encoder: one convolution of stride 2 per level, then the hidden layers.
    Otherwise ``out_shape`` is the image, and the network is the mirrored decoder: the hidden
    layers, then transposed convolutions. A level maps H × W to ⌈H/2⌉ × ⌈W/2⌉, or exactly back,
    for any size. The arguments are those of :class:`ConvolutionalNetwork`.

    References:
        Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
        Networks (Radford et al., 2015), section 3. https://arxiv.org/abs/1511.06434
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Shape = (32, 64),
        hidden: Shape = (),
        kernel: int = 3,
        activation: Callable[[], nn.Module] = nn.ELU,
        norm: Norm = None,
        dropout: float = 0.0,
        init: Init = "torch",
        output_bias: OutputBias = None,
        standardize: bool = False,
        mask: bool = False,
    ) -> None:
        builder = _LayerBuilder(kernel, activation, norm, dropout)
        inputs = add_mask(in_shape, mask)
        layers = builder.make_layers(inputs, out_shape, channels, hidden, output_bias)
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize, mask)


class ResNet(ConvolutionalNetwork):
    """A ``ConvNet`` with residual blocks at every level, for deep networks.

    A block adds to its input the output of two convolutions, each after norm and activation
    ("pre-activation"). An encoder level halves the image, then applies its blocks; a decoder
    level applies its blocks, then doubles the image.

    Arguments:
        blocks: the number of residual blocks per level.

    References:
        Identity Mappings in Deep Residual Networks (He et al., 2016), figure 1b; Improving
        Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).
        https://arxiv.org/abs/1603.05027 https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Shape = (32, 64),
        blocks: int = 2,
        hidden: Shape = (),
        kernel: int = 3,
        activation: Callable[[], nn.Module] = nn.ELU,
        norm: Norm = None,
        dropout: float = 0.0,
        init: Init = "torch",
        output_bias: OutputBias = None,
        standardize: bool = False,
        mask: bool = False,
    ) -> None:
        builder = _LayerBuilder(kernel, activation, norm, dropout, positive_int("blocks", blocks))
        inputs = add_mask(in_shape, mask)
        layers = builder.make_layers(inputs, out_shape, channels, hidden, output_bias)
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize, mask)


class _Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


@dataclass(frozen=True)
class _LayerBuilder:
    """Builder of the layers of a convolutional encoder or decoder, with its options."""

    kernel: int
    activation: Callable[[], nn.Module]
    norm: Norm
    dropout: float
    blocks: int = 0

    def __post_init__(self) -> None:
        if positive_int("kernel", self.kernel) % 2 == 0:
            # an even kernel has no centre: ⌈H/2⌉ would need asymmetric padding
            raise ValueError(f"expected kernel to be odd; got {self.kernel}")

    def make_layers(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Shape,
        hidden: Shape,
        output_bias: OutputBias,
    ) -> list[nn.Module]:
        """Make all layers of an encoder or decoder, from ``(B, prod(in_shape))`` to B outputs."""
        options = (self.activation, self.norm, self.dropout)
        if len(in_shape) >= 2:
            shapes = _level_shapes(in_shape, channels)
            levels = [m for large, small in pairwise(shapes) for m in self._down(large, small)]
            dense, width = make_hidden_layers(shapes[-1], hidden, *options)
            out = nn.Linear(width, math.prod(out_shape))
            return [nn.Unflatten(1, shapes[0]), *levels, nn.Flatten(), *dense, out]
        if len(out_shape) < 2:
            raise ValueError(
                f"expected in_shape or out_shape to end in a height and a width; got "
                f"{tuple(in_shape)} and {tuple(out_shape)}: use an MLP for data that are not images"
            )
        image, *shapes = _level_shapes(out_shape, channels)
        dense, width = make_hidden_layers(in_shape, hidden[::-1], *options)
        linear = nn.Linear(width, math.prod(shapes[-1]), bias=self._has_bias)
        first = [linear, nn.Unflatten(1, shapes[-1])]
        levels = [m for small, large in pairwise(shapes[::-1]) for m in self._up(small, large)]
        if output_bias == "data":
            last = [*self._up(shapes[0], image, has_bias=False), Bias(image)]
        else:
            last = self._up(shapes[0], image, has_bias=True)
        return [*dense, *first, *levels, *last]

    @property
    def _has_bias(self) -> bool:
        return self.norm != "batch"  # batch norm would cancel the bias

    def _down(self, large: ImageShape, small: ImageShape) -> list[nn.Module]:
        """Make one level of an encoder."""
        conv = self._conv(small, large[0], stride=2)
        return [conv, *self._blocks_and_activation(small)]

    def _up(
        self, small: ImageShape, large: ImageShape, has_bias: bool | None = None
    ) -> list[nn.Module]:
        """Make one level of a decoder."""
        return [
            *self._blocks_and_activation(small),
            nn.ConvTranspose2d(
                small[0],
                large[0],
                self.kernel,
                stride=2,
                padding=self.kernel // 2,
                # two sizes have the same half: select the right one, not always the odd one
                output_padding=(1 - large[1] % 2, 1 - large[2] % 2),
                bias=self._has_bias if has_bias is None else has_bias,
            ),
        ]

    def _blocks_and_activation(self, shape: ImageShape) -> list[nn.Module]:
        """Make the residual blocks for images of one size, and the final activation."""
        activate = partial(norm_activation_dropout, shape, self.activation, self.norm)
        layers: list[nn.Module] = []
        for _ in range(self.blocks):
            first, second = (self._conv(shape, shape[0]) for _ in range(2))
            branch = [*activate(0.0), first, *activate(self.dropout), second]
            layers += [_Residual(nn.Sequential(*branch))]
        return [*layers, *activate(self.dropout)]

    def _conv(self, shape: ImageShape, channels_in: int, stride: int = 1) -> nn.Module:
        options = {"padding": self.kernel // 2, "bias": self._has_bias}
        return nn.Conv2d(channels_in, shape[0], self.kernel, stride, **options)


def _level_shapes(shape: Shape, channels: Shape) -> list[ImageShape]:
    """Return ``(channels, H, W)`` of an image ``(*, H, W)`` and after each level."""
    *channel_dims, height, width = shape
    channels = as_shape("channels", channels)
    if not channels:
        raise ValueError("expected channels to have at least one level; got an empty list")
    shapes = [(math.prod(channel_dims), height, width)]
    for count in channels:
        height, width = -(-height // 2), -(-width // 2)
        shapes.append((count, height, width))
    return shapes
