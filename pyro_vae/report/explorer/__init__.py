"""An interactive page of a program's latent space, whose decoder runs in the browser."""

from .page import explore

__all__ = ["explore"]
