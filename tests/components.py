"""Every component once, by name: one dictionary drives the contract test of all of them.

A public component that is missing here fails ``test_every_component_is_listed``. Edge cases
are entries of their own.
"""

from __future__ import annotations

from functools import partial

import torch

from pyro_vae import likelihoods, networks, posteriors, priors

#: One hidden layer is enough to make outputs depend on inputs.
SMALL = partial(networks.MLP, hidden=(5,))

PRIORS = {
    "DiagonalNormal": priors.DiagonalNormal,
    "Laplace": priors.Laplace,
    "StudentT": priors.StudentT,
    "StandardNormal": priors.StandardNormal,
    "MixtureOfNormals": partial(priors.MixtureOfNormals, components=3),
    "MixtureOfNormals of one": partial(priors.MixtureOfNormals, components=1),
    "VampPrior": partial(priors.VampPrior, components=3),
    "VampPrior, free": partial(priors.VampPrior, components=2, interval=None),
}
POSTERIORS = {
    "DiagonalNormal": posteriors.DiagonalNormal,
    "FullCovarianceNormal": posteriors.FullCovarianceNormal,
    "LowRankNormal": partial(posteriors.LowRankNormal, rank=1),
}
LIKELIHOODS = {
    "Bernoulli": likelihoods.Bernoulli,
    "Binomial": partial(likelihoods.Binomial, levels=16),
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
    "Gaussian": likelihoods.Gaussian,
    "Gaussian, fixed": partial(likelihoods.Gaussian, scale=0.3),
    "Gaussian, per pixel": partial(likelihoods.Gaussian, scale="per_pixel"),
    "Gaussian, decoded": partial(likelihoods.Gaussian, scale="decoded", mean="sigmoid"),
    "Laplace": likelihoods.Laplace,
    "NegativeBinomial": likelihoods.NegativeBinomial,
    "Poisson": likelihoods.Poisson,
    "StudentT": likelihoods.StudentT,
    "StudentT, fixed": partial(likelihoods.StudentT, df=3.0, scale=0.5),
    "ZeroInflatedNegativeBinomial": likelihoods.ZeroInflatedNegativeBinomial,
}
NETWORKS = {
    "GatedMLP": partial(networks.GatedMLP, hidden=(5,)),
    "MLP": SMALL,
    "MLP, linear": partial(networks.MLP, hidden=()),
    "MLP, deep": partial(networks.MLP, hidden=(4, 3), activation=torch.nn.ReLU),
}


def bound_prior(make, latent_dim=2, event_shape=(3,)):
    """A prior, bound to a posterior as a VAE would."""
    posterior = posteriors.DiagonalNormal(event_shape, latent_dim, SMALL)
    prior = make(latent_dim)
    prior.bind(posterior)
    return prior, posterior
