"""Observed pixels: named masks, known noise, and a baseline for missing ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from ..core.components import Shape
from ..core.validation import check_choice, did_you_mean
from ..data.columns import Column
from ..data.kinds import Kind, kind_of
from ..data.splits import contains_nan

__all__ = ["AdditiveNormal", "Flip", "Noise", "mask", "mask_columns", "score_pixelwise"]

_MASKS = ("none", "lower-half", "upper-half", "left-half", "right-half", "random", "every")


def mask(missing: str, event_shape: Shape, seed: int = 0) -> Tensor:
    """Return a mask of the observed pixels.

    Arguments:
        missing: the missing pixels: ``none``; ``lower-half``, ``upper-half``, ``left-half`` or
            ``right-half`` of an image; ``random:0.5`` for that fraction of all pixels, the same
            for all examples; ``every:2`` to observe only every second row and column.
        event_shape: the shape of one example; the last two dimensions are height and width.
        seed: seed of a random mask.

    Returns:
        A boolean tensor of that shape, true for observed pixels.

    Raises:
        ValueError: if the name is unknown, a number is out of range, or a half or ``every`` is
            requested of examples that are not images.
    """
    name, _, number = missing.partition(":")
    if name not in _MASKS or bool(number) != (name in ("random", "every")):
        raise ValueError(
            f"expected missing to be none, lower-half, upper-half, left-half, right-half, "
            f"random:FRACTION or every:N; got {missing!r}{did_you_mean(missing, _MASKS)}"
        )
    observed = torch.ones(event_shape, dtype=torch.bool)
    if name == "none":
        return observed
    if name == "random":
        try:
            fraction = float(number)
        except ValueError:
            fraction = -1.0
        if not 0 < fraction < 1:
            raise ValueError(f"expected a fraction in (0, 1) after 'random:'; got {number!r}")
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(event_shape, generator=generator) >= fraction
    if len(event_shape) < 2:
        raise ValueError(
            f"expected images with height and width for missing {missing!r}; got examples of "
            f"shape {event_shape}: use random:FRACTION"
        )
    height, width = event_shape[-2:]
    if name == "every":
        step = int(number) if number.isdecimal() else 0
        if not 2 <= step <= max(height, width):
            raise ValueError(
                f"expected a whole number from 2 to {max(height, width)} after 'every:'; got "
                f"{number!r}"
            )
        observed[:] = False
        observed[..., ::step, ::step] = True
    else:
        half = {
            "lower": (slice(height // 2, None), slice(None)),
            "upper": (slice(None, height // 2), slice(None)),
            "left": (slice(None), slice(None, width // 2)),
            "right": (slice(None), slice(width // 2, None)),
        }[name.removesuffix("-half")]
        observed[(..., *half)] = False
    return observed


def mask_columns(names: str | Sequence[str], columns: Sequence[Column]) -> Tensor:
    """Return a mask of the observed columns of a table, to infer the others by ``impute``.

    Arguments:
        names: the names of the columns to infer; a string may name several, separated by commas.
        columns: the columns, as in ``data.columns`` of a table or ``run.columns``.

    Returns:
        A boolean tensor ``(D,)``, true for observed columns.

    Raises:
        ValueError: if a name is not that of a column.

    Example::

        observed = pv.queries.mask_columns("age,sex", run.columns)
    """
    known = [column.name for column in columns]
    if isinstance(names, str):
        names = [names] if names in known else [name.strip() for name in names.split(",")]
    for name in names:
        check_choice("the name of a column", str(name), known)
    return torch.tensor([name not in names for name in known])


def score_pixelwise(train: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """Compute log p(x_mis) under independent pixels, the baseline of mean imputation.

    Binary pixels have a Bernoulli distribution with the smoothed frequency (n₁ + ½)/(n + 1), real
    ones a normal distribution with the mean and standard deviation (at least 1e-3) of the
    training data. Compare the result only with likelihoods of the same kind, probability or
    density.

    Arguments:
        train: the training examples, ``(n, *event)``.
        x: the examples to score, ``(N, *event)``.
        observed: boolean mask of the pixels that are not scored, ``(N, *event)`` or ``event``.

    Returns:
        The log likelihoods, ``(N,)``, nats.

    Raises:
        ValueError: if the data are integers with more than two levels, or ``train`` has NaN.
    """
    if contains_nan(train):
        raise ValueError(
            "expected complete training examples for a baseline per pixel; got NaN: pass those "
            "without unobserved values"
        )
    kind = kind_of(train)
    if kind in (Kind.LEVELS, Kind.COUNTS):
        raise ValueError(f"expected 0/1 or real numbers; got {kind.describe(train)}")
    pixels = (
        Bernoulli((train.sum(0) + 0.5) / (len(train) + 1))
        if kind is Kind.BINARY
        else Normal(train.mean(0), train.std(0, correction=0).clamp(min=1e-3))
    )
    score = torch.where(observed.expand(x.shape), 0.0, pixels.log_prob(x))
    return score.flatten(1).sum(1) if score.ndim > 1 else score


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
