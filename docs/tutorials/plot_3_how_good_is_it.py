"""
How good is it really?
======================

A VAE is trained on a lower bound of log p(x). How far is the bound from log p(x)? This tutorial
measures one model in four ways: the ELBO, importance weighted bounds, a Laplace approximation of
the posterior, and annealed importance sampling (AIS). It ends with the cause of the gap.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_vae as pv

torch.manual_seed(0)
data = pv.data.load("digits", binarize="static")
vae = pv.VAE(data.event_shape, latent_dim=10)
pv.fit(vae, data.train, epochs=60, progress=False)
test = data.test.head(60)

# %%
# Bounds from the encoder
# -----------------------
#
# L_k averages k importance weights p(x, z) / q(z|x) inside the logarithm. It grows with k, from the
# ELBO (k = 1) towards log p(x).

ks = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
plain = pv.evaluate(vae, test, num_samples=2000, ks=ks)
print(plain)

# %%
# A table like this one is where many papers stop. The line with k̂ says whether one may: k̂ is the
# tail index of the importance weights of a digit. Above 0.7 the largest weights were hardly ever
# drawn, so that L_k is still a lower bound, but neither an estimate of log p(x) nor a number with a
# standard error.

bad = int((plain.per_datum["khat"] > 0.7).sum())
print(f"k̂ > 0.7 for {bad} of {len(test)} digits")

# %%
# Better proposals
# ----------------
#
# A Laplace approximation finds a mode of p(z|x) for each digit, and samples from a normal with the
# curvature there. AIS moves samples from q(z|x) to p(z|x) through a sequence of distributions in
# between. Neither depends on how well the encoder does.

annealing = pv.Annealing(num_temperatures=100, num_chains=8, num_steps=5)
bounds = pv.evaluate(vae, test, num_samples=2000, ks=ks, estimators=[pv.Laplace(), annealing])
print(bounds)

# %%
names = {name: e for name, e in bounds.estimates.items() if name in ("laplace", "ais")}
curve = np.array([bounds.iwae[k] for k in ks])
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(ks, curve, marker="o", markersize=4, label="$L_k$ of the encoder")
for (name, estimate), colour in zip(names.items(), ("tab:orange", "tab:green"), strict=True):
    axes.axhline(estimate.value, color=colour, label={"ais": "AIS", "laplace": "Laplace"}[name])
axes.set(xscale="log", xlabel="k (samples)", ylabel="nats per digit")
axes.legend()
plt.show()

# %%
# Two estimators that share nothing but the model agree to a few hundredths of a nat, and L_k levels
# off at the same height. That is the evidence that log p(x) has been measured: an ELBO alone cannot
# give it.
#
# The ladder does this for you
# ----------------------------
#
# ``reliable=True`` starts with the samples of the encoder, and continues with Laplace proposals,
# adapted ones, and AIS only for the examples that need it. The last line of the table counts them.

reliable = pv.evaluate(vae, test, num_samples=2000, reliable=True)
print(reliable)

# %%
# Where does the ELBO lose?
# -------------------------
#
# ``gaps`` refits q(z|x) to each digit. The gain of a refit is the *amortisation gap*: the encoder
# could do better with the same family of distributions. The rest is the *approximation gap*: no
# diagonal normal is the posterior.

gaps = pv.gaps(vae, test, num_steps=200, num_samples=2000, annealing=annealing)
print(gaps)

# %%
# A large amortisation gap calls for a larger encoder or longer training; a large approximation gap
# for another posterior, such as ``FullCovarianceNormal`` or a flow. Which of them pays is then a
# measurement, not a guess: see :doc:`/how-to/estimators`.
