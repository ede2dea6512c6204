"""What every prior is."""

from __future__ import annotations

from abc import abstractmethod

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from ..core.components import Component, Encoder, Space
from ..core.validation import positive_int

__all__ = ["Prior"]


class Prior(Component):
    """The base of all priors.

    A new prior defines ``forward() -> Distribution`` with batch shape ``()`` and event
    shape ``(latent_dim,)``; its learned parts are ``nn.Parameter`` s. One that is written
    with the encoder also extends :meth:`bind`. Two attributes say what it combines with:

    * ``space``: where z lives, :attr:`Space.REAL` or :attr:`Space.SPHERE`;
    * ``uses_posterior``: whether p(z) is written with q.

    Arguments:
        latent_dim: the number of latent variables D.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.
    """

    space: Space = Space.REAL
    uses_posterior: bool = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)

    @abstractmethod
    def forward(self) -> Distribution:
        """p(z): batch shape ``()``, event shape ``(latent_dim,)``."""

    def bind(self, posterior: Encoder) -> None:
        """Receive the posterior, for a prior that depends on it. Does nothing here.

        The program that owns both calls it once, when it is built.
        """
