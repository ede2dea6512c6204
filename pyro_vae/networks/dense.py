"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from ..core.components import Shape
from ..core.validation import as_shape
from .base import GatedLinear, Init, Network, Norm, OutputBias, add_mask, norm_activation_dropout

__all__ = ["MLP", "GatedMLP", "make_hidden_layers"]


class MLP(Network):
    """Multilayer perceptron with fully connected hidden layers.

    Initialisation in the papers: AEVB samples parameters from N(0, 0.01), without stating whether
    0.01 is the variance (``init=0.1``) or the standard deviation (``init=0.01``). IWAE uses
    ``init="glorot"`` and, in its code, ``output_bias="data"`` for the decoder. These options,
    ``standardize`` and ``mask`` are those of :class:`~pyro_vae.networks.base.Network`.

    Arguments:
        hidden: the widths of the hidden layers; ``()`` is a linear map.
        activation: the activation module.
        norm: normalisation of every hidden layer before its activation: ``layer`` or ``batch``.
        dropout: the dropout probability of hidden units.

    Raises:
        ValueError: if a width is not a positive integer or an option is invalid; when called, if
            the trailing dimensions of an input are not ``in_shape``.

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
        mask: bool = False,
    ) -> None:
        layers, width = make_hidden_layers(
            add_mask(in_shape, mask), hidden, activation, norm, dropout
        )
        layers += [nn.Linear(width, math.prod(out_shape))]
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize, mask)


class GatedMLP(Network):
    """Multilayer perceptron with gated hidden layers, h = A x · sigmoid(G x).

    ``init`` (with A and G separately for ``glorot``), ``output_bias``, ``standardize`` and ``mask``
    are those of :class:`~pyro_vae.networks.base.Network`.

    Arguments:
        hidden: the widths of the hidden layers.
        dropout: the dropout probability of hidden units.

    Raises:
        ValueError: if a width is not a positive integer or an option is invalid; when called, if
            the trailing dimensions of an input are not ``in_shape``.

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
        mask: bool = False,
    ) -> None:
        inputs = add_mask(as_shape("in_shape", in_shape), mask)
        widths = [math.prod(inputs), *as_shape("hidden", hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [GatedLinear(width_in, width_out)]
            layers += norm_activation_dropout((width_out,), nn.GLU, None, dropout)
        layers += [nn.Linear(widths[-1], math.prod(out_shape))]
        super().__init__(in_shape, out_shape, layers, init, output_bias, standardize, mask)


def make_hidden_layers(
    in_shape: Shape,
    hidden: Shape,
    activation: Callable[[], nn.Module],
    norm: Norm,
    dropout: float,
) -> tuple[list[nn.Module], int]:
    """Return the hidden layers for inputs of ``prod(in_shape)`` numbers, and the last width."""
    layers: list[nn.Module] = []
    width = math.prod(as_shape("in_shape", in_shape))
    for width_out in as_shape("hidden", hidden):
        layers += [nn.Linear(width, width_out, bias=norm != "batch")]
        layers += norm_activation_dropout((width_out,), activation, norm, dropout)
        width = width_out
    return layers, width
