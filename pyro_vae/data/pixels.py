"""Examples as the pixels of pictures."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..core.components import Shape

__all__ = ["is_image", "to_pixels"]


def is_image(event_shape: Shape) -> bool:
    """Whether an example is an image: grey ``(H, W)`` or ``(1, H, W)``, colour ``(3, H, W)``."""
    return len(event_shape) in (2, 3) and event_shape[:-2] in ((), (1,), (3,))


def to_pixels(x: Tensor) -> np.ndarray:
    """Return images ``(n, *event)`` as pixels in [0, 1]; other ranges are rescaled.

    Unobserved pixels (NaN) are grey, ½.

    Returns:
        ``(n, H, W)`` for grey images, and ``(n, H, W, 3)`` for colour images, whose channels are
        rescaled alike.
    """
    images = x.detach().cpu().double()
    is_colour = images.ndim == 4 and images.shape[1] == 3
    images = images.movedim(1, -1) if is_colour else images.reshape(-1, *images.shape[-2:])
    missing = images.isnan()
    # 0 is within the range in any case
    known = images.masked_fill(missing, 0.0)
    low, high = known.min().clamp(max=0), known.max().clamp(min=1)
    return ((images - low) / (high - low)).masked_fill(missing, 0.5).numpy()
