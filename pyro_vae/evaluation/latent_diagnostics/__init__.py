"""Diagnostics of the latent space: active units, KL per latent and ELBO surgery."""
