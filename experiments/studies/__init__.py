"""Our own comparisons of components, one script each."""
