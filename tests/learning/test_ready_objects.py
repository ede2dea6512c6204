"""Pairs of model and guide, ready optimizers and classes of objectives as arguments of ``fit``."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def network(in_shape, out_shape):
    return pv.networks.MLP(in_shape, out_shape, hidden=(4,))


def train(make=lambda vae: vae, **options):
    torch.manual_seed(0)
    vae = pv.VAE((3,), 2, likelihood=pv.likelihoods.Gaussian, encoder=network, decoder=network)
    history = pv.fit(make(vae), X, epochs=2, batch_size=10, compile=False, **options)
    return history["elbo"], torch.cat([p.flatten() for p in vae.parameters()])


def test_pair_of_one_module():
    elbo, weights = train()
    same, same_weights = train(lambda vae: (vae.model, vae.guide))
    assert same == elbo and torch.equal(same_weights, weights)


def test_pair_of_two_modules():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.loc + 0 * z[..., None], 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, self.scale.exp()))

    model, guide = Model(), Guide()
    fast = partial(torch.optim.Adam, lr=0.1)
    pv.fit((model, guide.guide), X, epochs=150, batch_size=20, optimizer=fast, compile=False)
    # the maximum of the likelihood, and the prior
    torch.testing.assert_close(model.loc.detach(), X.mean(0), atol=0.02, rtol=0)
    assert abs(float(guide.scale.detach())) < 0.15


def test_pairs_without_modules():
    vae = pv.VAE((3,), 2)
    # a PyroModule registers its parameters, also if functions call it
    make = lambda vae: (lambda x: vae.model(x), lambda x: vae.guide(x))  # noqa: E731
    expected, plain = train(make), train()
    assert expected[0] == plain[0] and torch.equal(expected[1], plain[1])
    with pytest.raises(ValueError, match="expected an object with a model and a guide, such as a"):
        pv.fit((vae.model,), X)


def test_ready_optimizers():
    expected, _ = train(optimizer=partial(torch.optim.Adam, lr=0.01))
    assert train(optimizer=pyro.optim.Adam({"lr": 0.01}))[0] == expected
    ready = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    with pytest.raises(
        ValueError, match=r"instance of Adam: pass functools.partial\(torch.optim.A"
    ):
        train(optimizer=ready)
    scheduled = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    for optimizer in (
        pyro.optim.ExponentialLR(scheduled),
        pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}),
        pyro.optim.Adam(lambda name: {"lr": 0.1}),
    ):
        with pytest.raises(ValueError, match="with one set of arguments for all parameters; got"):
            train(optimizer=optimizer)


def test_class_of_an_objective():
    expected, _ = train(objective=pv.objectives.IWAE())
    assert train(objective=pv.objectives.IWAE)[0] == expected != train()[0]


def test_autoguide_of_the_model_of_a_vae():
    """See test_fit_index.py for its parameters per example."""
    torch.manual_seed(0)
    vae = pv.VAE((3,), 2, likelihood=pv.likelihoods.Gaussian, encoder=network, decoder=network)
    guide = AutoNormal(vae.model)
    fast = partial(torch.optim.Adam, lr=0.05)
    history = pv.fit((vae.model, guide), X, epochs=30, batch_size=8, optimizer=fast, compile=False)
    assert guide.locs.z.shape == (20, 2)
    assert history["elbo"][-1] > history["elbo"][0]
    evaluated = pv.evaluate((vae.model, guide), X, num_samples=500).elbo
    assert evaluated == pytest.approx(history["elbo"][-1], abs=0.5)
