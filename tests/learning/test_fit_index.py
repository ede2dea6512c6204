"""``fit`` of programs with parameters per training example, on minibatches."""

from __future__ import annotations

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoIAFNormal, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.learning import svi

N = 40
X = 2 * torch.randn(N, generator=torch.Generator().manual_seed(0))
#: With the exact posterior in the guide, the gradient of STL has no noise at the optimum.
SGD = partial(torch.optim.SGD, lr=0.15)
STL = pv.objectives.ELBO(gradient="stl")
#: log p(x) with z ~ N(0, 1), x | z ~ N(z, 1); the posterior is N(x / 2, 1 / 2).
EVIDENCE = dist.Normal(0.0, 2**0.5).log_prob(X).mean().item()


@pytest.fixture(autouse=True)
def _clear():
    pyro.clear_param_store()


@pytest.fixture
def uncompiled(monkeypatch):
    """Run the traced graph without compiling it, to save time."""
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def sized_model(x):
    """The plate has the size of the training set, as Pyro's documentation has it."""
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def renamed_model(x):
    with pyro.plate("cells", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class PerExample(nn.Module):
    """A guide with a location and a scale for each of N examples."""

    def __init__(self, kind="index"):
        super().__init__()
        self.kind = kind
        self.loc, self.log_scale = nn.Parameter(torch.zeros(N)), nn.Parameter(torch.zeros(N))

    def model(self, x):
        (sized_model if self.kind == "sized" else model)(x)

    def guide(self, x):
        size = N if self.kind == "sized" else len(x)
        with pyro.plate("data", size) as i:
            if self.kind == "whole":
                pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))
            else:
                pyro.sample("z", dist.Normal(self.loc[i], self.log_scale[i].exp()))


def param_guide(x):
    with pyro.plate("data", len(x)) as i:
        loc = pyro.param("loc", torch.zeros(N))[i]
        scale = pyro.param("scale", torch.ones(N), constraint=dist.constraints.positive)[i]
        pyro.sample("z", dist.Normal(loc, scale))


def subsampled_param_guide(x):
    """``event_dim`` lets the plate select the rows of the parameters."""
    with pyro.plate("data", N):
        loc = pyro.param("loc", torch.zeros(N), event_dim=0)
        scale = pyro.param("scale", torch.ones(N), dist.constraints.positive, event_dim=0)
        pyro.sample("z", dist.Normal(loc, scale))


def _programs():
    yield "index", lambda: PerExample()
    yield "size N", lambda: PerExample("sized")
    yield "pyro.param", lambda: (model, param_guide)
    yield "event_dim", lambda: (model, subsampled_param_guide)
    yield "AutoNormal", lambda: (model, AutoNormal(model, init_scale=0.6))
    yield (
        "AutoNormal of a plate of size N",
        lambda: (sized_model, AutoNormal(sized_model, init_scale=0.6)),
    )
    yield (
        "AutoNormal of another plate",
        lambda: (renamed_model, AutoNormal(renamed_model, init_scale=0.6)),
    )


PROGRAMS = dict(_programs())


def _locations(program):
    """Return the location and scale of every example."""
    if isinstance(program, PerExample):
        return program.loc.detach(), program.log_scale.exp().detach()
    if isinstance(program[1], AutoNormal):
        return program[1].locs.z.detach(), program[1].scales.z.detach()
    return pyro.param("loc").detach(), pyro.param("scale").detach()


def _fit(program, **options):
    settings = {"batch_size": 15, "optimizer": SGD, "compile": False}
    settings |= {"clip_norm": 5.0, **options}
    return pv.fit(program, X, **settings)


@pytest.mark.parametrize("name", PROGRAMS)
def test_converges_to_the_posterior_of_every_example(name):
    program = PROGRAMS[name]()
    history = _fit(program, epochs=40, objective=STL)
    loc, scale = _locations(program)
    torch.testing.assert_close(loc, X / 2, atol=0.03, rtol=0)
    torch.testing.assert_close(scale, torch.full((N,), 0.5**0.5), atol=0.03, rtol=0)
    # a sum over the minibatch, whatever the size of the plate
    assert history["elbo"][-1] == pytest.approx(EVIDENCE, abs=1e-3)


@pytest.mark.parametrize("name", ["index", "AutoNormal"])
@pytest.mark.parametrize("options", [{}, {"objective": pv.objectives.IWAE(3)}])
def test_full_batches_and_other_objectives(name, options):
    program = PROGRAMS[name]()
    history = _fit(program, epochs=100, batch_size=N, **options)
    assert torch.corrcoef(torch.stack([_locations(program)[0], X]))[0, 1] > 0.9
    assert EVIDENCE - 0.2 < history["elbo"][-1] < EVIDENCE + 0.3
    bounds = pv.evaluate(program, X, num_samples=500)
    assert EVIDENCE - 0.3 < bounds.elbo < EVIDENCE
    assert bounds.log_evidence == pytest.approx(EVIDENCE, abs=0.02)


def test_steps_are_those_of_plain_pyro():
    """Pyro's loss of a plate with a subsample is N / B times the sum over the minibatch."""
    states = []

    class Recorded(AutoNormal):
        def forward(self, x):
            states.append((torch.get_rng_state(), x.detach().clone()))
            return super().forward(x)

    def plain_model(x, index):
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = Recorded(model)
    guide(X)
    before = [p.detach().clone() for p in guide.parameters()]
    loader = DataLoader(TensorDataset(X), batch_size=15, shuffle=True, drop_last=True)
    objective = pv.objectives.ELBO(analytic_kl=False)
    options = {"objective": objective, "optimizer": partial(torch.optim.SGD, lr=0.01)}
    pv.fit((model, guide), loader, epochs=1, compile=False, **options)
    steps = states[-2:]  # an epoch of two minibatches
    rows = [(x[:, None] == X).nonzero()[:, 1] for _, x in steps]
    pyro.clear_param_store()

    def create_plates(x, index):
        return pyro.plate("data", N, subsample=index)

    plain = AutoNormal(plain_model, create_plates=create_plates)
    plain(X[:15], rows[0])
    with torch.no_grad():
        for parameter, value in zip(plain.parameters(), before, strict=True):
            parameter.copy_(value)
    svi = SVI(plain_model, plain, pyro.optim.SGD({"lr": 0.01 * 15 / N}), Trace_ELBO())
    for (state, x), index in zip(steps, rows, strict=True):
        torch.set_rng_state(state)
        svi.step(x, index)
    for ours, theirs in zip(guide.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_shared_and_local_latents_of_an_autoguide():
    """μ ~ N(0, 1), z_i ~ N(μ, 1), x_i ~ N(z_i, 1): the mean-field solution.

    q(z_i) = N((E μ + x_i) / 2, 1 / 2), q(μ) = N(Σ_i E z_i / (N + 1), 1 / (N + 1)), with
    E μ = Σ_i x_i / (N + 2).
    """

    def shared(x, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x) if size is None else size):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for program in (shared, partial(shared, size=N)):
        pyro.clear_param_store()
        guide = AutoNormal(program, init_scale=0.3)
        adam = partial(torch.optim.Adam, lr=0.2)
        decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.95)
        options = {"epochs": 60, "batch_size": 10, "optimizer": adam, "schedule": decay}
        _fit((program, guide), clip_norm=None, **options)
        mean = X.sum().item() / (N + 2)
        assert guide.locs.mu.item() == pytest.approx(mean, abs=0.08)
        assert guide.scales.mu.item() == pytest.approx((N + 1) ** -0.5, rel=0.15)
        torch.testing.assert_close(guide.locs.z.detach(), (mean + X) / 2, atol=0.4, rtol=0)
        assert guide.scales.z.detach().mean().item() == pytest.approx(0.5**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["index", "pyro.param", "AutoNormal"])
def test_resumes_bit_for_bit(name, tmp_path):
    expected, path = PROGRAMS[name](), tmp_path / "state.pt"
    history = _fit(expected, epochs=4)
    values = [t.clone() for t in _locations(expected)]
    pyro.clear_param_store()
    _fit(PROGRAMS[name](), epochs=2, checkpoint=path)
    pyro.clear_param_store()
    program = PROGRAMS[name]()
    other = _fit(program, epochs=4, checkpoint=path, resume=True)
    assert other["elbo"] == history["elbo"]
    assert all(map(torch.equal, _locations(program), values))


@pytest.mark.parametrize("name", ["index", "size N", "pyro.param", "event_dim", "AutoNormal"])
def test_compiled_steps(name, uncompiled, caplog):
    program, other = PROGRAMS[name](), PROGRAMS[name]()
    expected = _fit(program, epochs=3)["elbo"]
    values = [t.clone() for t in _locations(program)]
    pyro.clear_param_store()
    assert _fit(other, epochs=3, compile=True)["elbo"] == pytest.approx(expected, rel=1e-5)
    assert "eagerly" not in caplog.text
    for a, b in zip(_locations(other), values, strict=True):
        torch.testing.assert_close(a, b)


def test_a_list_of_autoguides_in_a_module():
    class Listed(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.auto = AutoGuideList(model)
            self.auto.append(AutoNormal(pyro.poutine.block(model, expose=["z"]), init_scale=0.6))

        def model(self, x):
            model(x)

        def guide(self, x):
            return self.auto(x)

    program = Listed()
    history = _fit(program, epochs=40, objective=STL)
    assert history["elbo"][-1] == pytest.approx(EVIDENCE, abs=1e-3)
    torch.testing.assert_close(program.auto[0].locs.z.detach(), X / 2, atol=0.03, rtol=0)
    assert program.auto.create_plates is None


def test_an_index_that_the_user_passes():
    """A subsample of the plate, with parameters per example; its scale is not in the loss."""

    def subsampled(x, index):
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, index):
        with pyro.plate("data", N, subsample=index):
            loc = pyro.param("loc", torch.zeros(N), event_dim=0)
            scale = pyro.param("scale", torch.ones(N), dist.constraints.positive, event_dim=0)
            pyro.sample("z", dist.Normal(loc, scale))

    history = pv.fit(
        (subsampled, guide),
        X,
        torch.arange(N),
        batch_size=15,
        optimizer=SGD,
        clip_norm=5.0,
        epochs=40,
        objective=STL,
    )
    torch.testing.assert_close(pyro.param("loc").detach(), X / 2, atol=0.03, rtol=0)
    assert history["elbo"][-1] == pytest.approx(EVIDENCE, abs=1e-3)


def test_a_program_that_draws_its_own_minibatch_from_x():
    """``x[i]`` of all examples is x of the minibatch that fit passes."""
    loc = nn.Parameter(torch.tensor(0.0))

    def own(x, observe=True):
        pyro.param("gain", loc)
        with pyro.plate("data", len(x), subsample_size=7) as i:
            q = dist.Normal(loc * x[i], 0.5**0.5) if not observe else dist.Normal(0.0, 1.0)
            z = pyro.sample("z", q)
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    adam = partial(torch.optim.Adam, lr=0.05)
    program = own, partial(own, observe=False)
    history = _fit(program, epochs=40, optimizer=adam, objective=STL)
    assert loc.item() == pytest.approx(0.5, abs=0.02)
    assert history["elbo"][-1] == pytest.approx(EVIDENCE, abs=1e-3)


def test_parameters_by_position_train_on_all_examples_only():
    program = PerExample("whole")
    history = _fit(program, batch_size=N, epochs=40, objective=STL)
    torch.testing.assert_close(program.loc.detach(), X / 2, atol=0.03, rtol=0)
    assert history["elbo"][-1] == pytest.approx(EVIDENCE, abs=1e-3)
    message = "one that only runs on all 40 examples, e.g. .*: set batch_size to 40"
    with pytest.raises(ValueError, match=message):
        _fit(PerExample("whole"), batch_size=20)


def test_a_joint_autoguide_on_minibatches():
    message = "AutoIAFNormal, which samples the latents of all examples together, and gives the"
    with pytest.raises(ValueError, match=message):
        _fit((model, AutoIAFNormal(model, [50])))


def test_an_autoguide_of_other_data():
    guide = AutoNormal(model)
    guide(X[:10])
    with pytest.raises(ValueError, match="parameters of all 40 training examples; got one that wa"):
        _fit((model, guide))


def test_point_masses_are_refused():
    with pytest.raises(ValueError, match=r"a point mass \(Delta\) at site 'z'"):
        _fit((model, AutoDelta(model)))


@pytest.mark.parametrize("name", ["index", "AutoNormal"])
def test_validation_data_cannot_be_scored(name):
    with pytest.raises(ValueError, match="with parameters per training example, which cannot sco"):
        _fit(PROGRAMS[name](), valid=X)


def test_a_created_guide_keeps_its_values():
    guide = AutoNormal(model)
    guide(X)
    with torch.no_grad():
        guide.locs.z_unconstrained.copy_(X)
    before = copy.deepcopy(dict(guide.named_parameters()))
    _fit((model, guide), epochs=1, optimizer=partial(torch.optim.SGD, lr=0.0))
    after = dict(guide.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    torch.testing.assert_close(guide.locs.z.detach(), X)
