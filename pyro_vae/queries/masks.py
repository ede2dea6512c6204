"""Named masks of the observed pixels of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.components import Shape
from ..core.validation import did_you_mean

__all__ = ["mask"]

_NAMES = ("none", "lower-half", "upper-half", "left-half", "right-half", "random", "every")


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
    if name not in _NAMES or bool(number) != (name in ("random", "every")):
        raise ValueError(
            f"expected missing to be none, lower-half, upper-half, left-half, right-half, "
            f"random:FRACTION or every:N; got {missing!r}{did_you_mean(missing, _NAMES)}"
        )
    observed = torch.ones(event_shape, dtype=torch.bool)
    if name == "none":
        return observed
    if name == "random":
        return _make_random_mask(number, event_shape, seed)
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


def _make_random_mask(number: str, event_shape: Shape, seed: int) -> Tensor:
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction in (0, 1) after 'random:'; got {number!r}")
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(event_shape, generator=generator) >= fraction
