"""Likelihoods of counts 0, 1, 2, …"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from .. import distributions
from ..core.components import NetworkFactory, Shape
from ..data.kinds import Kind
from ..distributions import GivenTotal, total_of
from .base import Likelihood, Measure

__all__ = ["CountLikelihood", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]


class CountLikelihood(Likelihood):
    """The base of likelihoods of counts; it says what the rate of a pixel may be.

    A new one defines :meth:`family`, and ``rows`` and :attr:`log_unit` if they differ.

    Arguments:
        latent_dim: the number of latent variables D.
        event_shape: the shape of one datum.
        network: the factory of the decoder.
        library: how the total ℓ of a datum (a cell's library size) enters.

            * ``None``: it does not, the rates are exp f_i(z) in the family's unit;
            * ``"decoded"``: the rates are ℓ(z) softmax(f(z))_i over all pixels. log ℓ is the
              mean of one more row of decoder outputs, so that any network can say it;
            * ``"observed"``: the rates are ℓ softmax(f(z))_i with ℓ = Σ_i x_i of the datum
              that is scored, 1 if it is empty. That is p(x | z, ℓ), a density given the total
              as a covariate: it does *not* compare with the other two, nor with any p(x),
              because the total is not predicted. Draws and means are for the median total of
              the training data.

    Raises:
        ValueError: if ``library`` is another.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    support = Kind.COUNTS
    remedy = "set data.values to integer, or choose a likelihood of real values"
    #: How many numbers the family needs of the decoder for each pixel; f is the first.
    rows: ClassVar[int] = 1

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
        rows = self.rows + (library == "decoded")
        self.network = network((latent_dim,), (rows, *event_shape) if rows > 1 else event_shape)
        if library == "observed":
            # 0 where it is not known yet
            self.register_buffer("typical_total", torch.zeros(()))

    @property
    def codes(self) -> bool:
        # who is told the total for nothing has not paid for all of x
        return self.library != "observed"

    @property
    def measure(self) -> Measure:
        return "given the total" if self.library == "observed" else super().measure

    @property
    def log_unit(self) -> torch.Tensor | float:
        """The logarithm of the mean at f = 0."""
        return 0.0

    @abstractmethod
    def family(self, f: torch.Tensor, *rest: torch.Tensor) -> Distribution:
        """The distribution of single pixels: batch shape ``(*batch, *event_shape)``.

        Arguments:
            f: their mean is exp(f + :attr:`log_unit`).
            *rest: the other rows of the decoder's outputs.
        """

    def forward(self, z: torch.Tensor) -> Distribution:
        dims = len(self.event_shape)
        outputs = self.network(z)
        many = self.rows + (self.library == "decoded") > 1
        f, *rest = outputs.unbind(-1 - dims) if many else (outputs,)
        if self.library is None:
            return self.family(f, *rest).to_event(dims)
        log_share = f.flatten(f.ndim - dims).log_softmax(-1).reshape(f.shape) if dims else 0 * f

        def given(log_total: torch.Tensor) -> Distribution:
            log_rate = log_share + log_total[(...,) + (None,) * dims]
            return self.family(log_rate - self.log_unit, *rest).to_event(dims)

        if self.library == "decoded":
            log_total = rest.pop()
            return given(log_total.flatten(f.ndim - dims).mean(-1) if dims else log_total)
        typical = self.typical_total.clamp(min=1)
        return GivenTotal(lambda t: given(t.log()), typical, z.shape[:-1], self.event_shape)

    def outputs_for(self, x: torch.Tensor) -> torch.Tensor:
        log_mean = x.mean(0).clamp(min=_LEAST).log()
        f = log_mean - (self.log_unit if self.library is None else 0.0)
        rows = [f, *self.rest_for(x)]
        if self.library == "decoded":
            rows.append(log_mean.exp().sum().log().expand_as(f))
        return torch.stack(rows) if len(rows) > 1 else f

    def rest_for(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What the decoder should say at first in the other rows."""
        return []

    @torch.no_grad()
    def init_from_data(self, x: torch.Tensor) -> None:
        """Called once before training; also finds the median total of the training data."""
        if self.library == "observed" and not self.typical_total:
            self.typical_total.copy_(total_of(x, len(self.event_shape)).median())
        super().init_from_data(x)


class DispersedLikelihood(CountLikelihood):
    """The base of likelihoods of counts with a dispersion r_i, a free parameter of each pixel."""

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
    def log_unit(self) -> torch.Tensor:
        return self.log_total_count


class NegativeBinomial(DispersedLikelihood):
    """p(x|z) = Π_i NB(x_i; r_i, logit f_i(z)), for counts that vary more than Poisson's.

    x has mean r exp(f) and variance r exp(f) (1 + exp(f)); the dispersion r_i is a free
    parameter of each pixel. With a ``library``, ``"decoded"`` or ``"observed"``, the mean is
    the rate ℓ softmax(f)_i, and log rate − log r stands for f.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    def family(self, f: torch.Tensor, *rest: torch.Tensor) -> Distribution:
        return distributions.NegativeBinomial(self.log_total_count, f)


class Poisson(CountLikelihood):
    """p(x|z) = Π_i Poisson(x_i; exp f_i(z)), for counts.

    With a ``library``, ``"decoded"`` or ``"observed"``, the rate is ℓ softmax(f)_i.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    def family(self, f: torch.Tensor, *rest: torch.Tensor) -> Distribution:
        return distributions.Poisson(f)


class ZeroInflatedNegativeBinomial(DispersedLikelihood):
    """p(x|z) = Π_i [π_i 1(x_i = 0) + (1 − π_i) NB(x_i; r_i, f_i)], π_i and f_i from the decoder.

    With a ``library``, ``"decoded"`` or ``"observed"``, the mean of NB is the rate
    ℓ softmax(f)_i.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    rows = 2

    def family(self, f: torch.Tensor, *rest: torch.Tensor) -> Distribution:
        (gate_logits,) = rest
        counts = distributions.NegativeBinomial(self.log_total_count, f)
        return dist.ZeroInflatedDistribution(counts, gate_logits=gate_logits)

    def rest_for(self, x: torch.Tensor) -> list[torch.Tensor]:
        # a gate that is all but open, so that the mean is that of NB
        return [torch.full_like(x[0], _CLOSED).logit()]


#: The least mean and the probability of a closed gate to start at.
_LEAST, _CLOSED = 1e-3, 1e-2
