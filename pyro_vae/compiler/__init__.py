"""Graph tracing and compilation in pure torch, independent of Pyro programs."""
