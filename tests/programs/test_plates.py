"""The plate over the data: any name, size, subsampling and dimension, against closed forms."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vae as pv
from pyro_vae.programs.arguments import ProgramInputs
from pyro_vae.programs.plates import normalize_plate

#: z ~ N(0, 1) and x_j ~ N(z, σ²) for each of 3 columns j.
NOISE = 0.5
COLUMNS = 3
SIZE = 40

#: Declarations of the plate over the data, and whether it returns the rows of x.
PLATES = {
    "data": (lambda x, **k: pyro.plate("data", len(x), **k), False),
    "another name": (lambda x, **k: pyro.plate("cells", len(x), **k), False),
    "no size": (lambda x, **k: pyro.plate("data", **k), False),
    "another name, no size": (lambda x, **k: pyro.plate("cells", **k), False),
    "minibatch": (
        lambda x, **k: pyro.plate("data", 60_000, subsample=torch.arange(len(x)), **k),
        False,
    ),
    "another name, minibatch": (
        lambda x, **k: pyro.plate("cells", 60_000, subsample=torch.arange(len(x)), **k),
        False,
    ),
    "size of the minibatch": (
        lambda x, **k: pyro.plate("cells", 60_000, subsample_size=len(x), **k),
        False,
    ),
    "own subsample": (lambda x, **k: pyro.plate("data", len(x), subsample_size=7, **k), True),
    "own subsample of fixed size": (
        lambda x, **k: pyro.plate("cells", SIZE, subsample_size=7, **k),
        True,
    ),
}


def _program(declare, takes_rows=False, *, nesting="inner", scale=1.1):
    """Return a program whose guide is the posterior, wider by a factor."""

    def run(x, score):
        dim = {"inner": -2, "left": -1, "none": None}[nesting]
        with declare(x, dim=dim) as rows:
            x = x[rows] if takes_rows else x
            size = (len(x), 1) if nesting == "inner" else (len(x),)
            values = x.reshape(len(x), -1)
            precision = 1 + values.shape[1] / NOISE**2
            loc = values.sum(1).reshape(size) / NOISE**2 / precision
            if not score:
                pyro.sample("z", dist.Normal(loc, scale * precision**-0.5))
                return
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))
            if nesting == "none":
                pyro.sample("x", dist.Normal(z, NOISE), obs=x)
                return
            with pyro.plate("columns", COLUMNS, dim=-1 if nesting == "inner" else -2):
                obs = x if nesting == "inner" else x.T
                pyro.sample("x", dist.Normal(z, NOISE), obs=obs)

    return lambda x: run(x, True), lambda x: run(x, False)


def _data(nesting="inner", size=SIZE):
    shape = (size,) if nesting == "none" else (size, COLUMNS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _log_evidence(x):
    values = x.reshape(len(x), -1)
    covariance = NOISE**2 * torch.eye(values.shape[1]) + 1
    loc = torch.zeros(values.shape[1])
    return torch.distributions.MultivariateNormal(loc, covariance).log_prob(values)


@pytest.mark.parametrize("nesting", ["none", "inner", "left"])
@pytest.mark.parametrize("name", PLATES)
def test_weights_are_exact(name, nesting):
    # with the posterior as guide, each weight is p(x)
    program, x = _program(*PLATES[name], nesting=nesting, scale=1.0), _data(nesting)
    bounds = pv.evaluate(program, x, num_samples=3)
    np.testing.assert_allclose(bounds.per_datum["elbo"], _log_evidence(x), atol=2e-5)
    # in blocks of 8 examples
    log_w = pv.log_weights(*program, x, num_samples=5, chunk_size=40)
    torch.testing.assert_close(log_w, _log_evidence(x).expand(5, -1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", PLATES)
def test_other_evaluations(name):
    program, x = _program(*PLATES[name]), _data(size=10)
    truth = _log_evidence(x).numpy()
    ais = pv.ais(program, x, annealing=pv.Annealing(10, 10, 3)).estimates["ais"]
    assert ais.value == pytest.approx(truth.mean(), abs=5 * ais.se_monte_carlo)
    bounds = pv.evaluate(program, x, num_samples=20, estimators=[pv.Laplace()])
    np.testing.assert_allclose(bounds.per_datum["laplace"], truth, atol=0.05)
    gaps = pv.gaps(program, x[:4], num_steps=10, num_samples=200, annealing=pv.Annealing(4, 10, 2))
    evidence = gaps.bounds.estimates["log_evidence"].value
    assert evidence == pytest.approx(truth[:4].mean(), abs=0.02)
    precision = 1 + COLUMNS / NOISE**2
    loc, variance = x.sum(1) / NOISE**2 / precision, 1.1**2 / precision
    kl = 0.5 * (loc**2 + variance - 1 - math.log(variance))
    rate = pv.evaluation.divergences(program, x).estimates["rate"].value
    assert rate == pytest.approx(float(kl.mean()), rel=1e-4)


def test_encode_with_another_name():
    program, x = _program(*PLATES["another name"]), _data()
    precision = 1 + COLUMNS / NOISE**2
    means = pv.queries.encode(program, x)["z.mean"].reshape(-1)
    np.testing.assert_allclose(means, x.sum(1) / NOISE**2 / precision, rtol=1e-5)


@pytest.mark.parametrize("name", ["no size", "another name", "minibatch", "own subsample"])
def test_draws_are_those_of_the_plate_named_data(name):
    x = _data()
    weights = []
    for declared in ("data", name):
        pyro.set_rng_seed(0)
        weights.append(pv.log_weights(*_program(*PLATES[declared]), x, num_samples=4))
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["data", "minibatch"])
def test_programs_that_need_no_change_are_returned_as_they_are(name):
    inputs = ProgramInputs(*_program(*PLATES[name]), _data(), (), {})
    assert normalize_plate(inputs) is inputs
    assert normalize_plate(inputs, "data") is inputs


def test_plate_scale_and_random_numbers_are_left_alone():
    """Sites have the plate "data" of the size of x, and no scale; no random number is used."""
    x = _data()
    inputs = ProgramInputs(*_program(*PLATES["own subsample of fixed size"]), x, (), {})
    state = torch.get_rng_state()
    normal = normalize_plate(inputs)
    assert torch.equal(torch.get_rng_state(), state)
    for rows in (x, x[:5]):
        trace = poutine.trace(normal.model).get_trace(rows)
        for site in ("z", "x"):
            frames = {frame.name: frame for frame in trace.nodes[site]["cond_indep_stack"]}
            assert frames["data"].size == frames["data"].full_size == len(rows)
            assert trace.nodes[site]["scale"] == 1
    # the program itself still draws a minibatch
    assert poutine.trace(inputs.model).get_trace(x).nodes["z"]["value"].shape == (7, 1)


def test_a_plate_is_found_without_running_on_all_examples():
    sizes = []

    def declare(x, **options):
        sizes.append(len(x))
        return pyro.plate("cells", len(x), **options)

    inputs = ProgramInputs(*_program(declare), _data(size=1000), (), {})
    normalize_plate(inputs)
    assert set(sizes) == {200}


def test_parameters_read_by_the_index_of_a_renamed_plate():
    x = _data("none", 300)
    locs = x / (1 + NOISE**2)

    def guide(x):
        with pyro.plate("cells", len(x)) as i:
            pyro.sample("z", dist.Normal(locs[i], (1 + NOISE**-2) ** -0.5))

    model, _ = _program(*PLATES["another name"], nesting="none")
    log_w = pv.log_weights(model, guide, x, num_samples=2, chunk_size=100)
    torch.testing.assert_close(log_w[0], _log_evidence(x), atol=2e-5, rtol=0)


def _square(latent_in_both=False):
    """Return a program with as many columns as examples."""

    def run(x, score):
        rows = pyro.plate("cells", len(x), dim=-2)
        columns = pyro.plate("data", x.shape[1], dim=-1)
        precision = 1 + (1 if latent_in_both else x.shape[1]) / NOISE**2
        total = x if latent_in_both else x.sum(1, keepdim=True)
        q = dist.Normal(total / NOISE**2 / precision, precision**-0.5)
        p = dist.Normal(0.0, 1.0)
        if latent_in_both:
            with rows, columns:
                z = pyro.sample("z", p if score else q)
        else:
            with rows:
                z = pyro.sample("z", p if score else q)
        if score:
            with rows, columns:
                pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    return lambda x: run(x, True), lambda x: run(x, False)


def test_the_plate_that_encloses_all_sites_is_the_one_over_the_data():
    """Also if another plate has the same size, and the name "data"."""
    x = _data()[:COLUMNS]
    for size in (COLUMNS, 2):
        bounds = pv.evaluate(_square(), x[:size], num_samples=2)
        np.testing.assert_allclose(bounds.per_datum["elbo"], _log_evidence(x[:size]), atol=2e-5)


def test_a_named_plate():
    """With z_ij in two plates, either may be over the data; by default that named "data"."""
    model, guide = _square(latent_in_both=True)
    x = _data()[:COLUMNS]
    rows = torch.distributions.Normal(0.0, (1 + NOISE**2) ** 0.5).log_prob(x).sum(1)
    for program, options in (
        ((model, guide), {"plate": "cells"}),
        (pv.Pair(model, guide, plate="cells"), {}),
    ):
        bounds = pv.evaluate(program, x, num_samples=2, **options)
        np.testing.assert_allclose(bounds.per_datum["elbo"], rows, atol=2e-5)
    log_w = pv.log_weights(model, guide, x, num_samples=2, plate="cells")
    torch.testing.assert_close(log_w[0], rows, atol=2e-5, rtol=0)
    named = pv.Pair(model, guide, plate="cells")
    ais = pv.ais(named, x, annealing=pv.Annealing(4, 5, 2)).per_datum["ais"]
    np.testing.assert_allclose(ais, rows, atol=1e-4)


def _refused(declare, guide_declare=None, *, outside=False, shared=False):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0)) if outside else 0.0
        with declare(x):
            z = pyro.sample("z", dist.Normal(0.0 if shared else torch.zeros(len(x)), 1.0))
            fn = dist.Normal(z + w + 0 * x, NOISE)
            pyro.sample("x", fn.to_event(1) if shared else fn, obs=x)

    def guide(x):
        if outside:
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with (guide_declare or declare)(x):
            pyro.sample("z", dist.Normal(0.0 if shared else x, 1.0))

    return model, guide


def _two_plates(x):
    both = contextlib.ExitStack()
    both.enter_context(pyro.plate("a", len(x), dim=-1))
    both.enter_context(pyro.plate("b", len(x), dim=-2))
    return both


def _cells(x):
    return pyro.plate("cells", len(x))


REFUSALS = {
    "a shared latent": (
        _refused(_cells, outside=True),
        r"inside the plate \"cells\" over the data; got site 'w' of the guide outside of it, "
        r"which is shared by all examples",
    ),
    "a shared latent in a plate without a size": (
        _refused(lambda x: pyro.plate("cells"), shared=True),
        r"every site of the plate \"cells\", which has no size, to have a batch dimension of the "
        r"size of the data, 12, at -1; got site 'z' with batch shape \(\), which is shared by all",
    ),
    "different plates": (
        _refused(_cells, lambda x: pyro.plate("genes", len(x))),
        r"plate \"cells\" over the data; got site 'z' of the guide in the plate \"genes\" instead: "
        r"sample it inside",
    ),
    "another size": (
        _refused(lambda x: pyro.plate("cells", 1), shared=True),
        r"expected the plate \"cells\" to have the size of the data, 12; it has size 1: write",
    ),
    "two plates": (
        _refused(_two_plates),
        r"got the plates \"a\" and \"b\", which both have the size of the data, 12: name",
    ),
    "no plate": (
        _refused(lambda x: contextlib.nullcontext()),
        r"inside the plate \"data\"; got site 'z' of the guide outside of it, which is shared",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_reason(case):
    program, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        pv.evaluate(program, torch.randn(12), num_samples=2)


def test_a_sequential_plate_is_refused():
    def model(x):
        for i in pyro.plate("cells", len(x)):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("cells", len(x)):
            pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))

    message = r"expected the plate \"cells\" to be vectorized; it is a sequential loop"
    with pytest.raises(ValueError, match=message):
        pv.evaluate((model, guide), torch.randn(3), num_samples=2)


def test_an_unknown_name():
    message = r"expected a plate \"cells\" around the sites of the program; got the plate \"data\""
    with pytest.raises(ValueError, match=message):
        pv.evaluate(_program(*PLATES["data"]), _data(), num_samples=2, plate="cells")
