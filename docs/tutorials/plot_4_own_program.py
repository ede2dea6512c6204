"""
Your own Pyro program
=====================

``fit``, ``evaluate`` and all other functions take any Pyro model and guide whose sample sites lie
in one plate over the examples. This tutorial starts with a program whose log p(x) is known exactly,
so that the estimates can be checked, and then makes it nonlinear.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv

torch.manual_seed(0)
data = pv.data.load("digits", binarize="none")
x = data.train.materialize(0).reshape(-1, 64)
held_out = data.test.materialize(0).reshape(-1, 64)
mean = x.mean(0)

# %%
# Factor analysis
# ---------------
#
# Ten normal factors z, a linear decoder, and one noise level: probabilistic PCA. The guide is a
# linear encoder. Both are ordinary Pyro functions.

loadings = torch.nn.Linear(10, 64)
torch.nn.init.constant_(loadings.bias, 0.0)
encoder = torch.nn.Linear(64, 20)


def model(x):
    pyro.module("loadings", loadings)
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    with pyro.plate("digits", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(10), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mean + loadings(z), scale).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x - mean).chunk(2, -1)
    with pyro.plate("digits", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


adam = pyro.optim.Adam({"lr": 0.01})
pv.fit((model, guide), x, optimizer=adam, epochs=60, progress=False)
bounds = pv.evaluate((model, guide), held_out, num_samples=2000, reliable=True)
print(bounds)

# %%
# The truth
# ---------
#
# x is normal with covariance W Wᵀ + σ² I, so that log p(x) is a number that we can compute.

with torch.no_grad():
    weight, scale = loadings.weight, pyro.param("scale")
    covariance = weight @ weight.T + scale.square() * torch.eye(64)
    exact = dist.MultivariateNormal(mean + loadings.bias, covariance).log_prob(held_out)

error = bounds.estimates["log_evidence"].se_monte_carlo
print(f"exact log p(x):  {exact.mean():.4f} nats per digit")
print(f"log p̂:           {bounds.log_evidence:.4f} ± {error:.4f}")
print(f"ELBO:            {bounds.elbo:.4f}")
assert abs(bounds.log_evidence - exact.mean().item()) < 5 * error + 1e-3

# %%
# The estimate agrees digit by digit, and the ELBO is below it by the error of the diagonal
# posterior.

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for column, label in (("elbo", "ELBO"), ("log_evidence", "log p̂")):
    axes.scatter(exact, bounds.per_datum[column] - exact.numpy(), s=8, label=label)
axes.axhline(0, color="black", linewidth=0.8)
axes.set(xlabel="exact log p(x) (nats)", ylabel="estimate − exact log p(x) (nats)")
axes.legend()
plt.show()

# %%
# Make it nonlinear
# -----------------
#
# Replace the linear maps by networks. Nothing else changes, except that no formula for log p(x)
# exists any more, and that the estimate is all there is.

decoder = torch.nn.Sequential(torch.nn.Linear(10, 100), torch.nn.ReLU(), torch.nn.Linear(100, 64))
network = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 20))


def deep_model(x):
    pyro.module("decoder", decoder)
    scale = pyro.param("noise", torch.tensor(0.3), constraint=dist.constraints.positive)
    with pyro.plate("digits", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(10), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mean + decoder(z), scale).to_event(1), obs=x)


def deep_guide(x):
    pyro.module("network", network)
    loc, log_scale = network(x - mean).chunk(2, -1)
    with pyro.plate("digits", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


adam = pyro.optim.Adam({"lr": 0.003})
pv.fit((deep_model, deep_guide), x, optimizer=adam, epochs=80, progress=False)
deep = pv.evaluate((deep_model, deep_guide), held_out[:100], num_samples=1000, reliable=True)
difference = deep.per_datum["log_evidence"] - exact[:100].numpy()
error = difference.std() / len(difference) ** 0.5
print(f"network − factor analysis: {difference.mean():.2f} ± {error:.2f} nats per digit, paired")

# %%
# What else a program may contain (further arguments, several plates, time series, enumerated
# classes, autoguides) is in :doc:`/how-to/own-program`. What has no weight per example is refused
# with the reason.
