"""
Swap the prior, and cure a collapse
===================================

A VAE whose latents carry nothing still has a finite loss, and its report looks like any other. This
tutorial trains one with a squared error, as many scripts do, measures the *posterior collapse*,
finds its cause, and cures it. Then it swaps the prior, which pays only after the cure.
"""

from functools import partial

import matplotlib.pyplot as plt
import pyro
import torch

import pyro_vae as pv

data = pv.data.load("digits", binarize="none")  # grey values in [0, 1]
test = data.test.head(150)


def train(name, **parts):
    """Train one model; return it, its bounds and four reconstructions."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, latent_dim=10, **parts)
    pv.fit(vae, data.train, epochs=40, progress=False)
    bounds = pv.evaluate(vae, test, num_samples=500, ks=(500,))
    units = pv.active_units(vae, data.test)
    print(f"{name}: ELBO {bounds.elbo:.2f}, L_500 {bounds.iwae[500]:.2f} nats; {units}")
    return vae, bounds, pv.queries.reconstruct(vae, test.materialize(0)[:4]).mean


# %%
# A squared error
# ---------------
#
# Half a squared error, summed over pixels, is a normal likelihood with σ = 1. A latent is *active*
# if the mean of q(z|x) depends on x: if its variance over the data is above 0.01.

squared_error = partial(pv.likelihoods.Gaussian, scale=1.0)
_, _, collapsed = train("σ = 1", likelihood=squared_error)

# %%
# No latent is active. The posterior is the prior whatever the example, and the ELBO equals L_500:
# there is nothing left to infer. The reconstructions of all digits are the same picture, the mean
# of the data.
#
# Is the prior to blame? Another one changes nothing:

mixture = partial(pv.priors.MixtureOfNormals, components=20)
_ = train("σ = 1, mixture", likelihood=squared_error, prior=mixture)

# %%
# The cause
# ---------
#
# In a linear VAE a latent is worth its KL divergence only if it explains a direction of the data
# whose variance is above σ² (`Lucas et al., 2019 <https://arxiv.org/abs/1911.02469>`_). These are
# the variances of the principal directions:

x = data.train.materialize(0).reshape(-1, 64)
variances = torch.linalg.eigvalsh(x.T.cov()).flip(0)
print(f"largest variance of a direction: {variances[0]:.2f}")

# %%
# All of them are below 1: with σ = 1, no latent pays. The cure is a σ that is learned.

learned = partial(pv.likelihoods.Gaussian, scale="learned")
cured, normal_prior, reconstructed = train("σ learned", likelihood=learned)
sigma = cured.likelihood(torch.zeros(10)).base_dist.stddev.mean().item()

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(7.5, 3), layout="constrained", width_ratios=(3, 2)
)
left.semilogy(range(1, 31), variances[:30], marker="o", markersize=3)
left.axhline(1.0, color="tab:red", label="σ² = 1")
left.axhline(sigma**2, color="tab:green", label="σ² learned")
left.set(xlabel="principal direction", ylabel="variance")
left.legend()
rows = test.materialize(0)[:4], collapsed, reconstructed
picture = torch.cat([torch.cat([*row[:, 0]], 1) for row in rows])
right.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
right.set(yticks=[3.5, 11.5, 19.5], yticklabels=["test digits", "σ = 1", "σ learned"], xticks=[])
plt.show()

# %%
# Swap the prior
# --------------
#
# With latents in use, the prior has something to describe. The difference is paired: the same
# digits under both models.

_, mixture_prior, _ = train("σ learned, mixture", likelihood=learned, prior=mixture)
difference = mixture_prior.iwae_per_datum[500] - normal_prior.iwae_per_datum[500]
error = difference.std() / len(difference) ** 0.5
print(f"mixture − standard normal: {difference.mean():.2f} ± {error:.2f} nats per digit")

# %%
# Two lessons. A collapse is visible in one line, ``active_units``, and in no loss. And its cause
# was the likelihood, which is why no prior, no warm-up of the KL divergence and no longer training
# would have cured it. Where the likelihood is right and latents are lost early in training, in deep
# hierarchies or with strong decoders, warm-up (``ELBO(beta=LinearWarmUp(10))``) and free bits
# (``ELBO(free_bits=0.1)``) help.
#
# :doc:`/how-to/choose-a-likelihood` and :doc:`/how-to/choose-a-prior` have tables of both.
