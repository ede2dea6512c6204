"""``EnumeratedELBO`` against explicit sums over the classes."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from pyro.infer import SVI

import pyro_vae as pv
from pyro_vae.learning.objectives.base import StepInfo
from pyro_vae.learning.objectives.enumerated import EnumeratedELBO
from pyro_vae.learning.schedules import LinearWarmUp
from pyro_vae.models.semi_supervised import SemiSupervisedVAE

X = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.float64)
Y = torch.tensor([2, 0, 1])
PROBS = (0.5, 0.3, 0.2)


@pytest.fixture
def vae():
    parts = {"classifier": SMALL, "encoder": SMALL, "decoder": SMALL, "class_probs": PROBS}
    vae = SemiSupervisedVAE((3,), 3, 2, **parts).double()
    vae.class_logits = torch.tensor(PROBS, dtype=torch.float64).log()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return vae


def _labelled(vae, y, noise, beta=1.0):
    """Return −L(x, y) (equation 6), ``(K, N)``, for noise ``(K, N, D)``."""
    one_hot = torch.eye(3, dtype=torch.float64)[y]
    loc, log_scale = vae.posterior.network(torch.cat([X, one_hot], -1)).unbind(-2)
    z = loc + log_scale.exp() * noise
    log_q = -noise.square() / 2 - log_scale
    log_p = -z.square() / 2
    coded = torch.cat([z, one_hot.expand(*z.shape[:-1], 3)], -1)
    logits = vae.likelihood.network(coded)
    score = X * logits - torch.nn.functional.softplus(logits)
    return score.sum(-1) + beta * (log_p - log_q).sum(-1)


def _unlabelled(vae, noise, beta=1.0):
    """Return −U(x) (equation 7), ``(K, N)``, for noise ``(K, C, N, D)``."""
    log_q = vae.classifier(X).log_softmax(-1)
    total = 0
    for y, prob in enumerate(PROBS):
        bound = _labelled(vae, torch.full((3,), y), noise[:, y], beta)
        entropy = torch.tensor(prob, dtype=torch.float64).log() - log_q[:, y]
        total = total + log_q[:, y].exp() * (bound + beta * entropy)
    return total


def _gradients(vae, loss):
    parameters = list(vae.parameters())
    return torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)


def _same_gradients(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        zero = next(t for t in (a, b, torch.zeros(())) if t is not None) * 0
        a, b = (zero if t is None else t for t in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def _seeded_loss(objective, vae, *args):
    """Return the differentiable loss with fixed noise."""
    objective.loss(vae.model, vae.guide, *args)
    pyro.set_rng_seed(7)
    return objective.differentiable_loss(vae.model, vae.guide, *args)


@pytest.mark.parametrize("particles", [1, 4])
def test_value_and_gradient_equal_the_explicit_sum(vae, particles):
    loss = _seeded_loss(EnumeratedELBO(particles), vae, X)
    pyro.set_rng_seed(7)
    # the enumerated classes are the leftmost dimension of the samples
    noise = torch.randn(3, particles, 3, 2, dtype=torch.float64).transpose(0, 1)
    expected = -_unlabelled(vae, noise).mean(0).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    _same_gradients(_gradients(vae, loss), _gradients(vae, expected))


@pytest.mark.parametrize("particles", [1, 4])
def test_labels_give_the_labelled_bound(vae, particles):
    loss = _seeded_loss(EnumeratedELBO(particles), vae, X, Y)
    pyro.set_rng_seed(7)
    noise = torch.randn(particles, 3, 2, dtype=torch.float64)
    prior = torch.tensor(PROBS, dtype=torch.float64).log()[Y]
    expected = -(_labelled(vae, Y, noise) + prior).mean(0).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    _same_gradients(_gradients(vae, loss), _gradients(vae, expected))


@pytest.mark.parametrize("particles", [1, 4])
def test_classification_term_affects_only_the_gradient_of_the_classifier(vae, particles):
    plain = _seeded_loss(EnumeratedELBO(particles), vae, X, Y)
    supervised = _seeded_loss(EnumeratedELBO(particles, classification_weight=2.5), vae, X, Y)
    assert supervised.item() == plain.item()
    log_q = vae.classifier(X).log_softmax(-1).gather(-1, Y[:, None]).sum()
    pairs = zip(_gradients(vae, supervised), _gradients(vae, plain - 2.5 * log_q), strict=True)
    for (name, _), (a, b) in zip(vae.named_parameters(), pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)
    first = next(vae.classifier.parameters())
    assert torch.autograd.grad(supervised, first)[0].norm() > 0
    # no classification term without labels
    losses = (_seeded_loss(EnumeratedELBO(classification_weight=w), vae, X) for w in (0.0, 2.5))
    _same_gradients(*(_gradients(vae, loss) for loss in losses))


@pytest.mark.parametrize("beta", [0.0, 0.3, LinearWarmUp(10, start=0.3)])
def test_beta_weights_latent_terms_of_the_gradient_only(vae, beta):
    objective = EnumeratedELBO(beta=beta)
    objective.set_step(StepInfo(epoch=0.0))
    loss = _seeded_loss(objective, vae, X)
    pyro.set_rng_seed(7)
    noise = torch.randn(1, 3, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(loss, -_unlabelled(vae, noise).sum(), rtol=1e-12, atol=0)
    expected = -_unlabelled(vae, noise, 0.0 if beta == 0 else 0.3).sum()
    _same_gradients(_gradients(vae, loss), _gradients(vae, expected))


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_sequential_enumeration_equals_parallel_enumeration(vae, beta):
    """Sequential enumeration takes one run per class, each with its own samples."""

    def sequential_guide(x):
        guide = pyro.poutine.infer_config(vae.guide, lambda site: config.get(site["name"], {}))
        return guide(x)

    config = {"y": {"enumerate": "sequential"}}
    loss = _seeded_loss_of(EnumeratedELBO(beta=beta), vae.model, sequential_guide)
    pyro.set_rng_seed(7)
    # the last class comes first
    noises = [torch.randn(1, 3, 2, dtype=torch.float64) for _ in range(3)]
    noise = torch.stack(noises[::-1], 1)
    torch.testing.assert_close(loss, -_unlabelled(vae, noise).sum(), rtol=1e-9, atol=0)
    expected = -_unlabelled(vae, noise, beta).sum()
    _same_gradients(_gradients(vae, loss), _gradients(vae, expected))


def _seeded_loss_of(objective, model, guide):
    objective.loss(model, guide, X)
    pyro.set_rng_seed(7)
    return objective.differentiable_loss(model, guide, X)


def test_loss_equals_differentiable_loss(vae):
    objective = EnumeratedELBO(2, classification_weight=3.0)
    for args in ((X,), (X, Y)):
        loss = _seeded_loss(objective, vae, *args)
        pyro.set_rng_seed(7)
        assert objective.loss(vae.model, vae.guide, *args) == pytest.approx(loss.item(), rel=1e-14)
        pyro.set_rng_seed(7)
        vae.zero_grad()
        step = objective.loss_and_grads(vae.model, vae.guide, *args)
        assert step == loss.item()
        grads = [p.grad for p in vae.parameters()]
        _same_gradients(grads, _gradients(vae, loss))


def test_bound_equals_the_mean_over_sampled_classes(vae):
    objective = EnumeratedELBO(num_particles=500)
    values = torch.tensor([-objective.loss(vae.model, vae.guide, X) for _ in range(20)])
    sampled = pv.log_weights(vae.model, vae.guide, X, num_samples=20_000).double().sum(1)
    error = (values.var() / 20 + sampled.var() / 20_000).sqrt()
    # false alarm at 5 standard errors < 1e-5
    assert abs(values.mean() - sampled.mean()) < 5 * error


class Clusters:
    """Two nested discrete latents; x is normal around their sum."""

    @staticmethod
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(torch.tensor([0.3, 0.7]).double()))
            probs = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]).double()
            b = pyro.sample("b", dist.Categorical(probs[a.long()]))
            pyro.sample("x", dist.Normal(3.0 * a + b, 1.0), obs=x)

    @staticmethod
    def guide(x):
        enumerate_all = {"enumerate": "parallel"}
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(torch.sigmoid(x - 2)), infer=enumerate_all)
            logits = torch.stack([x - 1 + a, torch.zeros_like(x + a), 1 - x - a], -1)
            pyro.sample("b", dist.Categorical(logits=logits), infer=enumerate_all)


def test_all_enumerated_sites_are_summed_exactly():
    x = torch.tensor([0.5, 3.0, 4.2], dtype=torch.float64)
    total = 0.0
    for a in (0, 1):
        for b in (0, 1, 2):
            prior = [0.3, 0.7][a] * [[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]][a][b]
            score = torch.distributions.Normal(3.0 * a + b, 1.0).log_prob(x)
            first = torch.sigmoid(x - 2) if a else 1 - torch.sigmoid(x - 2)
            logits = torch.stack([x - 1 + a, torch.zeros_like(x), 1 - x - a], -1)
            q = first * logits.softmax(-1)[:, b]
            total = total + (q * (score + torch.tensor(prior).double().log() - q.log())).sum()
    objective = EnumeratedELBO()
    loss = objective.loss(Clusters.model, Clusters.guide, x)
    assert -loss == pytest.approx(float(total), rel=1e-6)  # some constants are float32


def test_rejects_factors_that_depend_on_enumerated_sites():
    def guide(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=False):
            a = pyro.sample("a", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.factor("seen", dist.Normal(a, 1.0).log_prob(x), has_rsample=True)

    def model(x):
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(a + shift, 1.0), obs=x)

    x = torch.zeros(3)
    with pytest.raises(ValueError, match="not to depend on enumerated latents; 'seen' does"):
        EnumeratedELBO(classification_weight=1.0).loss_and_grads(model, guide, x)


def test_svi_trains_a_classifier_from_few_labels():
    # two clusters with one labelled example each
    x = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]).repeat(20, 1)
    flip = torch.bernoulli(torch.full_like(x, 0.1))
    x, y = (x - flip).abs(), torch.arange(2).repeat(20)
    parts = {name: partial(pv.networks.MLP, hidden=(8,)) for name in ("encoder", "decoder")}
    vae = SemiSupervisedVAE((8,), 2, 1, classifier=parts["encoder"], **parts)
    objective = EnumeratedELBO(classification_weight=2.0)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), objective)
    losses = []
    for _ in range(150):
        svi.step(x[:2], y[:2])
        losses.append(svi.step(x))
    assert sum(losses[-10:]) / 10 < 0.8 * sum(losses[:10]) / 10
    assert vae.accuracy(x, y) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 0}, "expected num_particles to be a positive integer; got 0"),
        ({"classification_weight": -1.0}, "expected classification_weight ≥ 0 and finite; got -1"),
        ({"classification_weight": True}, "expected classification_weight ≥ 0 and finite; got Tr"),
        ({"beta": float("inf")}, "expected beta ≥ 0 and finite, or a schedule; got inf"),
    ],
)
def test_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnumeratedELBO(**arguments)
