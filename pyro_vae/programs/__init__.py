"""Running any Pyro program: its sites, its inputs and its log weights per example."""

from .importance_weights import log_weights

__all__ = ["log_weights"]
