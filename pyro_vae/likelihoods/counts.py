"""Likelihoods of counts 0, 1, 2, …"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from .. import distributions
from ..core.components import Heads, NetworkFactory, Shape
from ..data.kinds import Kind
from ..distributions import ConditionedOnTotal, sum_counts
from .base import Likelihood

__all__ = ["CountLikelihood", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]


class CountLikelihood(Likelihood):
    """Base class of likelihoods of counts, which defines the rates.

    A subclass defines :meth:`pixel_distribution` and, if they differ from the defaults,
    ``params_per_pixel`` and :attr:`log_mean_offset`.

    Arguments:
        library: role of the total count ℓ of an example (the library size of a cell).

            * ``None``: not used; the mean is exp(f_i(z)), times r_i for negative binomials;
            * ``"decoded"``: the rates are ℓ(z) softmax(f(z))_i, with the softmax over all pixels.
              log ℓ is the mean of one additional row of decoder outputs, so any network works;
            * ``"observed"``: the rates are ℓ softmax(f(z))_i with ℓ = Σ_i x_i of the example
              being scored, or 1 if it is empty. This is p(x | z, ℓ), with the total as a
              covariate. It is *not* comparable with the other two or with any p(x), because the
              total is not predicted. Samples and means use the median total of the training data.

    Raises:
        ValueError: if ``library`` is invalid.
    """

    supported_kind = Kind.COUNTS
    hint = "set data.values to integer, or choose a likelihood of real values"
    #: Number of decoder outputs per pixel; f is the first.
    params_per_pixel: ClassVar[int] = 1

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        library: Literal["decoded", "observed"] | None = None,
    ) -> None:
        super().__init__(latent_dim, event_shape, network)
        if library not in (None, "decoded", "observed"):
            raise ValueError(
                f"expected library to be None, 'decoded' or 'observed'; got {library!r}"
            )
        self.library = library
        rows = self.params_per_pixel + (library == "decoded")
        shape = Heads((rows, *event_shape)) if rows > 1 else event_shape
        self.network = network((latent_dim,), shape)
        if library == "observed":
            # 0 before initialisation
            self.register_buffer("typical_total", torch.zeros(()))

    @property
    def has_code_length(self) -> bool:
        # p(x | z, ℓ) leaves out the code length of the total
        return self.library != "observed"

    @property
    def measure(self) -> str:
        return "given the total" if self.library == "observed" else super().measure

    @property
    def not_factorised_reason(self) -> str | None:
        return "library 'observed' needs the total count" if self.library == "observed" else None

    @property
    def log_mean_offset(self) -> torch.Tensor | float:
        """Logarithm of the mean at f = 0."""
        return 0.0

    @abstractmethod
    def pixel_distribution(self, f: torch.Tensor, *extra: torch.Tensor) -> Distribution:
        """Return the distribution of single pixels, of batch shape ``(*batch, *event_shape)``.

        f is the log-mean minus :attr:`log_mean_offset`; the rest are further decoder outputs.
        """

    def forward(self, z: torch.Tensor) -> Distribution:
        dims = len(self.event_shape)
        outputs = self.network(z)
        has_rows = self.params_per_pixel + (self.library == "decoded") > 1
        f, *extra = outputs.unbind(-1 - dims) if has_rows else (outputs,)
        if self.library is None:
            return self.pixel_distribution(f, *extra).to_event(dims)
        log_share = f.flatten(f.ndim - dims).log_softmax(-1).reshape(f.shape) if dims else 0 * f

        def conditional(log_total: torch.Tensor) -> Distribution:
            log_rate = log_share + log_total[(...,) + (None,) * dims]
            return self.pixel_distribution(log_rate - self.log_mean_offset, *extra).to_event(dims)

        if self.library == "decoded":
            log_total = extra.pop()
            return conditional(log_total.flatten(f.ndim - dims).mean(-1) if dims else log_total)
        typical_total = self.typical_total.clamp(min=1)
        return ConditionedOnTotal(
            lambda t: conditional(t.log()), typical_total, z.shape[:-1], self.event_shape
        )

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        log_mean = x.mean(0).clamp(min=_MIN_MEAN).log()
        f = log_mean - (self.log_mean_offset if self.library is None else 0.0)
        rows = [f, *self.initial_extra_outputs(x)]
        if self.library == "decoded":
            rows.append(log_mean.exp().sum().log().expand_as(f))
        return torch.stack(rows) if len(rows) > 1 else f

    def initial_extra_outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the initial decoder outputs of the remaining rows."""
        return []

    @torch.no_grad()
    def init_from_data(self, x: torch.Tensor) -> None:
        """Initialise the decoder, and compute the median total of the training data."""
        if self.library == "observed" and not self.typical_total:
            self.typical_total.copy_(sum_counts(x, len(self.event_shape)).median())
        super().init_from_data(x)


class DispersedLikelihood(CountLikelihood):
    """Base class of likelihoods of counts with a learned dispersion r_i per pixel."""

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        library: Literal["decoded", "observed"] | None = None,
    ) -> None:
        super().__init__(latent_dim, event_shape, network, library)
        self.log_total_count = nn.Parameter(torch.zeros(self.event_shape))

    @property
    def log_mean_offset(self) -> torch.Tensor:
        return self.log_total_count


class NegativeBinomial(DispersedLikelihood):
    """p(x|z) = Π_i NB(x_i; r_i, logit f_i(z)), for overdispersed counts.

    x has mean r exp(f) and variance r exp(f) (1 + exp(f)); the dispersion r_i is a learned
    parameter per pixel. With ``library`` ``"decoded"`` or ``"observed"``, the mean is the rate
    ℓ softmax(f)_i, and f is replaced by log rate − log r.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    def pixel_distribution(self, f: torch.Tensor, *extra: torch.Tensor) -> Distribution:
        return distributions.NegativeBinomial(self.log_total_count, f)


class Poisson(CountLikelihood):
    """p(x|z) = Π_i Poisson(x_i; exp f_i(z)), for counts.

    With ``library`` ``"decoded"`` or ``"observed"``, the rate is ℓ softmax(f)_i.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    def pixel_distribution(self, f: torch.Tensor, *extra: torch.Tensor) -> Distribution:
        return distributions.Poisson(f)


class ZeroInflatedNegativeBinomial(DispersedLikelihood):
    """p(x|z) = Π_i [π_i 1(x_i = 0) + (1 − π_i) NB(x_i; r_i, f_i)], π_i and f_i from the decoder.

    With ``library`` ``"decoded"`` or ``"observed"``, the mean of NB is the rate ℓ softmax(f)_i.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    params_per_pixel = 2

    def pixel_distribution(self, f: torch.Tensor, *extra: torch.Tensor) -> Distribution:
        (gate_logits,) = extra
        counts = distributions.NegativeBinomial(self.log_total_count, f)
        return dist.ZeroInflatedDistribution(counts, gate_logits=gate_logits)

    def initial_extra_outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        # a low probability of extra zeros, so that the mean is close to that of NB
        return [torch.full_like(x[0], _INITIAL_GATE).logit()]


#: Lower bound of the initial mean.
_MIN_MEAN = 1e-3
#: Initial probability of extra zeros.
_INITIAL_GATE = 1e-2
