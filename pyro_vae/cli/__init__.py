"""The command line interface ``pyro-vae``."""

from .app import main

__all__ = ["main"]
