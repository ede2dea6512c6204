"""Likelihoods of integer levels 0 … n, such as the bytes of an image."""

from __future__ import annotations

import math
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn
from torch.nn.functional import logsigmoid

from .. import distributions
from ..core.components import Heads, NetworkFactory, Shape
from ..core.validation import positive_int
from ..data.kinds import Kind
from ..data.missing import complete_by_column
from ..distributions import log1mexp
from .base import Likelihood, clamped_logit

__all__ = [
    "Binomial",
    "Categorical",
    "DiscretizedLogistic",
    "LevelLikelihood",
    "MixtureOfDiscretizedLogistics",
    "Ordinal",
]


class LevelLikelihood(Likelihood):
    """Base class of likelihoods of the levels 0 … n.

    Arguments:
        outputs: the shape of the decoder outputs for one pixel, which precedes ``pixels``.
        levels: n, the highest level (16 for ``digits``, 255 for bytes).
        pixels: the shape of what has these outputs; by default ``event_shape``.
        num_heads: the number of equal parts of ``outputs`` that are separate parameters.

    Raises:
        ValueError: if ``levels`` is not a positive integer.
    """

    supported_kind = Kind.COUNTS
    hint = "set data.values to integer, or choose a likelihood of real values"

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        outputs: Shape,
        levels: int,
        pixels: Shape | None = None,
        num_heads: int = 1,
    ) -> None:
        super().__init__(latent_dim, event_shape, network)
        self.levels = positive_int("levels", levels)
        self.pixels = self.event_shape if pixels is None else tuple(pixels)
        shape = (*outputs, *self.pixels)
        sizes = [math.prod(shape) // num_heads] * num_heads
        self.network = network((latent_dim,), Heads(shape, sizes))

    def check(self, x: torch.Tensor) -> None:
        super().check(x)
        if x.max() > self.levels:
            raise ValueError(
                f"{type(self).__name__} with levels={self.levels} scores 0 … {self.levels}; got a "
                f"value of {int(x.max())}: set levels to the highest value in the data"
            )

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the decoder outputs, those of a pixel last: ``(*batch, *pixels, K)``."""
        return self.network(z).movedim(-1 - len(self.pixels), -1)


class Binomial(LevelLikelihood):
    """p(x|z) = Π_i Binomial(x_i; n, sigmoid(f_i(z))), for levels 0 … n.

    References:
        Practical Lossless Compression with Latent Variables using Bits Back Coding (Townsend
        et al., 2019), section 3, which uses a beta-binomial. https://arxiv.org/abs/1901.04866
    """

    def __init__(
        self, latent_dim: int, event_shape: Shape, network: NetworkFactory, levels: int = 255
    ) -> None:
        super().__init__(latent_dim, event_shape, network, (), levels)

    def forward(self, z: torch.Tensor) -> Distribution:
        fn = distributions.Binomial(self.levels, logits=self.network(z))
        return fn.to_event(len(self.event_shape))

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        return clamped_logit(x.mean(0) / self.levels)


class Categorical(LevelLikelihood):
    """p(x|z) = Π_i softmax(f_i(z))_{x_i}, with a free probability for each of the levels 0 … n.

    The most flexible likelihood of levels, with the most decoder outputs: n + 1 per pixel. It
    ignores the order of the levels.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), section 3.4.
        https://arxiv.org/abs/1601.06759
    """

    def __init__(
        self, latent_dim: int, event_shape: Shape, network: NetworkFactory, levels: int = 255
    ) -> None:
        super().__init__(
            latent_dim, event_shape, network, (positive_int("levels", levels) + 1,), levels
        )

    def forward(self, z: torch.Tensor) -> Distribution:
        fn = distributions.CategoricalLevels(logits=self.decode(z))
        return fn.to_event(len(self.event_shape))

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        levels = x.reshape(len(x), -1).long()
        counts = x.new_zeros(self.levels + 1, levels.shape[1])
        counts.scatter_add_(0, levels, x.new_ones(()).expand_as(levels))
        # one pseudo-example, spread evenly over the levels, keeps every probability positive
        frequencies = (counts + 1 / len(counts)) / (len(x) + 1)
        return frequencies.log().reshape(-1, *self.event_shape)


class DiscretizedLogistic(LevelLikelihood):
    """p(x|z) = Π_i DL(x_i; μ_i(z), s_i(z)), a logistic variable rounded to the levels 0 … n.

    The probability of a level is that of the interval of ± ½ around it; the tails are assigned
    to the lowest and highest level. The decoder outputs f and g, ``(2, *event_shape)``. The
    location is μ = n (f + 1) / 2, so that f from −1 to 1 spans the levels, and the scale is
    s = exp(g) n / 2.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        section C.2. https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self, latent_dim: int, event_shape: Shape, network: NetworkFactory, levels: int = 255
    ) -> None:
        super().__init__(latent_dim, event_shape, network, (2,), levels, num_heads=2)

    def forward(self, z: torch.Tensor) -> Distribution:
        loc, log_scale = self.decode(z).unbind(-1)
        return _logistic(loc, log_scale, self.levels).to_event(len(self.event_shape))

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(_location_and_scale(x, self.levels))


class MixtureOfDiscretizedLogistics(LevelLikelihood):
    """p(x|z) = Π_i Σ_k π_ik(z) DL(x_i; μ_ik(z), s_ik(z)), mixtures of rounded logistics.

    The decoder outputs ``(3 * components, *event_shape)``: all log π, then all f, then all g, which
    set location and scale as in :class:`DiscretizedLogistic`. All pixels and channels are
    independent given z.

    With ``coupling``, the channels of a pixel depend on one another as in PixelCNN++: they share
    the component, and its locations of green and blue shift with the levels of the preceding
    channels, μ_green = μ₂ + α (r − n/2) and μ_blue = μ₃ + β (r − n/2) + γ (g − n/2). The decoder
    outputs ``(10 * components, *event_shape[1:])``: all log π, then f, g and h of red, f, g and h
    of green, f, g and h of blue. The three tanh h are α, β and γ. Unlike in the authors' code, the
    scales have no lower bound.

    Arguments:
        components: the number of mixture components per pixel.
        coupling: whether the channels of a pixel depend on one another, for colour images
            ``(3, H, W)``; ``auto`` couples them if ``event_shape`` has that form.

    Raises:
        ValueError: if ``components`` is not a positive integer, or for a coupling of data that do
            not have three channels first.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and
        Other Modifications (Salimans et al., 2017), sections 2.1 and 2.2.
        https://arxiv.org/abs/1701.05517
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        levels: int = 255,
        components: int = 5,
        coupling: bool | Literal["auto"] = False,
    ) -> None:
        event_shape = tuple(event_shape)
        self.is_coupled = _is_coupled(coupling, event_shape)
        kinds = 10 if self.is_coupled else 3
        outputs = kinds * positive_int("components", components)
        pixels = event_shape[1:] if self.is_coupled else event_shape
        super().__init__(latent_dim, event_shape, network, (outputs,), levels, pixels, kinds)
        self.components = components

    @property
    def not_factorised_reason(self) -> str | None:
        """Why the values of an example are not independent given z; ``None`` if they are."""
        reason = "coupling makes the channels of a pixel depend on one another"
        return reason if self.is_coupled else None

    def score_observed(self, fn: Any) -> Distribution:
        return distributions.ObservedColours(fn) if self.is_coupled else super().score_observed(fn)

    def check_observed(self, x: torch.Tensor) -> None:
        """Raise if the observed values of ``x`` cannot be scored; with coupling, those of pixels.

        Raises:
            ValueError: as for :meth:`check`; or, with coupling, if only some channels of a pixel
                are observed.
        """
        if not self.is_coupled:
            super().check_observed(x)
            return
        distributions.check_whole_pixels(~x.isnan(), len(self.event_shape))
        self.check(complete_by_column(x))

    def forward(self, z: torch.Tensor) -> Distribution:
        if self.is_coupled:
            return self._couple(self.decode(z))
        logits, loc, log_scale = self.decode(z).chunk(3, -1)
        pixels = dist.MixtureSameFamily(
            dist.Categorical(logits=logits), _logistic(loc, log_scale, self.levels)
        )
        return pixels.to_event(len(self.event_shape))

    def _couple(self, outputs: torch.Tensor) -> distributions.ColourLogisticMixture:
        logits, rest = outputs.split([self.components, 9 * self.components], -1)
        loc, log_scale, coefficients = rest.unflatten(-1, (3, 3, self.components)).unbind(-2)
        logistic = _logistic(loc, log_scale, self.levels)
        return distributions.ColourLogisticMixture(
            logits,
            logistic.loc,
            logistic.log_scale,
            coefficients.tanh(),
            self.levels,
            len(self.event_shape),
        )

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        # components that start alike stay alike; with other scales the mean is the same
        octaves = torch.arange(self.components, dtype=x.dtype, device=x.device)
        octaves = octaves - (self.components - 1) / 2
        pairs = [_location_and_scale(x, self.levels, 2.0 ** float(o)) for o in octaves]
        loc, log_scale = (torch.stack(rows) for rows in zip(*pairs, strict=True))
        if not self.is_coupled:
            return torch.cat([torch.zeros_like(loc), loc, log_scale])
        # per channel (K, 3, *pixels): without a shift, the means are those of the data
        channels = torch.stack([loc, log_scale, torch.zeros_like(loc)]).movedim(2, 0)
        return torch.cat([torch.zeros_like(loc[:, 0]), channels.flatten(0, 2)])


class Ordinal(LevelLikelihood):
    """p(x_i ≤ k | z) = σ(θ_ik − f_i(z)), the ordered logit of levels 0 … n without a unit.

    The thresholds θ_i0 < … < θ_i,n−1 are parameters of each column, the location f_i(z) is decoded.
    Only the order of the levels matters, as in ratings from "never" to "always".

    In the paper, the thresholds are outputs of the decoder.

    Raises:
        ValueError: if ``levels`` is below 2.

    References:
        Handling Incomplete Heterogeneous Data using VAEs (Nazábal et al., 2018), section 3;
        Regression Models for Ordinal Data (McCullagh, 1980).
        https://arxiv.org/abs/1807.03653
    """

    def __init__(
        self, latent_dim: int, event_shape: Shape, network: NetworkFactory, levels: int = 4
    ) -> None:
        super().__init__(latent_dim, event_shape, network, (), levels)
        if self.levels < 2:
            raise ValueError("expected levels of at least 2 for Ordinal; got 1: use Bernoulli")
        # at f = 0 all levels have the same probability
        start = (torch.arange(1, self.levels + 1) / (self.levels + 1)).logit()
        start = start.to(torch.get_default_dtype())
        self.first_threshold = nn.Parameter(torch.full(self.event_shape, float(start[0])))
        gaps = start.diff().log().expand(*self.event_shape, -1)
        self.log_gaps = nn.Parameter(gaps.clone())

    @property
    def thresholds(self) -> torch.Tensor:
        """θ, ``(*event_shape, n)``, increasing along the last dimension."""
        first = self.first_threshold.unsqueeze(-1)
        return torch.cat([first, first + self.log_gaps.exp().cumsum(-1)], -1)

    def forward(self, z: torch.Tensor) -> Distribution:
        above = self.thresholds - self.network(z).unsqueeze(-1)
        # P(k) = σ(b) − σ(a) = σ(b) σ(−a) (1 − exp(a − b)), which does not cancel in the tails
        middle = logsigmoid(above[..., 1:]) + logsigmoid(-above[..., :-1])
        ends = logsigmoid(above[..., :1]), logsigmoid(-above[..., -1:])
        logits = torch.cat([ends[0], middle + log1mexp(self.log_gaps.exp()), ends[1]], -1)
        fn = distributions.CategoricalLevels(logits=logits)
        return fn.to_event(len(self.event_shape))

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        # the mean is Σ_k σ(f − θ_k), which increases with f; its inverse has no closed form
        mean = x.mean(0).clamp(1e-3 * self.levels, (1 - 1e-3) * self.levels)
        thresholds = self.thresholds.detach()
        low, high = torch.full_like(mean, -1e2), torch.full_like(mean, 1e2)
        for _ in range(60):
            middle = (low + high) / 2
            below = (middle.unsqueeze(-1) - thresholds).sigmoid().sum(-1) < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


def _is_coupled(coupling: bool | Literal["auto"], event_shape: Shape) -> bool:
    if coupling not in (True, False, "auto"):
        raise ValueError(f"expected coupling to be true, false or auto; got {coupling!r}")
    if coupling == "auto":
        return len(event_shape) == 3 and event_shape[0] == 3
    if coupling and event_shape[:1] != (3,):
        last = event_shape[-1:] == (3,)
        remedy = "pass the channels first, x.permute(0, 3, 1, 2)" if last else "set it to false"
        raise ValueError(
            f"expected colour images (3, H, W) for coupling; got event_shape {event_shape}: "
            f"{remedy}"
        )
    return bool(coupling)


def _logistic(
    loc: torch.Tensor, log_scale: torch.Tensor, levels: int
) -> distributions.DiscretizedLogistic:
    """Rescale decoder outputs, for which the levels span −1 to 1, to levels."""
    half = levels / 2
    return distributions.DiscretizedLogistic(half * (loc + 1), log_scale + math.log(half), levels)


def _location_and_scale(
    x: torch.Tensor, levels: int, factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs with the mean of ``x`` and ``factor`` times the scale of ``x``.

    The mean m of a logistic with its tails assigned to 0 and n is
    s log (1 + e^{μ/s}) − s log (1 + e^{(μ−n)/s}), which is solved for μ.
    """
    mean = x.mean(0).clamp(1e-3 * levels, (1 - 1e-3) * levels)
    # a logistic has standard deviation s π / √3; constant pixels get half a level
    scale = factor * (x.std(0, correction=0) * math.sqrt(3) / math.pi).clamp(min=0.5)
    loc = mean + scale * (log1mexp(mean / scale) - log1mexp((levels - mean) / scale))
    return 2 * loc / levels - 1, (2 * scale / levels).log()
