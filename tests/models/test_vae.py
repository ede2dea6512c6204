"""The VAE as a Pyro program."""

from __future__ import annotations

import copy
from functools import partial

import pyro
import pytest
import torch
from components import COMPATIBLE_PAIRS, LIKELIHOODS, POSTERIORS, PRIORS, SMALL, data_for
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

import pyro_vae as pv


@pytest.fixture
def vae():
    return pv.VAE((2, 3), 4, encoder=SMALL, decoder=SMALL)


def test_log_probs_of_model_and_guide(vae):
    x = torch.bernoulli(torch.full((5, 2, 3), 0.5))
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    z = guide.nodes["z"]["value"]
    assert z.shape == (5, 4)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    logits = vae.likelihood.network(z)
    score = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    expected = prior.sum() + score.sum()
    torch.testing.assert_close(model.log_prob_sum(), expected)


def test_samples_without_data(vae):
    assert vae.model(size=6).shape == (6, 2, 3)
    samples = Predictive(vae.model, num_samples=7)(size=6)
    assert samples["x"].shape == (7, 6, 2, 3) and samples["z"].shape == (7, 6, 4)


@pytest.mark.parametrize(
    ("prior", "likelihood", "posterior"),
    [
        *((prior, "Bernoulli", posterior) for prior, posterior in COMPATIBLE_PAIRS),
        *(("StandardNormal", likelihood, "DiagonalNormal") for likelihood in LIKELIHOODS),
    ],
)
def test_any_leading_particle_dimensions(prior, likelihood, posterior):
    parts = PRIORS[prior], LIKELIHOODS[likelihood], POSTERIORS[posterior]
    # evaluation mode: in training, an optimal scale depends on the whole batch
    vae = pv.VAE((3,), 2, *parts, SMALL, SMALL).eval()
    x = data_for(vae.likelihood, 5)
    with pyro.plate("outer", 3, dim=-3), pyro.plate("particles", 4, dim=-2):
        guide = poutine.trace(vae.guide).get_trace(x)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    for trace in (guide, model):
        trace.compute_log_prob()
    z = guide.nodes["z"]["value"]
    assert z.shape == (3, 4, 5, 2)
    log_prob = model.nodes["x"]["log_prob"]
    assert log_prob.shape == (3, 4, 5)
    torch.testing.assert_close(log_prob[2, 1], vae.likelihood(z[2, 1]).log_prob(x))
    torch.testing.assert_close(
        model.nodes["z"]["log_prob"][2, 1], vae.prior().log_prob(z[2, 1]).expand(5)
    )


def test_render_model_shows_the_graphical_model(vae):
    source = pyro.render_model(vae.model, model_args=(torch.zeros(5, 2, 3),)).source
    assert "z -> x" in source
    assert "cluster_data" in source and "label=data" in source
    # only x is observed and shaded
    shaded = [line for line in source.splitlines() if "gray" in line or "grey" in line]
    assert len(shaded) == 1 and shaded[0].strip().startswith("x ")


def test_trains_with_plain_pyro_svi(vae):
    x = torch.bernoulli(torch.rand(1, 2, 3)).expand(50, 2, 3)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.06}), Trace_ELBO())
    losses = [svi.step(x) / 50 for _ in range(120)]
    # with 50 copies of one example log p(x) → 0
    assert losses[-1] < 0.5 < 3 < losses[0]


def test_deepcopy_binds_a_vamp_prior_to_the_copied_posterior():
    vae = pv.VAE((3,), 2, prior=PRIORS["VampPrior"], encoder=SMALL, decoder=SMALL)
    copied = copy.deepcopy(vae)
    assert copied.prior._posterior[0] is copied.posterior is not vae.posterior


def test_custom_networks_as_lambdas():
    vae = pv.VAE(
        (4,),
        2,
        encoder=lambda i, o: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Unflatten(-1, o)),
        decoder=lambda i, o: torch.nn.Linear(2, 4),
    )
    x = torch.bernoulli(torch.full((5, 4), 0.5))
    assert pv.log_weights(vae.model, vae.guide, x, num_samples=3).shape == (3, 5)


def test_repr_shows_class_names():
    vae = pv.VAE((3,), 2, likelihood=partial(pv.likelihoods.Gaussian, scale=0.1))
    assert repr(vae).startswith("VAE(")
    assert "likelihood: Gaussian" in repr(vae) and "prior: StandardNormal" in repr(vae)
    assert "Gaussian(" in str(vae) and "StandardNormal(" in str(vae)
