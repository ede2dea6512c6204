"""Discrete latents: values that matter for p(x) but are hardly ever drawn."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae.evaluation import AdaptiveSamples
from pyro_vae.evaluation.importance.discrete import MAX_RARE_VARIANCE, find_discrete_latents
from pyro_vae.programs.importance_weights import stream_particles
from pyro_vae.programs.inputs import prepare

X = torch.full((6,), 1.5)


def mixture_model(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(3 * k, 1.0), obs=x)


def mixture_guide(x, probs=1e-5):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(probs + 0 * x))


def log_evidence(x):
    components = [dist.Normal(mean, 1.0).log_prob(x) - math.log(2) for mean in (0.0, 3.0)]
    return torch.logaddexp(*components).double().numpy()


def check_flagged(bounds, truth):
    """log p̂ is off, and its standard error covers the truth, unlike that of the weights alone."""
    assert (bounds.per_datum["khat"] == math.inf).all()
    assert len(bounds.unreliable) == len(bounds)
    error = np.abs(bounds.per_datum["log_evidence"] - truth)
    assert (error > 0.5).all()
    assert (error < bounds.per_datum["log_evidence_variance"] ** 0.5).all()
    assert (error < bounds.per_datum["gap_variance"] ** 0.5).all()


def test_a_value_that_is_never_drawn():
    bounds = pv.evaluate((mixture_model, mixture_guide), X, num_samples=1000)
    check_flagged(bounds, log_evidence(X))
    assert bounds.warning.startswith(
        "q hardly ever draws a value of a discrete latent that matters for p(x), for 6 of 6 "
        "examples: log p̂ (1000 samples) may leave it out."
    )


def test_a_value_that_is_never_drawn_beside_a_continuous_latent():
    """The weights of the drawn value vary, and their k̂ alone is low."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(4 * k + z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(1e-5 + 0 * x))
            pyro.sample("z", dist.Normal((x - 4 * k) / 2, 0.8))

    x = torch.full((6,), 2.0)
    std = 2**0.5
    parts = [dist.Normal(mean, std).log_prob(x) - math.log(2) for mean in (0.0, 4.0)]
    check_flagged(pv.evaluate((model, guide), x, num_samples=1000), torch.logaddexp(*parts).numpy())

    def exact(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5 + 0 * x))
            pyro.sample("z", dist.Normal((x - 4 * k) / 2, 0.8))

    bounds = pv.evaluate((model, exact), x, num_samples=1000)
    assert bounds.warning is None
    assert (bounds.per_datum["rare_variance"] < MAX_RARE_VARIANCE).all()


@pytest.mark.parametrize("num_samples", [30, 1000])
def test_the_exact_posterior_is_reliable(num_samples):
    def guide(x):
        odds = dist.Normal(3.0, 1.0).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=odds))

    x = torch.linspace(-6, 9, 20)  # the posterior of one value down to 1e-9
    bounds = pv.evaluate((mixture_model, guide), x, num_samples=num_samples)
    assert (bounds.per_datum["khat"] == -math.inf).all()
    assert bounds.warning is None
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], log_evidence(x), atol=1e-5)


def test_the_exact_posterior_of_continuous_latents_is_reliable():
    truth = LinearGaussian(2)
    x = truth.sample(6)

    def guide(x):
        mean = (x - truth.b) @ truth.W @ truth.covariance / truth.s**2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, truth.covariance))

    bounds = pv.evaluate((truth.model, guide), x, num_samples=500)
    assert (bounds.per_datum["khat"] == -math.inf).all()
    assert bounds.warning is None and "rare_variance" not in bounds.per_datum


def test_values_that_cannot_be_enumerated():
    """All weights are equal, and other counts might have larger ones."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("n", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("n", dist.Poisson(3.0 + 0 * x))

    bounds = pv.evaluate((model, guide), X, num_samples=1000)
    assert np.isnan(bounds.per_datum["khat"]).all() and len(bounds.unreliable) == len(X)
    assert bounds.warning.startswith("k̂ is unknown for 6 of 6 examples: all large weights are")


def joint_model(x):
    """Three binary variables in one site, a class that depends on them, and a one-hot class."""
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.5, 0.2, 0.7])).to_event(1))
        c = pyro.sample("c", dist.Categorical(logits=b))
        d = pyro.sample("d", dist.OneHotCategorical(torch.tensor([0.3, 0.7])))
        mean = b.sum(-1) + c - d[..., 0]
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def joint_guide(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        pyro.sample("c", dist.Categorical(logits=b.flip(-1)))
        pyro.sample("d", dist.OneHotCategorical(torch.tensor([0.5, 0.5]).expand(len(x), 2)))


@pytest.mark.parametrize("conv", [False, True], ids=["particle dimension", "tiled"])
def test_relative_variance_of_enumerated_values(conv):
    """Against a sum over all 48 values in NumPy, and against the spread of the weights."""
    x = torch.tensor([0.5, 2.0, 4.5])
    inputs = prepare((joint_model, joint_guide), x)
    chunk = next(iter(stream_particles(inputs, 10)))
    if conv:
        chunk = chunk._replace(layout=type(chunk.layout)(chunk.layout.nesting, tiled=True))
    discrete = find_discrete_latents(chunk)
    assert discrete.is_complete
    assert {n: tuple(v.shape) for n, v in discrete.values.items()} == {
        "b": (48, 3),
        "c": (48,),
        "d": (48, 2),
    }
    assert (
        len(torch.cat([v.reshape(48, -1) for v in discrete.values.values()], 1).unique(dim=0)) == 48
    )
    rare, total = discrete.rare_variance(chunk, 1000)
    log_w = pv.log_weights(joint_model, joint_guide, x, num_samples=100_000).double().exp()
    empirical = log_w.var(0) / log_w.mean(0) ** 2 / 1000
    torch.testing.assert_close(total, empirical, rtol=0.1, atol=0)
    # with one sample every value is rare
    rare, total = discrete.rare_variance(chunk, 1)
    torch.testing.assert_close(rare, total)


def test_draws_do_not_depend_on_the_enumeration(monkeypatch):
    program = (joint_model, joint_guide)
    x = torch.tensor([0.5, 2.0, 4.5])
    first = pv.evaluate(program, x, num_samples=500)
    monkeypatch.setattr(
        "pyro_vae.evaluation.importance.sampling.find_discrete_latents", lambda chunk: None
    )
    second = pv.evaluate(program, x, num_samples=500)
    np.testing.assert_array_equal(first.per_datum["elbo"], second.per_datum["elbo"])


def test_adaptive_sample_sizes_are_not_deceived():
    guide = (mixture_model, lambda x: mixture_guide(x, 1e-4))
    bounds = pv.evaluate(guide, X, num_samples=1600, estimators=[AdaptiveSamples(0.1)])
    # 1600 draws of a value with probability 1e-4 are too few
    assert (bounds.sample_counts == 1600).all()
    assert (bounds.per_datum["khat"] == math.inf).all()
