"""Figures and tables of papers, comparisons of components, and benchmarks."""
