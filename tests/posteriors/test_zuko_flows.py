"""Flows of zuko by name, as posteriors and as priors."""

from __future__ import annotations

import math
import sys
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from components import SMALL, small_vae
from densities import density_grid, plane_integral
from torch.distributions import Distribution, Normal

import pyro_vae as pv
from pyro_vae import posteriors, priors
from pyro_vae.distributions.zuko_flows import ZukoNetwork, zuko_flow_names

D = torch.float64
#: Small versions of all flows.
FLOWS = {
    "BPF": {"transforms": 1, "hidden_features": (6,), "degree": 6},
    "CNF": {"hidden_features": (6,)},
    "GF": {"transforms": 2, "components": 3},
    "MAF": {"transforms": 2, "hidden_features": (6,)},
    "NAF": {"transforms": 1, "hidden_features": (6,), "signal": 4},
    "NICE": {"transforms": 2, "hidden_features": (6,)},
    "NSF": {"transforms": 2, "hidden_features": (6,)},
    "RealNVP": {"transforms": 2, "hidden_features": (6,)},
    "SOSPF": {"transforms": 1, "hidden_features": (6,)},
    "UNAF": {"transforms": 1, "hidden_features": (6,), "signal": 4},
}
#: Difference of log-densities by the two directions: bisection, and the tolerance of the ODE.
ACCURACY = {"BPF": 1e-4, "CNF": 2e-3, "GF": 1e-4, "NAF": 1e-4, "SOSPF": 1e-4, "UNAF": 1e-3}


def make_prior(name, latent_dim=2):
    torch.manual_seed(1)
    return priors.ZukoPrior(latent_dim, name, FLOWS[name]).to(D).eval()


def make_posterior(name, latent_dim=2):
    torch.manual_seed(1)
    make = partial(posteriors.ZukoFlow, flow=name, options=FLOWS[name], context=3)
    return small_vae(posterior=make, latent_dim=latent_dim).to(D).eval().posterior


def test_all_flows_are_tested():
    assert set(zuko_flow_names()) == set(FLOWS)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "GF"])
class TestPriors:
    def test_prior_integrates_to_one(self, name):
        if name in ("NICE", "RealNVP"):
            assert plane_integral(make_prior(name)(), 10.0, 201) == pytest.approx(1, abs=1e-3)
            return
        # dense around 0, because scales differ between flows
        z = 300 * torch.linspace(-1, 1, 4001 if name == "NSF" else 1501, dtype=D) ** 5
        with torch.no_grad():
            density = make_prior(name, 1)().log_prob(z[:, None]).exp()
        assert float(torch.trapezoid(density, z)) == pytest.approx(1, abs=2e-3)

    def test_density_of_the_prior_matches_autograd(self, name):
        prior = make_prior(name)
        for z in torch.randn(3, 2, dtype=D):
            noise, _ = prior.flow(z, None, False)
            jacobian = torch.autograd.functional.jacobian(
                lambda v: prior.flow(v, None, False)[0], z
            )
            expected = dist.Normal(0.0, 1.0).log_prob(noise).sum()
            expected = expected + torch.linalg.slogdet(jacobian)[1]
            atol = ACCURACY.get(name, 1e-6)
            torch.testing.assert_close(prior().log_prob(z), expected, atol=atol, rtol=0)

    def test_samples_of_the_prior_are_transformed_noise(self, name):
        prior = make_prior(name)
        (transform,) = prior().transforms
        noise = torch.randn(6, 2, dtype=D)
        z = transform(noise)
        found, _ = prior.flow(z, None, False)
        torch.testing.assert_close(found, noise, atol=ACCURACY.get(name, 1e-6), rtol=0)


@pytest.mark.parametrize("name", FLOWS)
class TestPosteriors:
    def test_posterior_has_the_density_of_its_samples(self, name):
        q = make_posterior(name)
        fn = q(torch.rand(5, 3, dtype=D))
        z = fn.rsample((4,))
        atol = ACCURACY.get(name, 1e-6)
        # a clone is not in the cache: its noise is found by the inverse
        torch.testing.assert_close(fn.log_prob(z.clone()), fn.log_prob(z), atol=atol, rtol=0)
        fn, noise = q(torch.rand(3, dtype=D)), torch.randn(2, dtype=D)

        def push(value):
            for transform in fn.transforms:
                value = transform(value)
            return value

        jacobian = torch.autograd.functional.jacobian(push, noise)
        expected = dist.Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(fn.log_prob(push(noise)), expected, atol=atol, rtol=0)

    def test_fit_trains_every_parameter(self, name):
        prior = partial(priors.ZukoPrior, flow=name, options=FLOWS[name])
        posterior = partial(posteriors.ZukoFlow, flow=name, options=FLOWS[name], context=3)
        vae = small_vae(None if name == "GF" else prior, posterior)
        before = {key: value.detach().clone() for key, value in vae.named_parameters()}
        x = torch.bernoulli(torch.full((20, 3), 0.5))
        pv.fit(vae, x, epochs=1, batch_size=20, compile=False)
        for key, parameter in vae.named_parameters():
            assert parameter.isfinite().all() and not torch.equal(parameter, before[key]), key

    def test_a_copy_has_the_same_density(self, name):
        options = FLOWS[name]
        if name not in ("CNF", "GF"):
            options = options | {"randmask" if name in ("NICE", "RealNVP") else "randperm": True}
        first, other = (ZukoNetwork(name, 4, 0, options).eval() for _ in range(2))
        other.load_state_dict(first.state_dict())
        z = torch.randn(6, 4)
        torch.testing.assert_close(other(z, None, False), first(z, None, False))


def test_annealing_from_a_flow_to_a_flow():
    vae = small_vae(
        partial(priors.ZukoPrior, flow="MAF", options=FLOWS["MAF"]),
        partial(posteriors.ZukoFlow, flow="RealNVP", options=FLOWS["RealNVP"], context=3),
    )
    x = torch.tensor([[1.0, 0.0, 1.0]])
    axis = torch.linspace(-10, 10, 121)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        # both near a normal, so that the guide covers p(z|x)
        for parameter in [*vae.prior.parameters(), *vae.posterior.parameters()]:
            parameter.mul_(0.5)
        log_p = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x[0])
    truth = float(log_p.logsumexp(0)) + 2 * math.log(20 / 120)
    bounds = pv.evaluate(vae, x, num_samples=2000)
    assert float(bounds.per_datum["log_evidence"][0]) == pytest.approx(truth, abs=0.1)
    annealed = pv.ais(vae, x, annealing=pv.Annealing(32, 8, 2))
    assert float(annealed.per_datum["ais"][0]) == pytest.approx(truth, abs=0.15)


def test_bisection_beyond_its_interval_is_reported():
    prior = priors.ZukoPrior(1, "UNAF", FLOWS["UNAF"]).eval()
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            # a slope of about 1e-3: the mass is beyond 10
            parameter.fill_(-100.0 if name.endswith("integrand.4.bias") else 0.0)
    with pytest.raises(
        ValueError, match=r"expected samples of UNAF in \[-10, 10\], where zuko inv"
    ):
        prior().sample((100,))
    q = make_posterior("SOSPF")
    log_q = q(torch.rand(3, dtype=D)).log_prob(torch.tensor([[0.1, 0.1], [1e9, 0.1]], dtype=D))
    assert log_q.isfinite().tolist() == [True, False] and bool(log_q[1].isnan())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.ZukoPrior(2, "NSFF"), r"expected flow to be BPF, .*; did you mean NSF\?"),
        (lambda: priors.ZukoPrior(2, "NCSF"), r"'NCSF' \(flows on angles are not supported\)"),
        (lambda: priors.ZukoPrior(2, "GF"), "whose density integrates to 1; got GF, whose layers"),
        (lambda: priors.ZukoPrior(1, "RealNVP"), "latent_dim ≥ 2 for RealNVP, .*; got 1: use MAF"),
        (
            lambda: priors.ZukoPrior(2, "MAF", {"transfroms": 2}),
            r"options that zuko\.flows\.MAF accepts; got \{'transfroms': 2\}",
        ),
        (
            lambda: posteriors.ZukoFlow((3,), 2, SMALL, options={"features": 3}),
            r"options that zuko\.flows\.NSF accepts; got \{'features': 3\}",
        ),
        (lambda: posteriors.ZukoFlow((3,), 2, SMALL, context=0), "context to be a positive"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_in_lower_case():
    assert ZukoNetwork("realnvp", 2, 0, None).name == "RealNVP"


def test_the_first_import_of_zuko_keeps_the_validation_of_arguments(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    priors.ZukoPrior(2)
    assert "zuko" in sys.modules and Distribution._validate_args
    with pytest.raises(ValueError, match="scale"):
        Normal(0.0, -1.0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"flows by name need .* pip install pyro-vae\[zu"
    ):
        priors.ZukoPrior(2)


def test_fits_a_ring():
    # entropy log 4π + log(0.1 √(2πe)) = 1.65; the best normal has log 4πe = 3.53
    angle = 6.2831853 * torch.rand(500)
    ring = 2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(500, 2)
    prior = priors.ZukoPrior(2, "NSF", {"transforms": 2, "hidden_features": (16,)})
    optimizer = torch.optim.Adam(prior.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = -prior().log_prob(ring).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 3.53 - 0.5


def test_univariate_density_and_samples():
    for fn in (make_prior("NSF", 1)(), make_posterior("MAF", 1)(torch.rand(3, dtype=D))):
        density = density_grid(fn, -20.0, 20.0, 8001)
        assert density.integral == pytest.approx(1, abs=1e-3)
        assert density.agrees(fn.sample((2000,))[:, 0])
