"""Base classes of the likelihoods."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch.distributions import Independent

from ..core.components import Component, NetworkFactory, Shape, unwrap
from ..core.validation import positive_int
from ..data.kinds import Kind, kind_of
from ..data.missing import complete_by_column
from ..distributions import PartiallyObserved

__all__ = ["Likelihood", "PixelLikelihood", "clamped_logit"]

#: Kinds of values with probabilities instead of densities.
_DISCRETE_KINDS = (Kind.BINARY, Kind.LEVELS, Kind.COUNTS)


class Likelihood(Component):
    """Base class of likelihoods p(x|z).

    A subclass defines ``forward(z) -> Distribution``: ``z`` has shape ``(*batch, latent_dim)``,
    the distribution has batch shape ``batch`` and event shape ``event_shape``. Its ``__init__``
    calls ``network(in_shape, out_shape)`` and stores the decoder as ``self.network``, where
    :meth:`init_from_data` finds it. Two class attributes describe the data it can score:

    * ``supported_kind``: the widest :class:`~pyro_vae.data.Kind` of values it can score;
    * ``hint``: advice for users with other values, appended to the error message.

    Two more describe how it scores examples with unobserved values (NaN), of which it then scores
    the observed values only, log p(x_obs | z) = Σ_{i observed} log p(x_i | z):

    * ``placeholder``: a value with a finite density, 0 by default, which takes the place of
      unobserved ones where these are computed and discarded;
    * ``not_factorised_reason``: why p(x|z) is not a product over single values; ``None`` if it is.

    Arguments:
        latent_dim: the number of latent dimensions D.
        event_shape: the shape of one example.
        network: the decoder factory.

    Raises:
        ValueError: if ``latent_dim`` is not a positive integer.

    Example:
        >>> decoder = partial(pv.networks.MLP, hidden=(32,))
        >>> likelihood = pv.likelihoods.Bernoulli(2, (1, 8, 8), decoder)
        >>> p = likelihood(torch.zeros(5, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([5]), torch.Size([1, 8, 8]))
    """

    supported_kind: ClassVar[Kind] = Kind.REAL
    hint: ClassVar[str] = "choose a likelihood for these values"
    placeholder: ClassVar[float] = 0.0
    #: Whether data may have unobserved values; set by the ``check`` of the program.
    expects_missing: bool = False

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.event_shape = tuple(event_shape)

    @property
    def has_code_length(self) -> bool:
        """Whether p(x|z) is a probability of discrete x, so that −log₂ p(x|z) is a code length."""
        return self.supported_kind in _DISCRETE_KINDS

    @property
    def not_factorised_reason(self) -> str | None:
        """Why the values are not independent given z, as a clause; ``None`` if they are."""
        return None

    @property
    def measure(self) -> str:
        """Type of p(x|z). Values in nats are comparable only between likelihoods of one type.

        ``probability``, ``density``, or ``given the total``, p(x | ℓ) of counts with total ℓ; a
        likelihood of mixed columns has a density of some and a probability of the others.
        """
        return "probability" if self.has_code_length else "density"

    @classmethod
    def supports(cls, kind: Kind) -> bool:
        """Whether the likelihood can score values of this kind."""
        return cls.supported_kind.includes(kind)

    def __call__(self, z: torch.Tensor) -> Distribution:
        fn = super().__call__(z)
        return self.score_observed(fn) if self.expects_missing else fn

    def score_observed(self, fn: Any) -> Distribution:
        """Return p(x|z) such that its ``log_prob`` leaves out unobserved values, which are NaN.

        Raises:
            ValueError: if the values are not independent given z.
        """
        event_dims, pixels = len(fn.event_shape), fn
        while isinstance(pixels, Independent):
            pixels = pixels.base_dist
        reason = self.not_factorised_reason
        if pixels.event_shape and not reason:
            reason = f"it returns a {type(pixels).__name__}, which scores whole examples"
        if reason:
            raise ValueError(self._describe_not_factorised(reason))
        return PartiallyObserved(pixels, self.placeholder).to_event(event_dims)

    @abstractmethod
    def forward(self, z: torch.Tensor) -> Distribution:
        """Return p(x|z), with batch shape ``batch`` and event shape ``event_shape``."""

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return one decoder output for which p(x|z) has approximately the mean of the data.

        Raises:
            ValueError: in this base class, because subclasses define the method.
        """
        raise ValueError(
            f"expected a likelihood that defines initial_outputs(x), for output_bias 'data'; got "
            f"{type(self).__name__}: set the output_bias of the decoder to null"
        )

    def init_from_data(self, x: torch.Tensor) -> None:
        """Initialise a decoder with ``output_bias="data"`` at the mean of the training data."""
        network = unwrap(getattr(self, "network", None))
        init_output_bias = getattr(network, "init_output_bias", None)
        if init_output_bias is not None:
            init_output_bias(lambda: self.initial_outputs(x))

    def check(self, x: torch.Tensor) -> None:
        """Raise if the likelihood cannot score the data ``x``, ``(N, *event_shape)``.

        Raises:
            ValueError: if ``x`` has values of another kind; the message includes ``hint``.
        """
        kind = kind_of(x)
        if not self.supports(kind):
            raise ValueError(
                f"{type(self).__name__} scores only {self.supported_kind}; got {kind.describe(x)}: "
                f"{self.hint}"
            )

    def check_observed(self, x: torch.Tensor) -> None:
        """Raise if the likelihood cannot score the observed values of ``x``; NaN is unobserved.

        Raises:
            ValueError: as for :meth:`check`; or if values are unobserved and those of an example
                are not independent given z.
        """
        complete = complete_by_column(x)
        if complete is not x and self.not_factorised_reason:
            raise ValueError(self._describe_not_factorised(self.not_factorised_reason))
        self.check(complete)

    def _describe_not_factorised(self, reason: str) -> str:
        return (
            f"expected complete examples for {type(self).__name__}, because {reason}; got NaN "
            f"(unobserved values): complete the data, or choose another likelihood"
        )


class PixelLikelihood(Likelihood):
    """Base class of likelihoods with one decoder output per pixel, ``network(z)``."""

    def __init__(self, latent_dim: int, event_shape: Shape, network: NetworkFactory) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.network = network((latent_dim,), self.event_shape)


def clamped_logit(mean: torch.Tensor) -> torch.Tensor:
    """Return log m / (1 − m) for a mean clamped to [1e-3, 1 − 1e-3], as in Burda et al."""
    return mean.clamp(1e-3, 1 - 1e-3).logit()
