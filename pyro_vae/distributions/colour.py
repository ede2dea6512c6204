"""Distribution of colour pixels whose channels depend on one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.nn.functional import softplus

from .levels import DiscretizedLogistic
from .missing import OrUnobserved
from .rescored import RescoredDistribution

__all__ = ["ColourLogisticMixture", "ObservedColours", "check_whole_pixels"]

#: Number of levels above which the mean is a quadrature, and its nodes per channel.
_MAX_EXACT, _NODES = 32, 16
#: Half-width, in scales, of the interval that contains most nodes.
_HALF_WIDTH = 8.0


class ColourLogisticMixture(TorchDistribution):
    """Mixture of discretised logistics of whole colour pixels, red → green → blue.

    With n the highest level and DL a :class:`DiscretizedLogistic`, a pixel has the probability

    Σ_k π_k DL(r; μ_k1, s_k1) DL(g; μ_k2 + α_k (r − n/2), s_k2)
    DL(b; μ_k3 + β_k (r − n/2) + γ_k (g − n/2), s_k3).

    The channels of a pixel share the component k. Pixels are independent.

    Arguments:
        logits: log π up to a constant, ``(*batch, *pixels, K)``.
        loc: μ in levels, ``(*batch, *pixels, 3, K)``.
        log_scale: log s, with s in levels, ``(*batch, *pixels, 3, K)``.
        coefficients: α, β, γ, ``(*batch, *pixels, 3, K)``.
        levels: n, the highest level.
        event_dim: 1 plus the number of dimensions of ``pixels``. Values have the channels first,
            ``(*batch, 3, *pixels)``.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and
        Other Modifications (Salimans et al., 2017), section 2.2, equation 3.
        https://arxiv.org/abs/1701.05517
    """

    arg_constraints = {}  # type: ignore[assignment] # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        log_scale: Tensor,
        coefficients: Tensor,
        levels: int,
        event_dim: int,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.log_scale = logits, loc, log_scale
        self.coefficients, self.levels = coefficients, levels
        batch_shape = logits.shape[: logits.ndim - event_dim]
        event_shape = torch.Size((3, *logits.shape[len(batch_shape) : -1]))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        return constraints.independent(
            constraints.integer_interval(0, self.levels), len(self.event_shape)
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> ColourLogisticMixture:
        logits, loc, log_scale, coefficients = (
            tensor.expand(*batch_shape, *tensor.shape[len(self.batch_shape) :])
            for tensor in (self.logits, self.loc, self.log_scale, self.coefficients)
        )
        options = self.levels, len(self.event_shape), self._validate_args
        return ColourLogisticMixture(logits, loc, log_scale, coefficients, *options)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_p = self._pixel_log_prob(value)
        return cast(Tensor, sum_rightmost(log_p, len(self.event_shape) - 1))

    def observed_log_prob(self, value: Tensor, observed: Tensor, check: bool = True) -> Tensor:
        """Return the log-probability of the observed pixels of ``value``, ``(*batch,)``.

        Arguments:
            value: ``(*batch, 3, *pixels)``, with any levels at missing pixels.
            observed: boolean mask that broadcasts to that shape.
            check: whether to check the mask, which needs its values on the host. Without the
                check, the result is NaN where :func:`check_whole_pixels` would raise.

        Raises:
            ValueError: if only some channels of a pixel are observed.
        """
        if check:
            check_whole_pixels(observed, len(self.event_shape))
        channel = -len(self.event_shape)
        some, every = observed.any(channel), observed.all(channel)
        log_p = torch.where(every, self._pixel_log_prob(value), 0.0)
        log_p = log_p.masked_fill(some & ~every, torch.nan)
        return cast(Tensor, sum_rightmost(log_p, len(self.event_shape) - 1))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        component = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)
        index = component[..., None, None]

        def select(tensor: Tensor) -> Tensor:
            tensor = tensor.expand(*component.shape, *tensor.shape[-2:])
            return tensor.gather(-1, index.expand(*tensor.shape[:-1], 1))

        # a mixture of the selected components alone
        tensors = select(self.loc), select(self.log_scale), select(self.coefficients)
        weight = torch.zeros_like(tensors[0][..., 0, :])
        chosen = ColourLogisticMixture(weight, *tensors, self.levels, len(self.event_shape), False)
        values: list[Tensor] = []
        while len(values) < 3:
            values.append(chosen._channel(values).sample())
        return torch.cat(values, -1).movedim(-1, -len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """E[x], ``(*batch, 3, *pixels)``.

        An exact sum over all levels if there are at most 32. With more, the sums over red and
        green become integrals with 16 nodes each, and the error is below one level.
        """
        red = self._channel([])
        channels = DiscretizedLogistic(self.loc, self.log_scale, self.levels, False)
        inverse = channels.inverse_scale.unbind(-2)
        green, blue = torch.zeros_like(red.loc), torch.zeros_like(red.loc)
        for r, r_weight in _nodes(red.loc, inverse[0], self.levels):
            green_loc = self._location([r])
            green = green + r_weight * _mean(green_loc, inverse[1], self.levels)
            for g, g_weight in _nodes(green_loc, inverse[1], self.levels):
                blue_mean = _mean(self._location([r, g]), inverse[2], self.levels)
                blue = blue + r_weight * g_weight * blue_mean
        weights = self.logits.softmax(-1)
        means = [(weights * mean).sum(-1) for mean in (red.mean, green, blue)]
        return torch.stack(means, len(self.batch_shape))

    def _pixel_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of every pixel, ``(*batch, *pixels)``."""
        levels = [level[..., None] for level in value.unbind(-len(self.event_shape))]
        log_p = torch.log_softmax(self.logits, -1)
        for channel, level in enumerate(levels):
            log_p = log_p + self._channel(levels[:channel]).log_prob(level)
        return torch.logsumexp(log_p, -1)

    def _channel(self, previous: Sequence[Tensor]) -> DiscretizedLogistic:
        """Return the K components of a channel given the levels of the preceding channels."""
        log_scale = self.log_scale[..., len(previous), :]
        return DiscretizedLogistic(self._location(previous), log_scale, self.levels, False)

    def _location(self, previous: Sequence[Tensor | float]) -> Tensor:
        loc = self.loc[..., len(previous), :]
        first = len(previous) // 2  # α for green, β and γ for blue
        for index, level in enumerate(previous, first):
            loc = loc + self.coefficients[..., index, :] * (level - self.levels / 2)
        return loc


class ObservedColours(RescoredDistribution):
    """Distribution of colour images whose ``log_prob`` is that of the pixels that are not NaN.

    The probability of an unobserved pixel sums to 1, so that its term is 0. Samples and moments
    are those of ``base_dist``: all pixels.

    Arguments:
        base_dist: the distribution of complete images.
    """

    def __init__(self, base_dist: ColourLogisticMixture, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return OrUnobserved(self.base_dist.support, 0.0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ObservedColours:
        return ObservedColours(self.base_dist.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        observed = ~value.isnan()
        return self.observed_log_prob(torch.where(observed, value, 0.0), observed, check=False)

    def observed_log_prob(self, value: Tensor, observed: Tensor, check: bool = True) -> Tensor:
        """Return the log-probability of the observed pixels of a complete ``value``."""
        return self.base_dist.observed_log_prob(value, observed, check)


def check_whole_pixels(observed: Tensor, event_dim: int) -> None:
    """Raise a ``ValueError`` unless every pixel is observed in all three channels or in none.

    Arguments:
        observed: boolean mask ``(*batch, 3, *pixels)``.
        event_dim: 1 plus the number of dimensions of ``pixels``.
    """
    some, every = observed.any(-event_dim), observed.all(-event_dim)
    if not torch.equal(some, every):
        raise ValueError(
            "expected pixels observed in all three channels or in none, because the channels "
            "depend on one another; got pixels observed in part: mask whole pixels, or set the "
            "likelihood's coupling to false"
        )


def _nodes(loc: Tensor, inverse: Tensor, levels: int) -> Iterator[tuple[Tensor | float, Tensor]]:
    """Yield levels x_i and weights w_i with E[f(x)] ≈ Σ_i w_i f(x_i), for a discretised logistic.

    With few levels, the nodes are all levels. Otherwise f is interpolated linearly between nodes,
    so that the rule is exact for linear f, and x is not rounded.

    Arguments:
        loc, inverse: location and inverse scale, in levels.
        levels: the highest level.
    """
    nodes: list[Any]
    if levels < _MAX_EXACT:
        nodes = [float(level) for level in range(levels + 1)]
    else:
        reach = _HALF_WIDTH / inverse
        low, high = (loc - reach).clamp(0, levels), (loc + reach).clamp(0, levels)
        step = (high - low) / (_NODES - 3)
        nodes = [0.0, *(low + i * step for i in range(_NODES - 2)), float(levels)]
    above = torch.ones_like(loc)
    for node, following in pairwise(nodes):
        below = _mean_survival(loc, inverse, node, following, levels)
        yield node, above - below
        above = below
    yield nodes[-1], above


def _mean(loc: Tensor, inverse: Tensor, levels: int) -> Tensor:
    """Return the mean of a discretised logistic; with many levels, without rounding."""
    if levels >= _MAX_EXACT:
        return levels * _mean_survival(loc, inverse, 0.0, float(levels), levels)
    steps = pairwise(map(float, range(levels + 1)))
    return sum((_mean_survival(loc, inverse, *step, levels) for step in steps), torch.zeros(()))


def _mean_survival(
    loc: Tensor, inverse: Tensor, low: Tensor | float, high: Tensor | float, levels: int
) -> Tensor:
    """Return the mean of P(x > u) over u in [low, high]; with few levels, P(x ≥ high)."""
    if levels < _MAX_EXACT:
        return torch.sigmoid((loc - (low + high) / 2) * inverse)
    # the difference cancels in narrower intervals, in which the integrand is constant
    width = ((high - low) * inverse).clamp(min=1e-2)
    start = (loc - low) * inverse
    return (softplus(start) - softplus(start - width)) / width
