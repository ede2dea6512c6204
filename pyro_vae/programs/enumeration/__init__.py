"""Discrete sites that are summed out exactly: marks, the run with all values, the posterior."""
