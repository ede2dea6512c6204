"""Starting a program from its training data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from ..core.components import DataInitialized
from ..networks.base import Network

__all__ = ["initialize", "starts_from_data"]


@torch.no_grad()
def initialize(program: nn.Module, x: Tensor) -> None:
    """Lets every module of a program that starts from data see the training data.

    A decoder with ``output_bias="data"`` starts at their mean, for example. ``fit`` does this
    by itself, before the first step; who learns with Pyro's own ``SVI`` calls it before. What
    has started from data does not start a second time, also not after it was saved and read.

    Arguments:
        program: an ``nn.Module`` (a ``PyroModule``); its modules with a method
            ``init_from_data(x)`` start, in place.
        x: the training data as a likelihood sees them, ``(N, *event_shape)``.

    Raises:
        ValueError: if a network with ``output_bias="data"`` or ``standardize=True`` is one that
            nothing shows the data to.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), whose code starts the decoder's
        output bias at the logit of the training data's mean. https://arxiv.org/abs/1509.00519
    """
    modules = [module for module in program.modules() if isinstance(module, DataInitialized)]
    if modules:
        held = next(chain(program.parameters(), program.buffers()), x)
        x = x.to(held.device)
    for module in modules:
        module.init_from_data(x)
    for name, option in _waiting(program):
        raise ValueError(_NEVER_STARTED[option].format(name))


def starts_from_data(program: nn.Module) -> bool:
    """Whether any module of the program has a use for :func:`initialize`."""
    known = any(isinstance(module, DataInitialized) for module in program.modules())
    return known or any(_waiting(program))


def _waiting(program: nn.Module) -> Iterator[tuple[str, str]]:
    """Networks told to look at the training data that have not, and by which option."""
    for name, module in program.named_modules():
        if isinstance(module, Network) and module.waits:
            yield name, module.waits


_NEVER_STARTED = {
    "output_bias": (
        "expected output_bias 'data' only for the decoder that a likelihood keeps as "
        "self.network; got it for {}: set its output_bias to null"
    ),
    "standardize": (
        "expected standardize only for the encoder that a posterior keeps as self.network, "
        "because a decoder's inputs are latents; got it for {}: set its standardize to false"
    ),
}
