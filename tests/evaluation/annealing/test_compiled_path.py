"""Tests of compiled gradients along an annealing path against autograd."""

from __future__ import annotations

import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import streams
import torch
from components import PROGRAMS, small_vae

from pyro_vae.compiler import cache
from pyro_vae.evaluation import Annealing
from pyro_vae.evaluation.annealing.compiled import compile_path
from pyro_vae.evaluation.annealing.path import make_annealing_path
from pyro_vae.evaluation.annealing.sampler import ais
from pyro_vae.programs.context import evaluating
from pyro_vae.programs.importance_weights import find_layout

X = torch.bernoulli(torch.full((4, 3), 0.5), generator=streams.generator(0)).double()


@pytest.fixture(autouse=True)
def clear_logged_reasons():
    cache._logged.clear()


def _hierarchical_vae():
    return PROGRAMS["HierarchicalVAE"](event_shape=(3,))


def test_values_and_gradients_equal_autograd(monkeypatch):
    monkeypatch.setattr(cache, "_MIN_ELEMENTS", 1)
    program = _hierarchical_vae().double()
    model, guide = program.model, program.guide
    with evaluating(model, guide):
        path = make_annealing_path(
            model, guide, X, layout=find_layout(model, guide, X), initial="guide"
        )
        compiled = compile_path(path, 100, 3)
        compiled.evaluate(0.0, path.sample(5))
        for beta in (0.0, 0.7, 1.3):
            position = path.sample(5)
            expected, difference = path.evaluate(beta, position)
            density = compiled.density(beta)
            point, actual = compiled.evaluate(beta, position)
            torch.testing.assert_close(actual, difference, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(density(position), expected.log_density)
            assert point.gradient.keys() == expected.gradient.keys() == position.keys()
            for name in position:
                torch.testing.assert_close(
                    point.gradient[name], expected.gradient[name], rtol=1e-10, atol=1e-10
                )
        # another number of chains is not compiled
        position = path.sample(2)
        assert compiled.compiled is not None and compiled.compiled(0.5, position) is None
        torch.testing.assert_close(
            compiled.evaluate(0.5, position)[1], path.evaluate(0.5, position)[1]
        )


def test_compiled_ais_equals_eager_ais(monkeypatch):
    program = small_vae().double()
    # the test of the gradients starts at the guide
    annealing = Annealing(num_chains=3, num_temperatures=12, num_steps=4, initial="prior")
    eager = ais(program, X, annealing=annealing, seed=1)
    # one element too few is not compiled
    monkeypatch.setattr(cache, "_MIN_ELEMENTS", 12 * 4 * 3 * 4 * 3 + 1)
    too_short = ais(program, X, annealing=annealing, seed=1)
    assert np.array_equal(too_short.per_datum["ais"], eager.per_datum["ais"])
    monkeypatch.setattr(cache, "_MIN_ELEMENTS", 12 * 4 * 3 * 4 * 3)
    cache._cache.clear()
    compiled = ais(program, X, annealing=annealing, seed=1)
    assert len(cache._cache) == 1
    for name, column in eager.per_datum.items():
        np.testing.assert_allclose(compiled.per_datum[name], column, rtol=1e-8)


def test_ais_of_untraceable_program_is_eager(monkeypatch, caplog):
    monkeypatch.setattr(cache, "_MIN_ELEMENTS", 1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(1), 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            means = z if bool(z.isfinite().all()) else z * 0
            means = means[..., None].expand(*means.shape, 3)
            pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

    annealing = Annealing(num_chains=4, num_temperatures=50, num_steps=5)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        bounds = ais((model, guide), X, annealing=annealing, seed=1)
    (message,) = [r.getMessage() for r in caplog.records if r.name == "pyro_vae"]
    assert message.startswith("the program is not compiled and runs eagerly")
    # x is normal with covariance I + 11ᵀ
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(3).double(), torch.eye(3).double() + 1
    ).log_prob(X)
    error = bounds.per_datum["ais_variance"] ** 0.5
    assert (np.abs(bounds.per_datum["ais"] - exact.numpy()) < 5 * error + 0.05).all()
