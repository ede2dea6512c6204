"""Programs with parts that the user has compiled with ``torch.compile``."""

from __future__ import annotations

import logging
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.core.evaluation_mode import run_eagerly

X = torch.bernoulli(torch.full((32, 6), 0.4), generator=torch.Generator().manual_seed(0))


def compile_outside(module: nn.Module) -> nn.Module:
    # without Inductor, which changes roundings; Dynamo is what the handling is about
    return torch.compile(module, backend="eager")


def compile_inside(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


COMPILE = [compile_outside, compile_inside]


def make_vae() -> pv.VAE:
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    network = partial(pv.networks.MLP, hidden=(5,))
    return pv.VAE((6,), 2, encoder=network, decoder=network)


def make_compiled(compile) -> pv.VAE:
    vae = make_vae()
    vae.posterior.network = compile(vae.posterior.network)
    vae.likelihood.network = compile(vae.likelihood.network)
    return vae


def find_weights(vae: pv.VAE) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


@pytest.mark.parametrize("compile", COMPILE)
@pytest.mark.parametrize("options", [{}, {"compile": True}])
def test_compiled_networks_are_evaluated_like_others(compile, options, caplog):
    vae = make_compiled(compile)
    with caplog.at_level(logging.INFO, "pyro_vae"):
        bounds = pv.evaluate(vae, X, num_samples=10, seed=0, **options)
    expected = pv.evaluate(make_vae(), X, num_samples=10, seed=0)
    torch.testing.assert_close(
        torch.tensor(bounds.per_datum["elbo"]), torch.tensor(expected.per_datum["elbo"])
    )
    assert not caplog.records  # the whole program is compiled, or nothing needs to be
    annealing = pv.Annealing(num_chains=2, num_temperatures=3, num_steps=2)
    chains = [pv.ais(v, X[:4], annealing=annealing, seed=0) for v in (vae, make_vae())]
    torch.testing.assert_close(*(torch.tensor(c.per_datum["ais"]) for c in chains))


@pytest.mark.parametrize("compile", COMPILE)
@pytest.mark.parametrize("whole", [False, True])
# Dynamo reads it of every tensor
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_networks_are_trained_like_others(compile, whole, caplog):
    vae, other = make_compiled(compile), make_vae()
    options = {"epochs": 2, "batch_size": 8, "seed": 0, "compile": whole}
    with caplog.at_level(logging.INFO, "pyro_vae"):
        history = pv.fit(vae, X, **options)
    pv.fit(other, X, **options)
    torch.testing.assert_close(find_weights(vae), find_weights(other))
    assert ("compile_seconds" in history.epochs[0]) == whole
    assert "not compiled" not in caplog.text


def test_contexts_that_end_in_any_order_leave_compilation_on():
    graphs = []
    function = torch.compile(lambda x: x + 1, backend=lambda graph, _: graphs.append(1) or graph)
    first, second = run_eagerly(), run_eagerly()
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):
        step()
        function(X)
        assert not graphs
    second.__exit__(None, None, None)
    function(X)
    assert len(graphs) == 1


@pytest.mark.parametrize("compile", COMPILE)
def test_dropout_of_a_compiled_network_is_off_in_evaluation(compile):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 4))

    def make_guide(network):
        def guide(x):
            pyro.module("encoder", layers)
            with pyro.plate("data", len(x)):
                loc, log_scale = network(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return guide

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            logits = z.sum(-1, keepdim=True) + torch.zeros(6)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def compute_bound(guide):
        return pv.log_weights(model, guide, X, num_samples=20).mean()

    pyro.set_rng_seed(1)
    expected = compute_bound(make_guide(layers))
    pyro.set_rng_seed(1)
    torch.testing.assert_close(compute_bound(make_guide(compile(layers))), expected)
    assert layers.training
