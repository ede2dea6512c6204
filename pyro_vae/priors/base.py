"""Base class of priors."""

from __future__ import annotations

from abc import abstractmethod

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from ..core.components import Component, Encoder, Space
from ..core.validation import positive_int

__all__ = ["Prior"]


class Prior(Component):
    """Base class of priors.

    Subclasses define ``forward() -> Distribution`` with batch shape ``()`` and event shape
    ``(latent_dim,)``. Learned quantities are ``nn.Parameter`` s. A prior defined in terms of
    the posterior also overrides :meth:`bind`. Two attributes determine which posteriors it
    can be combined with:

    * ``space``: the space of z, :attr:`Space.REAL` or :attr:`Space.SPHERE`;
    * ``uses_posterior``: whether p(z) depends on q(z|x).

    Arguments:
        latent_dim: number of latent variables D.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.

    Example:
        >>> class Wide(pv.priors.Prior):
        ...     def forward(self):
        ...         return dist.Normal(torch.zeros(self.latent_dim), 3.0).to_event(1)
        >>> pv.VAE((1, 8, 8), latent_dim=2, prior=Wide).prior().event_shape
        torch.Size([2])
    """

    space: Space = Space.REAL
    uses_posterior: bool = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)

    @abstractmethod
    def forward(self) -> Distribution:
        """Return p(z), with batch shape ``()`` and event shape ``(latent_dim,)``."""

    def bind(self, posterior: Encoder) -> None:
        """Receive the posterior, if the prior depends on it. Does nothing by default.

        The program that owns both calls this once, in its ``__init__``.
        """
