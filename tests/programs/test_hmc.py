"""Hamiltonian Monte Carlo, tested on the last draws of many independent chains.

Statistical tests accept p-values above 10⁻⁴, so the false-alarm rate is 10⁻⁴ per p-value and
below 0.3 % for this file. Seeds are fixed.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from scipy import stats

from pyro_vae.distributions import UniformSphere
from pyro_vae.programs import hmc
from pyro_vae.programs.importance_weights import find_layout
from pyro_vae.programs.particles import Layout
from pyro_vae.programs.unconstrained import (
    UnconstrainedDensity,
    site_transforms,
    unconstrained_posterior,
)

SHORT_CHAINS = {"warm_up": 40, "thin": 8, "num_steps": 8}


def _follows(draws, cdf):
    assert stats.kstest(draws.flatten().numpy(), cdf).pvalue > 1e-4


def _is_standard_normal(e):
    """Test ``(draws, D)`` against N(0, I): coordinates, radius and products of coordinates."""
    count, dim = e.shape
    for coordinate in e.unbind(1):
        _follows(coordinate, stats.norm.cdf)
    _follows(e.square().sum(1), stats.chi2(dim).cdf)
    for i in range(dim):
        for j in range(i):
            product = e[:, i] * e[:, j]
            z = float(product.sum() / product.square().sum().sqrt())
            assert 2 * stats.norm.sf(abs(z)) > 1e-4, (i, j, count)


def _whitened(program, x, z):
    """Transform posterior draws ``(C, N, D)`` to draws of N(0, I), ``(C · N, D)``."""
    mean = (x - program.b) @ program.W @ program.covariance / program.s**2
    e = torch.linalg.solve_triangular(program.factor, (z - mean).unsqueeze(-1), upper=False)
    return e.flatten(0, 1).squeeze(-1)


def _standard_normal(z):
    return -sum(v.reshape(*v.shape[:2], -1).square().sum(2) for v in z.values()) / 2


def test_draws_follow_the_exact_posterior():
    program = LinearGaussian(3, shift=2.0, inflate=0.1)
    x = program.sample(2)
    chains = hmc.sample_posterior(
        program.model, program.guide, x, num_chains=1000, seed=0, options=SHORT_CHAINS
    )
    assert chains.draws["z"].shape == (1, 1000, 2, 3)
    assert chains.acceptance.shape == chains.step_size.shape == (1000, 2)
    # a short warm-up leaves too long a step in a few chains: at most 3 of 2000 in 12 runs
    assert (chains.divergences > 0).sum() < 20
    _is_standard_normal(_whitened(program, x, chains.last["z"]))


def test_several_draws_per_chain():
    program = LinearGaussian(2, shift=1.0)
    x = program.sample(2)
    options = SHORT_CHAINS | {"num_samples": 3, "thin": 6}
    draws = hmc.sample_posterior(
        program.model, program.guide, x, num_chains=400, seed=0, options=options
    ).draws["z"]
    assert draws.shape == (3, 400, 2, 2)
    for draw in draws:
        _is_standard_normal(_whitened(program, x, draw))
    assert not (draws[0] == draws[1]).all()


def _constrained_model(x, high):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
        share = pyro.sample("share", dist.Beta(2.0, 3.0))
        mixed = pyro.sample("mixed", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        pyro.sample("between", dist.Uniform(-high, high))
        pyro.sample("x", dist.Poisson(rate), obs=x)
        pyro.sample("y", dist.Bernoulli(share), obs=torch.ones(len(x)))
        pyro.sample("w", dist.Categorical(mixed), obs=torch.zeros(len(x)))


def _constrained_guide(x, high):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Gamma(5.0, 5.0))
        pyro.sample("share", dist.Beta(5.0, 5.0))
        pyro.sample("mixed", dist.Dirichlet(torch.full((3,), 5.0)))
        pyro.sample("between", dist.Uniform(-high, high))


def test_sites_of_constrained_support():
    x, high = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 5.0])
    last = hmc.sample_posterior(
        _constrained_model,
        _constrained_guide,
        x,
        high,
        num_chains=500,
        seed=1,
        options=SHORT_CHAINS,
    ).last
    assert last["mixed"].shape == (500, 2, 3)
    for n in range(2):
        _follows(last["rate"][:, n], stats.gamma(2 + x[n], scale=1 / 4).cdf)
        _follows(last["between"][:, n], stats.uniform(-high[n], 2 * high[n]).cdf)
    _follows(last["share"], stats.beta(3, 3).cdf)
    for i, a in enumerate((2.0, 2.0, 3.0)):
        _follows(last["mixed"][..., i], stats.beta(a, 7 - a).cdf)


def test_hierarchy_of_two_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(top[..., None].expand(*top.shape, 2), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.8).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("top", dist.Normal(0.0, 1.0))

    x = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    last = hmc.sample_posterior(model, guide, x, num_chains=800, seed=2, options=SHORT_CHAINS).last
    # precision of (top, z_1, z_2): the prior plus the likelihood
    precision = torch.tensor([[9.0, -4, -4], [-4, 4, 0], [-4, 0, 4]])
    precision += torch.diag(torch.tensor([0.0, 1, 1]) / 0.8**2)
    mean = torch.linalg.solve(precision, torch.cat([torch.zeros(2, 1), x], 1).T / 0.8**2).T
    joint = torch.cat([last["top"].unsqueeze(-1), last["z"]], -1) - mean
    _is_standard_normal(joint.flatten(0, 1) @ torch.linalg.cholesky(precision))


@pytest.mark.parametrize("outer", [True, False])
def test_bounds_per_datum_with_either_order_of_plates(outer):
    def model(x, high):
        data, repeats = (-2, -1) if outer else (-1, -2)
        high = high.unsqueeze(-1) if outer else high
        with pyro.plate("data", len(x), dim=data), pyro.plate("repeats", 3, dim=repeats):
            pyro.sample("u", dist.Uniform(torch.zeros(()), high))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(()))

    x, high = torch.zeros(2), torch.tensor([1.0, 7.0])
    layout = find_layout(model, lambda *a: pyro.poutine.block(model, hide=["x"])(*a), x, high)
    target = unconstrained_posterior(model, x, high, layout=layout)
    last = hmc.run_hmc(target, {"u": torch.full((300, 2, 3), 0.5)}, seed=0, **SHORT_CHAINS).last[
        "u"
    ]
    for n in range(2):
        _follows(last[:, n], stats.uniform(0, high[n]).cdf)


@pytest.mark.parametrize("step_size", [0.3, 0.48])
def test_transitions_leave_the_distribution_invariant(step_size):
    program = LinearGaussian(3)
    x = program.sample(2)
    space = unconstrained_posterior(program.model, x, layout=Layout())
    mean = (x - program.b) @ program.W @ program.covariance / program.s**2
    z = mean + torch.randn(1000, 2, 3, dtype=x.dtype) @ program.factor.T
    state, step = hmc.make_state(space, {"z": z}), torch.tensor([[step_size]], dtype=x.dtype)
    rates = []
    for _ in range(5):
        state, probability = hmc.hmc_step(space, state, step, num_steps=3)
        rates.append(float(probability.mean()))
    # most proposals are rejected with the second step size
    assert min(rates) > 0.8 if step_size == 0.3 else max(rates) < 0.5
    assert (state.position["z"] != z).any(-1).float().mean() > 0.3
    _is_standard_normal(_whitened(program, x, state.position["z"]))
    expected = hmc.make_state(space, state.position)
    torch.testing.assert_close(expected.log_density, state.log_density)
    torch.testing.assert_close(expected.gradient["z"], state.gradient["z"])


def test_proposals_without_density_are_rejected():
    def log_density(z):
        return torch.where(z["z"] < 0.5, _standard_normal(z), torch.nan)

    options = {"warm_up": 0, "step_size": 0.1, "thin": 80, "num_steps": 8}
    chains = hmc.run_hmc(log_density, {"z": torch.zeros(1000, 2)}, seed=0, **options)
    _follows(chains.last["z"], stats.truncnorm(-torch.inf, 0.5).cdf)
    assert chains.divergences.sum() > 100


@pytest.mark.parametrize(("target", "start"), [(0.6, 20.0), (0.9, 0.02)])
def test_warm_up_tunes_the_step_size_of_each_chain(target, start):
    # very different scales
    scales = torch.tensor([0.01, 1.0, 100.0])

    def log_density(z):
        return -(z["a"] / scales[:, None]).square().sum(-1) / 2 - (z["b"] / scales).square() / 2

    initial = {"a": scales[:, None] * torch.randn(20, 3, 30), "b": scales * torch.randn(20, 3)}
    chains = hmc.run_hmc(
        log_density, initial, num_samples=30, warm_up=150, target=target, step_size=start, seed=0
    )
    # standard deviation 0.1 per chain, 0.025 for the mean of 20 chains
    assert (chains.acceptance.mean(0) - target).abs().max() < 0.1
    ratio = chains.step_size.mean(0) / scales
    torch.testing.assert_close(ratio / ratio[1], torch.ones(3), rtol=0.2, atol=0)
    assert (chains.step_size.std(0) / chains.step_size.mean(0)).max() < 0.15


def test_step_sizes_are_fixed_after_warm_up():
    initial = {"z": torch.randn(5, 3, 4)}
    short = hmc.run_hmc(_standard_normal, initial, warm_up=20, seed=0)
    long = hmc.run_hmc(_standard_normal, initial, warm_up=20, num_samples=9, seed=0)
    assert torch.equal(short.step_size, long.step_size)
    assert torch.equal(short.draws["z"][0], long.draws["z"][0])
    step_size = torch.rand(5, 3) + 0.1
    chains = hmc.run_hmc(_standard_normal, initial, warm_up=0, step_size=step_size, seed=0)
    assert torch.equal(chains.step_size, step_size)


def test_draws_are_reproducible_and_the_generator_is_restored():
    program = LinearGaussian(2, shift=1.0)
    x = program.sample(3)

    def draws(seed):
        options = {"warm_up": 5, "thin": 3}
        return hmc.sample_posterior(
            program.model, program.guide, x, num_chains=4, seed=seed, options=options
        ).last["z"]

    state = torch.get_rng_state()
    first = draws(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    assert torch.equal(draws(0), first)
    assert not torch.isclose(draws(1), first).any()


def _pendulum(z):
    return z["angle"].cos() - z["other"].pow(4).sum(-1) / 4 - z["angle"] * z["other"].sum(-1)


def _energy(state, momentum):
    return sum(r.reshape(*r.shape[:2], -1).square().sum(2) / 2 for r in momentum.values()) - (
        state.log_density
    )


def _random_state():
    shapes = {"angle": (50, 2), "other": (50, 2, 3)}
    u, r = ({n: torch.randn(s, dtype=torch.float64) for n, s in shapes.items()} for _ in range(2))
    return hmc.make_state(_pendulum, u), r


def test_energy_error_is_quadratic_in_the_step_size():
    state, momentum = _random_state()
    errors = []
    for halvings in range(3):
        step = torch.full((50, 2), 0.02 / 2**halvings, dtype=torch.float64)
        last, final = hmc.leapfrog(_pendulum, state, momentum, step, 25 * 2**halvings)
        errors.append((_energy(last, final) - _energy(state, momentum)).abs().mean())
    # second order: halving the step over the same time divides the error by 4
    assert 3.8 < errors[0] / errors[1] < 4.2 and 3.9 < errors[1] / errors[2] < 4.1


def test_leapfrog_is_reversible():
    state, momentum = _random_state()
    step = torch.rand(50, 2, dtype=torch.float64) * 0.1
    last, final = hmc.leapfrog(_pendulum, state, momentum, step, 20)
    assert (last.position["angle"] - state.position["angle"]).abs().mean() > 0.1
    back, back_momentum = hmc.leapfrog(_pendulum, last, {n: -r for n, r in final.items()}, step, 20)
    for name in momentum:
        torch.testing.assert_close(back.position[name], state.position[name])
        torch.testing.assert_close(-back_momentum[name], momentum[name])


def test_change_of_variables_is_normalised():
    # a normalised density stays normalised in unconstrained space
    transforms = site_transforms(_constrained_model, torch.zeros(1), torch.tensor([3.0]))
    u = torch.linspace(-40, 40, 20_001, dtype=torch.float64).unsqueeze(1)
    for name, p in {
        "rate": dist.Gamma(torch.tensor(2.0).double(), 3.0),
        "share": dist.Beta(torch.tensor(2.0).double(), 3.0),
        "between": dist.Uniform(torch.tensor(-3.0).double(), 3.0),
    }.items():
        space = UnconstrainedDensity(
            lambda z, name=name, p=p: p.log_prob(z[name]), {name: transforms[name]}
        )
        inside = u[(u.abs() < 30) if name != "rate" else (u.abs() < 20)].unsqueeze(1)
        mass = torch.trapezoid(space({name: inside}).exp()[:, 0], inside[:, 0])
        assert abs(float(mass) - 1) < 1e-5, name
        z = space.constrain({name: inside[9_000:11_000]})
        round_trip = space.constrain(space.inverse(z))
        torch.testing.assert_close(round_trip[name], z[name])


def _mixture_model(bounded):
    def model(x):
        with pyro.plate("data", len(x)):
            weights = dist.Categorical(torch.tensor([0.3, 0.7]))
            parts = (
                dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))
                if bounded
                else dist.Gamma(torch.tensor([2.0, 9.0]), 3.0)
            )
            z = pyro.sample("z", dist.MixtureSameFamily(weights, parts))
            pyro.sample("x", dist.Normal(0.0, 1.0).mask(False), obs=x + z)

    return model


def test_mixture_has_the_support_of_its_components():
    x = torch.zeros(2)
    space = unconstrained_posterior(_mixture_model(False), x, layout=Layout())
    z = torch.rand(5, 2) + 0.5
    parts = [stats.gamma(a, scale=1 / 3).pdf(z.double().numpy()) for a in (2.0, 9.0)]
    expected = torch.as_tensor(0.3 * parts[0] + 0.7 * parts[1]).log().float()
    # u = log z, so log|dz/du| = log z
    torch.testing.assert_close(space({"z": z.log()}), expected + z.log())


def _discrete_model(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def _spherical_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", UniformSphere(torch.zeros(3)))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def _dependent_support_model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Uniform(0.5, 1.0))
        b = pyro.sample("b", dist.Uniform(0.0, a))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def _model_without_latents(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            _discrete_model,
            r"expected continuous latent sites; got site 'y' \(Bernoulli\), which is discrete",
        ),
        (_spherical_model, "got site 'z' with support .*Sphere.* which has none"),
        (_dependent_support_model, "site 'b', whose support depends on other sites"),
        (_mixture_model(True), "got site 'z' with support .*which has none"),
        (_model_without_latents, "expected a model with latent sites"),
    ],
)
def test_unsupported_models_raise(model, message):
    with pytest.raises(ValueError, match=message):
        site_transforms(model, torch.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "expected num_samples to be a positive integer; got 0"),
        ({"thin": 0}, "expected thin to be a positive integer; got 0"),
        ({"num_steps": 0}, "expected num_steps to be a positive integer; got 0"),
        ({"warm_up": -1}, "expected warm_up to be an integer ≥ 0; got -1"),
        ({"target": 1.0}, r"expected target in \(0, 1\); got 1.0"),
        ({"jitter": 1.0}, r"expected jitter in \[0, 1\); got 1.0"),
        ({"step_size": 0.0}, "expected step sizes > 0 and finite"),
        ({"seed": -1}, "expected seed to be an integer ≥ 0"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        hmc.run_hmc(_standard_normal, {"z": torch.zeros(1, 1)}, **({"seed": 0} | arguments))


def test_initial_values_without_density_raise():
    def log_density(z):
        return -z["z"].log()

    with pytest.raises(ValueError, match="others for 2 of 3 chains: use other initial values"):
        hmc.run_hmc(log_density, {"z": torch.tensor([[1.0], [0.0], [-1.0]])}, seed=0)
