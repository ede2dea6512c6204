"""Figures and settings of a run as text."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["flatten_settings", "format_bits_per_dim"]


def format_bits_per_dim(rows: dict[str, dict[str, float | None]]) -> str:
    """Format the bits per dimension in ``result.json`` as one line."""
    labels = {"elbo": "ELBO", "log_evidence": "log p̂"}
    parts = []
    for name, row in rows.items():
        value, error = (math.nan if row[k] is None else row[k] for k in ("value", "se_data"))
        parts.append(f"{labels[name]} {value:.4f} ± {error:.4f}")
    return f"bits per dimension (lower is better, ± data): {', '.join(parts)}"


def flatten_settings(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a nested configuration as rows ``(dotted key, value)``."""
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        rows += flatten_settings(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return rows
