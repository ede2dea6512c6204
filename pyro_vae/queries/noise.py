"""Known noise on observed pixels, integrated in closed form."""

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
    """Base class of a known p(x̃ | x) of single pixels, integrated over x in closed form.

    Subclasses define :meth:`log_prob` and :meth:`clean`, and raise ``ValueError`` for pixel
    distributions without a closed form.
    """

    @abstractmethod
    def log_prob(self, pixels: Any, seen: Tensor) -> Tensor:
        """Return log ∫ p(x̃ | x) p(x | z) dx of each pixel, in nats.

        Arguments:
            pixels: p(x | z) of single pixels.
            seen: x̃, of their batch shape.
        """

    @abstractmethod
    def clean(self, pixels: Any, seen: Tensor) -> Any:
        """Return p(x | z, x̃) of each pixel."""


@dataclass(frozen=True)
class Flip(Noise):
    """Binary noise that flips a pixel with probability ε, for ``Bernoulli`` pixels.

    p(x̃ = 1 | z) = p (1 − ε) + (1 − p) ε.

    Arguments:
        probability: ε.

    Raises:
        ValueError: if it is not in (0, ½]; above ½ the inverted image would be less noisy.
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 0.5:
            raise ValueError(f"expected a flip probability in (0, ½]; got {self.probability}")

    def log_prob(self, pixels: Any, seen: Tensor) -> Tensor:
        return torch.logaddexp(*self._joint_log_prob(pixels, seen))

    def clean(self, pixels: Any, seen: Tensor) -> Any:
        same, flipped = self._joint_log_prob(pixels, seen)
        # log odds of x = 1, which is the unflipped case if x̃ = 1
        return Bernoulli(logits=torch.where(seen > 0.5, same - flipped, flipped - same))

    def _joint_log_prob(self, pixels: Any, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x̃, x = x̃ | z) and log p(x̃, x = 1 − x̃ | z)."""
        _check_pixels(pixels, Bernoulli, "Flip")
        keep, flip = math.log1p(-self.probability), math.log(self.probability)
        return keep + pixels.log_prob(seen), flip + pixels.log_prob(1 - seen)


@dataclass(frozen=True)
class AdditiveNormal(Noise):
    """Additive noise x̃ = x + σ ε with ε ~ N(0, 1), for ``Normal`` pixels.

    Arguments:
        scale: σ, in the unit of the data.

    Raises:
        ValueError: if it is not positive and finite.
    """

    scale: float

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"expected a noise scale > 0 and finite; got {self.scale}")

    def log_prob(self, pixels: Any, seen: Tensor) -> Tensor:
        _check_pixels(pixels, Normal, "AdditiveNormal")
        return Normal(pixels.loc, pixels.scale.hypot(seen.new_tensor(self.scale))).log_prob(seen)

    def clean(self, pixels: Any, seen: Tensor) -> Any:
        _check_pixels(pixels, Normal, "AdditiveNormal")
        gain = pixels.scale**2 / (pixels.scale**2 + self.scale**2)
        return Normal(pixels.loc + gain * (seen - pixels.loc), self.scale * gain.sqrt())


def _check_pixels(pixels: Any, expected: type, noise: str) -> None:
    if not isinstance(pixels, expected):
        raise ValueError(
            f"expected {expected.__name__} pixels for the noise {noise}; got "
            f"{type(pixels).__name__}: use Flip with a Bernoulli likelihood and AdditiveNormal "
            f"with a Gaussian likelihood"
        )
