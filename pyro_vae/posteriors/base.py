"""Base class of posteriors."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from ..core.components import Component, NetworkFactory, Shape, Space, init_standardization
from ..core.validation import positive_int

__all__ = ["Posterior"]


class Posterior(Component):
    """Base class of posteriors.

    Subclasses define ``forward(x) -> Distribution``, reparameterised (``has_rsample``): ``x``
    has shape ``(*batch, *event_shape)``, and the distribution has batch shape ``batch`` and
    event shape ``(latent_dim,)``. ``__init__`` creates the network by calling
    ``network(in_shape, out_shape)`` and stores it as ``self.network``. Three attributes
    determine which priors and programs it can be combined with:

    * ``space``: the space of z, :attr:`Space.REAL` or :attr:`Space.SPHERE`;
    * ``scores_any_value``: whether log q(z|x) can be computed at any z, and not only at its
      own samples. False for a flow without an inverse;
    * ``self_contained``: whether q(z|x) depends on x alone. False for a posterior that is
      refined with the model.

    Arguments:
        event_shape: shape of one example.
        latent_dim: number of latent variables D.
        network: factory of the encoder network.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.

    Example:
        >>> encoder = partial(pv.networks.MLP, hidden=(32,))
        >>> posterior = pv.posteriors.FullCovarianceNormal((1, 8, 8), 2, encoder)
        >>> posterior(x).rsample().shape
        torch.Size([20, 2])
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
        """Return q(z|x), with batch shape ``batch`` and event shape ``(latent_dim,)``."""

    def bind(self, prior: Component, likelihood: Component) -> None:
        """Receive the other parts of the model; the program calls this once, in its ``__init__``.

        Does nothing by default.
        """

    def init_from_data(self, x: torch.Tensor) -> None:
        """Compute the input statistics of a network that standardises its inputs."""
        init_standardization(getattr(self, "network", None), x)
