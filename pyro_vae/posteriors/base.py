"""What every posterior is."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from ..core.components import Component, NetworkFactory, Shape, Space
from ..core.validation import positive_int

__all__ = ["Posterior"]


class Posterior(Component):
    """The base of all posteriors.

    A new family defines ``forward(x) -> Distribution``, reparameterised (``has_rsample``):
    ``x`` has shape ``(*batch, *event_shape)``, the distribution batch shape ``batch`` and
    event shape ``(latent_dim,)``. In ``__init__`` it asks ``network(in_shape, out_shape)``
    for the outputs it needs and keeps the network as ``self.network``. Three attributes say
    what it combines with:

    * ``space``: where z lives, :attr:`Space.REAL` or :attr:`Space.SPHERE`;
    * ``scores_any_value``: whether log q(z|x) exists at a z that it did not draw itself; not
      so for a flow without an inverse;
    * ``self_contained``: whether q(z|x) needs nothing but x; not so if it is refined with
      the model.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.
    """

    space: Space = Space.REAL
    scores_any_value: bool = True
    self_contained: bool = True

    def __init__(self, event_shape: Shape, latent_dim: int, network: NetworkFactory) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)

    @abstractmethod
    def forward(self, x: torch.Tensor) -> Distribution:
        """q(z|x): batch shape ``batch``, event shape ``(latent_dim,)``."""

    def bind(self, prior: Component, likelihood: Component) -> None:
        """Called once, by the program that owns all three, when it is built. Does nothing here."""

    def init_from_data(self, x: torch.Tensor) -> None:
        """Called once before training: a network that standardises its inputs measures them."""
        measure = getattr(getattr(self, "network", None), "measure", None)
        if measure is not None:
            measure(x)
