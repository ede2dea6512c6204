"""Which parameters ``fit`` and plain ``SVI`` train: all of the program, and no others."""

from __future__ import annotations

import logging
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.learning import CompiledSVI, svi
from pyro_vae.learning.objectives import (
    ELBO,
    IWAE,
    EnumeratedELBO,
    MonteCarloEM,
    ReweightedWakeSleep,
)
from pyro_vae.learning.optimizers import FusedOptimizer

ADAM = partial(torch.optim.Adam, lr=0.01)
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Run the traced graph without compiling it, to save time."""
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)


class Plain(nn.Module):
    """A plain module; ``registered`` names the networks that it registers with Pyro."""

    def __init__(self, registered=()):
        super().__init__()
        torch.manual_seed(0)
        self.registered = registered
        self.decoder, self.encoder = nn.Linear(2, 3), nn.Linear(3, 4)

    def register(self):
        for name in self.registered:
            pyro.module(name, getattr(self, name))

    def model(self, x):
        self.register()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        self.register()
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def _values(program):
    return [p.detach().clone() for p in program.parameters()]


def _fit(program, **settings):
    before = _values(program)
    history = pv.fit(program, X, optimizer=ADAM, epochs=2, batch_size=16, **settings)
    moved = {
        name
        for (name, p), old in zip(program.named_parameters(), before, strict=True)
        if not torch.equal(p, old)
    }
    return history, moved


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("registered", [(), ("decoder",), ("encoder",), ("decoder", "encoder")])
def test_trains_all_parameters_whether_or_not_they_are_registered(registered, compile, caplog):
    program, expected = Plain(registered), Plain(("decoder", "encoder"))
    history, moved = _fit(program, compile=compile)
    assert moved == {name for name, _ in program.named_parameters()}
    assert history["elbo"] == _fit(expected, compile=compile)[0]["elbo"]
    assert all(map(torch.equal, program.parameters(), expected.parameters()))
    assert "eagerly" not in caplog.text


@pytest.mark.parametrize("make", [Trace_ELBO, partial(RenyiELBO, alpha=0.5, num_particles=2)])
def test_trains_all_parameters_with_objectives_of_pyro(make):
    assert len(_fit(Plain(), objective=make())[1]) == 4


@pytest.mark.parametrize("make", [IWAE, EnumeratedELBO, ReweightedWakeSleep, MonteCarloEM])
def test_trains_all_parameters_with_every_kind_of_objective(make):
    assert len(_fit(Plain(), objective=make())[1]) == 4


class Foreign(Plain):
    """The loss depends on a parameter that the program does not own."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        # a list hides the network from nn.Module
        self.hidden = [nn.Linear(3, 3), nn.Parameter(torch.zeros(3))]

    def model(self, x):
        network, tensor = self.hidden
        if self.kind == "registered":
            pyro.module("hidden", network)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.decoder(z)
            if self.kind == "tensor":
                loc = loc + tensor
            elif self.kind == "param":
                loc = loc + pyro.param("shift", torch.zeros(3))
            else:
                loc = network(loc)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


@pytest.mark.parametrize("objective", [ELBO, IWAE, Trace_ELBO])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (
            "network",
            r"'(weight|bias)' of Linear of shape .*, '(weight|bias)' of Linear of shape .*",
        ),
        ("tensor", r"a tensor of shape \(3,\)"),
    ],
)
def test_rejects_parameters_that_the_program_does_not_own(kind, name, objective):
    if kind == "tensor" and objective is Trace_ELBO:
        pytest.skip("Pyro's objectives do not return the loss as a tensor")
    program = Foreign(kind)
    before = _values(program)
    message = f"a loss that depends on parameters of the program only; got {name}, which would not"
    with pytest.raises(ValueError, match=message):
        pv.fit(program, X, objective=objective(), epochs=1)
    assert all(map(torch.equal, program.parameters(), before))


@pytest.mark.parametrize("objective", [ELBO, Trace_ELBO])
@pytest.mark.parametrize("kind", ["registered", "param"])
def test_trains_what_the_program_registers_but_does_not_own(kind, objective):
    pyro.clear_param_store()
    program = Foreign(kind)
    before = _values(program), program.hidden[0].weight.clone()
    _fit(program, objective=objective())
    assert not any(map(torch.equal, program.parameters(), before[0]))
    assert (kind == "registered") is not torch.equal(program.hidden[0].weight, before[1])
    stored = pyro.get_param_store()
    if kind == "registered":
        assert stored.get_state()["params"]["hidden$$$weight"] is program.hidden[0].weight
    else:
        assert stored["shift"].detach().any()
    pyro.clear_param_store()


def test_frozen_foreign_networks_are_accepted():
    program = Foreign("network")
    program.hidden[0].requires_grad_(False)
    before = program.hidden[0].weight.clone()
    assert len(_fit(program)[1]) == 4
    assert torch.equal(program.hidden[0].weight, before)


@pytest.mark.parametrize("objective", [ELBO, Trace_ELBO])
def test_unused_parameters_are_logged(objective, caplog):
    program = Plain()
    program.head, program.frozen = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)
    with caplog.at_level(logging.WARNING, logger="pyro_vae"):
        _, moved = _fit(program, objective=objective())
    assert len(moved) == 4
    message = "not trained, because the loss does not depend on them: 'head.weight', 'head.bias'"
    assert caplog.messages.count(message) == 1


def test_parameters_used_with_labels_only_are_not_logged(caplog):
    parts = {"classifier": SMALL, "encoder": SMALL, "decoder": SMALL}
    vae = pv.SemiSupervisedVAE((3,), 2, 2, **parts)
    labels = torch.tensor([0, 1, -1, -1]).repeat(10)
    data = pv.data.Split(torch.bernoulli(torch.full((40, 3), 0.5)), labels=labels)
    with caplog.at_level(logging.WARNING, logger="pyro_vae"):
        pv.fit(vae, data, objective=EnumeratedELBO(), epochs=1, batch_size=10)
    assert "not trained" not in caplog.text


@pytest.mark.parametrize(("freeze", "got"), [(True, "only frozen ones"), (False, "none")])
def test_rejects_programs_without_parameters_to_train(freeze, got):
    program = Plain().requires_grad_(False)
    if not freeze:
        program.hidden = [program.decoder, program.encoder]
        del program.decoder, program.encoder
        object.__setattr__(program, "decoder", program.hidden[0])
        object.__setattr__(program, "encoder", program.hidden[1])
    with pytest.raises(ValueError, match=f"expected parameters to train; got Plain with {got}"):
        pv.fit(program, X, epochs=1)


def test_gradients_from_before_are_not_applied():
    programs = Plain(), Plain()
    for parameter in programs[1].parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for program in programs:
        _fit(program)
    assert all(map(torch.equal, programs[0].parameters(), programs[1].parameters()))


# Plain SVI trains what the program registers, as in Pyro.


@pytest.mark.parametrize("make", [SVI, CompiledSVI])
def test_plain_svi_without_registered_parameters_is_an_error(make):
    program, objective = Plain(), ELBO()
    step = make(program.model, program.guide, FusedOptimizer(ADAM), loss=objective).step
    with pytest.raises(
        ValueError, match=r"the program registered none with Pyro: call pyro.module"
    ):
        step(X)


@pytest.mark.parametrize("make", [SVI, CompiledSVI])
def test_plain_svi_steps_registered_parameters_and_those_added(make):
    moved = []
    for added in (False, True):
        program, optim = Plain(("decoder",)), FusedOptimizer(ADAM)
        if added:
            optim.add(dict(program.named_parameters()))
        before = _values(program)
        with pyro.get_param_store().scope():
            step = make(program.model, program.guide, optim, loss=ELBO()).step
            for _ in range(3):
                step(X)
        pairs = zip(program.parameters(), before, strict=True)
        moved.append([not torch.equal(p, old) for p, old in pairs])
    assert moved == [[True, True, False, False], [True] * 4]


def test_one_optimizer_for_two_programs_moves_only_the_one_that_runs():
    """Momentum must not move the parameters of the other program."""
    programs, optim = [Plain(("decoder", "encoder")) for _ in range(2)], FusedOptimizer(ADAM)
    for active in (0, 1, 0):
        other = programs[1 - active]
        before = _values(other), _values(programs[active])
        with pyro.get_param_store().scope():
            step = SVI(programs[active].model, programs[active].guide, optim, loss=ELBO()).step
            step(X)
            step(X)
        assert all(map(torch.equal, other.parameters(), before[0]))
        assert not any(map(torch.equal, programs[active].parameters(), before[1]))


# Frozen parameters


class Kinds(PyroModule):
    """Parameters of all kinds that Pyro treats differently."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network, self.shift = nn.Linear(3, 2), nn.Parameter(torch.zeros(3))
        self.inner = PyroModule[nn.Linear](2, 3)
        self.scale = PyroParam(torch.tensor(0.5), dist.constraints.positive)
        self.spare = nn.Parameter(torch.zeros(2))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.inner(z) + self.shift
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        spare = pyro.param("any name", self.spare)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.network(x) + spare, 0.8).to_event(1))


NAMES = [name for name, _ in Kinds().named_parameters()]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("frozen", [*([name] for name in NAMES), NAMES[:3], NAMES[1:]])
def test_frozen_parameters_stay_frozen(frozen, compile, caplog):
    program = Kinds()
    for name in frozen:
        program.get_parameter(name).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pyro warns of each frozen weight of a network
        _, moved = _fit(program, compile=compile, valid=X, objective=ELBO(analytic_kl=False))
    assert moved == set(NAMES) - set(frozen)
    assert {n for n, p in program.named_parameters() if not p.requires_grad} == set(frozen)
    assert "eagerly" not in caplog.text


@pytest.mark.parametrize("compile", [False, True])
def test_parameters_can_be_frozen_and_unfrozen_between_epochs(compile, caplog):
    program, after = Kinds(), []
    program.shift.requires_grad_(False)

    def toggle(history):
        after.append((program.shift.clone(), program.inner.weight.clone()))
        program.shift.requires_grad_(len(history) == 1)
        program.inner.weight.requires_grad_(len(history) != 1)

    pv.fit(program, X, optimizer=ADAM, epochs=3, compile=compile, on_epoch=toggle, batch_size=40)
    (shift, weight), (shift_2, weight_2), (shift_3, weight_3) = after
    assert not torch.equal(shift, shift_2) and torch.equal(weight, weight_2)
    assert torch.equal(shift_2, shift_3) and not torch.equal(weight_2, weight_3)
    assert "eagerly" not in caplog.text


def test_frozen_parameters_stay_frozen_after_an_error():
    program = Kinds()
    program.shift.requires_grad_(False)
    with pytest.raises(RuntimeError, match="stop"):
        pv.fit(program, X, epochs=2, on_epoch=_stop)
    assert not program.shift.requires_grad


def _stop(history):
    raise RuntimeError("stop")


def test_resumed_run_with_frozen_parameters_equals_uninterrupted_run(tmp_path):
    weights = []
    for stops in ((3,), (1, 3)):
        program, path = Kinds(), tmp_path / f"{len(stops)}.pt"
        program.inner.requires_grad_(False)
        for end in stops:
            pv.fit(program, X, optimizer=ADAM, epochs=end, checkpoint=path, resume=True)
        weights.append(_values(program))
    assert all(map(torch.equal, *weights))
