"""Semi-supervised VAE (M2)."""

from __future__ import annotations

from functools import partial

import pyro
import pytest
import streams
import torch
from components import SMALL
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO

import pyro_vae as pv
from pyro_vae.models.semi_supervised import SemiSupervisedVAE
from pyro_vae.programs.importance_weights import find_layout

X = torch.bernoulli(torch.full((7, 2, 3), 0.5), generator=streams.generator(0))
Y = torch.arange(7) % 4


def _vae(**options):
    parts = {"classifier": SMALL, "encoder": SMALL, "decoder": SMALL}
    return SemiSupervisedVAE((2, 3), 4, 2, **{**parts, **options})


def _sites(vae, *args):
    guide = poutine.trace(vae.guide).get_trace(*args)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(*args)
    for trace in (guide, model):
        trace.compute_log_prob()
    return guide.nodes, model.nodes


def test_unknown_classes_are_latent():
    vae = _vae(class_probs=(0.4, 0.3, 0.2, 0.1))
    guide, model = _sites(vae, X)
    y, z = guide["y"]["value"], guide["z"]["value"]
    assert guide["y"]["infer"]["enumerate"] == "parallel"
    log_q = vae.classifier(X).log_softmax(-1).gather(-1, y[:, None])[:, 0]
    torch.testing.assert_close(guide["y"]["log_prob"], log_q)
    one_hot = torch.eye(4)[y]
    q = vae.posterior(torch.cat([X.flatten(1), one_hot], -1))
    torch.testing.assert_close(guide["z"]["log_prob"], q.log_prob(z))
    torch.testing.assert_close(model["y"]["log_prob"], torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[y])
    score = vae.likelihood(torch.cat([z, one_hot], -1)).log_prob(X)
    torch.testing.assert_close(model["x"]["log_prob"], score)


def test_known_classes_are_observed_and_the_classifier_factor_is_masked():
    vae = _vae()
    guide, model = _sites(vae, X, Y)
    assert model["y"]["is_observed"] and (model["y"]["value"] == Y).all()
    torch.testing.assert_close(model["y"]["log_prob"], torch.full((7,), 0.25).log())
    factor = guide["class"]
    assert (factor["log_prob"] == 0).all()
    log_q = vae.classifier(X).log_softmax(-1).gather(-1, Y[:, None])[:, 0]
    torch.testing.assert_close(factor["fn"].log_prob(factor["value"]), log_q)


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceEnum_ELBO, pv.objectives.ELBO])
def test_bounds_do_not_train_the_classifier_on_known_classes(estimator):
    vae, make = _vae(), estimator
    if estimator is TraceEnum_ELBO:
        make = partial(estimator, max_plate_nesting=1, strict_enumeration_warning=False)
    make().loss_and_grads(vae.model, vae.guide, X, Y)
    assert all(p.grad is None or not p.grad.any() for p in vae.classifier.parameters())
    assert any(p.grad.any() for p in vae.posterior.parameters())


def test_p_of_x_is_the_sum_of_p_of_x_and_y_over_classes():
    vae = _vae(class_probs=(0.4, 0.3, 0.2, 0.1)).double()
    x = X.double()
    size = 20_000

    def evidence(*args):
        log_w = pv.log_weights(vae.model, vae.guide, x, *args, num_samples=size).double()
        log_p = log_w.logsumexp(0) - torch.tensor(size).log()
        normalized = (log_w - log_p).exp()
        return log_p.exp(), (log_p.exp() * normalized.std(0) / size**0.5).square()

    per_class = [evidence(torch.full((7,), y)) for y in range(4)]
    total, variance = evidence()
    variance = variance + sum(v for _, v in per_class)
    # 5 standard errors of 7 differences: false alarm < 1e-5
    assert ((total - sum(p for p, _ in per_class)).abs() < 5 * variance.sqrt()).all()


def test_decoder_without_z_matches_the_closed_form():
    # p(x|y) = Bernoulli(pixels of the class), so log p(x) is a sum of four terms
    class ByClass(torch.nn.Module):
        def __init__(self, in_shape, out_shape):
            super().__init__()
            self.pixels = torch.nn.Parameter(torch.randn(4, *out_shape))

        def forward(self, inputs):
            return torch.einsum("...c,cij->...ij", inputs[..., 2:], self.pixels)

    vae = _vae(decoder=ByClass)
    torch.nn.init.zeros_(vae.posterior.network.network.layers[-1].weight)
    torch.nn.init.zeros_(vae.posterior.network.network.layers[-1].bias)  # q(z) = p(z)
    pixels = vae.likelihood.network.pixels.detach()[:, None]
    joint = torch.distributions.Bernoulli(logits=pixels).log_prob(X).sum((-2, -1))
    joint = joint - torch.tensor(4.0).log()
    log_q = vae.classifier(X).log_softmax(-1).T.detach()
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    bound = -objective.loss(vae.model, vae.guide, X)
    assert bound == pytest.approx(float((log_q.exp() * (joint - log_q)).sum()), rel=1e-5)
    log_w = pv.log_weights(vae.model, vae.guide, X, num_samples=20_000)
    log_p = log_w.logsumexp(0) - torch.tensor(2e4).log()
    normalized = (log_w - log_p).exp()
    # 7 estimates within 5 standard errors: false alarm < 5e-6
    assert ((log_p - joint.logsumexp(0)).abs() < 5 * normalized.std(0) / 20_000**0.5).all()


@pytest.mark.parametrize("num_particles", [1, 3])
def test_classes_are_enumerated_in_parallel_with_particles(num_particles):
    vae = _vae()
    batch_shapes = []
    for part in (vae.posterior, vae.likelihood):
        part.register_forward_hook(lambda *a: batch_shapes.append(tuple(a[2].batch_shape)))
    vectorize = num_particles > 1
    objective = TraceEnum_ELBO(
        num_particles=num_particles, vectorize_particles=vectorize, max_plate_nesting=1
    )
    objective.loss(vae.model, vae.guide, X)
    # the encoder runs once for all particles
    assert batch_shapes == ([(4, 1, 7), (4, 3, 7)] if vectorize else [(4, 7), (4, 7)])


def test_enumeration_mark_does_not_affect_sampled_classes():
    vae = _vae()
    assert not find_layout(vae.model, vae.guide, X).tiled
    assert not find_layout(vae.model, vae.guide, X, Y).tiled
    assert pv.objectives.IWAE(5).loss(vae.model, vae.guide, X) > 0
    with pytest.raises(ValueError, match="reparameterised guide; got site 'y'"):
        pv.objectives.IWAE(5, gradient="dreg").loss_and_grads(vae.model, vae.guide, X)


def test_samples_with_and_without_given_classes():
    vae = _vae(class_probs=(0.7, 0.1, 0.1, 0.1))
    assert vae.model(size=6).shape == (6, 2, 3)
    y = Predictive(vae.model, num_samples=1)(size=4000)["y"]
    # a binomial with standard deviation 0.0072: false alarm < 1e-6
    assert abs(float((y == 0).double().mean()) - 0.7) < 0.036
    samples = Predictive(vae.model, num_samples=1)(None, Y, size=7)
    assert samples["x"].shape == (1, 7, 2, 3)


def test_classify_runs_the_classifier_in_evaluation_mode():
    vae = _vae(classifier=partial(pv.networks.MLP, hidden=(5,), dropout=0.5))
    probs = vae.classify(X)
    assert vae.training
    torch.testing.assert_close(probs, vae.eval().classifier(X).softmax(-1).detach())
    predicted = probs.argmax(-1)
    assert vae.accuracy(X, predicted) == 1.0
    labels = predicted.clone()
    labels[:2] = (labels[:2] + 1) % 4
    assert vae.accuracy(X, labels) == pytest.approx(5 / 7)
    labels[:4] = -1
    assert vae.accuracy(X, labels) == 1.0
    with pytest.raises(ValueError, match="at least one example with a known class; got none"):
        vae.accuracy(X, torch.full((7,), -1))


def test_splits_with_classes_of_any_integer_type():
    vae = _vae()
    predicted = vae.classify(X).argmax(-1)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        split = pv.data.Split(X, labels=predicted.to(dtype))
        assert torch.equal(vae.classify(split), vae.classify(X))
        assert vae.accuracy(split) == 1.0 and vae.accuracy(split, (predicted + 1) % 4) == 0.0
        guide, model = _sites(vae, X, split.labels)
        expected_guide, expected_model = _sites(vae, X, predicted)
        torch.testing.assert_close(
            guide["class"]["fn"].log_factor, expected_guide["class"]["fn"].log_factor
        )
        torch.testing.assert_close(model["y"]["log_prob"], expected_model["y"]["log_prob"])
        pv.fit(_vae(), split, epochs=1, batch_size=3, objective=pv.objectives.EnumeratedELBO(2))
    grey = pv.data.Split(X * 0.5, dynamic=True, labels=Y)
    probs = vae.classify(grey.materialize(3))
    assert torch.equal(vae.classify(grey, seed=3), probs)
    assert vae.accuracy(grey, seed=3) == float((probs.argmax(-1) == Y).double().mean())
    for data in (X, pv.data.Split(X)):
        with pytest.raises(ValueError, match="expected the classes of the data; got none: pass"):
            vae.accuracy(data)


def test_classify_in_batches(monkeypatch):
    vae = _vae()
    expected = vae.classify(X)
    monkeypatch.setattr("pyro_vae.models.semi_supervised._CLASSIFY_BATCH_SIZE", 3)
    torch.testing.assert_close(vae.classify(X), expected)


def test_standardized_inputs_of_encoder_and_classifier():
    standardized = partial(SMALL, standardize=True)
    vae = _vae(
        likelihood=partial(pv.likelihoods.Gaussian, scale=1.0),
        classifier=standardized,
        encoder=standardized,
    )
    x = 100 + 20 * torch.randn(200, 2, 3)
    pv.initialize(vae, x)
    scale, mean = torch.std_mean(x, correction=0)
    inputs = []
    for network in (vae.classifier, vae.posterior.network.network):
        network.layers.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    vae.guide(x, Y.repeat(29)[:200])
    flat, one_hot = ((x - mean) / scale).flatten(1), torch.eye(4)[Y.repeat(29)[:200]]
    torch.testing.assert_close(inputs[0], flat)
    torch.testing.assert_close(inputs[1], torch.cat([flat, one_hot], 1), rtol=1e-4, atol=1e-4)


def test_elbo_does_not_use_analytic_kl_with_a_sampled_class():
    vae = _vae()
    assert not pv.objectives.ELBO().uses_analytic_kl(vae.model, vae.guide, X)


def test_image_networks():
    conv = partial(pv.networks.ConvNet, channels=(3,), hidden=(4,))
    vae = SemiSupervisedVAE((1, 8, 8), 3, 2, classifier=conv, encoder=conv, decoder=SMALL)
    x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x)
    assert loss > 0
    assert vae.classify(x).shape == (5, 3)


def test_training_is_reproducible_and_state_loads():
    def train():
        pyro.set_rng_seed(1)
        vae = _vae(class_probs=(0.4, 0.3, 0.2, 0.1))
        pv.fit(vae, X, objective=pv.objectives.ELBO(analytic_kl=False), epochs=2, batch_size=3)
        return vae

    first, second = train(), train()
    loaded = _vae()
    loaded.load_state_dict(first.state_dict())
    torch.testing.assert_close(loaded.class_logits, torch.tensor([0.4, 0.3, 0.2, 0.1]).log())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_probs": (0.5, 0.5)}, "expected class_probs to be 4 numbers > 0 that sum to 1"),
        ({"class_probs": (0.5, 0.5, 0.5, -0.5)}, "expected class_probs to be 4 numbers > 0"),
        (
            {"prior": pv.priors.VampPrior},
            "expected a prior that does not depend on the posterior; got prior VampPrior",
        ),
        (
            {"posterior": pv.posteriors.SemiAmortized},
            "depends on its inputs alone; got prior .* with posterior Semi",
        ),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        _vae(**arguments)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(6).long(), r"expected classes as 7 integers; got shape \(6,\)"),
        (torch.zeros(7), "expected classes as 7 integers; got shape .* of torch.float32"),
        (torch.full((7,), 4), "expected classes from 0 to 3, or −1 if unknown; got 4 to 4"),
        (torch.full((7,), -2), "expected classes from 0 to 3, or −1 .* got -2 to -2"),
    ],
)
def test_invalid_classes_raise(y, message):
    with pytest.raises(ValueError, match=message):
        _vae().check(X, y)
