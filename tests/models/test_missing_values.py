"""Programs with unobserved values (NaN): a linear-Gaussian model, with exact marginals."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from torch import nn

import pyro_vae as pv
from pyro_vae import networks, posteriors, priors
from pyro_vae.likelihoods import Gaussian

SIZE, LATENT, SCALE = 5, 2, 0.7
NAN = math.nan


class ExactPosterior(posteriors.Posterior):
    """p(z | x_obs) of a linear decoder with Gaussian noise of scale ``SCALE``."""

    def bind(self, prior, likelihood):
        self.decoder = [likelihood.network]  # in a list, so that its weights are not registered

    def forward(self, x):
        linear = self.decoder[0].network
        w, b = linear.weight, linear.bias
        seen = (~x.isnan()).to(x.dtype)
        precision = (
            torch.eye(LATENT).to(x) + torch.einsum("...p,pi,pj->...ij", seen, w, w) / SCALE**2
        )
        projected = torch.where(x.isnan(), 0.0, x - b) @ w / SCALE**2
        mean = torch.linalg.solve(precision, projected[..., None])[..., 0]
        return dist.MultivariateNormal(mean, precision_matrix=precision)


def make_vae(posterior=ExactPosterior, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(LATENT, SIZE)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(SIZE, LATENT, generator=generator))
        linear.bias.copy_(torch.randn(SIZE, generator=generator))
    likelihood = partial(Gaussian, scale=SCALE)
    options = {"likelihood": likelihood, "posterior": posterior, "decoder": linear, **options}
    return pv.VAE((SIZE,), LATENT, **options).double()


def marginals(vae, x):
    """Yield N(x_obs) and the observed entries of each example."""
    linear = vae.likelihood.network.network
    covariance = linear.weight @ linear.weight.T + SCALE**2 * torch.eye(SIZE).to(linear.weight)
    for row in x:
        seen = (~row.isnan()).nonzero()[:, 0]
        block = covariance[seen][:, seen]
        yield dist.MultivariateNormal(linear.bias[seen], block), row[seen], seen, covariance


def log_evidence(vae, x):
    terms = [fn.log_prob(row) if len(row) else row.sum() for fn, row, *_ in marginals(vae, x)]
    return torch.stack(terms)


def sample_with_holes(vae, size, fraction=0.3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = pv.queries.sample(vae, size, seed=seed).x
    return x.masked_fill(torch.rand(x.shape, generator=generator) < fraction, NAN)


def test_bounds_and_estimates_are_those_of_the_observed_part():
    vae = make_vae()
    x = sample_with_holes(vae, 30)
    x[0] = NAN
    exact = log_evidence(vae, x).detach()
    bounds = pv.evaluate(vae, x, num_samples=3)
    for name in ("elbo", "log_evidence"):
        torch.testing.assert_close(torch.as_tensor(bounds.per_datum[name]), exact)
    assert abs(bounds.per_datum["log_evidence"][0]) < 1e-12
    weights = pv.log_weights(make_vae().model, vae.guide, x, num_samples=2)
    torch.testing.assert_close(weights, exact.expand(2, -1))


def test_annealing_and_laplace_estimate_the_observed_part():
    # an untrained encoder: an estimator that reads unobserved values would be far off
    vae = make_vae(posteriors.DiagonalNormal, encoder=SMALL)
    x = sample_with_holes(vae, 3)
    exact = log_evidence(vae, x).detach()
    bounds = pv.evaluate(vae, x, num_samples=200, estimators=[pv.Laplace()])
    torch.testing.assert_close(
        torch.as_tensor(bounds.per_datum["laplace"]), exact, atol=0.1, rtol=0
    )
    short = pv.Annealing(num_temperatures=30, num_chains=16)
    annealed = torch.as_tensor(pv.ais(vae, x, annealing=short).per_datum["ais"])
    torch.testing.assert_close(annealed, exact, atol=0.5, rtol=0)


def test_training_with_holes_reaches_the_maximum_likelihood():
    """The reference is direct maximisation of the exact marginals of the observed values."""
    x = sample_with_holes(make_vae(seed=3), 60)
    reference = make_vae(seed=4)
    parameters = list(reference.likelihood.parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -log_evidence(reference, x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    vae = make_vae(seed=4)
    start = log_evidence(vae, x).mean().item()
    adam = partial(torch.optim.Adam, lr=0.05)
    pv.fit(vae, x, epochs=150, batch_size=60, optimizer=adam, compile=False)
    best, trained = (log_evidence(v, x).mean().item() for v in (reference, vae))
    assert start < best - 1
    assert best - 0.02 < trained < best + 1e-3


@pytest.mark.parametrize("objective", [pv.objectives.ELBO(), pv.objectives.IWAE(4)])
def test_gradients_are_those_of_the_observed_part(objective):
    vae = make_vae()
    x = sample_with_holes(vae, 10)
    log_evidence(vae, x).sum().backward()
    linear = vae.likelihood.network.network
    expected = linear.weight.grad.clone(), linear.bias.grad.clone()
    vae.zero_grad()
    vae.check(x)
    # with the exact posterior every bound is log p(x_obs), whatever the samples
    objective.loss_and_grads(vae.model, vae.guide, x)
    torch.testing.assert_close(linear.weight.grad, -expected[0])
    torch.testing.assert_close(linear.bias.grad, -expected[1])


def test_imputations_have_the_conditional_mean_and_variance():
    vae = make_vae()
    x = sample_with_holes(vae, 3, fraction=0.5, seed=5)
    vae.check(x)  # as after training with holes
    draws = 1500
    imputed = pv.queries.impute(vae, x, draws=draws, num_samples=3000, refit_steps=0)
    assert not imputed.x.isnan().any()
    for i, (fn, row, seen, covariance) in enumerate(marginals(vae, x)):
        hidden = x[i].isnan().nonzero()[:, 0]
        gain = covariance[hidden][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
        mean = vae.likelihood.network.network.bias[hidden] + gain @ (row - fn.mean)
        variance = (covariance[hidden][:, hidden] - gain @ covariance[seen][:, hidden]).diagonal()
        # 5 standard errors of at least 500 effective samples; a false alarm in 10⁵ runs
        errors = (imputed.x[:, i, hidden].mean(0) - mean).abs() / variance.sqrt()
        assert errors.max() < 5 / math.sqrt(500)
        ratio = imputed.x[:, i, hidden].var(0) / variance
        assert (ratio.log().abs() < 5 * math.sqrt(2 / 500)).all()
        assert (imputed.x[:, i, seen] == row).all()
    with pytest.raises(ValueError, match="complete examples, whose missing pixels are known"):
        pv.queries.score_missing(vae, x, observed=~x.isnan())


def test_the_encoder_reads_zeros_and_the_mask():
    encoder = partial(networks.MLP, hidden=(4,), standardize=True, mask=True)
    vae = pv.VAE((3,), 1, likelihood=Gaussian, encoder=encoder)
    x = torch.tensor([[1.0, NAN, 3.0], [5.0, 7.0, NAN]])
    pv.initialize(vae, x)
    vae.check(x)
    network = vae.posterior.network
    standardized = (x - network.input_mean) / network.input_scale
    inputs = torch.cat([standardized.nan_to_num(0.0), x.isnan().float()], -1)
    torch.testing.assert_close(network(x), network.layers(inputs).reshape(2, 2, 1))
    other = torch.where(x.isnan(), 4.0, x)
    assert not torch.equal(network(other)[0], network(x)[0])


def test_the_mask_of_an_image_is_a_channel():
    network = networks.ConvNet((1, 6, 6), (4,), channels=(3,), mask=True)
    assert network.layers[1].in_channels == 2
    x = torch.rand(2, 1, 6, 6)
    x[0, 0, 2, 3] = NAN
    image = torch.cat([x.nan_to_num(0.0), x.isnan().float()], 1)
    torch.testing.assert_close(network(x), network.layers(image.flatten(1)))


@pytest.mark.parametrize(
    "module",
    [nn.Linear(3, 4), pv.networks.MLP((3,), (4,), hidden=(5,))],
    ids=["a module of torch", "a network"],
)
def test_given_modules_read_zeros(module):
    vae = pv.VAE((3,), 2, likelihood=Gaussian, encoder=module)
    x = torch.tensor([[1.0, NAN, 3.0]])
    with pytest.raises(ValueError, match="loc"):
        vae.guide(x)
    vae.check(x)
    torch.testing.assert_close(vae.posterior.network(x), vae.posterior.network(x.nan_to_num(0.0)))


def test_decoders_have_no_mask():
    with pytest.raises(ValueError, match="mask only for a network that reads the data; got it for"):
        pv.VAE((3,), 2, decoder=partial(networks.MLP, mask=True))


@pytest.mark.parametrize(
    "program",
    [
        lambda: pv.VAE(
            (4,), 2, likelihood=Gaussian, encoder=SMALL, decoder=SMALL,
            posterior=partial(posteriors.SemiAmortized, steps=1),
        ),
        lambda: pv.VAE(
            (4,), 2, likelihood=Gaussian, encoder=SMALL, decoder=SMALL,
            prior=partial(priors.VampPrior, components=3, start="data", interval=None),
        ),
        lambda: pv.HierarchicalVAE(
            (4,), (3, 2), likelihood=Gaussian, encoders=SMALL, decoders=SMALL
        ),
        lambda: pv.SemiSupervisedVAE(
            (4,), 2, 2, likelihood=Gaussian, encoder=SMALL, decoder=SMALL, classifier=SMALL
        ),
    ],
    ids=["semi-amortized", "VampPrior", "hierarchical", "semi-supervised"],
)  # fmt: skip
def test_every_program_ignores_unobserved_columns(program):
    """A column that is never observed changes no result: its decoder weights get no gradient."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = NAN
    x[0, 0] = NAN
    made = program()
    last = made.likelihood.network.layers[-1]
    before = last.weight.detach().clone()
    pv.fit(made, x, epochs=1, batch_size=3, compile=False, optimizer=torch.optim.SGD)
    changed = (last.weight != before).any(-1)
    assert changed.tolist() == [True, True, False, True]
    bounds = pv.evaluate(made, x, num_samples=4, compile=False)
    with torch.no_grad():
        last.bias[2] += 100.0
    again = pv.evaluate(made, x, num_samples=4, compile=False)
    assert (bounds.per_datum["log_evidence"] == again.per_datum["log_evidence"]).all()


def test_predictive_checks_need_complete_examples():
    vae = make_vae()
    with pytest.raises(ValueError, match="complete examples for predictive checks"):
        pv.calibration(vae, sample_with_holes(vae, 40))
