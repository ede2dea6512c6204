"""Calibration of posterior approximations and of predictive distributions."""
