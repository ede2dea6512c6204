"""Pyro programs: each has a ``model`` and a ``guide``, every per-datum site in plate "data"."""

from .base import Autoencoder
from .vae import VAE

__all__ = ["VAE", "Autoencoder"]
