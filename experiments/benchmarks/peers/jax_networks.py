"""Multilayer perceptrons in JAX."""

# the peers' environment has these packages
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["layers", "mlp"]

Layers = list[tuple[jax.Array, jax.Array]]


def layers(arrays: Sequence[tuple[np.ndarray, np.ndarray]]) -> Layers:
    """Weights ``(in, out)`` and biases on the device."""
    return [(jnp.asarray(weight.T), jnp.asarray(bias)) for weight, bias in arrays]


def mlp(weights: Layers, h: jax.Array) -> jax.Array:
    for weight, bias in weights[:-1]:
        h = jnp.tanh(h @ weight + bias)
    weight, bias = weights[-1]
    return h @ weight + bias
