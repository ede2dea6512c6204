"""Contract: the float32 log-density of every component equals its float64 log-density.

Both have the same parameters and score the same values. Terms that cancel, such as log Γ of large
arguments, and transforms that are nearly singular would show here.
"""

from __future__ import annotations

import copy
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from components import LIKELIHOODS, POSTERIORS, PRIORS, component_class, small_vae
from torch import nn
from torch.nn.functional import normalize

from pyro_vae import distributions, likelihoods, posteriors, priors
from pyro_vae.core.components import Space

#: Nats per datum; the rounding of the result itself is 6e-8 of its value.
TOLERANCE = {"atol": 1e-3, "rtol": 1e-6}
PIXELS, LATENTS = 784, 50


class _Constant(nn.Module):
    """Network whose outputs, the same for every input, are one parameter."""

    def __init__(self, batch, shape, std):
        super().__init__()
        self.out = nn.Parameter(std * torch.randn(*batch, *shape))

    def forward(self, x):
        return self.out.expand(*x.shape[: x.ndim - 1], *self.out.shape[-self.event_dims :])


class _Decoder(_Constant):
    def __init__(self, in_shape, out_shape, std):
        super().__init__((), out_shape, std)
        self.event_dims = len(out_shape)


class _Encoder(_Constant):
    def __init__(self, in_shape, out_shape, std):
        super().__init__((20,), out_shape, std)
        self.event_dims = len(out_shape)

    def forward(self, x):
        return self.out


def _with_bytes(make):
    """Replace few levels with those of a byte."""
    levels = getattr(make, "keywords", {}).get("levels")
    return partial(make, levels=255) if levels == 16 else make


SCORED_LIKELIHOODS = {
    **{name: _with_bytes(make) for name, make in LIKELIHOODS.items()},
    "Binomial, 65535 levels": partial(likelihoods.Binomial, levels=65535),
    "StudentT, near the normal": partial(likelihoods.StudentT, df=1e6),
}


@pytest.mark.parametrize("std", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("make", SCORED_LIKELIHOODS.values(), ids=SCORED_LIKELIHOODS)
@torch.no_grad()
def test_likelihoods(make, std):
    single = make(2, (PIXELS,), partial(_Decoder, std=std)).eval()
    for parameter in single.parameters(recurse=False):
        nn.init.normal_(parameter, std=std)
    double, z = copy.deepcopy(single).double(), torch.zeros(20, 2)
    x = single(z).sample()
    if isinstance(single, likelihoods.Beta):
        x = x.clamp(1e-6, 1 - 1e-6)
    log_p = single(z).log_prob(x)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.double(), double(z.double()).log_prob(x.double()), **TOLERANCE)


SCORED_PRIORS = {
    **PRIORS,
    "FlowPrior, steep splines": partial(priors.FlowPrior, transform="spline", hidden=(64,)),
    "StudentT, near the normal": partial(priors.StudentT, df=1e6),
}


@pytest.mark.parametrize("std", [0.05, 0.2])
@pytest.mark.parametrize("make", SCORED_PRIORS.values(), ids=SCORED_PRIORS)
@torch.no_grad()
def test_priors(make, std):
    if isinstance(make, partial) and "hidden" in make.keywords:
        make = partial(make, hidden=(64,))
    vae = small_vae(make, latent_dim=LATENTS).eval()
    for parameter in vae.prior.parameters():
        nn.init.normal_(parameter, std=std)
    double = copy.deepcopy(vae).double()
    draws = vae.prior().sample((100,))
    for z in (draws.clone(), draws + 0.1 * torch.randn_like(draws)):
        exact = z.double()
        if vae.prior.space is Space.SPHERE:
            z, exact = normalize(z, dim=-1), normalize(exact, dim=-1)
        log_p = vae.prior().log_prob(z)
        assert log_p.dtype == torch.float32
        torch.testing.assert_close(log_p.double(), double.prior().log_prob(exact), **TOLERANCE)


#: Flows that only score their own samples are covered by their exact determinants.
SCORED_POSTERIORS = {
    name: make
    for name, make in POSTERIORS.items()
    if component_class(make).scores_any_value and component_class(make).self_contained
}


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", SCORED_POSTERIORS)
@torch.no_grad()
def test_posteriors(name, scale):
    """At the posterior's samples and outside of them, for random outputs and any scale of z."""
    make = SCORED_POSTERIORS[name]
    if "hidden" in getattr(make, "keywords", {}):
        make = partial(make, hidden=(64,))
    single = make((3,), LATENTS, partial(_Encoder, std=1.0)).eval()
    for network in getattr(single, "steps", ()):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    _multiply_scale(single, scale)
    double, x = copy.deepcopy(single).double(), torch.zeros(20, 3)
    draws = single(x).sample()
    far = draws + 0.1 * draws.std(0) * torch.randn_like(draws)
    for z in (draws.clone(), far):
        exact = z.double()
        if single.space is Space.SPHERE:
            z, exact = normalize(z, dim=-1), normalize(exact, dim=-1)
        log_q = single(x).log_prob(z)
        assert log_q.dtype == torch.float32
        expected = double(x.double()).log_prob(exact)
        # below the range of float32 the density is 0
        expected = torch.where(expected < -3e38, -torch.inf, expected)
        torch.testing.assert_close(log_q.double(), expected, **TOLERANCE)


def _multiply_scale(posterior, factor):
    """Multiply all standard deviations of a normal, or of the noise of a flow."""
    log_factor, out, dim = torch.tensor(factor).log(), posterior.network.out, posterior.latent_dim
    if isinstance(posterior, posteriors.PowerSpherical):
        out[:, -1] += 1 / factor  # a concentration
    elif out.ndim == 3:
        out[:, 1] += log_factor
        out[:, 2:] *= factor
    else:
        out[:, dim : 2 * dim] += log_factor


@torch.no_grad()
def test_nearly_singular_normals():
    loc, diagonal = torch.randn(20, LATENTS), torch.full((20, LATENTS), 1e-6)
    factor, tril = torch.randn(20, LATENTS, 2), 0.5 * torch.randn(20, LATENTS, LATENTS).tril()
    tril.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    for single, double in (
        (
            distributions.LowRankMultivariateNormal(loc, factor, diagonal),
            dist.LowRankMultivariateNormal(loc.double(), factor.double(), diagonal.double()),
        ),
        (
            distributions.MultivariateNormal(loc, scale_tril=tril),
            dist.MultivariateNormal(loc.double(), scale_tril=tril.double()),
        ),
    ):
        z = single.sample()
        assert single.log_prob(z).dtype == torch.float32
        expanded = single.expand((7, 20)).log_prob(z)
        for log_q in (single.log_prob(z), *expanded):
            torch.testing.assert_close(log_q.double(), double.log_prob(z.double()), **TOLERANCE)
        # this test would not detect an evaluation in float32 if torch's were accurate here
        in_float32 = type(single).__base__.log_prob(single, z).double()
        assert float((in_float32 - double.log_prob(z.double())).abs().max()) > 1e-2
