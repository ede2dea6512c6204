"""Reweighted wake-sleep: exact cases, discrete latents, ``fit`` and errors.

See test_gradients.py for its mean gradient.
"""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro.infer import SVI
from pyro.nn import PyroModule, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.learning.objectives import IWAE, PIWAE, ReweightedWakeSleep, WakeSleep

D = torch.float64
SMALL = partial(pv.networks.MLP, hidden=(8,))


class Coin(PyroModule):
    """c ~ Bernoulli(π), x ~ N(3 c, 1): a discrete latent with a logistic posterior."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.tensor(0.4, dtype=D))
        self.slope, self.offset = (nn.Parameter(torch.zeros((), dtype=D)) for _ in range(2))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(logits=self.prior))
            return pyro.sample("x", dist.Normal(3 * c, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=self.slope * x + self.offset))


@pytest.mark.parametrize("wake", [0.0, 0.5, 1.0])
def test_trains_discrete_latents(wake):
    """The family of q(c|x) contains the posterior: logit = 3 x − 4.5 + logit π."""
    program, objective = Coin(), ReweightedWakeSleep(10, wake)
    c = torch.bernoulli(torch.full((1000,), 0.7, dtype=D))
    x = 3 * c + torch.randn(1000, dtype=D)
    optimizer = torch.optim.Adam(program.parameters(), lr=0.1)
    for step in range(400):
        if step == 250:
            optimizer.param_groups[0]["lr"] = 0.01
        optimizer.zero_grad()
        objective.loss_and_grads(program.model, program.guide, x)
        optimizer.step()
    prior, slope, offset = (float(p.detach()) for p in program.parameters())
    # tolerances allow for the noise of the last steps
    assert torch.sigmoid(torch.tensor(prior)) == pytest.approx(float(c.mean()), abs=0.025)
    assert slope == pytest.approx(3, abs=0.3)
    assert offset == pytest.approx(prior - 4.5, abs=0.45)
    bound = -objective.loss(program.model, program.guide, x) / len(x)
    evidence = torch.logaddexp(
        dist.Normal(3.0, 1.0).log_prob(x) + nn.functional.logsigmoid(torch.tensor(prior)),
        dist.Normal(0.0, 1.0).log_prob(x) + nn.functional.logsigmoid(torch.tensor(-prior)),
    ).mean()
    assert bound == pytest.approx(float(evidence), abs=0.01)


def test_exact_at_the_posterior():
    """With equal weights, Σ w̄ ∇ log p(x, z) has mean ∇ log p(x) for any k."""
    program = LinearGaussian(2)
    program.b = nn.Parameter(program.b)
    x = program.sample(1)
    evidence = program.log_evidence(x).sum()
    (exact,) = torch.autograd.grad(evidence, program.b)
    batch = x.expand(20_000, -1)
    # the guide keeps the posterior for the initial b
    guide = LinearGaussian(2).guide
    objective = ReweightedWakeSleep(3, wake=1)
    loss = objective.loss_and_grads(program.model, guide, batch)
    assert -loss / len(batch) == pytest.approx(float(evidence.detach()), abs=1e-9)
    # ∇_b log p(x, z) = (x − W z − b)/s²; 5 standard errors of the mean of 60,000 samples
    std = (program.W @ program.covariance @ program.W.T).diagonal().sqrt() / program.s**2
    assert ((-program.b.grad / len(batch) - exact).abs() < 5 * std / 60_000**0.5).all()


def test_weights_are_normalised_per_example():
    """Against an explicit computation; a joint weight would mix the examples of a minibatch."""
    program, x = Coin(), torch.tensor([0.2, 2.5, -1.0], dtype=D)
    objective = ReweightedWakeSleep(4, wake=1)
    objective.layout(program.model, program.guide, (x,), {})
    pyro.set_rng_seed(1)
    objective.loss_and_grads(program.model, program.guide, x)
    pyro.set_rng_seed(1)
    with pyro.plate("particles", 4, dim=-2), pyro.plate("data", 3):
        c = pyro.sample("c", dist.Bernoulli(logits=torch.zeros(3, dtype=D)))
    prior = program.prior.detach().sigmoid()
    log_w = c * prior.log() + (1 - c) * (1 - prior).log() - 0.5 * (x - 3 * c) ** 2
    weights = log_w.softmax(0)  # q is initially 1/2 for all examples
    assert len({tuple(column) for column in c.T.tolist()}) > 1
    torch.testing.assert_close(-program.prior.grad, (weights * (c - prior)).sum())
    torch.testing.assert_close(-program.slope.grad, (weights * (c - 0.5) * x).sum())


def test_sleep_phase_keeps_the_labels_of_the_minibatch():
    """x ~ N(10 y + z, 0.1²): with another label, generated examples would be off by 10."""
    calls = []

    def model(x, labels):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(10.0 * labels + z, 0.1), obs=x)

    def guide(x, labels):
        calls.append((x, labels))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - 10.0 * labels, 1.0))

    labels = torch.tensor([0, 3, 1, 7])
    x = 10.0 * labels
    objective = WakeSleep()
    objective.loss(model, guide, x, labels)
    calls.clear()
    objective.differentiable_loss(model, guide, x, labels)
    (x_wake, _), (x_sleep, labels_sleep) = calls
    assert torch.equal(x_wake, x) and torch.equal(labels_sleep, labels)
    assert not torch.equal(x_sleep, x) and (x_sleep - x).abs().max() < 6


@pytest.mark.parametrize(
    "make", [lambda: ReweightedWakeSleep(5), WakeSleep, lambda: PIWAE(2, 3, "dreg")]
)
def test_trains_a_vae(make):
    vae = pv.VAE((4,), 2, encoder=SMALL, decoder=SMALL)
    x = torch.bernoulli(torch.rand(1, 4)).expand(50, 4)
    adam = partial(torch.optim.Adam, lr=0.02)
    history = pv.fit(vae, x, objective=make(), epochs=80, optimizer=adam)
    # for 50 copies of one example log p(x) → 0
    assert history["elbo"][0] < -1.5 and history["elbo"][-1] > -0.3


def test_plain_svi():
    program = Coin()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.05}), ReweightedWakeSleep(5))
    x = torch.tensor([3.0, 2.0, 3.5, 0.1], dtype=D).repeat(50)
    losses = [svi.step(x) for _ in range(200)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100


def test_shared_weights_of_a_vamp_prior_follow_the_bound_of_the_guide():
    """PIWAE with one group equals IWAE; with groups of one, the ELBO for the weights of q."""
    prior = partial(pv.priors.VampPrior, components=3)
    vae = pv.VAE((4,), 2, prior, encoder=SMALL, decoder=SMALL).double()
    x = torch.bernoulli(torch.full((6, 4), 0.5, dtype=D))
    gradients = {}
    for name, objective in {
        "one group": PIWAE(1, 5),
        "IWAE": IWAE(5),
        "groups of one": PIWAE(5, 1),
        "ELBO": pv.objectives.MIWAE(5, 1),
    }.items():
        objective.loss(vae.model, vae.guide, x)
        vae.zero_grad()
        pyro.set_rng_seed(3)
        objective.loss_and_grads(vae.model, vae.guide, x)
        gradients[name] = {n: p.grad for n, p in vae.named_parameters()}
    for name in gradients["IWAE"]:
        expected = "ELBO" if name.startswith("posterior.") else "IWAE"
        torch.testing.assert_close(gradients["one group"][name], gradients["IWAE"][name])
        torch.testing.assert_close(gradients["groups of one"][name], gradients[expected][name])
        assert not torch.allclose(gradients["ELBO"][name], gradients["IWAE"][name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReweightedWakeSleep(0), "expected k to be a positive integer; got 0"),
        (lambda: ReweightedWakeSleep(3, 1.5), r"expected wake in \[0, 1\]; got 1.5"),
        (lambda: ReweightedWakeSleep(3, True), r"expected wake in \[0, 1\]; got True"),
        (lambda: ReweightedWakeSleep(3, math.nan), r"expected wake in \[0, 1\]; got nan"),
        (lambda: PIWAE(2, 0), "expected k to be a positive integer; got 0"),
        (lambda: PIWAE(2, 2, "path"), "expected gradient to be standard, stl or dreg; got 'path'"),
    ],
)
def test_rejects_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("wake", [0.0, 1.0])
def test_rejects_flows_without_an_inverse(wake):
    flow = pv.posteriors.PlanarFlow
    vae = pv.VAE((4,), 2, posterior=flow, encoder=SMALL, decoder=SMALL)
    objective, x = ReweightedWakeSleep(2, wake), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"can score any sample; a flow without an inverse"):
        objective.differentiable_loss(vae.model, vae.guide, x)
    # the loss does not need the inverse
    assert objective.loss(vae.model, vae.guide, x) > 0


def _two_observed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z, 1.0), obs=x**2)


def _other_shape(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.sum(1))


def _plain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))


def _auxiliary(x):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(u, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "x", "message"),
    [
        (
            _two_observed,
            _guide,
            torch.zeros(3),
            r"one observed site of shape \(3,\), the shape of the data, for the sleep phase; got "
            r"'x' of shape \(3,\), 'y' of shape \(3,\): use wake=1",
        ),
        (_other_shape, _guide, torch.zeros(3, 2), r"shape \(3, 2\), .* got 'x' of shape \(3,\)"),
    ],
)
def test_rejects_programs_without_a_sleep_phase(model, guide, x, message):
    with pytest.raises(ValueError, match=message):
        ReweightedWakeSleep(2, wake=0.5).differentiable_loss(model, guide, x)
    wake_only = ReweightedWakeSleep(2, wake=1)
    pyro.set_rng_seed(1)
    loss = wake_only.differentiable_loss(model, guide, x)
    pyro.set_rng_seed(1)
    log_w = pv.log_weights(model, guide, x, num_samples=2)
    torch.testing.assert_close(loss, (math.log(2) - log_w.logsumexp(0)).sum())


def test_rejects_auxiliary_sites_without_density():
    message = r"expected a density r\(u \| z, x\) of the guide's auxiliary site 'u'"
    for wake in (0.5, 1):
        with pytest.raises(ValueError, match=message):
            ReweightedWakeSleep(2, wake).differentiable_loss(_plain, _auxiliary, torch.zeros(3))
