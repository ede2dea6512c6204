"""Gradients along a path of annealing from a compiled graph: those of autograd."""

from __future__ import annotations

import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import streams
import torch
from components import PROGRAMS, small_vae

from pyro_vae.compile import cache
from pyro_vae.core.evaluation_mode import eval_mode
from pyro_vae.evaluation import Annealing
from pyro_vae.evaluation.annealing.compiled import compiled_path
from pyro_vae.evaluation.annealing.path import bridge
from pyro_vae.evaluation.annealing.sampler import ais
from pyro_vae.programs.base import use_own_parameters
from pyro_vae.programs.importance_weights import find_layout

X = torch.bernoulli(torch.full((4, 3), 0.5), generator=streams.generator(0)).double()


@pytest.fixture(autouse=True)
def nothing_told():
    cache._told.clear()


def _layers():
    return PROGRAMS["HierarchicalVAE"](event_shape=(3,))


@pytest.mark.parametrize("initial", ["guide", "prior"])
def test_values_and_gradients_are_those_of_autograd(initial, monkeypatch):
    monkeypatch.setattr(cache, "_WORTHWHILE", 1)
    program = _layers().double()
    model, guide = program.model, program.guide
    with torch.no_grad(), use_own_parameters(model, guide), eval_mode(model, guide):
        path = bridge(model, guide, X, layout=find_layout(model, guide, X), initial=initial)
        ours = compiled_path(path, 100, 3)
        ours.at(0.0, path.draw(5))
        for beta in (0.0, 0.7, 1.3):
            position = path.draw(5)
            expected, difference = path.at(beta, position)
            density = ours.density(beta)
            point, got = ours.at(beta, position)
            torch.testing.assert_close(got, difference, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(density(position), expected.log_density)
            assert point.gradient.keys() == expected.gradient.keys() == position.keys()
            for name in position:
                torch.testing.assert_close(
                    point.gradient[name], expected.gradient[name], rtol=1e-10, atol=1e-10
                )
        # of another number of chains it is not
        position = path.draw(2)
        assert ours.slope is not None and ours.slope(0.5, position) is None
        torch.testing.assert_close(ours.at(0.5, position)[1], path.at(0.5, position)[1])


def test_ais_is_the_same_compiled(monkeypatch):
    program = small_vae().double()
    annealing = Annealing(num_chains=3, num_temperatures=12, num_steps=4)
    eager = ais(program, X, annealing=annealing, seed=1)
    # one gradient fewer than there are would not be enough
    monkeypatch.setattr(cache, "_WORTHWHILE", 12 * 4 * 3 * 4 * 3 + 1)
    short = ais(program, X, annealing=annealing, seed=1)
    assert np.array_equal(short.per_datum["ais"], eager.per_datum["ais"])
    monkeypatch.setattr(cache, "_WORTHWHILE", 12 * 4 * 3 * 4 * 3)
    cache._known.clear()
    ours = ais(program, X, annealing=annealing, seed=1)
    assert len(cache._known) == 1
    for name, column in eager.per_datum.items():
        np.testing.assert_allclose(ours.per_datum[name], column, rtol=1e-8)


def test_ais_of_a_program_that_looks_at_numbers_is_eager(monkeypatch, caplog):
    monkeypatch.setattr(cache, "_WORTHWHILE", 1)

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
    (told,) = [r.getMessage() for r in caplog.records if r.name == "pyro_vae"]
    assert told.startswith("the program is not compiled and runs eagerly")
    # x is normal with covariance I + 11ᵀ
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(3).double(), torch.eye(3).double() + 1
    ).log_prob(X)
    error = bounds.per_datum["ais_variance"] ** 0.5
    assert (np.abs(bounds.per_datum["ais"] - exact.numpy()) < 5 * error + 0.05).all()
