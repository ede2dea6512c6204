"""The order of the channels of images: programs expect ``(N, C, H, W)``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np

__all__ = ["CHANNELS_CHOICES", "Channels", "put_channels_first"]

#: Where the channels of images are: ``(N, C, H, W)``, ``(N, H, W, C)``, or not images.
Channels = Literal["first", "last", "none"]
CHANNELS_CHOICES: tuple[str, ...] = get_args(Channels)

#: Numbers of channels: grey, colour, and colour with transparency.
_COUNTS = (1, 3, 4)


def put_channels_first(values: np.ndarray, channels: str | None, file: Path) -> np.ndarray:
    """Return images as ``(N, C, H, W)``; other arrays are returned as they are.

    Without ``channels``, an array of four dimensions is recognised by its number of channels.

    Raises:
        ValueError: if the order of the channels is unknown, or does not suit the array.
    """
    if channels not in (None, *CHANNELS_CHOICES):
        raise ValueError(
            f"expected data.channels to be one of {', '.join(CHANNELS_CHOICES)}; got {channels!r}"
        )
    if channels == "none" or (channels is None and values.ndim != 4):
        return values
    if values.ndim != 4:
        raise ValueError(
            f"expected images of four dimensions in {file} for data.channels {channels}; got shape "
            f"{values.shape}: set data.channels to none"
        )
    if channels is None:
        channels = _recognise(values, file)
    return np.moveaxis(values, -1, 1) if channels == "last" else values


def _recognise(values: np.ndarray, file: Path) -> str:
    """Return where the channels are; raise if the shape does not tell."""
    is_first, is_last = values.shape[1] in _COUNTS, values.shape[3] in _COUNTS
    if is_last and (is_first or values.dtype != np.uint8):
        first, last = values.shape[1], values.shape[3]
        raise ValueError(
            f"expected data.channels to say where the channels of {values.shape} in {file} are, "
            f"as they cannot be recognised: set it to first ({first} channels), to last ({last} "
            f"channels), or to none for values that are not images"
        )
    return "last" if is_last else "first"
