"""
Counts and missing values
=========================

Counts of genes in cells are the textbook case of data that are neither pictures nor normal. This
tutorial compares three likelihoods of counts on simulated cells, whose true log p(x) is known, and
infers counts that were not observed.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.data.sources import cells_log_prob

data = pv.data.load("cells", binarize="none")
test = data.test.head(40)
x = test.materialize(0)
print(data)
print(f"zeros: {(x == 0).float().mean():.0%}; largest count: {int(x.max())}")

# %%
# Three likelihoods
# -----------------
#
# A Poisson distribution has its mean as variance. The negative binomial adds a dispersion for each
# gene, and the zero-inflated one a probability of additional zeros. The encoder standardises the
# counts.

encoder = partial(pv.networks.MLP, hidden=(64,), standardize=True)
decoder = partial(pv.networks.MLP, hidden=(64,), output_bias="data")
truth = cells_log_prob(x)
scores = {}
for name in ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"):
    torch.manual_seed(0)
    likelihood = getattr(pv.likelihoods, name)
    vae = pv.VAE(
        data.event_shape, latent_dim=8, likelihood=likelihood, encoder=encoder, decoder=decoder
    )
    pv.fit(vae, data.train, epochs=20, progress=False)
    bounds = pv.evaluate(vae, test, num_samples=500, reliable=True)
    scores[name] = bounds.per_datum["log_evidence"] - truth.numpy()
    print(f"{name:29} log p̂ − log p(x) = {scores[name].mean():7.2f} nats per cell")
    if name == "NegativeBinomial":
        chosen = vae

# %%
# The truth is out of reach of any model on average: log p̂ − log p(x) is minus the Kullback–Leibler
# divergence from the data to the model. The simulated counts are overdispersed, so the Poisson
# distribution fails. They have no extra zeros, and zero inflation brings little or nothing.

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.boxplot(list(scores.values()), orientation="horizontal", showfliers=False)
axes.set_yticklabels(["Poisson", "negative\nbinomial", "zero-inflated\nneg. binomial"])
axes.axvline(0, color="black", linewidth=0.8)
axes.set(xlabel="log p̂ − true log p(x) (nats per cell)")
plt.show()

# %%
# Missing values
# --------------
#
# Hide a fifth of the counts. ``impute`` samples them from p(x_missing | x_observed): it weights
# samples of the encoder by the likelihood of the observed counts, instead of pasting in a
# reconstruction.

observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) > 0.2
result = pv.queries.impute(chosen, x, observed=observed, draws=50)
hidden = ~observed
print(f"k̂ too high for {len(result.unreliable)} of {len(x)} cells")

# %%
# The mean of a gene over all cells is the guess without a model.

guess = data.train.materialize(0).mean(0).expand_as(x)
for name, prediction in (("mean of the gene", guess), ("model", result.mean)):
    error = (prediction - x)[hidden].abs().mean()
    print(f"{name:17} mean absolute error {error:.3f}")

# %%
# Samples also give intervals. If they are right, 90 % of the hidden counts lie in the 90 %
# interval; for counts more, because the interval is rounded outwards.

low, high = np.quantile(result.x.numpy(), [0.05, 0.95], axis=0)
inside = (x.numpy() >= low) & (x.numpy() <= high)
print(f"in the 90 % interval: {inside[hidden.numpy()].mean():.0%}")

figure, axes = plt.subplots(figsize=(4.6, 4), layout="constrained")
jitter = torch.rand(int(hidden.sum()), generator=torch.Generator().manual_seed(2)) - 0.5
axes.scatter(x[hidden] + 0.6 * jitter, result.mean[hidden].clamp_min(0.05), s=4, alpha=0.3)
line = np.array([0.5, float(x[hidden].max())])
axes.plot(line, line, color="black", linewidth=0.8)
axes.set(xscale="symlog", yscale="log", xlabel="hidden count", ylabel="E[x | observed]")
plt.show()

# %%
# Training copes with missing values as well: NaN in the data, or a mask for integers, see
# :doc:`/reference/data`. Tables with columns of several types use the likelihood ``Columns``, see
# :doc:`/reference/components`.
