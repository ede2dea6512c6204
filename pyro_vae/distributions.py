"""Distributions that torch and Pyro do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._component import Shape

__all__ = [
    "BestScale",
    "Beta",
    "CategoricalLevels",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GivenTotal",
    "NegativeBinomial",
    "Poisson",
    "log1mexp",
    "total_of",
]


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(−x)) for x > 0, accurate at both ends."""
    return torch.where(
        x > _LOG_2,
        # where 1 − exp(−x) is near 1, its distance from 1 would be rounded away
        torch.log1p(-torch.exp(-x.clamp(min=_LOG_2))),
        torch.log(-torch.expm1(-x.clamp(max=_LOG_2))),
    )


_LOG_2 = 0.6931471805599453


class BestScale(TorchDistribution):
    """A family of location and scale that scores values with the scale that is best for them.

    Only what is scored sees the values, so the scale is found there. Draws and moments are
    those of ``base_dist``.

    Arguments:
        base_dist: a ``Normal`` or the like, with the scale for everything else.
        best: the scale for residuals x − μ, of the shape of the values scored.
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012

    def __init__(
        self,
        base_dist: Any,
        best: Callable[[Tensor], Tensor],
        validate_args: bool | None = None,
    ) -> None:
        self.base_dist, self.best = base_dist, best
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base_dist.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> BestScale:
        return BestScale(self.base_dist.expand(batch_shape), self.best, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        loc = self.base_dist.loc
        return type(self.base_dist)(loc, self.best(value - loc)).log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)


class Beta(dist.Beta):
    """``Beta`` scored in float64: in float32 log Γ of large concentrations cancels."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ones, zeros = self.concentration1.double(), self.concentration0.double()
        wide = dist.Beta(ones, zeros, validate_args=False)
        return wide.log_prob(value.double()).to(self.concentration1.dtype)


class CategoricalLevels(dist.Categorical):
    """``Categorical`` over the numbers 0 … n: it has moments, and its draws are numbers."""

    @property
    def mean(self) -> Tensor:
        return self.probs @ self._levels

    @property
    def variance(self) -> Tensor:
        return self.probs @ self._levels**2 - self.mean**2

    def sample(self, sample_shape: Any = ()) -> Tensor:
        # an encoder that is shown a draw wants it as it wants the data
        return super().sample(sample_shape).to(self.probs.dtype)

    @property
    def _levels(self) -> Tensor:
        probs = self.probs
        return torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)


class ContinuousBernoulli(TorchDistribution):
    """p(x) = exp(f x) / Z(f) on [0, 1], with Z(f) = (exp f − 1) / f; λ = sigmoid(f).

    torch's own keeps λ off 0 and 1 by 1e-7 in float32, so that its density no longer
    integrates to 1 beyond |f| ≈ 15, and grey images have such pixels: an f of −500 is a mean of
    1/500.

    Arguments:
        logits: f, any real numbers, ``(*batch,)``.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), equations 3 to 8. https://arxiv.org/abs/1907.06845
    """

    arg_constraints = {"logits": constraints.real}  # type: ignore[assignment] # noqa: RUF012
    support = constraints.unit_interval  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        return ContinuousBernoulli(self.logits.expand(batch_shape), self._validate_args)

    @property
    def mean(self) -> Tensor:
        """E[x] = 1 / (1 − exp(−f)) − 1/f, and ½ + f/12 − f³/720 near 0."""
        # where the formula's rounding, eps / f, is the series' next term, f⁵ / 30240
        f, near = self._away_from_zero((30_240 * torch.finfo(self.logits.dtype).eps) ** (1 / 6))
        size = f.abs()
        # of −|f|, and reflected for f > 0: exp(|f|) would overflow
        low = 1 / size + torch.exp(-size) / torch.expm1(-size)
        small = torch.where(near, self.logits, 0.0)
        series = 0.5 + small / 12 - small**3 / 720
        return torch.where(near, series, torch.where(f > 0, 1 - low, low))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        f, near = self._away_from_zero(torch.finfo(self.logits.dtype).eps ** 0.25)
        size = f.abs()
        # log Z, of |f| and reflected for f > 0: exp(f) would overflow
        log_z = torch.log(-torch.expm1(-size) / size) + f.clamp(min=0)
        log_z = torch.where(near, self.logits / 2 + self.logits.square() / 24, log_z)
        return self.logits * value - log_z

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        f, near = self._away_from_zero(torch.finfo(self.logits.dtype).eps ** 0.25)
        size = -f.abs()
        # the inverse of the distribution function for a density that falls
        falling = torch.log1p(u * torch.expm1(size)) / size
        x = torch.where(f > 0, 1 - falling, falling)
        # the inverse to first order, so that the draw moves with f also at 0
        series = u + self.logits * u * (1 - u) / 2
        return torch.where(near, series, x).clamp(0.0, 1.0)

    def _away_from_zero(self, limit: float) -> tuple[Tensor, Tensor]:
        """f, where formulas may divide by it, and where a series has to stand for them."""
        near = self.logits.abs() < limit
        return torch.where(near, limit, self.logits), near


class DiscretizedLogistic(TorchDistribution):
    """A logistic variable rounded to the integers 0 … n; what lies beyond goes to the ends.

    P(j) = σ(b) − σ(a) with a = (j − ½ − μ)/s and b = (j + ½ − μ)/s, but a = −∞ at level 0 and
    b = ∞ at level n. It is computed as log σ(b) + log σ(−a) + log(1 − exp(a − b)), in which
    nothing cancels, however far the tail and whatever the scale: no probability is clamped.

    Arguments:
        loc: μ, in levels.
        log_scale: log s, s in levels. It is the logarithm, because the derivative by s itself
            overflows where s is small.
        levels: n, the highest level.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        section C.2; PixelCNN++ (Salimans et al., 2017), section 2.1.
        https://arxiv.org/abs/1606.04934 https://arxiv.org/abs/1701.05517
    """

    arg_constraints = {  # type: ignore[assignment] # noqa: RUF012
        "loc": constraints.real,
        "log_scale": constraints.real,
    }
    has_rsample = False

    def __init__(
        self, loc: Tensor, log_scale: Tensor, levels: int, validate_args: bool | None = None
    ) -> None:
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels)

    @property
    def mean(self) -> Tensor:
        return self._moment(lambda level: 1)

    @property
    def variance(self) -> Tensor:
        return self._moment(lambda level: 2 * level - 1) - self.mean**2

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        loc, log_scale = self.loc.expand(batch_shape), self.log_scale.expand(batch_shape)
        return DiscretizedLogistic(loc, log_scale, self.levels, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inverse = self._inverse_scale
        below = logsigmoid((value + 0.5 - self.loc) * inverse)
        above = logsigmoid(-(value - 0.5 - self.loc) * inverse)
        inside = below + above + log1mexp(inverse)
        ends = torch.where(value == 0, below, above)
        return torch.where((value == 0) | (value == self.levels), ends, inside)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        x = self.loc + uniform.logit() / self._inverse_scale
        return x.round().clamp(0, self.levels)

    @property
    def _inverse_scale(self) -> Tensor:
        # at the square root of the largest number every level is at a limit: a point, or ends
        most = torch.finfo(self.log_scale.dtype).max ** 0.5
        return (-self.log_scale).exp().clamp(1 / most, most)

    def _moment(self, weight: Callable[[int], float]) -> Tensor:
        """Σ_j weight(j) P(x ≥ j), one level at a time: all at once they would fill the memory."""
        inverse = self._inverse_scale
        total = torch.zeros_like(self.loc)
        for level in range(1, self.levels + 1):
            total = total + weight(level) * torch.sigmoid((self.loc - level + 0.5) * inverse)
        return total


class GivenTotal(TorchDistribution):
    """p(x | ℓ), where the total ℓ = Σ_i x_i is read off the very x that is scored.

    An empty x counts as one of total 1. Draws and moments are those for a typical total.

    Arguments:
        given: ``given(total)`` is p(x | ℓ = total), for totals that broadcast with
            ``batch_shape``.
        typical: the total for draws and moments, a number.
        batch_shape: of ``given(typical)``, or larger.
        event_shape: the shape of one datum.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018).
        https://doi.org/10.1038/s41592-018-0229-2
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        given: Callable[[Tensor], Distribution],
        typical: Tensor,
        batch_shape: Shape,
        event_shape: Shape,
        validate_args: bool | None = None,
    ) -> None:
        self.given, self.typical = given, typical
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args)

    @property
    def base_dist(self) -> Any:
        """p(x | ℓ) for the typical total."""
        base: Any = self.given(self.typical)
        return base.expand(self.batch_shape)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> GivenTotal:
        return GivenTotal(
            self.given, self.typical, batch_shape, self.event_shape, self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.given(total_of(value, len(self.event_shape))).log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)


class NegativeBinomial(TorchDistribution):
    """p(x) = Γ(r + x) / (Γ(r) x!) σ(f)^x σ(−f)^r, of mean μ = r exp(f).

    Scored in float64 and written so that nothing cancels or overflows for any r: with r → ∞ it
    becomes the Poisson distribution of the same mean. torch's own takes log Γ(r + x) − log Γ(r)
    in the type of its arguments, which in float32 is 8 nats off at r = 10⁷.

    Arguments:
        log_total_count: log r.
        logits: f, log μ − log r.
    """

    arg_constraints = {  # type: ignore[assignment] # noqa: RUF012
        "log_total_count": constraints.real,
        "logits": constraints.real,
    }
    support = constraints.nonnegative_integer  # type: ignore[assignment]
    has_rsample = False

    def __init__(
        self, log_total_count: Tensor, logits: Tensor, validate_args: bool | None = None
    ) -> None:
        self.log_total_count, self.logits = torch.broadcast_tensors(log_total_count, logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return (self.log_total_count + self.logits).exp()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 + self.logits.exp())

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        log_r, f = self.log_total_count.expand(batch_shape), self.logits.expand(batch_shape)
        return NegativeBinomial(log_r, f, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, log_r, f = value.double(), self.log_total_count.double(), self.logits.double()
        # log (r log (1 + exp f)): neither r alone nor the logarithm alone fits into a number
        tail = f.clamp(max=-20.0)
        soft = (-logsigmoid(-f.clamp(min=-20.0))).log()
        log_stops = log_r + torch.where(f < -20, tail - tail.exp() / 2, soft)
        going_on = x * (log_r + logsigmoid(f)) - (x + 1).lgamma()
        return (_log_rising(x, log_r) + going_on - log_stops.exp()).to(self.logits.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        info = torch.finfo(self.logits.dtype)
        # a Poisson variable whose rate is μ times a gamma variable of mean 1
        r = self.log_total_count.exp().clamp(info.tiny, info.max**0.5)
        return torch.poisson(self.mean * dist.Gamma(r, r).sample(torch.Size(sample_shape)))


def _log_rising(x: Tensor, log_r: Tensor) -> Tensor:
    """log Γ(r + x) / (Γ(r) r^x) in float64, for x = 0, 1, … and any r > 0; it → 0 with r → ∞."""
    # x = 0 apart, and one factor r out of Γ(r), which has no logarithm at an r that underflows
    least, log_small = x.clamp(min=1), log_r.clamp(max=_STIRLING_LOG)
    small = log_small.exp()
    direct = (small + least).lgamma() - (small + 1).lgamma() + (1 - least) * log_small
    # Stirling's formula for both, in which log Γ of large numbers do not appear
    r = log_r.clamp(_STIRLING_LOG, 300.0).exp()
    difference = (r + x - 0.5) * torch.log1p(x / r) - x + _stirling(r + x) - _stirling(r)
    return torch.where(log_r > _STIRLING_LOG, difference, torch.where(x > 0, direct, 0.0))


def _stirling(y: Tensor) -> Tensor:
    """log Γ(y) − (y − ½) log y + y − ½ log 2π, to float64's rounding for y ≥ 100."""
    inverse = 1 / y
    square = inverse.square()
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))


_STIRLING_LOG = 4.605170185988092  # log 100


class Poisson(TorchDistribution):
    """p(x) = exp(f x − exp f) / x!, by the logarithm f of the rate, scored in float64.

    torch's own takes the rate, whose logarithm is −∞ where it underflows.

    Arguments:
        log_rate: f, any real numbers.
    """

    arg_constraints = {"log_rate": constraints.real}  # type: ignore[assignment] # noqa: RUF012
    support = constraints.nonnegative_integer  # type: ignore[assignment]
    has_rsample = False

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> Poisson:
        return Poisson(self.log_rate.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, f = value.double(), self.log_rate.double()
        return (x * f - f.exp() - (x + 1).lgamma()).to(self.log_rate.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.poisson(self.mean.expand(self._extended_shape(sample_shape)))


def total_of(x: Tensor, event_dims: int) -> Tensor:
    """Σ_i x_i over the last ``event_dims`` dimensions, at least 1."""
    return x.flatten(x.ndim - event_dims).sum(-1).clamp(min=1) if event_dims else x.clamp(min=1)
