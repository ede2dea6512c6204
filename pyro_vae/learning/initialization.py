"""Data-dependent initialisation of a program."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..core.components import DataInitialized, unwrap
from ..data.missing import complete_by_column
from ..likelihoods.base import Likelihood
from ..networks.base import Network
from ..posteriors.base import Posterior

__all__ = ["initialize", "needs_data_initialization"]


@torch.no_grad()
def initialize(program: nn.Module, x: Tensor, num_data: int | None = None) -> None:
    """Initialize the modules of a program that depend on the training data.

    For example, a decoder with ``output_bias="data"`` starts at the mean of the data. ``fit`` calls
    this before the first step; with Pyro's ``SVI``, call it yourself. Modules that are already
    initialised from data, including loaded ones, are left unchanged.

    Arguments:
        program: an ``nn.Module`` (a ``PyroModule``); its modules with a method
            ``init_from_data(x)`` are initialised in place.
        x: training data as seen by the likelihood, ``(N, *event_shape)``, or a random subset.
            Unobserved values (NaN) are replaced by observed values of the same column.
        num_data: number of all training examples, if ``x`` is a subset.

    Raises:
        ValueError: if a network with ``output_bias="data"`` or ``standardize=True`` is not
            initialised by any module.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), whose code starts the decoder's
        output bias at the logit of the training data's mean. https://arxiv.org/abs/1509.00519
    """
    modules = [module for module in program.modules() if isinstance(module, DataInitialized)]
    if modules:
        tensor = next(chain(program.parameters(), program.buffers()), x)
        x = complete_by_column(x.to(tensor.device))
    for module in modules:
        module.init_from_data(x)
        set_num_data: Any = getattr(module, "set_num_data", None)
        if num_data is not None and set_num_data is not None:
            set_num_data(num_data)
    for name, option in _uninitialized_networks(program):
        raise ValueError(_UNINITIALIZED_MESSAGES[option].format(name))


def needs_data_initialization(program: nn.Module) -> bool:
    """Whether :func:`initialize` affects any module of the program."""
    modules = [module for module in program.modules() if isinstance(module, DataInitialized)]
    return any(map(_has_own_state, modules)) or any(_uninitialized_networks(program))


def _has_own_state(module: DataInitialized) -> bool:
    """Whether a module may initialise more than a network of this package."""
    # the methods of the base classes initialise their network only
    if type(module).init_from_data not in (Likelihood.init_from_data, Posterior.init_from_data):
        return True
    network = unwrap(getattr(module, "network", None))
    return network is not None and not isinstance(network, Network)


def _uninitialized_networks(program: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the networks still to be initialised from data, with the option that requires it."""
    for name, module in program.named_modules():
        if isinstance(module, Network) and module.uninitialized_option:
            yield name, module.uninitialized_option


_UNINITIALIZED_MESSAGES = {
    "output_bias": (
        "expected output_bias 'data' only for the decoder that a likelihood keeps as "
        "self.network; got it for {}: set its output_bias to null"
    ),
    "standardize": (
        "expected standardize only for the encoder that a posterior keeps as self.network, "
        "because a decoder's inputs are latents; got it for {}: set its standardize to false"
    ),
}
