"""Parameters of programs in Pyro's store, and frozen parameters, in every evaluation."""

from __future__ import annotations

import logging
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae import queries
from pyro_vae.programs.context import check_parameter_store, load_parameter_store

X = torch.tensor([[0.3, -1.2, 0.7], [1.1, 0.2, -0.4]])


class Linear(PyroModule):
    """Parameters of every kind: constrained, plain, and those of a network."""

    def __init__(self, constrained=True):
        super().__init__()
        self.scale = torch.ones(())
        if constrained:
            self.scale = PyroParam(torch.tensor(0.5), dist.constraints.positive)
        self.W, self.encoder = nn.Parameter(torch.randn(3, 2)), nn.Linear(3, 2)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T, self.scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.8).to_event(1))


class Registered(nn.Module):
    """A plain module, registered as a whole or by its parts."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def register(self):
        for name in self.names:
            pyro.module(name, getattr(self, name, self))

    def model(self, x):
        self.register()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        self.register()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.8).to_event(1))


def _elbo(program):
    pyro.set_rng_seed(1)
    objective = Trace_ELBO(500, vectorize_particles=True, max_plate_nesting=1)
    return -objective.loss(program.model, program.guide, X) / len(X)


def _trained_store(program, path):
    """Train with plain SVI and save with Pyro's own means, as a script does; forget the store."""
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(30):
        svi.step(X)
    pyro.get_param_store().save(path)
    expected = _elbo(program)
    pyro.clear_param_store()
    return expected


def _programs(program):
    return program.model, program.guide


class TestParameterStore:
    def test_restored_store_is_rejected_and_can_be_loaded(self, tmp_path):
        expected = _trained_store(Linear(), tmp_path / "store")
        program = Linear()
        check_parameter_store(*_programs(program))  # an empty store has no values
        pyro.get_param_store().load(tmp_path / "store")
        message = (
            r"other values in the store for 'scale': call pyro.clear_param_store\(\) .*load_param"
        )
        with pytest.raises(ValueError, match=message):
            check_parameter_store(*_programs(program))
        with pytest.raises(ValueError, match=message):
            pv.fit(program, X, epochs=1)
        load_parameter_store(program)
        check_parameter_store(*_programs(program))
        assert pv.evaluate(program, X, num_samples=500).elbo == pytest.approx(expected, abs=0.2)
        pyro.clear_param_store()
        assert _elbo(program) == pytest.approx(expected)

    def test_clearing_the_store_keeps_the_module(self, tmp_path):
        _trained_store(Linear(), tmp_path / "store")
        program = Linear()
        before = pv.evaluate(program, X, num_samples=50).elbo
        pyro.get_param_store().load(tmp_path / "store")
        pyro.clear_param_store()
        check_parameter_store(*_programs(program))
        assert pv.evaluate(program, X, num_samples=50).elbo == before

    def test_restored_module_beside_an_older_store(self):
        """Pyro would overwrite the restored values when the program next runs."""
        program, trained = Linear(), Linear()
        _elbo(program)
        program.load_state_dict(trained.state_dict())  # the same tensors, also in the store
        check_parameter_store(*_programs(program))
        other = Linear()
        other.scale = torch.tensor(0.3)
        with pytest.raises(ValueError, match="other values in the store for 'scale': call"):
            check_parameter_store(*_programs(other))

    def test_autoguides_of_other_parameters_are_rejected(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        first, second = AutoNormal(model), AutoNormal(model, init_scale=0.7)
        for guide in (first, second):
            pyro.clear_param_store()
            guide(X[:, 0])
        check_parameter_store(model, second)
        message = r"for 'AutoNormal.scales.z': call pyro.clear"
        with pytest.raises(ValueError, match=message):
            check_parameter_store(model, first)

    @pytest.mark.parametrize(
        "make",
        [
            partial(Linear, constrained=False),
            partial(Registered, ["anything"]),
            partial(Registered, ["encoder", "decoder"]),
            lambda: pv.VAE(
                (3,), 2, encoder=SMALL, decoder=SMALL, likelihood=pv.likelihoods.Gaussian
            ),
        ],
    )
    def test_networks_keep_their_values_with_a_warning(self, make, caplog):
        """As in Pyro, which does not change them; the values evaluated are those of the module."""
        first, second = make(), make()
        expected = _elbo(second)
        pyro.clear_param_store()
        _elbo(first)  # the store has the parameters of the first
        with caplog.at_level(logging.WARNING, logger="pyro_vae"):
            check_parameter_store(*_programs(first))
            assert not caplog.records
            check_parameter_store(*_programs(second))
        assert "other values than the module for '" in caplog.text
        assert _elbo(second) == pytest.approx(expected)

    def test_unrelated_parameters_are_ignored(self):
        pyro.param("W", torch.zeros(5))
        pyro.param("other", torch.zeros(3))
        pyro.module("head", nn.Linear(2, 3))
        check_parameter_store(*_programs(Registered(["anything"])))

    def test_local_parameters_are_not_compared(self):
        _elbo(Linear())
        with pyro.settings.context(module_local_params=True):
            check_parameter_store(*_programs(Linear()))

    def test_loading_rejects_another_shape(self):
        program = Linear()
        _elbo(program)
        other = Linear()
        other.W = nn.Parameter(torch.randn(4, 2))
        with pytest.raises(ValueError, match=r"'W' of shape \(4, 2\) in .* store; got \(3, 2\)"):
            load_parameter_store(other)


ANNEALING = pv.Annealing(num_temperatures=3, num_chains=2)
#: Everything that runs a program.
RUNS = {
    "log_weights": lambda p, x: pv.log_weights(p.model, p.guide, x, num_samples=3),
    "evaluate": lambda p, x: pv.evaluate(p, x, num_samples=30),
    "ais": lambda p, x: pv.ais(p, x, annealing=ANNEALING),
    "bdmc": lambda p, x: pv.bdmc(p, x, annealing=ANNEALING, num_samples=30),
    "gaps": lambda p, x: pv.gaps(p, x, annealing=None, num_samples=30, num_steps=2),
    "latents": lambda p, x: pv.latents(p, x, num_samples=10, num_draws=30),
    "sample": lambda p, x: queries.sample(p, 2, like=x),
    "encode": lambda p, x: queries.encode(p, x),
    "reconstruct": lambda p, x: queries.reconstruct(p, x),
    "anomaly_scores": lambda p, x: queries.anomaly_scores(p, x, num_samples=5),
}


def _frozen_vae():
    prior, likelihood = pv.priors.DiagonalNormal, pv.likelihoods.Gaussian
    vae = pv.VAE((3,), 2, prior=prior, likelihood=likelihood, encoder=SMALL, decoder=SMALL)
    vae.prior.requires_grad_(False)
    vae.likelihood.network.requires_grad_(False)
    return vae


def _frozen_program():
    program = Linear()
    program.W.requires_grad_(False)
    program.scale_unconstrained.requires_grad_(False)
    return program


@pytest.mark.parametrize("make", [_frozen_vae, _frozen_program])
@pytest.mark.parametrize("name", RUNS)
def test_frozen_parameters_stay_frozen(name, make):
    program = make()
    flags = {n: p.requires_grad for n, p in program.named_parameters()}
    assert not all(flags.values()) and any(flags.values())
    RUNS[name](program, X)
    assert {n: p.requires_grad for n, p in program.named_parameters()} == flags


def test_frozen_parameters_stay_frozen_after_an_error():
    program = _frozen_program()
    with pytest.raises(RuntimeError):
        pv.log_weights(program.model, program.guide, torch.zeros(2, 9), num_samples=3)
    assert not program.W.requires_grad and not program.scale_unconstrained.requires_grad


def test_frozen_modules_of_plain_functions_stay_frozen():
    network = PyroModule[nn.Linear](2, 3)
    network.requires_grad_(False)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(network(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    pv.evaluate((model, guide), X, num_samples=30)
    assert not any(p.requires_grad for p in network.parameters())
