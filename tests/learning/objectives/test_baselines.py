"""Monte Carlo EM against the closed forms of probabilistic PCA."""

from __future__ import annotations

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import streams
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.learning.objectives.base import StepInfo
from pyro_vae.learning.objectives.baselines import MonteCarloEM


class ProbabilisticPCA(PyroModule):
    """z ~ N(0, I), x ~ N(W z + b, σ² I), with a linear guide; all parameters are trained."""

    def __init__(self, data_dim=4, latent_dim=1, seed=0):
        super().__init__()
        generator = streams.generator(seed)
        size = (data_dim, latent_dim)
        self.W = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(data_dim, dtype=torch.float64))
        self.log_s = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.V = nn.Parameter(torch.zeros(latent_dim, data_dim, dtype=torch.float64))
        self.log_t = nn.Parameter(torch.zeros(latent_dim, dtype=torch.float64))

    @property
    def marginal(self):
        eye = torch.eye(len(self.b), dtype=torch.float64)
        covariance = self.W @ self.W.T + (2 * self.log_s).exp() * eye
        return torch.distributions.MultivariateNormal(self.b, covariance)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            zero = torch.zeros(self.W.shape[1], dtype=x.dtype)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            mean = z @ self.W.T + self.b
            pyro.sample("x", dist.Normal(mean, self.log_s.exp()).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean = (x - self.b.detach()) @ self.V.T
            pyro.sample("z", dist.Normal(mean, self.log_t.exp()).to_event(1))


def _data(size=300, seed=0):
    truth = ProbabilisticPCA(seed=5)
    with torch.no_grad():
        truth.log_s.fill_(math.log(0.5))
    pyro.set_rng_seed(seed)
    return truth.marginal.sample((size,)) + torch.tensor([1.0, 0.0, -1.0, 2.0])


def _maximum_likelihood(x):
    """Return the maximum of log p(x) per datum and its σ² (Tipping & Bishop, 1999)."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    variance = eigenvalues[1:].mean()
    dim = len(eigenvalues)
    log_det = eigenvalues[0].log() + (dim - 1) * variance.log()
    return -0.5 * float(dim * math.log(2 * math.pi) + log_det + dim), variance


@torch.no_grad()
def _evidence(program, x):
    return float(program.marginal.log_prob(x).mean())


def test_converges_to_maximum_likelihood():
    x = _data()
    program = ProbabilisticPCA()
    best, variance = _maximum_likelihood(x)
    assert _evidence(program, x) < best - 1
    objective = MonteCarloEM(num_steps=5, warm_up=15)
    optimizer = partial(torch.optim.Adam, lr=0.02)
    pv.fit(program, x, objective=objective, optimizer=optimizer, epochs=60, batch_size=300)
    optimizer = partial(torch.optim.Adam, lr=0.003)
    pv.fit(program, x, objective=objective, optimizer=optimizer, epochs=40, batch_size=300)
    reached = _evidence(program, x)
    assert best - 0.01 < reached <= best
    assert abs(float((2 * program.log_s.detach()).exp() / variance) - 1) < 0.05
    assert objective.acceptance.mean() > 0.85
    # the guide follows the posterior
    evidence = pv.log_weights(program.model, program.guide, x, num_samples=1).mean()
    assert reached - 0.05 < float(evidence) < reached + 0.05


def _gradients(objective, program, x):
    program.zero_grad()
    with pyro.get_param_store().scope():
        objective.loss_and_grads(program.model, program.guide, x)
    return {name: p.grad.clone() for name, p in program.named_parameters()}


def test_gradient_is_that_of_the_log_evidence():
    # Fisher's identity; mean over 400 dependent steps on 20 examples, with 5 leapfrog steps each
    x = _data(20)
    program = ProbabilisticPCA()
    truth = -program.marginal.log_prob(x).sum()
    expected_gradients = dict(
        zip(
            ["W", "b", "log_s"],
            torch.autograd.grad(truth, [program.W, program.b, program.log_s]),
            strict=True,
        )
    )
    objective = MonteCarloEM(num_steps=5, warm_up=40)
    gradients = []
    for _ in range(400):
        objective.set_step(StepInfo(0.0, len(x), torch.arange(len(x))))
        gradients.append(_gradients(objective, program, x))
    rates = objective.acceptance
    assert rates.shape == (20,)
    for name, expected in expected_gradients.items():
        samples = torch.stack([g[name] for g in gradients]).reshape(400, -1)
        # batches of 20 are nearly independent. The tolerance is 5 standard errors from 20 means,
        # which a t variable with 19 degrees of freedom exceeds once in 10⁴, for each of 9 numbers
        means = samples.unflatten(0, (20, 20)).mean(1)
        error = means.std(0) / 20**0.5
        assert ((means.mean(0) - expected.flatten()).abs() < 5 * error).all(), name
        assert error.norm() < 0.1 * expected.norm(), name


def test_loss_is_the_elbo():
    x = _data(50)
    program = ProbabilisticPCA()
    values = []
    for _ in range(20):
        objective = MonteCarloEM(warm_up=1, num_steps=1)
        values.append(objective.loss(program.model, program.guide, x))
        loss = objective.differentiable_loss(program.model, program.guide, x)
        values.append(loss.item())
    weights = pv.log_weights(program.model, program.guide, x, num_samples=4000)
    elbo = float(weights.mean(0).sum())
    spread = float(weights.sum(1).std())
    # false-alarm rate at 4.5 standard errors: 1e-5
    assert abs(sum(values) / 40 + elbo) < 4.5 * spread / 40**0.5


class _Shared(PyroModule):
    """Guide that shares a parameter with the model."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.rate = PyroParam(torch.tensor(2.0), dist.constraints.positive)
        self.own = nn.Parameter(torch.zeros(()))
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Gamma(2.0, self.rate))
            z = pyro.sample("z", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(self.w * z, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.w * x + self.own, self.scale))
            pyro.sample("top", dist.LogNormal(self.own, 1.0))


def test_gradients_of_model_and_guide_at_the_same_samples():
    program, x = _Shared(), torch.tensor([0.5, -1.0, 2.0])
    objective = MonteCarloEM(warm_up=5)
    objective.set_step(StepInfo(0.0, 3, torch.arange(3)))
    gradients = _gradients(objective, program, x)
    samples = objective._samples
    assert samples is not None and samples["z"].shape == samples["top"].shape == (1, 3)
    assert (samples["top"] > 0).all()
    z, top = samples["z"][0], samples["top"][0]
    log_p = (
        dist.Gamma(2.0, program.rate).log_prob(top).sum()
        + dist.Normal(program.w * z, 1.0).log_prob(x).sum()
    )
    log_q = (
        dist.Normal(program.w.detach() * x + program.own, program.scale).log_prob(z).sum()
        + dist.LogNormal(program.own, 1.0).log_prob(top).sum()
    )
    named = dict(program.named_parameters())
    for name, gradient in zip(
        named, torch.autograd.grad(-(log_p + log_q), list(named.values())), strict=True
    ):
        torch.testing.assert_close(gradients[name], gradient)


def test_samples_are_reused_by_updates_and_chains_persist():
    program, x = _Shared(), torch.randn(6)
    objective = MonteCarloEM(warm_up=3)

    def step(update, index):
        objective.set_step(StepInfo(0.0, 6, torch.tensor(index), update))
        _gradients(objective, program, x[index])
        assert objective._samples is not None
        return {name: z.clone() for name, z in objective._samples.items()}

    first, again = step(0, [4, 1, 3]), step(1, [4, 1, 3])
    for name in first:
        assert torch.equal(first[name], again[name])
    state = objective.state_dict()
    assert state["seen"].tolist() == [False, True, False, True, True, False]
    torch.testing.assert_close(state["position"]["z"][[4, 1, 3]], first["z"][0])
    torch.testing.assert_close(state["position"]["top"][[4, 1, 3]].exp(), first["top"][0])
    step(0, [0, 2])
    later = objective.state_dict()
    for name, position in state["position"].items():
        assert torch.equal(later["position"][name][[1, 3, 4]], position[[1, 3, 4]])
    assert torch.equal(later["log_step"][[1, 3, 4]], state["log_step"][[1, 3, 4]])
    assert later["seen"].tolist() == [True, True, True, True, True, False]


@pytest.mark.parametrize("target", [0.7, 0.9])
def test_step_sizes_adapt_to_a_narrower_posterior(target):
    program, x = ProbabilisticPCA(latent_dim=3), _data(100)
    objective = MonteCarloEM(num_steps=3, warm_up=20, target=target)
    for log_s, visits in ((0.0, 25), (-1.5, 90)):
        with torch.no_grad():
            program.log_s.fill_(log_s)
        rates = []
        for _ in range(visits):
            objective.set_step(StepInfo(0.0, len(x), torch.arange(len(x))))
            _gradients(objective, program, x)
            rates.append(objective.acceptance)
        # 20 transitions of 100 chains
        assert abs(float(torch.stack(rates[-20:]).mean()) - target) < 0.07


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    x = _data(30)

    def fit(program, epochs, resume=False, path=tmp_path / "uninterrupted.pt"):
        objective = MonteCarloEM(num_steps=3, warm_up=4, updates=2)
        pv.fit(
            program,
            x,
            objective=objective,
            epochs=epochs,
            batch_size=8,
            checkpoint=path,
            resume=resume,
        )
        return objective.state_dict()

    start = ProbabilisticPCA()
    uninterrupted, resumed = copy.deepcopy(start), copy.deepcopy(start)
    state = fit(uninterrupted, 3)
    fit(resumed, 1, path=tmp_path / "resumed.pt")
    resumed = copy.deepcopy(start)
    resumed_state = fit(resumed, 3, resume=True, path=tmp_path / "resumed.pt")
    assert torch.load(tmp_path / "resumed.pt", weights_only=True)["history"]
    for name, weight in uninterrupted.named_parameters():
        assert torch.equal(weight, resumed.get_parameter(name)), name
    assert state["seen"].all()
    assert torch.equal(state["log_step"], resumed_state["log_step"])
    assert torch.equal(state["position"]["z"], resumed_state["position"]["z"])


def test_a_new_program_resets_the_chains():
    x = _data(10)
    objective = MonteCarloEM(warm_up=2)
    objective.set_step(StepInfo(0.0, 10, torch.arange(5)))
    first, second = ProbabilisticPCA(), ProbabilisticPCA(latent_dim=2)
    _gradients(objective, first, x[:5])
    objective.set_step(StepInfo(0.0, 10, torch.arange(5, 10)))
    _gradients(objective, second, x[5:])
    state = objective.state_dict()
    assert state["position"]["z"].shape == (10, 2) and state["seen"].sum() == 5


def test_plain_svi_restarts_chains_in_every_step():
    x, program = _data(40), ProbabilisticPCA()
    objective = MonteCarloEM(num_steps=4, warm_up=8)
    optim = pyro.optim.Adam({"lr": 0.05})
    svi = SVI(program.model, program.guide, optim, loss=objective)
    before = _evidence(program, x)
    for _ in range(40):
        svi.step(x)
    assert objective.state_dict() == {}
    assert _evidence(program, x) > before + 1


def test_trains_a_vae():
    pyro.set_rng_seed(0)
    x = (torch.rand(64, 12) < torch.tensor([0.1, 0.9]).repeat(6)).float()
    mlp = partial(pv.networks.MLP, hidden=(8,))
    vae = pv.VAE(
        (12,), 2, prior=partial(pv.priors.VampPrior, components=3), encoder=mlp, decoder=mlp
    )
    optimizer = partial(torch.optim.Adam, lr=0.02)
    history = pv.fit(
        vae, x, objective=MonteCarloEM(warm_up=5), epochs=8, batch_size=32, optimizer=optimizer
    )
    entropy = 12 * (0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert history["elbo"][-1] > history["elbo"][0] + 1
    assert history["elbo"][-1] < entropy + 1


def _program(model, guide):
    return MonteCarloEM(warm_up=1), model, guide, torch.zeros(3)


def test_rejects_unsupported_programs():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="it also samples 'z_unconstrained'"):
        objective, *pair = _program(model, AutoNormal(model))
        objective.differentiable_loss(*pair)

    def poisson_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def poisson_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(2.0))

    message = r"expected continuous latent sites; got site 'z' \(Poisson\)"
    with pytest.raises(ValueError, match=message):
        objective, *pair = _program(poisson_model, poisson_guide)
        objective.differentiable_loss(*pair)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "expected num_steps to be a positive integer; got 0"),
        ({"updates": 0.5}, "expected updates to be a positive integer; got 0.5"),
        ({"warm_up": 0}, "expected warm_up to be a positive integer; got 0"),
        ({"target": 0}, r"expected target in \(0, 1\); got 0"),
    ],
)
def test_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MonteCarloEM(**arguments)
