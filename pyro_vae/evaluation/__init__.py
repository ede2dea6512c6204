"""Judging a program: bounds on log p(x), estimates of it, and how far to trust them."""

from .bounds import Bounds, evaluate
from .latents import ActiveUnits, active_units

__all__ = ["ActiveUnits", "Bounds", "active_units", "evaluate"]
