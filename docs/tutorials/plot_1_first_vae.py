"""
Your first VAE
==============

A variational autoencoder (VAE) is a model p(z) p(x|z) of data x with latent variables z, and an
encoder q(z|x) that approximates the posterior p(z|x). This tutorial trains one on 4050 handwritten
digits, shows what it learned, and measures how well it predicts digits that it has not seen.

You need ``pip install 'pyro-vae[data]'``.
"""

import matplotlib.pyplot as plt
import torch

import pyro_vae as pv

# %%
# Data
# ----
#
# ``mnist5k`` is a part of MNIST that an installed package contains. ``dynamic`` binarisation draws
# each pixel from its grey value every time that it is used. There is no default for this choice,
# because log-likelihoods of data binarised in different ways cannot be compared.

data = pv.data.load("mnist5k", binarize="dynamic")
print(data)

# %%
# Model
# -----
#
# Two latent variables are few for digits, but they can be drawn. Everything else has a default: a
# standard normal prior, a Bernoulli likelihood, a diagonal normal posterior, and two MLPs.

torch.manual_seed(0)  # the initial weights
vae = pv.VAE(data.event_shape, latent_dim=2)
history = pv.fit(vae, data.train, valid=data.valid, epochs=40, progress=False)

# %%
# Training maximises the evidence lower bound (ELBO), a lower bound of log p(x) in nats: higher is
# better. The bound on validation data follows that on training data if the model does not overfit.

epochs = [entry["epoch"] for entry in history.epochs]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(epochs, [entry["elbo"] for entry in history.epochs], label="training")
axes.plot(epochs, [entry["valid_elbo"] for entry in history.epochs], label="validation")
axes.set(xlabel="epoch", ylabel="ELBO (nats per digit)")
axes.legend()
plt.show()

# %%
# What the latents mean
# ---------------------
#
# ``encode`` returns the mean of q(z|x). Labels were not used in training, yet digits of one class
# lie together.

codes = pv.queries.encode(vae, data.test)
figure, axes = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
points = axes.scatter(*codes["z.mean"].T, c=data.test.labels, cmap="tab10", s=12)
figure.colorbar(points, label="digit", ticks=range(10), boundaries=[i - 0.5 for i in range(11)])
axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
plt.show()

# %%
# Reconstructions and samples
# ---------------------------
#
# The first row shows test digits, the second the mean of p(x|z) for a sample z of q(z|x), and the
# third new digits: z is drawn from the prior.

x = data.test.materialize(0)[:10]
reconstructed = pv.queries.reconstruct(vae, x)
generated = pv.queries.sample(vae, 10)
figure, rows = plt.subplots(3, 10, figsize=(7, 2.3), layout="constrained")
for row, pictures in zip(rows, (x, reconstructed.mean, generated.mean), strict=True):
    for axes, picture in zip(row, pictures.reshape(10, 28, 28), strict=True):
        axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
plt.show()

# %%
# How good is it?
# ---------------
#
# ``evaluate`` estimates log p(x) of test digits by importance sampling. With ``reliable=True`` it
# checks the importance weights of each digit, and improves the proposal where they are poor.

bounds = pv.evaluate(vae, data.test.head(100), num_samples=1000, reliable=True)
print(bounds)

# %%
# The ELBO and each L_k are lower bounds, and log p̂ is an estimate of log p(x) itself. *± data* is
# the standard error over test digits, *± MC* the noise of the samples. The row *log p̂ − ELBO* is
# the price of an approximate posterior.
#
# Two latents lose a lot. Try ``latent_dim=20``: log p̂ gains tens of nats. The next tutorial
# replaces the prior, and :doc:`the third </generated/tutorials/plot_3_how_good_is_it>` explains the
# table.
