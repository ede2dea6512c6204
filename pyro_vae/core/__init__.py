"""Base classes and utilities shared by all subpackages."""
