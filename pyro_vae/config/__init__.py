"""Experiment configuration: YAML, command-line options and plugins."""
