"""Run Pyro programs: sites, arguments and log weights per example."""

from .importance_weights import log_weights

__all__ = ["log_weights"]
