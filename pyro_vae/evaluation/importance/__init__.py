"""Importance sampling: streaming estimates, PSIS, jackknife and defensive mixtures."""
