"""Compiled SVI steps against plain ``SVI``: gradients, random numbers and losses."""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import nullcontext
from functools import partial

import components
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import (
    COMPATIBLE_PAIRS,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    PRIORS,
    PROGRAMS,
    program_for,
    small_vae,
)
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch._dynamo.utils import counters

import pyro_vae as pv
from pyro_vae import likelihoods, objectives
from pyro_vae.compiler import trace
from pyro_vae.learning import CompiledSVI, LinearWarmUp, StepInfo, svi, trainer
from pyro_vae.learning.diagnostics import NonFiniteLossError
from pyro_vae.learning.optimizers import FusedOptimizer
from pyro_vae.programs.inputs import program_args

#: All traceable objectives.
OBJECTIVES = {
    "CIWAE": lambda: objectives.CIWAE(5),
    "ELBO, particles": lambda: objectives.ELBO(3, analytic_kl=False),
    "ELBO, analytic": objectives.ELBO,
    "ELBO, stl": lambda: objectives.ELBO(3, gradient="stl"),
    "ELBO, warm-up": lambda: objectives.ELBO(beta=LinearWarmUp(2)),
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
#: Less accurate: the inner torch Adam counts steps in single precision.
SINGLE_PRECISION = ("SemiAmortized", "SemiAmortized, planar")
ADAM = partial(torch.optim.Adam, lr=0.01)


@pytest.fixture
def uncompiled(monkeypatch):
    """Run the traced graph without compiling it, to save time."""
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)


@pytest.fixture(scope="module")
def digits():
    return pv.data.load("digits", binarize="threshold")


def check_against_eager(program, objective, args, monkeypatch, tolerance=1e-10):
    """Take a traced step in float64 and compare its gradient with the eager one."""
    monkeypatch.setattr(svi, "_TOLERANCE", tolerance)
    program.double().train()
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    compiled = CompiledSVI(program.model, program.guide, FusedOptimizer(ADAM), objective)
    pyro.set_rng_seed(0)
    objective.set_step(StepInfo(0.5, 100, torch.arange(len(args[0]))))
    before = [p.detach().clone() for p in program.parameters()]
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        compiled.step(*args)
    assert compiled.reasons == []
    assert any(not torch.equal(a, b) for a, b in zip(before, program.parameters(), strict=True))


def combine_components():
    """Cover every prior, posterior and likelihood with few VAEs, to save traces."""
    partners = {p: [q for a, q in COMPATIBLE_PAIRS if a == p] for p in PRIORS}
    uncovered, pairs = [q for q in POSTERIORS if q not in SINGLE_PRECISION], []
    for prior in sorted(PRIORS, key=lambda p: len(partners[p])):
        posterior = next((q for q in uncovered if q in partners[prior]), partners[prior][0])
        uncovered = [q for q in uncovered if q != posterior]
        pairs.append((prior, posterior))
    assert not uncovered and len(pairs) < len(LIKELIHOODS)
    rest = ("StandardNormal", "DiagonalNormal")
    return [(*pair, n) for pair, n in itertools.zip_longest(pairs, LIKELIHOODS, fillvalue=rest)]


@pytest.mark.parametrize(("prior", "posterior", "likelihood"), combine_components())
def test_components(prior, posterior, likelihood, uncompiled, monkeypatch):
    parts = {"posterior": POSTERIORS[posterior], "likelihood": LIKELIHOODS[likelihood]}
    vae = small_vae(PRIORS[prior], **parts)
    args = (components.data_for(vae.likelihood, 6),)
    check_against_eager(vae, objectives.ELBO(), args, monkeypatch)


def test_coupled_channels(uncompiled, monkeypatch):
    make = partial(likelihoods.MixtureOfDiscretizedLogistics, levels=16, coupling=True)
    vae = small_vae(likelihood=make, event_shape=(3, 2))
    check_against_eager(vae, objectives.ELBO(), (torch.rand(6, 3, 2).round(),), monkeypatch)


def test_unobserved_values(uncompiled, monkeypatch):
    parts = [partial(likelihoods.Gaussian, scale="optimal"), likelihoods.Bernoulli]
    make = partial(likelihoods.Columns, parts=parts, columns=[[0, 2], [1]])
    vae = small_vae(likelihood=make, encoder=partial(pv.networks.MLP, hidden=(5,), mask=True))
    x = torch.rand(6, 3).round()
    x[0, 0] = x[3, 1] = x[4, 2] = torch.nan
    vae.check(x)
    check_against_eager(vae, objectives.ELBO(), (x,), monkeypatch)


@pytest.mark.parametrize("name", SINGLE_PRECISION)
def test_semi_amortized(name, uncompiled, monkeypatch):
    vae, args = small_vae(posterior=POSTERIORS[name]), (torch.rand(6, 3).round(),)
    check_against_eager(vae, objectives.ELBO(), args, monkeypatch, tolerance=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, uncompiled, monkeypatch):
    vae = small_vae(encoder=NETWORKS[name], decoder=NETWORKS[name], event_shape=(1, 8, 8))
    check_against_eager(vae, objectives.ELBO(), (torch.rand(6, 1, 8, 8).round(),), monkeypatch)


#: Every program (the weights of BayesianVAE are not in the data plate), programs with several
#: sites or labels in the other two kinds of runs, and one program with all objectives.
PAIRS = [(p, "IWAE") for p in PROGRAMS if p != "BayesianVAE"]
PAIRS += [(p, "ELBO, particles") for p in ("BayesianVAE", "HierarchicalVAE", "SemiSupervisedVAE")]
PAIRS += [(p, "ReweightedWakeSleep") for p in ("ConditionalVAE", "HierarchicalVAE")]
PAIRS += [("VAE", o) for o in OBJECTIVES if o != "IWAE"]


@pytest.mark.parametrize(("name", "objective"), PAIRS)
def test_programs_and_objectives(name, objective, uncompiled, monkeypatch, digits):
    program = program_for(PROGRAMS[name], digits)
    pv.initialize(program, digits.train.head(100).materialize(0))
    args = program_args(program, digits.train.head(6), 0)
    check_against_eager(program, OBJECTIVES[objective](), args, monkeypatch)


def test_objectives_are_traceable_or_have_a_reason():
    traceable = {name.split(",")[0] for name in OBJECTIVES}
    untraceable = {n for n in objectives.__all__ if getattr(objectives, n).not_traceable_reason}
    assert traceable | untraceable == set(objectives.__all__) - {"Objective"}
    assert untraceable == {"EnumeratedELBO", "MonteCarloEM"}


def make_digits_vae(data, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = partial(pv.networks.MLP, hidden=(20,))
    return pv.VAE(data.event_shape, latent_dim=3, encoder=hidden, decoder=hidden).to(dtype)


@pytest.fixture(scope="module")
def grey():
    return pv.data.load("digits", binarize="dynamic")


@pytest.fixture(scope="module")
def steps(grey):
    """60 steps of plain and compiled SVI in double precision: losses, weights, one more step."""
    train = grey.train.head(200)
    losses, weights = [], []
    torch.set_default_dtype(torch.float64)
    try:
        for compiled in (False, True):
            vae = make_digits_vae(grey, torch.float64)
            optim, objective = FusedOptimizer(ADAM, clip_norm=30.0), objectives.ELBO()
            if compiled:
                svi = CompiledSVI(
                    vae.model, vae.guide, optim, objective, draw=lambda i: (train.draw(i),)
                )
                step = svi.step
            else:
                objective.loss(vae.model, vae.guide, train.materialize(0)[:3])
                plain = SVI(vae.model, vae.guide, optim, loss=objective)
                step = lambda index, plain=plain: plain.step(train.draw(index))  # noqa: E731
            pyro.set_rng_seed(1)
            with pyro.get_param_store().scope(), pyro.validation_enabled(False):
                batches = [torch.randint(0, 200, (50,)) for _ in range(60)]
                losses.append([float(step(index)) for index in batches])
            weights.append([p.detach().clone() for p in vae.parameters()])
    finally:
        torch.set_default_dtype(torch.float32)
    return losses, weights, svi, batches[0]


def test_compiled_steps_equal_plain_svi(steps):
    """Binarisation, noise, gradient, clipping and Adam, over 60 steps in double precision."""
    losses, weights, svi, _ = steps
    assert svi.reasons == [] and svi.compile_seconds > 0
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_compiled_step_uses_mm_instead_of_addmm(steps):
    _, _, svi, index = steps
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        svi.step(index)
    called = {event.key for event in profile.key_averages()}
    assert not svi.reasons and "aten::mm" in called and "aten::addmm" not in called


@pytest.fixture(scope="module")
def fits(grey):
    """The same fit, eager and traced; 250 examples give a smaller last minibatch."""
    histories, weights = [], []
    with pytest.MonkeyPatch.context() as patch:
        # the code that is generated for a step is that of ``steps``
        patch.setattr(svi, "compile_graph", lambda graph, inputs: graph)
        for compile in (False, True):
            vae = make_digits_vae(grey)
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


def test_compiled_fit_equals_eager_fit(fits):
    (eager, compiled), weights = fits
    assert compiled["elbo"] == pytest.approx(eager["elbo"], rel=1e-5)
    assert compiled["valid_elbo"] == pytest.approx(eager["valid_elbo"], rel=1e-4)
    assert compiled["lr"] == eager["lr"] == [0.01, 0.005, 0.0025]
    assert eager["elbo"] == sorted(eager["elbo"])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_history_reports_compile_seconds(fits):
    (eager, compiled), _ = fits
    reported = ["compile_seconds" in epoch for epoch in compiled.epochs]
    assert reported == [True, False, False]
    assert not any("compile_seconds" in epoch for epoch in eager.epochs)


def test_resumed_run_equals_uninterrupted_run(grey, tmp_path, uncompiled):
    weights = []
    for stops in ((2,), (1, 2)):
        vae, path = make_digits_vae(grey), tmp_path / f"{len(stops)}.pt"
        for end in stops:
            settings = {"optimizer": ADAM, "checkpoint": path, "resume": True, "compile": True}
            pv.fit(vae, grey.train.head(200), epochs=end, **settings)
        weights.append([p.detach() for p in vae.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class CountingSVI(CompiledSVI):
    """Count steps."""

    steps = 0

    def step(self, *args, **kwargs):
        CountingSVI.steps += 1
        return super().step(*args, **kwargs)


@pytest.mark.parametrize(
    ("compile", "ends", "expected"),
    [
        (True, (1, 2), 20),
        (False, (1, 2), 0),
        (None, (2,), 20),
        (None, (1,), 0),
        (None, (1, 2), 0),  # 10 steps, and 10 more
        (None, (1, 3), 20),  # from the 11th step on
        (None, (3, "interrupted", 3), 30),  # chosen once, though 10 steps remain
        (None, (1, 4, "interrupted", 4), 30),
    ],
)
def test_number_of_compiled_steps(compile, ends, expected, monkeypatch, grey, tmp_path, uncompiled):
    """From the first step or never, by the number of steps: 10 an epoch, of which 15 pay off."""
    monkeypatch.setattr(trainer, "CompiledSVI", CountingSVI)
    monkeypatch.setattr(trainer, "MIN_COMPILED_STEPS", 15)
    CountingSVI.steps, vae = 0, make_digits_vae(grey)

    def interrupt(history):
        if len(history) == 2:
            raise KeyboardInterrupt

    for i, end in enumerate(ends):
        if end == "interrupted":
            continue
        is_interrupted = "interrupted" in ends[i + 1 : i + 2]
        settings = {"checkpoint": tmp_path / "fit.pt", "resume": True, "compile": compile}
        with pytest.raises(KeyboardInterrupt) if is_interrupted else nullcontext():
            pv.fit(
                *(vae, grey.train.head(200)),
                **settings,
                epochs=end,
                batch_size=20,
                on_epoch=interrupt if is_interrupted else None,
            )
    assert CountingSVI.steps == expected


class Branching(nn.Module):
    """Guide with data-dependent control flow."""

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


def run_steps(objective, args, caplog, model=None, guide=None, **kwargs):
    """Take three steps with ``SVI`` and ``CompiledSVI``; return losses and log messages."""
    losses = []
    for make in (partial(SVI, loss=objective), partial(CompiledSVI, loss=objective, **kwargs)):
        torch.manual_seed(0)
        program = Branching()
        optim = FusedOptimizer(ADAM)
        with pyro.get_param_store().scope():
            objective.loss(program.model, program.guide, *args)
        pyro.set_rng_seed(2)
        with pyro.get_param_store().scope(), caplog.at_level(logging.WARNING, "pyro_vae"):
            svi = make(program.model, program.guide, optim)
            losses.append([float(svi.step(*args)) for _ in range(3)])
    return losses, [r.getMessage() for r in caplog.records if "eagerly" in r.getMessage()]


def test_data_dependent_programs_run_eagerly(caplog):
    (eager, compiled), messages = run_steps(objectives.ELBO(), (torch.randn(5, 3),), caplog)
    assert compiled == eager
    assert (
        len(messages) == 1 and "data-dependent" in messages[0].lower()
    ) or "DataDependent" in messages[0]


def test_pyro_objectives_run_eagerly(caplog):
    (eager, compiled), messages = run_steps(Trace_ELBO(), (torch.randn(5, 3),), caplog)
    assert compiled == eager
    assert len(messages) == 1
    assert "Trace_ELBO reads its loss back on the host in every step" in messages[0]


def test_runs_eagerly_without_a_compiler(caplog, monkeypatch, grey):
    def missing(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand a traceback")

    monkeypatch.setattr(torch._inductor, "compile", missing)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        history = pv.fit(make_digits_vae(grey), grey.train.head(200), epochs=2, compile=True)
    plain = pv.fit(make_digits_vae(grey), grey.train.head(200), epochs=2)
    assert history["elbo"] == pytest.approx(plain["elbo"], rel=1e-12)
    messages = [r.getMessage() for r in caplog.records if "eagerly" in r.getMessage()]
    assert len(messages) == 1 and messages[0].endswith(
        "RuntimeError: No working C++ compiler found"
    )


def test_runs_eagerly_if_the_compiled_gradient_is_wrong(monkeypatch, caplog, grey):
    def wrong(graph, inputs):
        return lambda *args: [2 * value for value in graph(*args)]

    monkeypatch.setattr(svi, "compile_graph", wrong)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        history = pv.fit(make_digits_vae(grey), grey.train.head(200), epochs=1, compile=True)
    plain = pv.fit(make_digits_vae(grey), grey.train.head(200), epochs=1)
    assert history["elbo"] == pytest.approx(plain["elbo"], rel=1e-12)
    assert "differs from the eager gradient" in caplog.text


def test_batch_norm_statistics_are_updated_once_per_step(uncompiled):
    """Tracing and checking gradients do not update the statistics."""
    x = torch.rand(8, 3).round()
    means = []
    for make in (SVI, CompiledSVI):
        torch.manual_seed(0)
        vae = small_vae(encoder=partial(pv.networks.MLP, hidden=(5,), norm="batch"))
        pyro.set_rng_seed(0)
        objective = objectives.ELBO(analytic_kl=False)
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):
            svi = make(vae.model, vae.guide, FusedOptimizer(ADAM), loss=objective)
            if make is SVI:
                vae.eval()
                objective.loss(vae.model, vae.guide, x)
                vae.train()
            pyro.set_rng_seed(0)
            for _ in range(2):
                svi.step(x)
        means.append([b.clone() for b in vae.buffers()])
    assert means[0] and all(torch.allclose(a, b) for a, b in zip(*means, strict=True))


def test_nan_loss_is_diagnosed(grey, uncompiled):
    """Compiled losses are not checked; the epoch is repeated eagerly."""
    errors = []
    for compile in (False, True):
        vae = make_digits_vae(grey)
        with pytest.raises(NonFiniteLossError) as caught:
            diverging = partial(torch.optim.SGD, lr=1e30)
            pv.fit(vae, grey.train.head(200), optimizer=diverging, epochs=2, compile=compile)
        errors.append(str(caught.value))
    assert errors[0] == errors[1] and "in epoch 1, step 2" in errors[0]


def test_compiled_graph_draws_the_same_random_numbers():
    def sample(p):
        return torch.bernoulli(p), torch.randn(3, 5) * p, torch.rand(7), torch.empty(20).normal_()

    p = torch.rand(3, 5)
    graph, constants = trace.trace_graph(sample, p)
    compiled = trace.compile_graph(graph, [p, *constants])
    for seed in range(3):
        torch.manual_seed(seed)
        expected = (*sample(p), torch.rand(1))
        torch.manual_seed(seed)
        got = (*compiled(p, *constants), torch.rand(1))
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_compiled_graphs_are_cached_on_disk(monkeypatch):
    """By everything that the code depends on: the graph, the threads and the instruction set."""

    def is_cached(function):
        graph, constants = trace.trace_graph(function, x)
        before = counters["inductor"]["fxgraph_cache_hit"]
        compiled = trace.compile_graph(graph, [x, *constants])
        torch.testing.assert_close(compiled(x, *constants), function(x))
        return counters["inductor"]["fxgraph_cache_hit"] == before + 1

    x = torch.rand(3, 5)
    factor = time.time()  # no earlier run of this test has stored the graph
    assert not is_cached(lambda x: (factor * x.sin(),))
    assert is_cached(lambda x: (factor * x.sin(),))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert not is_cached(lambda x: (factor * x.sin(),))
    assert is_cached(lambda x: (factor * x.sin(),))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert not is_cached(lambda x: (factor * x.sin(),))


def test_tracing_does_not_change_generators_or_tensors():
    total = torch.zeros(3)

    def add(x):
        total.add_(x * torch.rand(3))
        return (total + 1,)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    graph, constants = trace.trace_graph(add, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state) and total.sum() == 0
    (result,) = graph(torch.ones(3), *constants)
    assert total.sum() > 0 and torch.equal(result, total + 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x if x.sum() > 0 else -x,),
        lambda x: (x * float(x.sum()),),
        lambda x: (torch.zeros(int(x.sum())),),
    ],
)
def test_data_dependent_functions_are_not_traceable(function):
    with pytest.raises(trace.NotTraceableError):
        trace.trace_graph(function, torch.ones(3))


def test_rejects_keyword_arguments(grey):
    vae = make_digits_vae(grey)
    svi = CompiledSVI(vae.model, vae.guide, FusedOptimizer(ADAM), objectives.ELBO())
    with pytest.raises(TypeError, match="expected positional arguments; got size: bind"):
        svi.step(grey.train.head(3).materialize(0), size=3)
