"""The compiled step: the gradients, draws and losses of plain ``SVI``, or plain ``SVI`` itself."""

from __future__ import annotations

import logging
from functools import partial

import components
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS, PROGRAMS, program_for, small_vae
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.compile import trace
from pyro_vae.learning import CompiledSVI, LinearWarmUp, StepInfo, epochs, svi
from pyro_vae.learning.optimizers import FusedOptimizer
from pyro_vae.programs.inputs import program_args

#: Every objective that is one graph.
OBJECTIVES = {
    "CIWAE": lambda: objectives.CIWAE(5),
    "ELBO, of particles": lambda: objectives.ELBO(3, analytic_kl=False),
    "ELBO, analytic": objectives.ELBO,
    "ELBO, stl": lambda: objectives.ELBO(3, gradient="stl"),
    "ELBO, warmed up": lambda: objectives.ELBO(beta=LinearWarmUp(2)),
    "ELBO, free bits": lambda: objectives.ELBO(free_bits=0.1),
    "ELBO, MAP": lambda: objectives.ELBO(map_weights=True),
    "IWAE": lambda: objectives.IWAE(5),
    "IWAE, stl": lambda: objectives.IWAE(5, gradient="stl"),
    "IWAE, dreg": lambda: objectives.IWAE(5, gradient="dreg"),
    "MIWAE": lambda: objectives.MIWAE(2, 3),
    "PIWAE": lambda: objectives.PIWAE(2, 3),
    "Renyi": lambda: objectives.Renyi(0.5, 5),
    "ReweightedWakeSleep": lambda: objectives.ReweightedWakeSleep(5),
    "WakeSleep": objectives.WakeSleep,
}
#: Not so exact: torch's own Adam, which refines, counts its steps in single precision.
SINGLE = ("SemiAmortized", "SemiAmortized, planar")
ADAM = partial(torch.optim.Adam, lr=0.01)


@pytest.fixture
def interpreted(monkeypatch):
    """The graph as it was recorded, without seconds of compiling for each."""
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)


@pytest.fixture(scope="module")
def digits():
    return pv.data.load("digits", binarize="threshold")


def hold_to_eager(program, objective, args, monkeypatch, tolerance=1e-10):
    """A step of a graph in float64, whose gradient is compared with the eager one."""
    monkeypatch.setattr(svi, "_TOLERANCE", tolerance)
    program.double().train()
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    step = CompiledSVI(program.model, program.guide, FusedOptimizer(ADAM), objective)
    pyro.set_rng_seed(0)
    objective.at(StepInfo(0.5, 100, torch.arange(len(args[0]))))
    before = [p.detach().clone() for p in program.parameters()]
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        step.step(*args)
    assert step.reasons == []
    assert any(not torch.equal(a, b) for a, b in zip(before, program.parameters(), strict=True))


@pytest.mark.parametrize("name", PRIORS)
def test_priors(name, interpreted, monkeypatch):
    args = (torch.rand(6, 3).round(),)
    hold_to_eager(small_vae(prior=PRIORS[name]), objectives.ELBO(), args, monkeypatch)


@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors(name, interpreted, monkeypatch):
    tolerance = 1e-5 if name in SINGLE else 1e-10
    args = (torch.rand(6, 3).round(),)
    vae = small_vae(posterior=POSTERIORS[name])
    hold_to_eager(vae, objectives.ELBO(), args, monkeypatch, tolerance)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name, interpreted, monkeypatch):
    vae = small_vae(likelihood=LIKELIHOODS[name])
    args = (components.data_for(vae.likelihood, 6),)
    hold_to_eager(vae, objectives.ELBO(), args, monkeypatch)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, interpreted, monkeypatch):
    vae = small_vae(encoder=NETWORKS[name], decoder=NETWORKS[name], event_shape=(1, 8, 8))
    hold_to_eager(vae, objectives.ELBO(), (torch.rand(6, 1, 8, 8).round(),), monkeypatch)


#: Every program with three objectives that run it in different ways, and one with all of them.
PAIRS = [(p, o) for p in PROGRAMS for o in ("ELBO, of particles", "IWAE", "ReweightedWakeSleep")]
#: The weights of this one are no latents of a datum.
PAIRS = [(p, o) for p, o in PAIRS if p != "BayesianVAE" or o.startswith("ELBO")]
PAIRS += [("HierarchicalVAE", o) for o in OBJECTIVES if ("HierarchicalVAE", o) not in PAIRS]


@pytest.mark.parametrize(("name", "objective"), PAIRS)
def test_programs_and_objectives(name, objective, interpreted, monkeypatch, digits):
    program = program_for(PROGRAMS[name], digits)
    pv.initialize(program, digits.train.head(100).materialize(0))
    args = program_args(program, digits.train.head(6), 0)
    hold_to_eager(program, OBJECTIVES[objective](), args, monkeypatch)


def test_every_objective_is_a_graph_or_says_why():
    listed = {name.split(",")[0] for name in OBJECTIVES}
    without = {n for n in objectives.__all__ if getattr(objectives, n).not_traceable_reason}
    assert listed | without == set(objectives.__all__) - {"Objective"}
    assert without == {"EnumeratedELBO", "MonteCarloEM"}


def vae_of_digits(data, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = partial(pv.networks.MLP, hidden=(20,))
    return pv.VAE(data.event_shape, latent_dim=3, encoder=hidden, decoder=hidden).to(dtype)


@pytest.fixture(scope="module")
def grey():
    return pv.data.load("digits", binarize="dynamic")


@pytest.mark.parametrize("clip_norm", [None, 30.0])
def test_compiled_steps_are_those_of_plain_svi(grey, clip_norm):
    """Binarisation, noise, gradient, clipping and Adam, over 60 steps in double precision."""
    train = grey.train.head(200)
    losses, weights = [], []
    for compiled in (False, True):
        torch.set_default_dtype(torch.float64)
        try:
            vae, optim = vae_of_digits(grey, torch.float64), FusedOptimizer(ADAM, clip_norm)
            fast = CompiledSVI(
                vae.model, vae.guide, optim, objectives.ELBO(), draw=lambda i: (train.draw(i),)
            )
            looked = objectives.ELBO()
            looked.loss(vae.model, vae.guide, train.materialize(0)[:3])
            plain = SVI(vae.model, vae.guide, optim, loss=looked)
            pyro.set_rng_seed(1)
            with pyro.get_param_store().scope(), pyro.validation_enabled(False):
                some = [torch.randint(0, 200, (50,)) for _ in range(60)]
                if compiled:
                    losses.append([float(fast.step(index)) for index in some])
                else:
                    losses.append([plain.step(train.draw(index)) for index in some])
            weights.append([p.detach() for p in vae.parameters()])
        finally:
            torch.set_default_dtype(torch.float32)
    assert fast.reasons == [] and fast.compile_seconds > 0
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.fixture(scope="module")
def fits(grey):
    """The same fit, eager and compiled: 250 data, so that the last minibatch is a small one."""
    histories, weights = [], []
    for compile in (False, True):
        vae = vae_of_digits(grey)
        schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
        history = pv.fit(
            vae,
            grey.train.head(250),
            valid=grey.valid.head(50),
            objective=objectives.ELBO(beta=LinearWarmUp(2)),
            optimizer=ADAM,
            schedule=schedule,
            epochs=3,
            clip_norm=100.0,
            compile=compile,
        )
        histories.append(history)
        weights.append([p.detach() for p in vae.parameters()])
    return histories, weights


def test_fit_compiled_is_fit(fits):
    (eager, compiled), weights = fits
    assert compiled["elbo"] == pytest.approx(eager["elbo"], rel=1e-5)
    assert compiled["valid_elbo"] == pytest.approx(eager["valid_elbo"], rel=1e-4)
    assert compiled["lr"] == eager["lr"] == [0.01, 0.005, 0.0025]
    assert eager["elbo"] == sorted(eager["elbo"])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_fit_says_how_long_it_compiled(fits):
    (eager, compiled), _ = fits
    told = ["compile_seconds" in epoch for epoch in compiled.epochs]
    assert told == [True, False, False]
    assert not any("compile_seconds" in epoch for epoch in eager.epochs)


def test_a_resumed_fit_is_the_whole_one(grey, tmp_path):
    weights = []
    for stops in ((2,), (1, 2)):
        vae, path = vae_of_digits(grey), tmp_path / f"{len(stops)}.pt"
        for end in stops:
            settings = {"optimizer": ADAM, "checkpoint": path, "resume": True, "compile": True}
            pv.fit(vae, grey.train.head(200), epochs=end, **settings)
        weights.append([p.detach() for p in vae.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Counted(CompiledSVI):
    """Counts its steps."""

    steps = 0

    def step(self, *args, **kwargs):
        Counted.steps += 1
        return super().step(*args, **kwargs)


@pytest.mark.parametrize(("compile", "expected"), [(None, 2 * 10 - 7), (True, 2 * 10), (False, 0)])
def test_a_rule_chooses_whether_or_not_the_run_is_interrupted(
    compile, expected, monkeypatch, grey, tmp_path, interpreted
):
    monkeypatch.setattr(epochs, "CompiledSVI", Counted)
    monkeypatch.setattr(epochs, "_MANY_STEPS", 7)
    for stops in ((2,), (1, 2)):
        Counted.steps, vae = 0, vae_of_digits(grey)
        for end in stops:
            settings = {"checkpoint": tmp_path / f"{len(stops)}.pt", "resume": True}
            pv.fit(
                vae, grey.train.head(200), epochs=end, batch_size=20, compile=compile, **settings
            )
        assert Counted.steps == expected


class Branching(nn.Module):
    """A guide that looks at the numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand(x.shape).to_event(1), obs=x
            )

    def guide(self, x):
        pyro.module("guide", self)
        loc, scale = self.linear(x).chunk(2, -1)
        if loc.mean() > 100:
            loc = -loc
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def steps(objective, args, caplog, model=None, guide=None, **kwargs):
    """Three steps, eager and by ``CompiledSVI``; the losses, and what was logged."""
    losses = []
    for make in (partial(SVI, loss=objective), partial(CompiledSVI, loss=objective, **kwargs)):
        torch.manual_seed(0)
        program = Branching()
        optim = FusedOptimizer(ADAM)
        with pyro.get_param_store().scope():
            objective.loss(program.model, program.guide, *args)
        pyro.set_rng_seed(2)
        with pyro.get_param_store().scope(), caplog.at_level(logging.WARNING, "pyro_vae"):
            one = make(program.model, program.guide, optim)
            losses.append([float(one.step(*args)) for _ in range(3)])
    return losses, [r.getMessage() for r in caplog.records if "eagerly" in r.getMessage()]


def test_what_looks_at_numbers_runs_eagerly_and_says_why_once(caplog):
    (eager, other), told = steps(objectives.ELBO(), (torch.randn(5, 3),), caplog)
    assert other == eager
    assert (len(told) == 1 and "data-dependent" in told[0].lower()) or "DataDependent" in told[0]


def test_pyros_own_objective_runs_eagerly(caplog):
    (eager, other), told = steps(Trace_ELBO(), (torch.randn(5, 3),), caplog)
    assert other == eager
    assert len(told) == 1 and "Trace_ELBO reads its loss back in every step" in told[0]


def test_without_a_compiler_it_runs_eagerly(caplog, monkeypatch, grey):
    def missing(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand a long story")

    monkeypatch.setattr(torch._inductor, "compile", missing)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        history = pv.fit(vae_of_digits(grey), grey.train.head(200), epochs=2, compile=True)
    plain = pv.fit(vae_of_digits(grey), grey.train.head(200), epochs=2)
    assert history["elbo"] == pytest.approx(plain["elbo"], rel=1e-12)
    told = [r.getMessage() for r in caplog.records if "eagerly" in r.getMessage()]
    assert len(told) == 1 and told[0].endswith("RuntimeError: No working C++ compiler found")


def test_a_graph_that_computes_something_else_is_not_used(monkeypatch, caplog, grey):
    def wrong(graph, inputs):
        return lambda *args: [2 * value for value in graph(*args)]

    monkeypatch.setattr(svi, "compile_graph", wrong)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        history = pv.fit(vae_of_digits(grey), grey.train.head(200), epochs=1, compile=True)
    plain = pv.fit(vae_of_digits(grey), grey.train.head(200), epochs=1)
    assert history["elbo"] == pytest.approx(plain["elbo"], rel=1e-12)
    assert "not the eager one" in caplog.text


def test_batch_norm_sees_each_minibatch_once(interpreted):
    """Neither recording nor comparing moves the statistics."""
    x = torch.rand(8, 3).round()
    means = []
    for make in (SVI, CompiledSVI):
        torch.manual_seed(0)
        vae = small_vae(encoder=partial(pv.networks.MLP, hidden=(5,), norm="batch"))
        pyro.set_rng_seed(0)
        objective = objectives.ELBO(analytic_kl=False)
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):
            one = make(vae.model, vae.guide, FusedOptimizer(ADAM), loss=objective)
            if make is SVI:
                vae.eval()
                objective.loss(vae.model, vae.guide, x)
                vae.train()
            pyro.set_rng_seed(0)
            for _ in range(2):
                one.step(x)
        means.append([b.clone() for b in vae.buffers()])
    assert means[0] and all(torch.allclose(a, b) for a, b in zip(*means, strict=True))


def test_a_loss_that_becomes_nan_is_found_where_it_came_from(grey):
    """Nobody looks at compiled losses; the epoch is repeated eagerly, from its start."""
    errors = []
    for compile in (False, True):
        vae = vae_of_digits(grey)
        with pytest.raises(pv.learning.fit.__globals__["NonFiniteLossError"]) as caught:
            explosive = partial(torch.optim.SGD, lr=1e30)
            pv.fit(vae, grey.train.head(200), optimizer=explosive, epochs=2, compile=compile)
        errors.append(str(caught.value))
    assert errors[0] == errors[1] and "in epoch 1, step 2" in errors[0]


def test_no_bias_is_copied_to_where_a_product_goes():
    vae = small_vae()
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=1e-3))
    fast = CompiledSVI(vae.model, vae.guide, optim, objectives.ELBO())
    x = torch.rand(5, 3).round()
    fast.step(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        fast.step(x)
    called = {event.key for event in seen.key_averages()}
    assert not fast.reasons and "aten::mm" in called and "aten::addmm" not in called


def test_the_random_numbers_are_those_of_eager_code():
    def draws(p):
        return torch.bernoulli(p), torch.randn(3, 5) * p, torch.rand(7), torch.empty(20).normal_()

    p = torch.rand(3, 5)
    graph, held = trace.trace_graph(draws, p)
    fast = trace.compile_graph(graph, [p, *held])
    for seed in range(3):
        torch.manual_seed(seed)
        expected = (*draws(p), torch.rand(1))
        torch.manual_seed(seed)
        got = (*fast(p, *held), torch.rand(1))
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_recording_leaves_generators_and_tensors_alone():
    total = torch.zeros(3)

    def add(x):
        total.add_(x * torch.rand(3))
        return (total + 1,)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    graph, held = trace.trace_graph(add, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state) and total.sum() == 0
    (result,) = graph(torch.ones(3), *held)
    assert total.sum() > 0 and torch.equal(result, total + 1)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: (x if x.sum() > 0 else -x,),
        lambda x: (x * float(x.sum()),),
        lambda x: (torch.zeros(int(x.sum())),),
    ],
)
def test_what_depends_on_numbers_is_no_graph(look):
    with pytest.raises(trace.NotTraceableError):
        trace.trace_graph(look, torch.ones(3))


def test_keyword_arguments_are_refused(grey):
    vae = vae_of_digits(grey)
    one = CompiledSVI(vae.model, vae.guide, FusedOptimizer(ADAM), objectives.ELBO())
    with pytest.raises(TypeError, match="expected positional arguments; got size: bind others"):
        one.step(grey.train.head(3).materialize(0), size=3)
