"""One script for each figure or table of a paper; ``python -m experiments.papers`` compares all."""
