"""``fit`` of programs as in Pyro's tutorials: functions with ``pyro.module`` and ``pyro.param``."""

from __future__ import annotations

import copy
import logging
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.learning import svi

GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(40, 2, generator=GENERATOR) @ torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
X = X + 0.5 * torch.randn(40, 3, generator=GENERATOR)
ADAM = partial(torch.optim.Adam, lr=0.02)
STORE = pyro.get_param_store()


@pytest.fixture(autouse=True)
def _clear():
    pyro.clear_param_store()


@pytest.fixture
def uncompiled(monkeypatch):
    """Run the traced graph without compiling it, to save time."""
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)


def networks():
    torch.manual_seed(0)
    return nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def score(x, z, decoder, scale):
    pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)


def functions(decoder, encoder):
    """A model and a guide as in Pyro's tutorial on the VAE."""

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            score(x, z, decoder, scale)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


class Program(pyro.nn.PyroModule):
    """The same program as a module."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = networks()
        self.scale = pyro.nn.PyroParam(torch.tensor(0.7), dist.constraints.positive)

    @pyro.nn.pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            score(x, z, self.decoder, self.scale)

    @pyro.nn.pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def _fit(program, **options):
    settings = {"batch_size": 16, "epochs": 3, "optimizer": ADAM, "compile": False, **options}
    return pv.fit(program, X, **settings)


def _values(*modules):
    return [p.detach().clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("options", [{}, {"valid": X[:10]}, {"objective": Trace_ELBO()}])
def test_functions_are_trained_like_a_module(options):
    program, pair = Program(), networks()
    expected = _fit(program, **options)
    history = _fit(functions(*pair), **options)
    assert history["elbo"] == expected["elbo"]
    if "valid" in options:
        assert history["valid_elbo"] == expected["valid_elbo"]
    assert all(map(torch.equal, _values(*pair), _values(program.decoder, program.encoder)))
    # the values are in Pyro's store, constrained as declared
    assert set(STORE.keys()) == {
        *("scale", "decoder$$$weight", "decoder$$$bias"),
        *(f"encoder$$${name}" for name, _ in pair[1].named_parameters()),
    }
    assert torch.equal(pyro.param("scale"), program.scale) and program.scale != 0.7
    assert STORE.get_state()["params"]["decoder$$$weight"] is pair[0].weight
    bounds = [pv.evaluate(p, X, num_samples=50).elbo for p in (program, functions(*pair))]
    assert bounds[0] == bounds[1]


def test_compiled_steps_of_functions(uncompiled, caplog):
    expected = _fit(Program())
    assert _fit(functions(*networks()), compile=True)["elbo"] == pytest.approx(expected["elbo"])
    assert "eagerly" not in caplog.text


def test_methods_of_a_plain_object():
    decoder, encoder = networks()
    model, guide = functions(decoder, encoder)
    expected = _fit((model, guide))
    pyro.clear_param_store()
    model, guide = functions(*networks())
    program = SimpleNamespace(model=model, guide=guide)
    assert _fit(program)["elbo"] == expected["elbo"]


def test_training_goes_on_from_the_values_in_the_store():
    pair = networks()
    program = functions(*pair)
    _fit(program, epochs=20)
    first, weights = pyro.param("scale").item(), _values(*pair)
    history = _fit(program, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.0))
    assert pyro.param("scale").item() == pytest.approx(first)
    assert all(map(torch.equal, _values(*pair), weights))
    evaluated = pv.evaluate(program, X, num_samples=2000).elbo
    assert history["elbo"][-1] == pytest.approx(evaluated, abs=0.3)
    # plain SVI continues from there as well
    objective = Trace_ELBO(200, max_plate_nesting=1, vectorize_particles=True)
    svi = SVI(*program, pyro.optim.SGD({"lr": 0.0}), objective)
    assert -svi.evaluate_loss(X) / len(X) == pytest.approx(evaluated, abs=0.1)


def test_resumes_with_parameters_of_the_store(tmp_path):
    expected, path = networks(), tmp_path / "state.pt"
    options = {"patience": 3, "valid": X[:10]}
    history = _fit(functions(*expected), epochs=4, **options)
    scale = pyro.param("scale").clone()
    pyro.clear_param_store()
    _fit(functions(*networks()), epochs=2, checkpoint=path, **options)
    pyro.clear_param_store()
    pair = networks()
    other = _fit(functions(*pair), epochs=4, checkpoint=path, resume=True, **options)
    assert other["valid_elbo"] == history["valid_elbo"]
    assert all(map(torch.equal, _values(*pair), _values(*expected)))
    assert torch.equal(pyro.param("scale"), scale)


def test_buffers_are_trained_and_saved(tmp_path):
    """Running statistics belong to the state of a network that only functions know."""

    def program():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        return encoder, functions(networks()[0], encoder)

    expected, pair = program()
    history = _fit(pair, epochs=4)
    assert expected[1].running_mean.any() and expected[1].training
    pyro.clear_param_store()
    path = tmp_path / "state.pt"
    _fit(program()[1], epochs=2, checkpoint=path)
    pyro.clear_param_store()
    encoder, pair = program()
    assert _fit(pair, epochs=4, checkpoint=path, resume=True)["elbo"] == history["elbo"]
    assert torch.equal(encoder[1].running_mean, expected[1].running_mean)


class Alone(nn.Module):
    """A program whose guide has ``pyro.param`` alone, with parameters shared by all examples."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        gain = pyro.param("gain", torch.tensor(0.0))
        scale = pyro.param("spread", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x, scale))


def test_a_module_without_parameters_of_its_own():
    """The posterior is N(x / 2, 1 / 2): the ELBO reaches log N(x; 0, 2)."""
    x, objective = X[:, 1], pv.objectives.ELBO(gradient="stl")
    fast = partial(torch.optim.Adam, lr=0.1)
    history = pv.fit(Alone(), x, epochs=60, batch_size=10, optimizer=fast, objective=objective)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert history["elbo"][-1] == pytest.approx(truth, abs=1e-3)
    assert pyro.param("gain").item() == pytest.approx(0.5, abs=1e-2)
    assert pyro.param("spread").item() == pytest.approx(0.5**0.5, abs=1e-2)
    assert pv.evaluate(Alone(), x, num_samples=10).elbo == pytest.approx(truth, abs=1e-3)


def test_parameters_of_other_programs_stay():
    pyro.param("other", torch.tensor(3.0))
    other = nn.Linear(2, 3)
    pyro.module("decoder", other)
    before = _values(other)
    pair = networks()
    history = _fit(functions(*pair))
    assert pyro.param("other").item() == 3.0
    assert all(map(torch.equal, _values(other), before))
    pyro.clear_param_store()
    assert _fit(functions(*networks()))["elbo"] == history["elbo"]
    program = Program()
    pyro.clear_param_store()
    _fit(program)
    assert not STORE.keys()


def test_networks_that_are_not_registered():
    decoder, encoder = networks()
    model, _ = functions(decoder, encoder)

    def unregistered(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x)[:, :2], 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"got '(weight|bias)' of Linear .*: assign the network.*"):
        _fit((model, unregistered))
    encoder.requires_grad_(False)
    before = _values(encoder)
    _fit((model, unregistered))
    assert all(map(torch.equal, _values(encoder), before))


def test_functions_without_parameters():
    with pytest.raises(ValueError, match=r"a model and a guide that register none, .*pyro\.module"):
        pv.fit((lambda x: Alone().model(x), _fixed_guide), X[:, 0])


def _fixed_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def test_frozen_parts_of_registered_networks_stay():
    decoder, encoder = networks()
    decoder.bias.requires_grad_(False)
    before = decoder.bias.clone()
    _fit(functions(decoder, encoder))
    assert torch.equal(decoder.bias, before) and not decoder.bias.requires_grad


def test_names_with_dots_and_of_methods(caplog):
    def guide(x):
        loc = pyro.param("guide.loc", torch.tensor(0.0))
        scale = pyro.param("half", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    def model(x):
        pyro.param("unused", torch.tensor(0.0))
        Alone().model(x)

    with caplog.at_level(logging.WARNING, logger="pyro_vae"):
        pv.fit((model, guide), X[:, 0], epochs=2, optimizer=ADAM)
    assert pyro.param("guide.loc") != 0 and pyro.param("half") != 1
    assert "does not depend on them: 'stored.unused'" in caplog.text


def test_an_autoguide_of_shared_latents():
    """w ~ N(0, 1), x_i ~ N(w, 1): the guide has no parameters per example."""

    def model(x):
        with pyro.poutine.scale(scale=len(x) / 40):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    x, guide = X[:, 0], AutoNormal(model)
    fast = partial(torch.optim.Adam, lr=0.05)
    pv.fit((model, guide), x, epochs=150, batch_size=40, optimizer=fast)
    assert guide.locs.w.item() == pytest.approx(x.sum().item() / 41, abs=0.06)
    assert guide.scales.w.item() == pytest.approx(41**-0.5, abs=0.03)


def test_copies_of_a_program_do_not_share_values():
    pair = networks()
    clones = copy.deepcopy(pair)
    _fit(functions(*pair))
    assert not any(map(torch.equal, _values(*pair), _values(*clones)))
