"""Networks of vectors: perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from ..core.components import Shape
from ..core.validation import positive_int
from .base import GatedLinear, Init, Network, Norm, OutputBias, between, several

__all__ = ["MLP", "GatedMLP", "hidden_layers"]


class MLP(Network):
    """A multilayer perceptron, ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``.

    The papers' initial weights: AEVB draws parameters from N(0, 0.01) and does not say whether
    that is the variance (``init=0.1``) or the standard deviation (``init=0.01``); IWAE has
    ``init="glorot"``, and in its code ``output_bias="data"`` for the decoder.

    Arguments:
        in_shape: the shape of one input.
        out_shape: the shape of one output.
        hidden: the widths of the hidden layers; ``()`` is a linear map.
        activation: makes the module between two layers.
        norm: ``layer`` or ``batch`` normalises every hidden layer before its activation. Batch
            statistics are the minibatch's in training and fixed in evaluation.
        dropout: the probability with which a hidden unit is left out in training.
        init: ``torch`` for torch's own initial weights; ``glorot`` for Xavier-uniform weights
            and zero biases; a number for the standard deviation of all weights and biases.
        output_bias: ``data`` starts the output bias at the mean of the training data.
        standardize: inputs less the training data's mean, over their standard deviation: for
            an encoder of integer levels or counts.

    Raises:
        ValueError: if a width is not a positive integer, an option is not one of these, or if
            called on an input whose trailing dimensions are not ``in_shape``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5 and appendix C;
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.
        https://arxiv.org/abs/1312.6114 https://arxiv.org/abs/1509.00519
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Shape = (200, 200),
        activation: Callable[[], nn.Module] = nn.Tanh,
        norm: Norm = None,
        dropout: float = 0.0,
        init: Init = "torch",
        output_bias: OutputBias = None,
        standardize: bool = False,
    ) -> None:
        layers, width = hidden_layers(math.prod(in_shape), hidden, activation, norm, dropout)
        layers += [nn.Linear(width, math.prod(out_shape))]
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize)


class GatedMLP(Network):
    """A multilayer perceptron whose hidden layers are gated: h = A x · sigmoid(G x).

    Arguments:
        in_shape: the shape of one input.
        out_shape: the shape of one output.
        hidden: the widths of the hidden layers.
        dropout: the probability with which a hidden unit is left out in training.
        init: ``torch`` for torch's own initial weights; ``glorot`` for Xavier-uniform weights,
            A and G each by itself, and zero biases; a number for the standard deviation of
            all weights and biases.
        output_bias: ``data`` starts the output bias at the mean of the training data.
        standardize: inputs less the training data's mean, over their standard deviation: for
            an encoder of integer levels or counts.

    Raises:
        ValueError: if a width is not a positive integer, an option is not one of these, or if
            called on an input whose trailing dimensions are not ``in_shape``.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), section 5.1; Language Modeling with
        Gated Convolutional Networks (Dauphin et al., 2016), equation 1.
        https://arxiv.org/abs/1705.07120 https://arxiv.org/abs/1612.08083
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Shape = (300, 300),
        dropout: float = 0.0,
        init: Init = "torch",
        output_bias: OutputBias = None,
        standardize: bool = False,
    ) -> None:
        hidden = several("hidden", "widths", hidden)
        widths = [math.prod(in_shape), *(positive_int("every width in hidden", w) for w in hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [GatedLinear(width_in, width_out)]
            layers += between((width_out,), nn.GLU, None, dropout)
        layers += [nn.Linear(widths[-1], math.prod(out_shape))]
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize)


def hidden_layers(
    width: int,
    hidden: Shape,
    activation: Callable[[], nn.Module],
    norm: Norm,
    dropout: float,
) -> tuple[list[nn.Module], int]:
    """The hidden layers of a perceptron on vectors of ``width``, and the width they end with.

    Raises:
        ValueError: if a width is not a positive integer, or an option is none.
    """
    layers: list[nn.Module] = []
    for width_out in several("hidden", "widths", hidden):
        width_out = positive_int("every width in hidden", width_out)
        layers += [nn.Linear(width, width_out, bias=norm != "batch")]
        layers += between((width_out,), activation, norm, dropout)
        width = width_out
    return layers, width
