"""Flow posteriors: log-determinants, inverses and flexibility."""

from __future__ import annotations

import functools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, random_posterior, small_vae
from linear_gaussian import LinearGaussian
from pyro.distributions import transforms

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors
from pyro_vae.distributions.autoregressive import (
    AffineAutoregressive,
    SplineAutoregressive,
    autoregressive_network,
)

FLOWS = [n for n in POSTERIORS if n.endswith("Flow")]


@pytest.mark.parametrize("name", FLOWS)
class TestFlows:
    def test_log_det_matches_autograd(self, name):
        q = random_posterior(POSTERIORS[name], 4)
        fn = q(torch.rand(3, dtype=torch.float64))
        for step in fn.transforms:
            for x in torch.randn(5, 4, dtype=torch.float64):
                jacobian = torch.autograd.functional.jacobian(step, x)
                log_det = step.log_abs_det_jacobian(x, step(x))
                expected = torch.linalg.slogdet(jacobian)[1]
                torch.testing.assert_close(log_det.sum(), expected, atol=1e-8, rtol=1e-6)

    def test_inverse_of_invertible_flows(self, name):
        q = random_posterior(POSTERIORS[name], 4)
        fn = q(torch.rand(3, dtype=torch.float64))
        z = fn.sample((6,))
        if q.scores_any_value:
            # a clone is not in the cache of the transforms
            torch.testing.assert_close(fn.log_prob(z.clone()), fn.log_prob(z))
        else:
            with pytest.raises((KeyError, NotImplementedError)):
                fn.log_prob(z.clone())

    def test_flow_depends_on_x(self, name):
        # beyond μ and σ: the other transforms still depend on x
        q = random_posterior(POSTERIORS[name], 3)
        x = torch.rand(2, 3, dtype=torch.float64)
        noise = torch.randn(3, dtype=torch.float64)
        outputs = []
        for example in x:
            z = noise
            for step in q(example).transforms:
                if not isinstance(step, transforms.AffineTransform):
                    z = step(z)
            outputs.append(z)
        assert not torch.allclose(*outputs)

    def test_is_more_flexible_than_a_diagonal_normal(self, name):
        assert 0 < _gap(_make_flexible(name)) < 0.9 * _gap(posteriors.DiagonalNormal)


@functools.cache
def _gap(make):
    """Return log p(x) − ELBO of a trained guide, with a strongly correlated true posterior."""
    torch.manual_seed(0)
    rows = torch.tensor([[1.0, 0.9], [0.9, 1.0], [1.0, -0.1]])
    vae = small_vae(
        posterior=make,
        likelihood=partial(likelihoods.Gaussian, scale=0.3),
        encoder=partial(networks.MLP, hidden=(16,)),
        decoder=partial(networks.MLP, hidden=()),
    )
    with torch.no_grad():
        vae.likelihood.network.layers[0].weight.copy_(rows)
        vae.likelihood.network.layers[0].bias.zero_()
    x = torch.randn(100, 2) @ rows.T + 0.3 * torch.randn(100, 3)
    objective = pv.objectives.ELBO()
    optimizer = torch.optim.Adam(vae.posterior.parameters(), 0.03)
    for _ in range(300):
        optimizer.zero_grad()
        objective.loss_and_grads(vae.model, vae.guide, x)
        optimizer.step()
    covariance = rows @ rows.T + 0.09 * torch.eye(3)
    truth = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x).mean()
    return float(truth) - pv.evaluate(vae, x, num_samples=200).elbo


def _make_flexible(name):
    """Return a factory of flows that are flexible enough in two dimensions."""
    make = getattr(posteriors, name)
    return {
        "HouseholderFlow": partial(make, flows=1),
        "InverseAutoregressiveFlow": partial(make, hidden=(16,), context=8),
        "SplineFlow": partial(make, hidden=(16,), context=8),
        "SylvesterFlow": partial(make, flows=2, reflections=2),
        "ZukoFlow": partial(
            make, options={"transforms": 1, "hidden_features": (16,), "bins": 8}, context=8
        ),
    }.get(name, make)


def test_pyro_sylvester_has_a_wrong_determinant():
    """If this fails, Pyro's transform was fixed and can replace ``_Sylvester``."""
    errors = []
    for _ in range(10):
        step = transforms.Sylvester(4, 3)
        for parameter in step.parameters():
            torch.nn.init.normal_(parameter)
        x = torch.randn(4)
        jacobian = torch.autograd.functional.jacobian(step, x)
        log_det = step.log_abs_det_jacobian(x, step(x)).detach()
        errors.append(abs(float(log_det - torch.linalg.slogdet(jacobian)[1])))
    assert max(errors) > 0.05


class TestSplines:
    """Splines with the steepest slopes that Pyro's parametrisation allows."""

    @staticmethod
    def make(std, dtype=torch.float32):
        network = autoregressive_network(3, (16,), [8, 8, 7]).to(dtype)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=std)
        return SplineAutoregressive(network, 3, 8, 4.0)

    @torch.no_grad()
    @pytest.mark.parametrize("std", [1.0, 3.0, 10.0])
    def test_values_next_to_a_knot(self, std):
        spline = self.make(std, torch.float64)
        zero = torch.zeros(1, 3, dtype=torch.float64)
        widths, heights, _, _ = spline.spline.condition(zero)._params()
        # the first variable depends on no other; Pyro's knots of its spline
        knots = (-4 + 8 * (1e-3 + (1 - 8e-3) * part[0, 0]).cumsum(0) for part in (widths, heights))
        for values, transform in zip(knots, (spline, spline.inv), strict=True):
            x = torch.zeros(700, 3, dtype=torch.float64)
            x[:, 0] = (values[:-1, None] + torch.linspace(-2e-6, 2e-6, 100)).flatten()
            y = transform(x)
            assert bool(transform.log_abs_det_jacobian(x, y).isfinite().all())
            # increasing within the neighbourhood of each knot
            assert bool((y[:, 0].unflatten(0, (7, 100)).diff(dim=1) > 0).all())

    def test_nan_of_a_divergent_trajectory_stays_in_its_row(self):
        y = torch.tensor([[math.nan, 0.1, 0.2], [0.3, 0.1, 0.2]])
        x = self.make(1.0).inv(y).detach()
        assert x.isnan().any(-1).tolist() == [True, False]

    def test_nan_knots_have_no_inverse(self):
        spline = self.make(math.inf)  # ±∞, whose softmax is NaN
        with pytest.raises(ValueError, match="expected splines with an inverse; got knots that"):
            spline.inv(torch.zeros(2, 3))


@torch.no_grad()
def test_overflow_of_an_inverse_is_a_density_of_zero():
    # the scales of the second variable, e^(−1000 |x|), overflow in the inverse
    network = autoregressive_network(3, (16,), [1, 1])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=10.0)
    noise = dist.Normal(torch.zeros(3), 1e-3).to_event(1)
    for dtype in (torch.float32, torch.float64):
        step = AffineAutoregressive(network.to(dtype), stable=True)
        log_q = dist.TransformedDistribution(noise, [step]).log_prob(torch.ones(5, 3, dtype=dtype))
        assert bool((log_q < -1e10).all())


def test_evaluation_of_a_guide_without_an_inverse():
    # a custom guide with Pyro's planar flow, which has no inverse
    truth = LinearGaussian(2)
    x = truth.sample(6)
    flow = transforms.Planar(2).double()

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = (x - truth.b) @ truth.W @ truth.covariance / truth.s**2
            base = dist.Normal(mean, 1.5 * truth.covariance.diagonal().sqrt()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    bounds = pv.evaluate((truth.model, guide), x, num_samples=20_000)
    np.testing.assert_allclose(
        bounds.per_datum["log_evidence"], truth.log_evidence(x).numpy(), atol=0.1
    )
