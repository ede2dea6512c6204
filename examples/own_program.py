"""Evaluate a Pyro program of your own: two functions, trained with Pyro's SVI.

    python examples/own_program.py

This one has a discrete latent, a cluster c of digits, and a style z within it: c ~ Categorical(π),
z ~ N(0, I), x ~ Bernoulli(decoder(c, z)). ``evaluate`` takes any pair (model, guide) whose sample
sites of each example are inside ``pyro.plate("data", N)``.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from torch import nn

import pyro_vae as pv

CLUSTERS, STYLES, PIXELS = 10, 5, 64
decoder = nn.Sequential(nn.Linear(CLUSTERS + STYLES, 100), nn.Tanh(), nn.Linear(100, PIXELS))
encoder = nn.Sequential(nn.Linear(PIXELS, 100), nn.Tanh(), nn.Linear(100, CLUSTERS + 2 * STYLES))


def model(x: torch.Tensor) -> None:
    pyro.module("decoder", decoder)
    logits = pyro.param("logits", torch.zeros(CLUSTERS))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=logits))
        z = pyro.sample("z", dist.Normal(torch.zeros(STYLES), 1.0).to_event(1))
        one_hot = nn.functional.one_hot(c, CLUSTERS).to(z.dtype)
        batch = torch.broadcast_shapes(c.shape, z.shape[:-1])
        inputs = torch.cat([one_hot.expand(*batch, -1), z.expand(*batch, -1)], -1)
        pyro.sample("x", dist.Bernoulli(logits=decoder(inputs)).to_event(1), obs=x)


@config_enumerate
def guide(x: torch.Tensor) -> None:
    pyro.module("encoder", encoder)
    logits, loc, log_scale = encoder(x).split([CLUSTERS, STYLES, STYLES], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(logits=logits))
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def main(epochs: int = 60, num_samples: int = 1000) -> pv.Bounds:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = pv.data.load("digits", binarize="static")
    train, test = (part.materialize(0).flatten(1) for part in (data.train, data.test))

    # plain Pyro: the objective sums over the clusters
    svi = SVI(model, guide, Adam({"lr": 3e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    for epoch in range(1, epochs + 1):
        loss = sum(svi.step(x) for x in train[torch.randperm(len(train))].split(100))
        if epoch in (1, epochs):
            print(f"epoch {epoch:3}   ELBO {-loss / len(train):.2f} nats per digit")

    # log p(x, c, z) − log q(c, z | x) for each sample and digit; log p(x) sums out both latents
    log_weights = pv.log_weights(model, guide, test, num_samples=10)
    print(f"\nlog weights: {tuple(log_weights.shape)} = (samples, digits)\n")
    bounds = pv.evaluate((model, guide), test, num_samples=num_samples, ks=(5, 50))
    print(bounds)
    return bounds


if __name__ == "__main__":
    main()
