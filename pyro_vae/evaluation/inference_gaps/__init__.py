"""Approximation and amortisation gaps."""
