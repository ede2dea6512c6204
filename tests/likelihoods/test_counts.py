"""The library size of counts: decoded, or observed in the datum itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from components import SMALL
from scipy import special, stats

import pyro_vae as pv
from pyro_vae import likelihoods

X = torch.tensor([[[0.0, 2.0, 5.0], [1.0, 0.0, 9.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]).double()


def _poisson(x, rate, r, gate):
    return stats.poisson.pmf(x, rate)


def _negative_binomial(x, rate, r, gate):
    return stats.nbinom.pmf(x, r, r / (r + rate))


def _inflated(x, rate, r, gate):
    return gate * (x == 0) + (1 - gate) * _negative_binomial(x, rate, r, gate)


FAMILIES = {
    "Poisson": _poisson,
    "NegativeBinomial": _negative_binomial,
    "ZeroInflatedNegativeBinomial": _inflated,
}
each = pytest.mark.parametrize("name", FAMILIES)


def _made(name, library):
    p = getattr(likelihoods, name)(2, (2, 3), SMALL, library=library).double()
    if name != "Poisson":
        torch.nn.init.normal_(p.log_total_count)
    return p


def _expected(p, name, z, totals):
    """log p(x | z, ℓ) of each datum of X, slowly, with the given totals."""
    r = p.log_total_count.exp().numpy() if name != "Poisson" else None
    inflated = name.startswith("Zero")
    result = []
    for x, point, total in zip(X.numpy(), z, totals, strict=True):
        outputs = p.network(point).numpy()
        f = outputs if outputs.ndim == 2 else outputs[0]
        gate = special.expit(outputs[1]) if inflated else None
        rate = total * np.exp(f) / np.exp(f).sum()
        result.append(np.log(FAMILIES[name](x, rate, r, gate)).sum())
    return np.array(result)


@each
@torch.no_grad()
def test_decoded(name):
    p, z = _made(name, "decoded"), torch.randn(2, 2).double()
    # the last row of outputs says log ℓ in its mean
    totals = [float(p.network(point)[-1].mean().exp()) for point in z]
    np.testing.assert_allclose(p(z).log_prob(X), _expected(p, name, z, totals))
    if not name.startswith("Zero"):  # a gate takes from the mean
        np.testing.assert_allclose(p(z).mean.sum((-1, -2)), totals)


@each
@torch.no_grad()
def test_observed(name):
    p, z = _made(name, "observed"), torch.randn(2, 2).double()
    # a datum without counts is taken for one of total 1
    np.testing.assert_allclose(p(z).log_prob(X), _expected(p, name, z, [17.0, 1.0]))
    # every particle sees the same totals
    wide = torch.randn(4, 3, 2, 2).double()
    np.testing.assert_allclose(
        p(wide).log_prob(X)[3, 1], _expected(p, name, wide[3, 1], [17.0, 1.0])
    )


@each
@torch.no_grad()
def test_draws_are_of_a_typical_total(name):
    p, z = _made(name, "observed"), torch.randn(3, 2).double()
    gate = p.network(z)[:, 1].sigmoid() if name.startswith("Zero") else torch.zeros(())
    share = (p(z).mean / (1 - gate)).sum((-1, -2))
    torch.testing.assert_close(share, torch.ones(3).double())  # 1 before it has seen data
    x = torch.zeros(5, 2, 3).double()
    x[:, 0, 0] = torch.tensor([0.0, 3.0, 400.0, 8.0, 6.0])
    p.start_from(x)
    p.start_from(10 * x)  # the second time it has no effect
    torch.testing.assert_close((p(z).mean / (1 - gate)).sum((-1, -2)), 6 * share)
    draws = p(z).sample((4000,))
    assert draws.shape == (4000, 3, 2, 3)
    error = draws.std(0) / 4000**0.5
    # 18 pixels at 5 standard errors: false alarm 1e-5
    assert ((draws.mean(0) - p(z).mean).abs() < 5 * error + 1e-3).all()
    twin = getattr(likelihoods, name)(2, (2, 3), SMALL, library="observed").double()
    twin.load_state_dict(p.state_dict())
    assert torch.equal(twin(z).mean, p(z).mean)


@each
@torch.no_grad()
def test_without_a_library_nothing_has_changed(name):
    p, z = _made(name, None), torch.randn(2, 2).double()
    assert p.network.out_shape == ((2, 2, 3) if name.startswith("Zero") else (2, 3))
    assert set(p.state_dict()) - {"log_total_count"} == {
        f"network.{n}" for n in p.network.state_dict()
    }
    outputs = p.network(z)
    f = outputs[:, 0].numpy() if name.startswith("Zero") else outputs.numpy()
    gate = special.expit(outputs[:, 1].numpy()) if name.startswith("Zero") else None
    r = p.log_total_count.exp().numpy() if name != "Poisson" else 1.0
    # the mean is exp(f) for Poisson and r exp(f) for the others
    expected = np.log(FAMILIES[name](X.numpy(), r * np.exp(f), r, gate)).sum((-1, -2))
    np.testing.assert_allclose(p(z).log_prob(X), expected)


@each
def test_another_library_is_refused(name):
    message = "expected library to be None, 'decoded' or 'observed'; got 'given'"
    with pytest.raises(ValueError, match=message):
        getattr(likelihoods, name)(2, (3,), SMALL, library="given")


def test_library_takes_up_what_cells_differ_in_by_depth_alone():
    # the same profile at depths from 1 to 100: one share for all cells explains them
    depth = torch.logspace(0, 2, 400)[:, None]
    x = torch.poisson(depth * torch.tensor([[0.1, 0.3, 0.6]]))
    elbos = {}
    for library in (None, "observed"):
        torch.manual_seed(0)
        vae = pv.VAE(
            (3,),
            1,
            likelihood=partial(likelihoods.Poisson, library=library),
            encoder=SMALL,
            decoder=SMALL,
        )
        pv.fit(vae, x, epochs=5, batch_size=50)
        elbos[library] = pv.evaluate(vae, x, num_samples=10).elbo
    assert elbos["observed"] > -10 > -30 > elbos[None]
