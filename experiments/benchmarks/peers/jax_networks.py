"""Multilayer perceptrons in JAX."""

# these packages are installed in the peers' environment only
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["load_layers", "mlp"]

Layers = list[tuple[jax.Array, jax.Array]]


def load_layers(arrays: Sequence[tuple[np.ndarray, np.ndarray]]) -> Layers:
    """Return weights ``(in, out)`` and biases on the device."""
    return [(jnp.asarray(weight.T), jnp.asarray(bias)) for weight, bias in arrays]


def mlp(weights: Layers, h: jax.Array) -> jax.Array:
    """Apply a multilayer perceptron with tanh activations."""
    for weight, bias in weights[:-1]:
        h = jnp.tanh(h @ weight + bias)
    weight, bias = weights[-1]
    return h @ weight + bias
