"""What was seen of a pixel: nothing, the pixel itself, or the pixel through known noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

__all__ = ["AdditiveNormal", "Flip", "Noise"]


class Noise(ABC):
    """A known p(x̃ | x) of single pixels, integrated over x in closed form.

    A new one defines :meth:`log_prob` and :meth:`clean`, and refuses pixel distributions for
    which there is no closed form.
    """

    @abstractmethod
    def log_prob(self, pixels: Any, seen: Tensor) -> Tensor:
        """log ∫ p(x̃ | x) p(x | z) dx of each pixel, in nats.

        Arguments:
            pixels: p(x | z) of single pixels.
            seen: x̃, of their batch shape.
        """

    @abstractmethod
    def clean(self, pixels: Any, seen: Tensor) -> Any:
        """p(x | z, x̃) of each pixel."""


@dataclass(frozen=True)
class Flip(Noise):
    """A binary pixel is seen as its opposite with probability ε; for ``Bernoulli`` pixels.

    p(x̃ = 1 | z) = p (1 − ε) + (1 − p) ε.

    Arguments:
        probability: ε.

    Raises:
        ValueError: if it is not in (0, ½]; with more, the opposite image is the less noisy one.
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 0.5:
            raise ValueError(f"expected a probability of flips in (0, ½]; got {self.probability}")

    def log_prob(self, pixels: Any, seen: Tensor) -> Tensor:
        return torch.logaddexp(*self._joint(pixels, seen))

    def clean(self, pixels: Any, seen: Tensor) -> Any:
        same, other = self._joint(pixels, seen)
        # the log odds that x is 1: that it is what was seen, where a 1 was seen
        return Bernoulli(logits=torch.where(seen > 0.5, same - other, other - same))

    def _joint(self, pixels: Any, seen: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x̃, x = x̃ | z) and log p(x̃, x = 1 − x̃ | z)."""
        _check(pixels, Bernoulli, "Flip")
        keep, flip = math.log1p(-self.probability), math.log(self.probability)
        return keep + pixels.log_prob(seen), flip + pixels.log_prob(1 - seen)


@dataclass(frozen=True)
class AdditiveNormal(Noise):
    """x̃ = x + σ ε with ε ~ N(0, 1); for ``Normal`` pixels, whose variance σ² adds to.

    Arguments:
        scale: σ, in the unit of the data.

    Raises:
        ValueError: if it is not positive and finite.
    """

    scale: float

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"expected a scale of the noise > 0 and finite; got {self.scale}")

    def log_prob(self, pixels: Any, seen: Tensor) -> Tensor:
        _check(pixels, Normal, "AdditiveNormal")
        return Normal(pixels.loc, pixels.scale.hypot(seen.new_tensor(self.scale))).log_prob(seen)

    def clean(self, pixels: Any, seen: Tensor) -> Any:
        _check(pixels, Normal, "AdditiveNormal")
        trust = pixels.scale**2 / (pixels.scale**2 + self.scale**2)
        return Normal(pixels.loc + trust * (seen - pixels.loc), self.scale * trust.sqrt())


def _check(pixels: Any, wanted: type, noise: str) -> None:
    if not isinstance(pixels, wanted):
        raise ValueError(
            f"expected {wanted.__name__} pixels for the noise {noise}, which is integrated in "
            f"closed form; got {type(pixels).__name__}: Flip goes with a Bernoulli likelihood, "
            f"AdditiveNormal with a Gaussian one"
        )
