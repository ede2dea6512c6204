"""What every likelihood is."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution

from ..core.components import Component, NetworkFactory, Shape
from ..core.validation import positive_int
from ..data.kinds import Kind, kind_of

__all__ = ["Likelihood", "Measure", "PixelLikelihood", "log_odds"]

#: What log p(x) is the logarithm of; the last is a p(x | ℓ) of counts with total ℓ.
Measure = Literal["probability", "density", "given the total"]

#: The kinds of values that have probabilities, not densities.
_INTEGER = (Kind.BINARY, Kind.LEVELS, Kind.COUNTS)


class Likelihood(Component):
    """The base of all likelihoods.

    A new likelihood defines ``forward(z) -> Distribution``: ``z`` has shape
    ``(*batch, latent_dim)``, the distribution batch shape ``batch`` and event shape
    ``event_shape``. In ``__init__`` it asks ``network(in_shape, out_shape)`` for the
    outputs it needs and keeps the network as ``self.network``, where one with an output bias
    "data" is started. Two class attributes say which data it can score:

    * ``support``: the widest :class:`~pyro_vae.data.Kind` of values with a density;
    * ``remedy``: what a user should do who has other values.

    Arguments:
        latent_dim: the number of latent variables D.
        event_shape: the shape of one datum.
        network: the factory of the decoder.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.
    """

    support: ClassVar[Kind] = Kind.REAL
    remedy: ClassVar[str] = "choose a likelihood for such values"

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.event_shape = tuple(event_shape)

    @property
    def codes(self) -> bool:
        """Whether p(x|z) is a probability of integers, so that −log₂ of it is a code's length."""
        return self.support in _INTEGER

    @property
    def measure(self) -> Measure:
        """What p(x|z) is. Two that are not the same do not compare in nats."""
        return "probability" if self.codes else "density"

    @classmethod
    def scores(cls, kind: Kind) -> bool:
        """Whether values of this kind have a density."""
        return cls.support.includes(kind)

    @abstractmethod
    def forward(self, z: torch.Tensor) -> Distribution:
        """p(x|z): batch shape ``batch``, event shape ``event_shape``."""

    def outputs_for(self, x: torch.Tensor) -> torch.Tensor:
        """What the network should say at first, so that p(x|z) has about the data's mean.

        Arguments:
            x: the training data, ``(N, *event_shape)``.

        Returns:
            one output of the network.

        Raises:
            ValueError: here, because a likelihood must know this of itself.
        """
        raise ValueError(
            f"expected a likelihood that can start at the data's mean; {type(self).__name__} does "
            f"not define outputs_for(x): set the network's output_bias to null"
        )

    def init_from_data(self, x: torch.Tensor) -> None:
        """Called once before training: a network with an output bias "data" starts at the mean."""
        start_at = getattr(getattr(self, "network", None), "start_at", None)
        if start_at is not None:
            start_at(lambda: self.outputs_for(x))

    def check(self, x: torch.Tensor) -> None:
        """Refuses data ``x`` of shape ``(N, *event_shape)`` that has no density under p(x|z).

        Raises:
            ValueError: in one sentence, with what was expected, what came and the remedy.
        """
        got = kind_of(x)
        if not self.scores(got):
            raise ValueError(
                f"{type(self).__name__} scores only {self.support}; got {got.describe(x)}: "
                f"{self.remedy}"
            )


class PixelLikelihood(Likelihood):
    """The base of likelihoods whose decoder says one number for each pixel, by ``network(z)``."""

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.network = network((latent_dim,), self.event_shape)


def log_odds(mean: torch.Tensor) -> torch.Tensor:
    """log m / (1 − m), for a mean in [0, 1] that is kept off the ends as Burda et al. do."""
    return mean.clamp(1e-3, 1 - 1e-3).logit()
