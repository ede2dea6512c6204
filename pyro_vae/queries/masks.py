"""Which pixels of an image are seen, by a word."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.components import Shape
from ..core.validation import did_you_mean

__all__ = ["mask"]

_WORDS = ("none", "lower-half", "upper-half", "left-half", "right-half", "random", "every")


def mask(missing: str, event_shape: Shape, seed: int = 0) -> Tensor:
    """The pixels that are seen when some are missing.

    Arguments:
        missing: ``none``; ``lower-half``, ``upper-half``, ``left-half`` or ``right-half`` of an
            image; ``random:0.5`` for that fraction of all pixels, the same for all data;
            ``every:2`` for an image of which every second row and column is seen.
        event_shape: the shape of one datum; its last two are a height and a width.
        seed: of the random ones.

    Returns:
        Booleans of that shape, true where a pixel is seen.

    Raises:
        ValueError: for another word, a number out of range, or an image's half of what is none.
    """
    word, _, number = missing.partition(":")
    if word not in _WORDS or bool(number) != (word in ("random", "every")):
        raise ValueError(
            f"expected missing to be none, lower-half, upper-half, left-half, right-half, "
            f"random:FRACTION or every:N; got {missing!r}{did_you_mean(missing, _WORDS)}"
        )
    seen = torch.ones(event_shape, dtype=torch.bool)
    if word == "none":
        return seen
    if word == "random":
        return _random(number, event_shape, seed)
    if len(event_shape) < 2:
        raise ValueError(
            f"expected images, of a height and a width, for missing {missing!r}; got data of shape "
            f"{event_shape}: use random:FRACTION"
        )
    height, width = event_shape[-2:]
    if word == "every":
        step = int(number) if number.isdecimal() else 0
        if not 2 <= step <= max(height, width):
            raise ValueError(
                f"expected a whole number from 2 to {max(height, width)} after 'every:'; got "
                f"{number!r}"
            )
        seen[:] = False
        seen[..., ::step, ::step] = True
    else:
        part = {
            "lower": (slice(height // 2, None), slice(None)),
            "upper": (slice(None, height // 2), slice(None)),
            "left": (slice(None), slice(None, width // 2)),
            "right": (slice(None), slice(width // 2, None)),
        }[word.removesuffix("-half")]
        seen[(..., *part)] = False
    return seen


def _random(number: str, event_shape: Shape, seed: int) -> Tensor:
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction in (0, 1) after 'random:'; got {number!r}")
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(event_shape, generator=generator) >= fraction
