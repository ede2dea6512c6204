"""Networks of images: convolutions that halve them, transposed ones that double them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from ..core.components import Shape
from ..core.validation import positive_int
from .base import Bias, Init, Network, Norm, OutputBias, between, several
from .dense import hidden_layers

__all__ = ["ConvNet", "ResNet"]

#: Channels, height and width.
Image = tuple[int, int, int]


class ConvNet(Network):
    """Strided convolutions from an image to a vector, or the transposed way back.

    One description serves both ends of a VAE. If ``in_shape`` has a height and a width it is
    an image and the network an encoder: each level is a convolution of stride 2, then the
    hidden layers. Otherwise ``out_shape`` is the image and the network the same upside down:
    the hidden layers, then transposed convolutions. A level takes H × W to ⌈H/2⌉ × ⌈W/2⌉ or
    back, exactly, whatever the size.

    Arguments:
        in_shape: the shape of one input: an image ``(*channels, H, W)``, all dimensions before
            the last two being its channels, or of less than two dimensions.
        out_shape: the shape of one output.
        channels: the channels after each level, from the image on.
        hidden: the widths of hidden layers of vectors, from the image on.
        kernel: the width of the convolutions, odd.
        activation: makes the module between two layers.
        norm: ``layer`` (over channels and pixels) or ``batch`` (over the minibatch and pixels)
            normalises before every activation.
        dropout: the probability with which a unit is left out in training.
        init: ``torch`` for torch's own initial weights; ``glorot`` for Xavier-uniform weights
            and zero biases; a number for the standard deviation of all weights and biases.
        output_bias: ``data`` starts the output bias at the mean of the training data. A decoder
            then has a bias for every number of its output, not for every channel only.
        standardize: inputs less the training data's mean, over their standard deviation: for
            an encoder of integer levels or counts.

    Raises:
        ValueError: if neither side is an image, a number is not a positive integer, an option
            is not one of these, or if called on an input whose trailing dimensions are not
            ``in_shape``.

    References:
        Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
        Networks (Radford et al., 2015), section 3. https://arxiv.org/abs/1511.06434
    """

    images_only = True

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
    ) -> None:
        plan = _Plan(kernel, activation, norm, dropout)
        layers = plan.layers(in_shape, out_shape, channels, hidden, output_bias)
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize)


class ResNet(Network):
    """A ``ConvNet`` with residual blocks at every level, to make it deep.

    A block adds to its input what two convolutions make of it, each after norm and activation
    ("pre-activation"). An encoder's level halves the image and then has its blocks; a
    decoder's has its blocks and then doubles the image.

    Arguments:
        in_shape: the shape of one input: an image ``(*channels, H, W)``, all dimensions before
            the last two being its channels, or of less than two dimensions.
        out_shape: the shape of one output.
        channels: the channels after each level, from the image on.
        blocks: the residual blocks of each level.
        hidden: the widths of hidden layers of vectors, from the image on.
        kernel: the width of the convolutions, odd.
        activation: makes the module between two layers.
        norm: ``layer`` (over channels and pixels) or ``batch`` (over the minibatch and pixels)
            normalises before every activation.
        dropout: the probability with which a unit is left out in training.
        init: ``torch`` for torch's own initial weights; ``glorot`` for Xavier-uniform weights
            and zero biases; a number for the standard deviation of all weights and biases.
        output_bias: ``data`` starts the output bias at the mean of the training data. A decoder
            then has a bias for every number of its output, not for every channel only.
        standardize: inputs less the training data's mean, over their standard deviation: for
            an encoder of integer levels or counts.

    Raises:
        ValueError: if neither side is an image, a number is not a positive integer, an option
            is not one of these, or if called on an input whose trailing dimensions are not
            ``in_shape``.

    References:
        Identity Mappings in Deep Residual Networks (He et al., 2016), figure 1b; Improving
        Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016).
        https://arxiv.org/abs/1603.05027 https://arxiv.org/abs/1606.04934
    """

    images_only = True

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
    ) -> None:
        plan = _Plan(kernel, activation, norm, dropout, positive_int("blocks", blocks))
        layers = plan.layers(in_shape, out_shape, channels, hidden, output_bias)
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize)


class _Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


@dataclass(frozen=True)
class _Plan:
    """How the layers of a network of images are made, in either direction.

    Attributes:
        kernel, activation, norm, dropout: as :class:`ConvNet` says.
        blocks: residual blocks in each level.
    """

    kernel: int
    activation: Callable[[], nn.Module]
    norm: Norm
    dropout: float
    blocks: int = 0

    def __post_init__(self) -> None:
        if positive_int("kernel", self.kernel) % 2 == 0:
            # an even one has no middle: ⌈H/2⌉ would need more padding on one side
            raise ValueError(f"expected kernel to be odd; got {self.kernel}")

    def layers(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Shape,
        hidden: Shape,
        output_bias: OutputBias,
    ) -> list[nn.Module]:
        """All layers of an encoder or a decoder, from ``(B, prod(in_shape))`` to B outputs."""
        options = (self.activation, self.norm, self.dropout)
        encodes = len(in_shape) >= 2
        if encodes:
            shapes = _halvings(in_shape, channels)
            levels = [m for large, small in pairwise(shapes) for m in self._down(large, small)]
            dense, width = hidden_layers(math.prod(shapes[-1]), hidden, *options)
            out = nn.Linear(width, math.prod(out_shape))
            return [nn.Unflatten(1, shapes[0]), *levels, nn.Flatten(), *dense, out]
        if len(out_shape) < 2:
            raise ValueError(
                f"expected in_shape or out_shape to end in a height and a width; got "
                f"{tuple(in_shape)} and {tuple(out_shape)}: use an MLP for data that are no images"
            )
        image, *shapes = _halvings(out_shape, channels)
        dense, width = hidden_layers(math.prod(in_shape), hidden[::-1], *options)
        start = [
            nn.Linear(width, math.prod(shapes[-1]), bias=self._biased),
            nn.Unflatten(1, shapes[-1]),
        ]
        levels = [m for small, large in pairwise(shapes[::-1]) for m in self._up(small, large)]
        if output_bias == "data":
            end = [*self._up(shapes[0], image, biased=False), Bias(image)]
        else:
            end = self._up(shapes[0], image, biased=True)
        return [*dense, *start, *levels, *end]

    @property
    def _biased(self) -> bool:
        return self.norm != "batch"  # it would take a bias away again

    def _down(self, large: Image, small: Image) -> list[nn.Module]:
        """One level of an encoder."""
        conv = nn.Conv2d(
            large[0], small[0], self.kernel, stride=2, padding=self.kernel // 2, bias=self._biased
        )
        return [conv, *self._at(small)]

    def _up(self, small: Image, large: Image, biased: bool | None = None) -> list[nn.Module]:
        """One level of a decoder."""
        return [
            *self._at(small),
            nn.ConvTranspose2d(
                small[0],
                large[0],
                self.kernel,
                stride=2,
                padding=self.kernel // 2,
                # two sizes have the same half: without this the odd one always comes back
                output_padding=(1 - large[1] % 2, 1 - large[2] % 2),
                bias=self._biased if biased is None else biased,
            ),
        ]

    def _at(self, shape: Image) -> list[nn.Module]:
        """What a level does to images of one size: its blocks, and their last activation."""
        between_two = partial(between, shape, self.activation, self.norm)
        layers: list[nn.Module] = []
        for _ in range(self.blocks):
            branch = [
                *between_two(0.0),
                self._same(shape),
                *between_two(self.dropout),
                self._same(shape),
            ]
            layers += [_Residual(nn.Sequential(*branch))]
        return [*layers, *between_two(self.dropout)]

    def _same(self, shape: Image) -> nn.Module:
        return nn.Conv2d(
            shape[0], shape[0], self.kernel, padding=self.kernel // 2, bias=self._biased
        )


def _halvings(shape: Shape, channels: Shape) -> list[Image]:
    """``(channels, H, W)`` of an image ``(*, H, W)`` and after each level."""
    *planes, height, width = shape
    channels = several("channels", "numbers, one for each level", channels)
    if not channels:
        raise ValueError("expected channels to have a number for each level; got none")
    shapes = [(math.prod(planes), height, width)]
    for count in channels:
        height, width = -(-height // 2), -(-width // 2)
        shapes.append((positive_int("every number of channels", count), height, width))
    return shapes
