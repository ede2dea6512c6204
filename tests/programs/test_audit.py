"""The audit: programs without weights per datum are refused, others get the right arguments."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.nn import PyroModule
from torch import nn

import pyro_vae as pv
from pyro_vae.evaluation import AdaptiveSamples

#: p(z) = N(0, 1) and p(x|z) = N(z, σ²), so p(x) = N(0, 1 + σ²) and p(z|x) = N(x/(1+σ²), …).
NOISE = 0.5
POSTERIOR = NOISE / math.sqrt(1 + NOISE**2)


def _model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def _guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / (1 + NOISE**2), 1.1 * POSTERIOR))


def _log_evidence(x, noise=NOISE):
    return torch.distributions.Normal(0.0, (1 + torch.as_tensor(noise) ** 2) ** 0.5).log_prob(x)


def _data(size, noise=NOISE):
    generator = torch.Generator().manual_seed(size)
    return (1 + torch.as_tensor(noise) ** 2) ** 0.5 * torch.randn(size, generator=generator)


def _weights(model, guide, x, *args, num_samples=2000, **kwargs):
    log_w = pv.log_weights(model, guide, x, *args, num_samples=num_samples, **kwargs)
    return log_w.logsumexp(0) - math.log(num_samples)


# -- parameters per example -----------------------------------------------------------------------


def _indexed_guide(x_all):
    """Return a guide with a mean per example, read by the index of the plate."""

    def guide(x, *args):
        loc = pyro.param("loc", x_all / (1 + NOISE**2))
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(loc[i], 1.1 * POSTERIOR))

    return guide


@pytest.mark.parametrize("with_argument", [False, True])
def test_parameters_read_by_index_are_those_of_the_example(with_argument):
    def model(x, *args):
        return _model(x)

    x = _data(400)
    args = (torch.zeros(400),) if with_argument else ()
    # blocks of 50 examples
    actual = _weights(model, _indexed_guide(x), x, *args, num_samples=500, chunk_size=25_000)
    torch.testing.assert_close(actual, _log_evidence(x), atol=0.05, rtol=0)


def test_noise_of_each_example_read_by_index_in_the_model():
    noise = torch.linspace(0.2, 1.0, 300)

    def model(x):
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, noise.index_select(0, i)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)) as i:
            s = noise[i]
            pyro.sample("z", dist.Normal(x / (1 + s**2), 1.1 * s / (1 + s**2).sqrt()))

    x = _data(300, noise)
    truth = _log_evidence(x, noise)
    bounds = pv.evaluate((model, guide), x, num_samples=500, chunk_size=20_000)
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], truth, atol=0.05)
    bounds = pv.evaluate(
        (model, guide), x[:40], num_samples=800, estimators=[AdaptiveSamples(0.01)]
    )
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], truth[:40], atol=0.05)
    annealing = pv.Annealing(16, 30, 4)
    bounds = pv.ais((model, guide), x[:20], annealing=annealing)
    assert abs(bounds.per_datum["ais"].mean() - truth[:20].mean()) < 0.05


def test_indices_reach_all_evaluations(monkeypatch):
    monkeypatch.setattr("pyro_vae.programs.chunking._MAX_PAIRS", 600)
    size = 250
    x = _data(size)
    program = _model, _indexed_guide(x)
    exact_kl = (
        0.5 * ((1.1 * POSTERIOR) ** 2 + (x / (1 + NOISE**2)) ** 2 - 1) - math.log(1.1 * POSTERIOR)
    ).mean()
    assert pv.evaluation.divergences(program, x).estimates["rate"].value == pytest.approx(
        float(exact_kl), abs=1e-5
    )
    information = pv.evaluation.surgery(program, x, num_draws=5000).mutual_information
    same_amortized = pv.evaluation.surgery((_model, _guide), x, num_draws=5000).mutual_information
    assert information == pytest.approx(same_amortized, abs=0.02)
    annealing = pv.Annealing(4, 40, 4)
    gaps = pv.gaps(program, x[:30], num_steps=50, num_samples=500, block=10, annealing=annealing)
    truth = float(_log_evidence(x[:30]).mean())
    estimates = gaps.bounds.estimates
    assert estimates["log_evidence"].value == pytest.approx(truth, abs=0.02)
    assert estimates["ais"].value == pytest.approx(truth, abs=5 * estimates["ais"].se_monte_carlo)


def test_an_autoguide_with_parameters_per_example_runs_on_any_subset():
    x = _data(300)
    guide = AutoNormal(_model, init_scale=1.1 * POSTERIOR)
    guide(x)
    with torch.no_grad():
        guide.locs.z.copy_(x / (1 + NOISE**2))
    for chunk_size in (None, 6000):
        actual = _weights(_model, guide, x, num_samples=300, chunk_size=chunk_size)
        torch.testing.assert_close(actual, _log_evidence(x), atol=0.1, rtol=0)
    bounds = pv.evaluate((_model, guide), x, num_samples=800, estimators=[AdaptiveSamples(0.02)])
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], _log_evidence(x), atol=0.1)


def test_data_read_by_index_are_those_of_the_block():
    def model(x):
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x[i])

    x = _data(300)
    actual = _weights(model, _guide, x, num_samples=200, chunk_size=2000)
    torch.testing.assert_close(actual, _log_evidence(x), atol=0.1, rtol=0)


def test_data_and_parameters_read_by_index_run_on_all_examples():
    x = _data(120)

    def model(x):
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x[i])

    actual = _weights(model, _indexed_guide(x), x, num_samples=300, chunk_size=50)
    torch.testing.assert_close(actual, _log_evidence(x), atol=0.1, rtol=0)


# -- further arguments of leading size N ----------------------------------------------------------


def test_a_tensor_of_leading_size_n_is_shared_if_the_program_shares_it():
    size = 6
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, size, generator=generator)
    weight = torch.randn(size, size, generator=generator)  # as many rows as examples

    def model(x, weight, *, bias):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight + bias, 1.0).to_event(1), obs=x)

    covariance = torch.eye(size) + weight.T @ weight
    gain = weight @ covariance.inverse()
    posterior = torch.eye(size) - gain @ weight.T

    def guide(x, weight, *, bias):
        with pyro.plate("data", len(x)):
            loc = (x - bias) @ gain.T
            pyro.sample("z", dist.MultivariateNormal(loc, posterior))

    bias = torch.arange(float(size))
    truth = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
    for chunk_size in (None, 4):
        log_w = pv.log_weights(
            model, guide, x, weight, bias=bias, num_samples=3, chunk_size=chunk_size
        )
        torch.testing.assert_close(log_w, truth.expand(3, size), atol=1e-3, rtol=1e-4)


def test_shared_and_per_datum_arguments_of_the_same_size():
    means = torch.linspace(-3, 3, 6)

    def model(x, mu, shift):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(6)))
            pyro.sample("x", dist.Normal(mu[c] + shift, 1.0), obs=x)

    def guide(x, mu, shift):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=torch.zeros(6)))

    x, shift = torch.randn(6), torch.linspace(-1, 1, 6)
    parts = dist.Normal(means + shift[:, None], 1.0).log_prob(x[:, None])
    truth = parts.logsumexp(-1) - math.log(6)
    actual = _weights(model, guide, x, means, shift, num_samples=20_000, chunk_size=500)
    torch.testing.assert_close(actual, truth, atol=0.05, rtol=0)


# -- examples that depend on each other -----------------------------------------------------------


def _cumulative(z):
    return z.cumsum(-1)


def _reversed(z):
    return z.flip(-1).cumsum(-1).flip(-1)


def _pairs(z):
    # neighbours 0 and 1, 2 and 3, …; both halves are complete
    size = z.shape[-1] // 2 * 2
    return torch.cat([z[..., :size].unflatten(-1, (-1, 2)).flip(-1).flatten(-2), z[..., size:]], -1)


def _fixed_size(z):
    # only runs on eight examples
    return z @ (torch.eye(8) + 0.3 * torch.ones(8, 8))


def _centred(z):
    return z - z.mean(-1, keepdim=True)


@pytest.mark.parametrize("with_argument", [False, True])
@pytest.mark.parametrize("mix", [_cumulative, _reversed, _pairs, _fixed_size, _centred])
def test_examples_that_depend_on_each_other_are_refused(mix, with_argument):
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mix(z), 1.0), obs=x)

    def guide(x, y=None):
        _guide(x)

    x = torch.randn(8)
    args = (torch.randn(8),) if with_argument else ()
    with pytest.raises(ValueError, match="expected examples that do not depend on each other"):
        pv.evaluate((model, guide), x, *args, num_samples=10)


def test_dependence_beyond_the_first_examples_is_found():
    # a random walk in which only the last examples of many depend on each other
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mixed = torch.cat([z[..., :-20], z[..., -20:].cumsum(-1)], -1)
            pyro.sample("x", dist.Normal(mixed, 1.0), obs=x)

    with pytest.raises(ValueError, match="expected examples that do not depend on each other"):
        pv.log_weights(model, _guide, torch.randn(1000), num_samples=10)


# -- measures -------------------------------------------------------------------------------------


def _mixture_with_point(x):
    components = dist.Delta(torch.stack([x, -x], -1))
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(len(x), 2)), components)


def _delta_guide(make):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(x))

    return guide


@pytest.mark.parametrize(
    "make",
    [
        lambda x: dist.Delta(0.8 * x),
        lambda x: dist.Delta(0.8 * x).mask(torch.tensor(True)),
        lambda x: dist.TransformedDistribution(
            dist.Delta(x), [dist.transforms.AffineTransform(0.0, 2.0)]
        ),
        _mixture_with_point,
    ],
    ids=["Delta", "masked", "transformed", "mixture"],
)
def test_point_masses_are_refused(make):
    x = torch.randn(5)
    message = r"expected a guide with a density .* point mass \(Delta\) at site 'z'"
    for evaluate in (pv.evaluate, pv.ais, pv.evaluation.divergences, pv.latents, pv.queries.encode):
        with pytest.raises(ValueError, match=message):
            evaluate((_model, _delta_guide(make)), x)


def test_a_point_mass_beside_a_density_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            u = pyro.sample("u", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(u, NOISE), obs=x)

    x = torch.randn(4)
    guide = AutoGuideList(model)
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["z"])))
    guide.append(AutoDelta(pyro.poutine.block(model, expose=["u"])))
    with pytest.raises(ValueError, match=r"expected a guide with a density of every"):
        pv.evaluate((model, guide), x, num_samples=10)


def test_a_point_mass_at_a_discrete_latent_is_a_probability():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Delta((x > 0.5).float()))

    x = torch.tensor([0.0, 0.7])
    bounds = pv.evaluate((model, guide), x, num_samples=30)
    expected = (
        dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(x) + torch.tensor([0.7, 0.3]).log()
    )
    np.testing.assert_allclose(bounds.per_datum["elbo"], expected, rtol=1e-5)


def test_a_density_for_a_discrete_latent_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(2 * k - 1, 1.0), obs=x)

    def relaxed(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=2 * x))

    message = (
        r"by the same measure; got a density .*RelaxedBernoulliStraightThrough.* a probability"
    )
    with pytest.raises(ValueError, match=message):
        pv.evaluate((model, relaxed), torch.randn(4), num_samples=10)


# -- auxiliary sites ------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["Gamma", "Beta", "Dirichlet", "Normal"])
def test_autoguides_of_constrained_latents_have_a_density(prior):
    priors = {
        "Gamma": dist.Gamma(2.0, 2.0),
        "Beta": dist.Beta(2.0, 3.0),
        "Dirichlet": dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
        "Normal": dist.Normal(torch.zeros(2), 1.0).to_event(1),
    }

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", priors[prior])
            value = z[..., 0] if priors[prior].event_dim else z
            pyro.sample("x", dist.Normal(value, 1.0), obs=x)

    x = torch.tensor([0.3, 0.5, 1.0])
    guide = AutoNormal(model, init_scale=1.5)
    guide(x)
    draws = priors[prior].sample((200_000,))
    draws = draws if draws.ndim == 1 else draws[..., 0]
    log_p = dist.Normal(draws[:, None], 1.0).log_prob(x)
    truth = log_p.logsumexp(0) - math.log(len(draws))
    actual = _weights(model, guide, x, num_samples=40_000)
    torch.testing.assert_close(actual, truth, atol=0.03, rtol=0)


def test_an_auxiliary_site_needs_a_density_in_the_model():
    def auxiliary_guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0 * x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / (1 + NOISE**2) + 0.3 * a, POSTERIOR))

    def model_with_density(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            # r(a|z, x) = q(a|z, x)
            precision = 1 + 0.09 / POSTERIOR**2
            loc = 0.3 * (z - x / (1 + NOISE**2)) / POSTERIOR**2 / precision
            pyro.sample("a", dist.Normal(loc, precision**-0.5))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    x = _data(30)
    message = r"expected a density r\(a \| z, x\) of the guide's auxiliary site 'a'"
    with pytest.raises(ValueError, match=message):
        pv.evaluate((_model, auxiliary_guide), x, num_samples=10)
    actual = _weights(model_with_density, auxiliary_guide, x)
    torch.testing.assert_close(actual, _log_evidence(x), atol=0.05, rtol=0)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_change_of_variables_needs_its_jacobian(is_right):
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0 * x, 1.0), infer={"is_auxiliary": True})
            scale = 1.1 * POSTERIOR
            log_density = torch.full_like(u, -math.log(scale) if is_right else 0.0)
            z = x / (1 + NOISE**2) + scale * u
            pyro.sample("z", dist.Delta(z, log_density=log_density))

    x = _data(30)
    if is_right:
        actual = _weights(_model, guide, x)
        torch.testing.assert_close(actual, _log_evidence(x), atol=0.05, rtol=0)
    else:
        with pytest.raises(ValueError, match=r"point mass \(Delta\) at site 'z'"):
            pv.evaluate((_model, guide), x, num_samples=10)


# -- masks ----------------------------------------------------------------------------------------


def _masked(mask_q, mask_p):
    def model(x, m):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", mask_p(dist.Normal(torch.zeros(2), 1.0), m))
            pyro.sample("x", dist.Normal(torch.where(m, z, 0.0), 1.0).mask(m).to_event(1), obs=x)

    def guide(x, m):
        with pyro.plate("data", len(x)):
            pyro.sample("z", mask_q(dist.Normal(x / 2, math.sqrt(0.5)), m))

    return model, guide


def _by_element(fn, m):
    return fn.mask(m).to_event(1)


def _unmasked(fn, m):
    return fn.to_event(1)


def test_a_latent_has_the_same_mask_in_model_and_guide():
    x, m = torch.randn(5, 2), torch.rand(5, 2) > 0.4
    truth = torch.where(m, dist.Normal(0.0, math.sqrt(2)).log_prob(x), 0.0).sum(1)
    log_w = pv.log_weights(*_masked(_by_element, _by_element), x, m, num_samples=3)
    torch.testing.assert_close(log_w, truth.expand(3, 5), atol=1e-4, rtol=1e-4)
    for pair in ((_by_element, _unmasked), (_unmasked, _by_element)):
        with pytest.raises(ValueError, match="latent 'z' under the same mask in model and guide"):
            pv.log_weights(*_masked(*pair), x, m, num_samples=3)


def test_a_masked_site_of_an_autoguide_is_refused():
    def model(x, m):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=m)

    x, m = torch.randn(6), torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    guide = AutoNormal(model)
    guide(x, m)
    with pytest.raises(ValueError, match="latent 'x_unobserved' under the same mask"):
        pv.evaluate((model, guide), x, m, num_samples=10)


# -- support --------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Poisson"])
def test_values_outside_the_support_are_reported(likelihood):
    fns = {
        "Bernoulli": lambda z: dist.Bernoulli(logits=z, validate_args=False).to_event(1),
        "Poisson": lambda z: dist.Poisson(z.exp(), validate_args=False).to_event(1),
    }

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", fns[likelihood](z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))

    message = f"outside the support of {likelihood}"
    with pytest.warns(UserWarning, match=message):
        bounds = pv.evaluate((model, guide), torch.full((4, 3), 0.25), num_samples=30)
    assert f"no row bounds or estimates it: data {message} at site 'x'" in str(bounds)
    assert bounds.summary()["settings"]["unnormalized"] == {"x": f"data {message}"}
    bounds = pv.evaluate((model, guide), torch.ones(4, 3), num_samples=30)
    assert "support" not in str(bounds) and "unnormalized" not in bounds.settings


def test_the_audit_leaves_generators_and_modes_alone():
    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.dropout, self.loc = nn.Dropout(0.5), nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.sample("x", dist.Normal(self.dropout(z), 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 1.0))

    from pyro_vae.programs.arguments import ProgramInputs
    from pyro_vae.programs.audit import audit_inputs

    program = Program().train()
    inputs = ProgramInputs(program.model, program.guide, torch.randn(4), (), {})
    before = torch.get_rng_state()
    assert audit_inputs(inputs) is inputs
    assert torch.equal(torch.get_rng_state(), before) and program.dropout.training


def test_autoguides_are_encoded_by_their_centres():
    x = torch.tensor([0.5, 1.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 2.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    guide = AutoNormal(model, init_scale=0.3)
    guide(x)
    with torch.no_grad():
        guide.locs.z.copy_(x.log())
    columns = pv.queries.encode((model, guide), x)
    assert list(columns) == ["z.centre"]
    np.testing.assert_allclose(columns["z.centre"], x, rtol=1e-6)


def test_auxiliary_sites_are_not_scored_elsewhere():
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0 * x, 1.0), infer={"is_auxiliary": True})
            z = x / (1 + NOISE**2) + POSTERIOR * u
            log_density = torch.full_like(u, -math.log(POSTERIOR))
            pyro.sample("z", dist.Delta(z, log_density=log_density))

    message = "expected a guide that samples only the model's latents, to score given values"
    with pytest.raises(ValueError, match=message):
        pv.ais((_model, guide), torch.randn(3), annealing=pv.Annealing(2, 2, 2))


# -- training -------------------------------------------------------------------------------------


class Trained(PyroModule):
    """A program whose guide is replaced."""

    def __init__(self, guide=None, size=60):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.ones(()))
        self.propose = guide

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, self.scale.exp()), obs=x)

    def guide(self, x):
        self.propose(self, x)


def _by_position(program, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(program.loc, 1.0))


def _point(program, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(program.loc[0] * x))


def _with_auxiliary(program, x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0 * x, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(a + program.loc[0] * x, 1.0))


def _masked_guide(program, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(program.loc[0] * x, 1.0).mask(x > 0))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (_by_position, "one that only runs on all 60"),
        (_point, r"a point mass \(Delta\) at site 'z'"),
        (_with_auxiliary, "auxiliary site 'a'"),
        (_masked_guide, "latent 'z' under the same mask"),
    ],
)
@pytest.mark.parametrize("objective", [pv.objectives.ELBO(), pv.objectives.IWAE(k=2)])
def test_fit_refuses_programs_whose_bound_would_be_wrong(guide, message, objective):
    program = Trained(guide)
    with pytest.raises(ValueError, match=message):
        pv.fit(program, _data(60), epochs=1, batch_size=30, objective=objective)
    assert not program.loc.detach().any()


def test_the_parameter_store_is_compared_before_an_evaluation():
    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = pyro.nn.PyroParam(torch.tensor(0.5))

        @pyro.nn.pyro_method
        def model(self, x):
            _model(x)

        @pyro.nn.pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc * x, 1.0))

    x = _data(10)
    program, trained = Program(), Program()
    with torch.no_grad():
        trained.loc_unconstrained.fill_(0.8)
    trained.guide(x)  # Pyro's store now has another value under the name of the first
    for evaluate in (pv.evaluate, pv.log_weights, pv.queries.encode):
        arguments = (program.model, program.guide) if evaluate is pv.log_weights else (program,)
        options = {} if evaluate is pv.queries.encode else {"num_samples": 5}
        with pytest.raises(ValueError, match=r"other values in the store for 'loc'"):
            evaluate(*arguments, x, **options)
    pyro.clear_param_store()
    assert pv.queries.encode(program, x)["z.mean"] == pytest.approx(0.5 * x.numpy())


def test_an_objective_checks_that_examples_are_independent():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.cumsum(-1), 1.0), obs=x)

    with pytest.raises(ValueError, match="expected examples that do not depend on each other"):
        pv.objectives.IWAE(k=3).loss(model, _guide, _data(8))


def test_fit_audits_without_changing_batch_norm_statistics():
    class Normed(PyroModule):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.norm(x), 1.0).to_event(1))

    program, x = Normed(), torch.randn(8, 2) + 3
    pv.fit(program, x, epochs=1, batch_size=8, compile=False)
    # one step: a tenth of the mean of the minibatch
    torch.testing.assert_close(program.norm.running_mean, 0.1 * x.mean(0))
