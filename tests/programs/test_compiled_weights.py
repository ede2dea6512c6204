"""Compiled log weights equal those of the program for the same random numbers."""

from __future__ import annotations

import logging
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, PRIORS, PROGRAMS, SMALL, small_vae
from torch import nn
from torch._inductor import config

import pyro_vae as pv
from pyro_vae import networks
from pyro_vae.compiler import cache
from pyro_vae.compiler.hoist import hoist_invariants
from pyro_vae.compiler.trace import trace_graph
from pyro_vae.evaluation import Defensive
from pyro_vae.programs.arguments import ProgramInputs
from pyro_vae.programs.compiled import CompiledRuns
from pyro_vae.programs.particles import Layout, run_particles

LABELS = torch.tensor([0, 2, 1, 2, 0])


def _tiled():
    """Return a program that depends on the position of its batch dimension."""
    layer = nn.Linear(3, 2)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(layer(x).softmax(dim=1), 0.5).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = torch.cat([z, z[:, :1]], 1).log_softmax(dim=1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return Pair(model, guide)


class Pair(nn.Module):
    def __init__(self, model, guide):
        super().__init__()
        self.model, self.guide = model, guide


CASES = {
    "components, float64": (lambda: small_vae(prior=PRIORS["VampPrior"]).double(), (3,), ()),
    "flow and labels, float64": (
        lambda: pv.ConditionalVAE(
            (3,), 3, 2,
            encoder=SMALL,
            decoder=SMALL,
            posterior=POSTERIORS["InverseAutoregressiveFlow"],
        ).double(),
        (3,),
        (LABELS,),
    ),
    "layers": (lambda: PROGRAMS["HierarchicalVAE"](event_shape=(3,)), (3,), ()),
    "images": (
        lambda: small_vae(
            event_shape=(6, 6),
            encoder=partial(networks.ConvNet, channels=(2,)),
            decoder=partial(networks.ConvNet, channels=(2,)),
        ),
        (6, 6),
        (),
    ),
    "tiled": (_tiled, (3,), ()),
}  # fmt: skip


@pytest.fixture
def compiled_calls(monkeypatch):
    """List that records each run of a compiled graph."""
    calls = []
    original = CompiledRuns.__call__

    def recorded(self):
        calls.append(self)
        return original(self)

    monkeypatch.setattr(CompiledRuns, "__call__", recorded)
    return calls


@pytest.fixture(autouse=True)
def clear_logged():
    cache._logged.clear()


def _weights(program, x, *args, num_samples, compile, **options):
    pyro.set_rng_seed(1)
    return pv.log_weights(
        *(program.model, program.guide, x, *args),
        num_samples=num_samples,
        compile=compile,
        **options,
    )


@pytest.mark.filterwarnings("ignore:the program does not support a particle dimension")
@pytest.mark.parametrize("name", CASES)
def test_compiled_and_eager_weights_are_equal(name, compiled_calls):
    make, shape, args = CASES[name]
    program = make()
    dtype = torch.float64 if "float64" in name else torch.float32
    x = torch.bernoulli(torch.full((5, *shape), 0.5, dtype=dtype))
    # 131 draws in 64 + 64 + 3, 5 examples in 2 + 2 + 1: incomplete chunks run eagerly
    options = {"num_samples": 131, "chunk_size": 140}
    eager = _weights(program, x, *args, compile=False, **options)
    assert not compiled_calls
    compiled = _weights(program, x, *args, compile=True, **options)
    assert len(compiled_calls) == 1 + 2 * 2
    assert eager.shape == (131, 5) and eager.dtype is dtype
    tolerance = 1e-5 if dtype is torch.float32 else 1e-10
    torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=tolerance)


def _trace(program, x, num_samples=4):
    def weights(x):
        particles = run_particles(
            program.model, program.guide, x, num_samples=num_samples, layout=Layout()
        )
        return (particles.log_weights, *particles.latents.values())

    weights(x)
    with torch.no_grad():
        return weights, *trace_graph(weights, x)


def _count_nodes(graph, *targets):
    return sum(node.target in targets for node in graph.graph.nodes)


def test_sample_independent_work_is_hoisted():
    program, x = small_vae(prior=PRIORS["VampPrior"]).eval(), torch.ones(5, 3)
    weights, graph, closure = _trace(program, x)
    once, each = hoist_invariants(graph, [x, *closure])
    layers = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
    # two layers each: the encoder on data and on pseudo-inputs, and the decoder
    assert _count_nodes(once, *layers) == 4 and _count_nodes(each, *layers) == 2
    assert _count_nodes(once, torch.ops.aten.normal_functional.default) == 0
    with torch.no_grad():
        hoisted = once(x, *closure)
        pyro.set_rng_seed(1)
        expected = weights(x)
        pyro.set_rng_seed(1)
        got = each(x, *closure, *hoisted)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    # no stored tensor has the size of all samples
    assert max(tensor.numel() for tensor in hoisted) <= 5 * 5


def test_mutating_graphs_are_not_split():
    total = torch.zeros(3)

    def function(x):
        total.add_(x.exp())
        return (x.exp() + torch.randn(3) + total,)

    x = torch.rand(3)
    with torch.no_grad():
        graph, closure = trace_graph(function, x)
        once, each = hoist_invariants(graph, [x, *closure])
        assert once(x, *closure) == ()
        before = total.clone()
        each(x, *closure)
    torch.testing.assert_close(total, before + x.exp())


def test_parameter_updates_are_seen_and_code_is_cached(compiled_calls):
    program, x = small_vae(), torch.ones(4, 3)
    _weights(program, x, num_samples=8, compile=True)
    num_cached = len(cache._cache)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3)
    eager, compiled = (_weights(program, x, num_samples=8, compile=c) for c in (False, True))
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    assert len(cache._cache) == num_cached and len(compiled_calls) == 4
    # an existing instance sees updates after set_inputs
    runs = compiled_calls[-1]
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.mul_(-1.0)
    runs.set_inputs(ProgramInputs(program.model, program.guide, x, (), {}))
    pyro.set_rng_seed(1)
    actual = runs().log_weights
    pyro.set_rng_seed(1)
    with torch.no_grad():
        eager = run_particles(program.model, program.guide, x, num_samples=8).log_weights
    torch.testing.assert_close(actual, eager, rtol=1e-5, atol=1e-5)


def _make_program(transform):
    """Return a program whose guide applies a function to its data."""

    def guide(x):
        loc = transform(x.sum(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            means = z[..., None].expand(*z.shape, 3)
            pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

    return Pair(model, guide)


def _warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "pyro_vae"]


def test_data_dependent_control_flow_runs_eagerly_and_warns_once(caplog):
    program, x = _make_program(lambda loc: loc if loc.sum() > 0 else -loc), torch.rand(4, 3)
    expected = _weights(program, x, num_samples=5, compile=False)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for _ in range(2):
            assert torch.equal(_weights(program, x, num_samples=5, compile=True), expected)
    (message,) = _warnings(caplog)
    assert message.startswith("the program is not compiled and runs eagerly: ")


def test_runs_eagerly_without_a_compiler(caplog):
    program, x = _make_program(lambda loc: loc * 1.25), torch.rand(4, 3)
    expected = _weights(program, x, num_samples=5, compile=False)
    missing = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with caplog.at_level(logging.WARNING, "pyro_vae"), config.patch(missing):
        assert torch.equal(_weights(program, x, num_samples=5, compile=True), expected)
    (message,) = _warnings(caplog)
    assert "ompiler" in message


def test_programs_with_side_effects_are_not_compiled(caplog):
    calls = []

    def change_after_tracing(loc):
        # one run that finds the plate, six of the audit, two that find the layout, and the one
        # that is traced
        calls.append(loc)
        return loc + (len(calls) > 10)

    program, x = _make_program(change_after_tracing), torch.rand(4, 3)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        _weights(program, x, num_samples=5, compile=True)
    (message,) = _warnings(caplog)
    assert "its compiled log weights differ by up to" in message


def test_long_computations_are_compiled_by_default(compiled_calls, monkeypatch):
    program, x = small_vae(), torch.ones(4, 3)
    eager = _weights(program, x, num_samples=8, compile=None)
    assert not compiled_calls
    # the widest site has 3 elements for each of 4 × 8 pairs
    monkeypatch.setattr(cache, "_MIN_ELEMENTS", 3 * 4 * 8 + 1)
    _weights(program, x, num_samples=8, compile=None)
    assert not compiled_calls
    monkeypatch.setattr(cache, "_MIN_ELEMENTS", 3 * 4 * 8)
    compiled = _weights(program, x, num_samples=8, compile=None)
    assert compiled_calls
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_compiled_evaluate_gives_the_same_result(compiled_calls):
    # the shapes of other tests, whose compiled code is cached
    program, x = small_vae(), torch.bernoulli(torch.full((4, 3), 0.5))
    options = {"num_samples": 8, "seed": 3, "keep_log_weights": True}
    options["estimators"] = [Defensive(0.2)]
    eager, compiled = (pv.evaluate(program, x, compile=c, **options) for c in (False, True))
    assert compiled_calls
    torch.testing.assert_close(compiled.log_weights, eager.log_weights, rtol=1e-5, atol=1e-5)
    assert compiled.per_datum.keys() == eager.per_datum.keys()
    assert compiled.elbo == pytest.approx(eager.elbo, rel=1e-5)
    assert compiled.estimates["defensive"].value == pytest.approx(
        eager.estimates["defensive"].value, rel=1e-5
    )
