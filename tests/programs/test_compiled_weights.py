"""Log weights from a compiled graph: those of the program, on the same random numbers."""

from __future__ import annotations

import logging
import math
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
from pyro_vae.compile import cache
from pyro_vae.compile.hoist import hoist_invariants
from pyro_vae.compile.trace import trace_graph
from pyro_vae.programs.compiled import CompiledRuns
from pyro_vae.programs.particles import Layout, run_particles

LABELS = torch.tensor([0, 2, 1, 2, 0])


def _tiled():
    """A program that reads its batch dimension by position."""
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
    "components": (lambda: small_vae(prior=PRIORS["VampPrior"]), (3,), ()),
    "flow": (lambda: small_vae(posterior=POSTERIORS["InverseAutoregressiveFlow"]), (3,), ()),
    "layers": (lambda: PROGRAMS["HierarchicalVAE"](event_shape=(3,)), (3,), ()),
    "labels": (
        lambda: pv.ConditionalVAE((3,), 3, 2, encoder=SMALL, decoder=SMALL), (3,), (LABELS,)
    ),
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
    """The number of runs that a compiled graph made since."""
    calls = []
    plain = CompiledRuns.__call__

    def noted(self):
        calls.append(self)
        return plain(self)

    monkeypatch.setattr(CompiledRuns, "__call__", noted)
    return calls


@pytest.fixture(autouse=True)
def nothing_told():
    cache._told.clear()


def _weights(program, x, *args, num_samples, compile, **options):
    pyro.set_rng_seed(1)
    return pv.log_weights(
        *(program.model, program.guide, x, *args),
        num_samples=num_samples,
        compile=compile,
        **options,
    )


@pytest.mark.filterwarnings("ignore:the program does not allow a particle dimension")
@pytest.mark.parametrize("name", CASES)
def test_compiled_and_eager_weights_are_the_same(name, compiled_calls):
    make, shape, args = CASES[name]
    program, x = make(), torch.bernoulli(torch.full((5, *shape), 0.5))
    # 131 draws in 64 + 64 + 3, 5 data in 2 + 2 + 1: what is left over runs eagerly
    options = {"num_samples": 131, "chunk_size": 140}
    eager = _weights(program, x, *args, compile=False, **options)
    assert not compiled_calls
    ours = _weights(program, x, *args, compile=True, **options)
    assert len(compiled_calls) == 1 + 2 * 2
    assert eager.shape == (131, 5)
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["components", "flow"])
def test_in_float64_they_differ_by_its_rounding(name, compiled_calls):
    make, shape, _ = CASES[name]
    program, x = make().double(), torch.bernoulli(torch.full((5, *shape), 0.5).double())
    eager, ours = (_weights(program, x, num_samples=8, compile=c) for c in (False, True))
    assert len(compiled_calls) == 1 + 1 and eager.dtype is torch.float64
    torch.testing.assert_close(ours, eager, rtol=1e-10, atol=1e-10)


def _graph(program, x, num_samples=4):
    def weights(x):
        found = run_particles(
            program.model, program.guide, x, num_samples=num_samples, layout=Layout()
        )
        return (found.log_weights, *found.latents.values())

    weights(x)
    with torch.no_grad():
        return weights, *trace_graph(weights, x)


def _count(graph, *targets):
    return sum(node.target in targets for node in graph.graph.nodes)


def test_what_no_draw_reaches_is_computed_once():
    program, x = small_vae(prior=PRIORS["VampPrior"]).eval(), torch.ones(5, 3)
    weights, graph, held = _graph(program, x)
    once, each = hoist_invariants(graph, [x, *held])
    layers = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
    # of two layers: the encoder of the data and of the pseudo-inputs, and the decoder
    assert _count(once, *layers) == 4 and _count(each, *layers) == 2
    # the logarithm of the components' scales, before they are repeated for every draw
    logarithms = [n for n in once.graph.nodes if n.target is torch.ops.aten.log.default]
    assert max(n.meta["val"].numel() if "val" in n.meta else 0 for n in logarithms) <= 5 * 2
    assert _count(once, torch.ops.aten.normal_functional.default) == 0
    with torch.no_grad():
        ready = once(x, *held)
        pyro.set_rng_seed(1)
        expected = weights(x)
        pyro.set_rng_seed(1)
        got = each(x, *held, *ready)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    # nothing of the size of all draws waits in memory
    assert max(tensor.numel() for tensor in ready) <= 5 * 5


def test_fixed_factors_of_products_are_laid_out_once():
    layer, straight, x = nn.Linear(3, 2), torch.randn(3, 4), torch.randn(5, 3)

    def products(x):
        return layer(x), x @ straight, x @ x.T

    with torch.no_grad():
        graph, held = trace_graph(products, x)
        once, each = hoist_invariants(graph, [x, *held], changing=1)
        ready = once(x, *held)
        got = each(x, *held, *ready)
    nodes = each.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    rights = [node.args[1] for node in nodes]
    # a weight is given as it suits the product, what was so before is not copied, x is not fixed
    assert [right.op for right in rights] == ["placeholder", "placeholder", "call_function"]
    laid_out = dict(zip(each.graph.find_nodes(op="placeholder"), [x, *held, *ready], strict=True))
    assert laid_out[rights[0]].is_contiguous() and torch.equal(laid_out[rights[0]], layer.weight.T)
    assert laid_out[rights[1]].data_ptr() == straight.data_ptr()
    for a, b in zip(got, products(x), strict=True):
        torch.testing.assert_close(a, b)


def test_the_tanh_of_a_graph_is_as_exact_as_float32():
    x = torch.cat([torch.linspace(-12, 12, 20_001), torch.logspace(-30, 0, 500)])
    ends = torch.tensor([math.inf, -math.inf, math.nan, 0.0])
    with torch.no_grad():
        graph, held = trace_graph(lambda x: (x.tanh(),), x)
        _, each = hoist_invariants(graph, [x, *held], changing=1)
        got = each(x)[0].double()
        torch.testing.assert_close(got, x.double().tanh(), rtol=4e-7, atol=0)
        assert (got.abs() <= 1 + 1e-6).all()
        graph, held = trace_graph(lambda x: (x.tanh(),), ends)
        _, each = hoist_invariants(graph, [ends, *held], changing=1)
        torch.testing.assert_close(each(ends)[0], ends.tanh(), equal_nan=True)
        wide = x.double()
        graph, held = trace_graph(lambda x: (x.tanh(),), wide)
        _, each = hoist_invariants(graph, [wide, *held], changing=1)
        assert torch.equal(each(wide)[0], wide.tanh())


def test_a_graph_that_changes_its_inputs_stays_whole():
    seen = torch.zeros(3)

    def function(x):
        seen.add_(x.exp())
        return (x.exp() + torch.randn(3) + seen,)

    x = torch.rand(3)
    with torch.no_grad():
        graph, held = trace_graph(function, x)
        once, each = hoist_invariants(graph, [x, *held])
        assert once(x, *held) == ()
        before = seen.clone()
        each(x, *held)
    torch.testing.assert_close(seen, before + x.exp())


def test_weights_that_were_updated_are_seen_and_code_is_shared(compiled_calls):
    program, x = small_vae(), torch.ones(4, 3)
    _weights(program, x, num_samples=8, compile=True)
    known = len(cache._known)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3)
    eager, ours = (_weights(program, x, num_samples=8, compile=c) for c in (False, True))
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)
    assert len(cache._known) == known and len(compiled_calls) == 4
    # and by one that is at hand, as soon as it is made ready again
    runs = compiled_calls[-1]
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.mul_(-1.0)
    runs.block((x,), {})
    pyro.set_rng_seed(1)
    again = runs().log_weights
    pyro.set_rng_seed(1)
    with torch.no_grad():
        eager = run_particles(program.model, program.guide, x, num_samples=8).log_weights
    torch.testing.assert_close(again, eager, rtol=1e-5, atol=1e-5)


def _plain(looks):
    """A program of which the guide may look at its data."""

    def guide(x):
        loc = looks(x.sum(1))
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


def test_a_program_that_looks_at_numbers_runs_eagerly_and_says_so_once(caplog):
    program, x = _plain(lambda loc: loc if loc.sum() > 0 else -loc), torch.rand(4, 3)
    expected = _weights(program, x, num_samples=5, compile=False)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for _ in range(2):
            assert torch.equal(_weights(program, x, num_samples=5, compile=True), expected)
    (told,) = _warnings(caplog)
    assert told.startswith("the program is not compiled and runs eagerly: ")


def test_without_a_compiler_it_runs_eagerly(caplog):
    program, x = _plain(lambda loc: loc * 1.25), torch.rand(4, 3)
    expected = _weights(program, x, num_samples=5, compile=False)
    missing = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with caplog.at_level(logging.WARNING, "pyro_vae"), config.patch(missing):
        assert torch.equal(_weights(program, x, num_samples=5, compile=True), expected)
    (told,) = _warnings(caplog)
    assert "ompiler" in told


def test_a_program_that_changes_by_itself_is_not_compiled(caplog):
    calls = []

    def restless(loc):
        # three looks at the program and the one that is recorded
        calls.append(loc)
        return loc + (len(calls) > 4)

    program, x = _plain(restless), torch.rand(4, 3)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        _weights(program, x, num_samples=5, compile=True)
    (told,) = _warnings(caplog)
    assert "its graph has other weights, by up to" in told


def test_long_computations_are_compiled_by_themselves(compiled_calls, monkeypatch):
    program, x = small_vae(), torch.ones(4, 3)
    eager = _weights(program, x, num_samples=8, compile=None)
    assert not compiled_calls
    # one site of three pixels and a draw of two: 3 numbers for each of 4 × 8 pairs
    monkeypatch.setattr(cache, "_WORTHWHILE", 3 * 4 * 8 + 1)
    _weights(program, x, num_samples=8, compile=None)
    assert not compiled_calls
    monkeypatch.setattr(cache, "_WORTHWHILE", 3 * 4 * 8)
    ours = _weights(program, x, num_samples=8, compile=None)
    assert compiled_calls
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


def test_evaluate_is_the_same_compiled(compiled_calls):
    program, x = small_vae(), torch.bernoulli(torch.full((5, 3), 0.5))
    kept = {"num_samples": 200, "seed": 3, "keep_log_weights": True, "defensive": 0.2}
    eager, ours = (pv.evaluate(program, x, compile=c, **kept) for c in (False, True))
    assert compiled_calls
    torch.testing.assert_close(ours.log_weights, eager.log_weights, rtol=1e-5, atol=1e-5)
    assert ours.per_datum.keys() == eager.per_datum.keys()
    assert ours.elbo == pytest.approx(eager.elbo, rel=1e-5)
    assert ours.estimates["defensive"].value == pytest.approx(
        eager.estimates["defensive"].value, rel=1e-5
    )
