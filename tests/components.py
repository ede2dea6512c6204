"""All components by name, the parameters of the contract tests.

``test_every_component_is_listed`` fails if a public component is missing here. Edge cases have
separate entries.
"""

from __future__ import annotations

from functools import partial

import torch

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors, priors
from pyro_vae.models import compatibility, inference

#: A small network: one hidden layer is enough for outputs that depend on the inputs.
SMALL = partial(networks.MLP, hidden=(5,))

PRIORS = {
    "DiagonalNormal": priors.DiagonalNormal,
    "FlowPrior, coupling": partial(priors.FlowPrior, flows=3, hidden=(6,)),
    "FlowPrior, autoregressive": partial(
        priors.FlowPrior, transform="autoregressive", flows=2, hidden=(6,)
    ),
    "FlowPrior, spline": partial(priors.FlowPrior, transform="spline", flows=2, hidden=(6, 5)),
    "Laplace": priors.Laplace,
    "StudentT": priors.StudentT,
    "StandardNormal": priors.StandardNormal,
    "MixtureOfNormals": partial(priors.MixtureOfNormals, components=3),
    "MixtureOfNormals, one component": partial(priors.MixtureOfNormals, components=1),
    "UniformSphere": priors.UniformSphere,
    "VampPrior": partial(priors.VampPrior, components=3),
    "VampPrior, no interval": partial(priors.VampPrior, components=2, interval=None),
    "VampPrior, from data": partial(priors.VampPrior, components=2, start="data"),
    "ZukoPrior": partial(priors.ZukoPrior, options={"transforms": 2, "hidden_features": (6,)}),
}
POSTERIORS = {
    "DiagonalNormal": posteriors.DiagonalNormal,
    "DiagonalNormal, variance": partial(posteriors.DiagonalNormal, log_variance=True),
    "FullCovarianceNormal": posteriors.FullCovarianceNormal,
    "HouseholderFlow": partial(posteriors.HouseholderFlow, flows=3),
    "InverseAutoregressiveFlow": partial(
        posteriors.InverseAutoregressiveFlow, hidden=(6,), context=3
    ),
    "LowRankNormal": partial(posteriors.LowRankNormal, rank=1),
    "PlanarFlow": partial(posteriors.PlanarFlow, flows=2),
    "PowerSpherical": posteriors.PowerSpherical,
    "RadialFlow": partial(posteriors.RadialFlow, flows=2),
    "SemiAmortized": partial(posteriors.SemiAmortized, steps=2),
    "SemiAmortized, planar": partial(
        posteriors.SemiAmortized, family=partial(posteriors.PlanarFlow, flows=2), steps=2
    ),
    "SplineFlow": partial(posteriors.SplineFlow, flows=2, hidden=(6,), context=3),
    "SylvesterFlow": partial(posteriors.SylvesterFlow, flows=2, reflections=3),
    "ZukoFlow": partial(
        posteriors.ZukoFlow, options={"transforms": 2, "hidden_features": (6,)}, context=3
    ),
}
LIKELIHOODS = {
    "Bernoulli": likelihoods.Bernoulli,
    "Beta": likelihoods.Beta,
    "Binomial": partial(likelihoods.Binomial, levels=16),
    "Categorical": partial(likelihoods.Categorical, levels=16),
    "Categorical, two levels": partial(likelihoods.Categorical, levels=1),
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
    "DiscretizedLogistic": likelihoods.DiscretizedLogistic,
    "DiscretizedLogistic, two levels": partial(likelihoods.DiscretizedLogistic, levels=1),
    "Gaussian": likelihoods.Gaussian,
    "Gaussian, fixed scale": partial(likelihoods.Gaussian, scale=0.3),
    "Gaussian, per pixel": partial(likelihoods.Gaussian, scale="per_pixel"),
    "Gaussian, decoded": partial(likelihoods.Gaussian, scale="decoded", mean="sigmoid"),
    "Gaussian, decoded variance": partial(likelihoods.Gaussian, scale="decoded_variance"),
    "Gaussian, optimal": partial(likelihoods.Gaussian, scale="optimal"),
    "Laplace": likelihoods.Laplace,
    "Laplace, optimal": partial(likelihoods.Laplace, scale="optimal"),
    "LogNormal": likelihoods.LogNormal,
    "LogNormal, decoded": partial(likelihoods.LogNormal, scale="decoded"),
    "Ordinal": partial(likelihoods.Ordinal, levels=4),
    "MixtureOfDiscretizedLogistics": partial(
        likelihoods.MixtureOfDiscretizedLogistics, levels=16, components=3
    ),
    "MixtureOfDiscretizedLogistics, one component": partial(
        likelihoods.MixtureOfDiscretizedLogistics, levels=16, components=1
    ),
    "NegativeBinomial": likelihoods.NegativeBinomial,
    "NegativeBinomial, decoded": partial(likelihoods.NegativeBinomial, library="decoded"),
    "NegativeBinomial, observed": partial(likelihoods.NegativeBinomial, library="observed"),
    "Poisson": likelihoods.Poisson,
    "Poisson, decoded": partial(likelihoods.Poisson, library="decoded"),
    "Poisson, observed": partial(likelihoods.Poisson, library="observed"),
    "StudentT": likelihoods.StudentT,
    "StudentT, fixed df and scale": partial(likelihoods.StudentT, df=3.0, scale=0.5),
    "ZeroInflatedNegativeBinomial": likelihoods.ZeroInflatedNegativeBinomial,
    "ZeroInflatedNegativeBinomial, decoded": partial(
        likelihoods.ZeroInflatedNegativeBinomial, library="decoded"
    ),
    "ZeroInflatedNegativeBinomial, observed": partial(
        likelihoods.ZeroInflatedNegativeBinomial, library="observed"
    ),
}
NETWORKS = {
    "ConvNet": partial(networks.ConvNet, channels=(3, 4)),
    "ConvNet, batch norm": partial(
        networks.ConvNet, channels=(3, 4), hidden=(5,), norm="batch", dropout=0.2
    ),
    "ConvNet, layer norm": partial(
        networks.ConvNet, channels=(4,), hidden=(5, 6), kernel=5, norm="layer"
    ),
    "ConvNet, from data": partial(
        networks.ConvNet, channels=(3,), init=0.1, output_bias="data", activation=torch.nn.SiLU
    ),
    "GatedMLP": partial(networks.GatedMLP, hidden=(5,)),
    "GatedMLP, from data": partial(
        networks.GatedMLP, hidden=(5, 4), dropout=0.2, init="glorot", output_bias="data"
    ),
    "MLP": SMALL,
    "MLP, linear": partial(networks.MLP, hidden=()),
    "MLP, deep": partial(networks.MLP, hidden=(4, 3), activation=torch.nn.ReLU),
    "MLP, batch norm": partial(networks.MLP, hidden=(5, 4), norm="batch", dropout=0.2),
    "MLP, layer norm": partial(networks.MLP, hidden=(5,), norm="layer", init="glorot"),
    "MLP, from data": partial(networks.MLP, hidden=(5,), init=0.01, output_bias="data"),
    "ResNet": partial(networks.ResNet, channels=(3, 4), blocks=1),
    "ResNet, batch norm": partial(networks.ResNet, channels=(3,), norm="batch", dropout=0.2),
    "ResNet, layer norm": partial(
        networks.ResNet, channels=(3, 4), hidden=(5,), norm="layer", output_bias="data"
    ),
}
#: Programs, without the arguments that are determined by the data.
PROGRAMS = {
    "VAE": partial(pv.VAE, latent_dim=3, encoder=SMALL, decoder=SMALL),
    "BayesianVAE": partial(pv.BayesianVAE, latent_dim=3, encoder=SMALL, decoder=SMALL),
    "ConditionalVAE": partial(pv.ConditionalVAE, latent_dim=3, encoder=SMALL, decoder=SMALL),
    "ConditionalVAE, images": partial(
        pv.ConditionalVAE,
        latent_dim=3,
        encoder=partial(networks.ConvNet, channels=(3,)),
        decoder=partial(networks.ConvNet, channels=(3,), output_bias="data"),
    ),
    "HierarchicalVAE": partial(
        pv.HierarchicalVAE, latent_dims=(4, 2), encoders=SMALL, decoders=SMALL
    ),
    "HierarchicalVAE, three layers": partial(
        pv.HierarchicalVAE,
        latent_dims=(4, 3, 2),
        inference=partial(inference.BottomUp, posterior=posteriors.FullCovarianceNormal),
        prior=priors.DiagonalNormal,
        encoders=[SMALL, SMALL, partial(networks.GatedMLP, hidden=(4,))],
        decoders=SMALL,
    ),
    "HierarchicalVAE, top down": partial(
        pv.HierarchicalVAE,
        latent_dims=(4, 3, 2),
        inference=partial(inference.TopDown, features=(6, 5, 4)),
        encoders=SMALL,
        decoders=SMALL,
    ),
    "SemiSupervisedVAE": partial(
        pv.SemiSupervisedVAE, latent_dim=3, classifier=SMALL, encoder=SMALL, decoder=SMALL
    ),
}


def program_for(make, data):
    """Create a program of :data:`PROGRAMS` for a ``Dataset``."""
    return make(**{name: getattr(data, name) for name in component_class(make).from_data})


#: Likelihoods whose density of 0 or of 1 is zero or infinite.
INSIDE_UNIT = (likelihoods.Beta, likelihoods.LogNormal)


def data_for(likelihood, size):
    """Return random data that a likelihood can score: binary, or inside (0, 1)."""
    x = torch.bernoulli(torch.full((size, *likelihood.event_shape), 0.5))
    return 0.25 + x / 2 if isinstance(likelihood, INSIDE_UNIT) else x


def component_class(make):
    """Return the class of the instances that a factory creates."""
    return getattr(make, "func", make)


#: Names of the compatible pairs of prior and posterior.
COMPATIBLE_PAIRS = [
    (p, q)
    for p in PRIORS
    for q in POSTERIORS
    if compatibility.find_violation(component_class(PRIORS[p]), component_class(POSTERIORS[q]))
    is None
]


def small_vae(prior=None, posterior=None, latent_dim=2, event_shape=(3,), **parts):
    """Create a small VAE; the default prior or posterior is compatible with the other one."""
    if prior is None:
        sphere = posterior is not None and component_class(posterior) is posteriors.PowerSpherical
        prior = priors.UniformSphere if sphere else priors.StandardNormal
    if posterior is None:
        sphere = component_class(prior) is priors.UniformSphere
        posterior = posteriors.PowerSpherical if sphere else posteriors.DiagonalNormal
    parts = {"encoder": SMALL, "decoder": SMALL, **parts}
    return pv.VAE(event_shape, latent_dim, prior=prior, posterior=posterior, **parts)


def random_posterior(make, intrinsic_dim=1):
    """Create a posterior with random weights; ``latent_dim`` is one higher on the sphere."""
    latent_dim = intrinsic_dim + (component_class(make) is posteriors.PowerSpherical)
    vae = small_vae(posterior=make, latent_dim=latent_dim).double().eval()
    for parameter in vae.posterior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vae.posterior
