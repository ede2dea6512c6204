"""Judging a program: bounds on log p(x), estimates of it, and how far to trust them."""

from .bounds import Bounds, evaluate

__all__ = ["Bounds", "evaluate"]
