"""Every component on a CUDA device, where there is one, against the same on the processor."""

from __future__ import annotations

import copy

import pytest
import torch
from components import (
    COMBINED,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    PRIORS,
    PROGRAMS,
    data_for,
    program_for,
    small_vae,
)

import pyro_vae as pv

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def _same_on_both(vae, x):
    """Log-densities of the same values, and a step of learning, on either device."""
    vae.eval()
    z = vae.prior().sample((len(x),))
    moved = copy.deepcopy(vae).cuda()
    torch.testing.assert_close(
        moved.likelihood(z.cuda()).log_prob(x.cuda()).cpu(),
        vae.likelihood(z).log_prob(x),
        rtol=1e-3,
        atol=1e-3,
    )
    torch.testing.assert_close(
        moved.prior().log_prob(z.cuda()).cpu(), vae.prior().log_prob(z), rtol=1e-3, atol=1e-3
    )
    pv.fit(moved, x, epochs=1, batch_size=4, device="cuda")
    there = pv.evaluate(moved, x.cuda(), num_samples=2000).estimates["elbo"]
    here = pv.evaluate(moved.cpu(), x, num_samples=2000).estimates["elbo"]
    # five standard errors of the draws: false alarm below 1e-5 each
    error = (there.se_monte_carlo**2 + here.se_monte_carlo**2) ** 0.5
    assert abs(there.value - here.value) < 5 * error + 1e-3


@pytest.mark.parametrize(("prior", "posterior"), COMBINED)
def test_priors_and_posteriors(prior, posterior):
    vae = small_vae(PRIORS[prior], POSTERIORS[posterior])
    _same_on_both(vae, torch.bernoulli(torch.full((8, 3), 0.5)))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name):
    vae = small_vae(likelihood=LIKELIHOODS[name])
    _same_on_both(vae, data_for(vae.likelihood, 8))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    make = NETWORKS[name]
    vae = small_vae(event_shape=(1, 8, 8), encoder=make, decoder=make)
    _same_on_both(vae, torch.bernoulli(torch.full((8, 1, 8, 8), 0.5)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    digits = pv.data.load("digits", binarize="threshold", test=1500)
    train, x = digits.train.head(60), digits.test.head(8)
    program = program_for(PROGRAMS[name], digits)
    objective = pv.objectives.EnumeratedELBO() if name == "SemiSupervisedVAE" else None
    pv.fit(program, train, objective=objective, epochs=1, batch_size=20, device="cuda")
    there = pv.evaluate(program, x, num_samples=2000).estimates["elbo"]
    walked = pv.queries.reconstruct(program, x.materialize(0), *_conditions(program, x))
    assert walked.x.device.type == next(program.parameters()).device.type
    assert pv.active_units(program, x).num_data == 8
    here = pv.evaluate(program.cpu(), x, num_samples=2000).estimates["elbo"]
    # five standard errors of the draws: false alarm below 1e-5 each
    error = (there.se_monte_carlo**2 + here.se_monte_carlo**2) ** 0.5
    assert abs(there.value - here.value) < 5 * error + 1e-3


def _conditions(program, split):
    return (split.labels,) if isinstance(program, pv.ConditionalVAE) else ()
