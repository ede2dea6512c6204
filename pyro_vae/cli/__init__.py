"""The command line, `pyro-vae`."""

from .app import main

__all__ = ["main"]
