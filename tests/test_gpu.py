"""All components on a CUDA device, compared with the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from components import (
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

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _check_devices_agree(vae, x):
    """Compare log-densities and, after training on the GPU, the ELBO on both devices."""
    vae.eval()
    z = vae.prior().sample((len(x),))
    on_gpu = copy.deepcopy(vae).cuda()
    torch.testing.assert_close(
        on_gpu.likelihood(z.cuda()).log_prob(x.cuda()).cpu(),
        vae.likelihood(z).log_prob(x),
        rtol=1e-3,
        atol=1e-3,
    )
    torch.testing.assert_close(
        on_gpu.prior().log_prob(z.cuda()).cpu(), vae.prior().log_prob(z), rtol=1e-3, atol=1e-3
    )
    pv.fit(on_gpu, x, epochs=1, batch_size=4, device="cuda")
    gpu = pv.evaluate(on_gpu, x.cuda(), num_samples=2000).estimates["elbo"]
    cpu = pv.evaluate(on_gpu.cpu(), x, num_samples=2000).estimates["elbo"]
    # five standard errors: false alarm < 1e-5 each
    error = (gpu.se_monte_carlo**2 + cpu.se_monte_carlo**2) ** 0.5
    assert abs(gpu.value - cpu.value) < 5 * error + 1e-3


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_priors(make):
    _check_devices_agree(small_vae(make), torch.bernoulli(torch.full((8, 3), 0.5)))


@pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS)
def test_posteriors(make):
    vae = small_vae(posterior=make)
    _check_devices_agree(vae, torch.bernoulli(torch.full((8, 3), 0.5)))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name):
    vae = small_vae(likelihood=LIKELIHOODS[name])
    _check_devices_agree(vae, data_for(vae.likelihood, 8))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    make = NETWORKS[name]
    vae = small_vae(event_shape=(1, 8, 8), encoder=make, decoder=make)
    _check_devices_agree(vae, torch.bernoulli(torch.full((8, 1, 8, 8), 0.5)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    digits = pv.data.load("digits", binarize="threshold", test=1500)
    train, x = digits.train.head(60), digits.test.head(8)
    program = program_for(PROGRAMS[name], digits)
    objective = pv.objectives.EnumeratedELBO() if name == "SemiSupervisedVAE" else None
    pv.fit(program, train, objective=objective, epochs=1, batch_size=20, device="cuda")
    gpu = pv.evaluate(program, x, num_samples=2000).estimates["elbo"]
    reconstruction = pv.queries.reconstruct(program, x.materialize(0), *_conditions(program, x))
    assert reconstruction.x.device.type == next(program.parameters()).device.type
    assert pv.active_units(program, x).num_data == 8
    cpu = pv.evaluate(program.cpu(), x, num_samples=2000).estimates["elbo"]
    # five standard errors: false alarm < 1e-5 each
    error = (gpu.se_monte_carlo**2 + cpu.se_monte_carlo**2) ** 0.5
    assert abs(gpu.value - cpu.value) < 5 * error + 1e-3


def _conditions(program, split):
    return (split.labels,) if isinstance(program, pv.ConditionalVAE) else ()
