"""Conditional VAE, compared with a linear-Gaussian model with known log p(x|c)."""

from __future__ import annotations

from functools import partial

import pyro
import pytest
import streams
import torch
from components import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS, SMALL, component_class, data_for
from pyro.infer import SVI, Predictive, Trace_ELBO

import pyro_vae as pv
from pyro_vae.likelihoods import Gaussian
from pyro_vae.networks import MLP, ConvNet
from pyro_vae.posteriors import FullCovarianceNormal

NOISE = 0.5
LINEAR = partial(MLP, hidden=())


def _linear_gaussian(condition, c):
    """Return a program x ~ N(W z + V c + b, s² I) with an exact guide, data, and log p(x|c)."""
    generator = streams.generator(5)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    program = pv.ConditionalVAE(
        (4,),
        condition,
        2,
        likelihood=partial(Gaussian, scale=NOISE),
        posterior=FullCovarianceNormal,
        encoder=LINEAR,
        decoder=LINEAR,
    ).double()
    code = torch.eye(condition, dtype=torch.float64)[c] if isinstance(condition, int) else c
    code = code.reshape(len(c), -1)
    W, V, b = randn(4, 2), 2 * randn(4, code.shape[1]), randn(4)
    covariance = torch.linalg.inv(torch.eye(2) + W.T @ W / NOISE**2)
    gain, factor = covariance @ W.T / NOISE**2, torch.linalg.cholesky(covariance)
    decoder, encoder = program.likelihood.network.layers[-1], program.posterior.network.network
    rows = torch.cat([gain, -gain @ V], 1)
    bias = [-gain @ b, factor.diagonal().log(), (factor.tril(-1) * 2**0.5).flatten()]
    with torch.no_grad():
        decoder.weight.copy_(torch.cat([W, V], 1))
        decoder.bias.copy_(b)
        encoder.layers[-1].weight.zero_()[:2] = rows
        encoder.layers[-1].bias.copy_(torch.cat(bias))
    marginal = torch.distributions.MultivariateNormal(
        code @ V.T + b, W @ W.T + NOISE**2 * torch.eye(4)
    )
    x = marginal.sample()
    return program, x, marginal.log_prob(x)


CONDITIONS = [
    (3, torch.tensor([0, 1, 2, 1, 0])),
    ((2, 1), torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2, 1)),
    ((), torch.linspace(-1, 1, 5, dtype=torch.float64)),
]


@pytest.mark.parametrize(("condition", "c"), CONDITIONS, ids=["classes", "tensors", "numbers"])
def test_log_weights_of_the_exact_posterior_equal_log_p_of_x_given_c(condition, c):
    program, x, expected = _linear_gaussian(condition, c)
    program.check(x, c)
    log_w = pv.log_weights(program.model, program.guide, x, c, num_samples=7)
    torch.testing.assert_close(log_w, expected.expand(7, 5), rtol=0, atol=1e-6)
    pair = program.model, program.guide
    bounds = pv.evaluate(pair, x, c, num_samples=30)
    assert bounds.elbo == pytest.approx(float(expected.mean()), abs=1e-6)
    # with other conditions the density differs, and the guide is not exact
    assert pv.evaluate(pair, x, c.roll(1), num_samples=30).elbo < bounds.elbo - 1


@pytest.mark.parametrize(("condition", "c"), CONDITIONS, ids=["classes", "tensors", "numbers"])
def test_new_examples_match_their_condition(condition, c):
    """The mean of 800 samples per condition: 5 standard errors, false alarm < 1e-4."""
    program, _, _ = _linear_gaussian(condition, c)
    decoder = program.likelihood.network.layers[-1]
    W, V = decoder.weight[:, :2], decoder.weight[:, 2:]
    code = torch.eye(3).double()[c] if isinstance(condition, int) else c.reshape(5, -1)
    expected = (code @ V.T + decoder.bias).detach()
    errors = (W @ W.T + NOISE**2 * torch.eye(4)).diagonal().detach().sqrt() / 800**0.5
    with torch.no_grad():
        samples = Predictive(program.model, num_samples=800)(None, c)["x"]
        samples_first = program.model(None, c[:1], size=800)
    assert samples.shape == (800, 5, 4) and samples_first.shape == (800, 4)
    assert ((samples.mean(0) - expected).abs() < 5 * errors).all()
    assert ((samples_first.mean(0) - expected[0]).abs() < 5 * errors).all()


@pytest.mark.parametrize(
    ("prior", "likelihood", "posterior"),
    [
        *((p, "Bernoulli", "DiagonalNormal") for p in PRIORS),
        *(("StandardNormal", p, "DiagonalNormal") for p in LIKELIHOODS),
        *(("StandardNormal", "Bernoulli", q) for q in POSTERIORS),
        ("UniformSphere", "Bernoulli", "PowerSpherical"),
    ],
)
def test_all_components(prior, likelihood, posterior):
    parts = PRIORS[prior], LIKELIHOODS[likelihood], POSTERIORS[posterior]

    def make():
        return pv.ConditionalVAE((3,), 4, 2, *parts, SMALL, SMALL)

    errors = {
        "VampPrior": "does not depend on the posterior; got prior VampPrior",
        "SemiAmortized": "its inputs alone; got prior .* posterior SemiAm",
    }
    for part in (parts[0], parts[2]):
        message = errors.get(component_class(part).__name__)
        if message is not None:
            with pytest.raises(ValueError, match=message):
                make()
            return
    if (prior == "UniformSphere") != (posterior == "PowerSpherical"):
        with pytest.raises(ValueError, match="latents in the same space"):
            make()
        return
    program = make()
    x, c = data_for(program.likelihood, 6), torch.tensor([0, 1, 2, 3, 0, 1])
    pv.initialize(program, x)
    program.check(x, c)
    # the condition reaches encoder and decoder: its weights have gradients
    pv.objectives.IWAE(3).differentiable_loss(program.model, program.guide, x, c).backward()
    first_layers = [p for p in program.posterior.parameters() if p.shape == (5, 7)]
    first_layers += [p for p in program.likelihood.parameters() if p.shape == (5, 6)]
    assert len(first_layers) == 2
    for weight in first_layers:
        assert (weight.grad[:, -4:].abs().sum(0) > 0).all()
    log_w = pv.log_weights(program.model, program.guide, x, c, num_samples=5)
    assert log_w.shape == (5, 6) and log_w.isfinite().all()


@pytest.mark.parametrize("encoder", [n for n in NETWORKS if "Net" in n])
def test_image_encoders_receive_the_condition_as_constant_channels(encoder):
    make = NETWORKS[encoder]
    program = pv.ConditionalVAE((2, 4, 6), 3, 2, encoder=make, decoder=SMALL).eval()
    x, c = torch.bernoulli(torch.full((5, 2, 4, 6), 0.5)), torch.tensor([0, 2, 1, 1, 0])
    inputs = []
    network = program.posterior.network.network
    network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    program.guide(x, c)
    (image,) = inputs
    assert network.in_shape == (5, 4, 6) and image.shape == (5, 5, 4, 6)
    torch.testing.assert_close(image[:, :2], x)
    planes = torch.eye(3)[c][:, :, None, None].expand(5, 3, 4, 6)
    torch.testing.assert_close(image[:, 2:], planes)
    log_w = pv.log_weights(program.model, program.guide, x, c, num_samples=3)
    assert log_w.shape == (3, 5)


def test_image_encoders_without_channels_and_with_flows():
    flow = partial(pv.posteriors.PlanarFlow, flows=2)
    encoder = partial(ConvNet, channels=(3,))
    program = pv.ConditionalVAE((6, 6), (2,), 2, posterior=flow, encoder=encoder, decoder=encoder)
    x, c = torch.bernoulli(torch.full((4, 6, 6), 0.5)), torch.randn(4, 2)
    assert program.posterior.network.network.in_shape == (3, 6, 6)
    assert pv.log_weights(program.model, program.guide, x, c, num_samples=3).shape == (3, 4)
    with pytest.raises(ValueError, match="event_shape to end in a height"):
        pv.ConditionalVAE((36,), 3, 2, encoder=encoder)


def test_standardization_and_output_bias_do_not_change_the_condition():
    x = torch.randint(0, 255, (60, 3)).float()
    encoder = partial(MLP, hidden=(5,), standardize=True)
    decoder = partial(MLP, hidden=(5,), init=0.01, output_bias="data")
    program = pv.ConditionalVAE((3,), 2, 4, likelihood=Gaussian, encoder=encoder, decoder=decoder)
    c = torch.arange(60) % 2
    network = program.posterior.network.network
    inputs = []
    network.layers.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    program.guide(x, c)
    pv.initialize(program, x)
    program.guide(x, c)
    code = torch.eye(2)[c]
    scale, mean = torch.std_mean(x, correction=0)
    torch.testing.assert_close(inputs[0], torch.cat([x, code], 1))
    torch.testing.assert_close(
        inputs[1], torch.cat([(x - mean) / scale, code], 1), rtol=1e-4, atol=1e-4
    )
    start = program.likelihood(torch.zeros(6)).mean
    torch.testing.assert_close(start, x.mean(0), atol=0.1, rtol=0)


def test_standardization_does_not_change_the_condition_channels():
    x, c = torch.randint(0, 255, (40, 2, 4, 6)).float(), torch.arange(40) % 3
    encoder = partial(ConvNet, channels=(3,), standardize=True)
    program = pv.ConditionalVAE(
        (2, 4, 6), 3, 2, likelihood=Gaussian, encoder=encoder, decoder=SMALL
    )
    pv.initialize(program, x)
    inputs = []
    network = program.posterior.network.network
    network.layers.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    program.guide(x, c)
    image = inputs[0].reshape(40, 5, 4, 6)
    scale, mean = torch.std_mean(x, correction=0)
    torch.testing.assert_close(image[:, :2], (x - mean) / scale)
    planes = torch.eye(3)[c][:, :, None, None].expand(40, 3, 4, 6)
    torch.testing.assert_close(image[:, 2:], planes, rtol=0, atol=1e-5)


def test_trains_with_plain_pyro_svi():
    x = torch.eye(2).repeat(25, 1)
    c = torch.arange(50) % 2
    program = pv.ConditionalVAE((2,), 2, 1, encoder=SMALL, decoder=SMALL)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step(x, c) / 50 for _ in range(120)]
    # log p(x|c) → 0, while log p(x) is −log 2
    assert losses[-1] < 0.2 < 1 < losses[0]
    with torch.no_grad():
        samples = program.model(None, torch.tensor([1]), size=100)
    assert samples.mean(0)[1] > 0.9 > 0.1 > samples.mean(0)[0]


X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


def test_fit_and_sample_with_numeric_conditions():
    x = torch.eye(2).repeat(50, 1)
    angle = (x[:, 1] * 2 - 1) * torch.linspace(0.5, 1, 100)  # the sign determines x
    split = pv.data.Split(x, labels=angle.double())  # not the dtype of the weights
    program = pv.ConditionalVAE((2,), (), 1, encoder=SMALL, decoder=SMALL)
    fast = partial(torch.optim.Adam, lr=0.03)
    history = pv.fit(program, split, valid=split.head(9), epochs=80, batch_size=33, optimizer=fast)
    assert history.epochs[-1]["elbo"] > -0.2  # log p(x|c) → 0, log p(x) is −log 2
    samples = pv.queries.sample(program, 2, torch.tensor([-0.8, 0.8]))
    torch.testing.assert_close(samples.mean, torch.eye(2), atol=0.2, rtol=0)
    with pytest.raises(ValueError, match=r"a label for every example.* got 100 of 100"):
        pv.fit(program, x, epochs=1)


@pytest.mark.parametrize(
    ("condition", "c", "message"),
    [
        (
            3,
            None,
            "a class from 0 to 2 as the condition of each example; got none: pass the labels",
        ),
        (3, torch.tensor([0, -1]), "a class from 0 to 2 .*; got -1 to 0"),
        (3, torch.tensor([0, 3]), "a class from 0 to 2 .*; got 0 to 3"),
        (3, torch.tensor([0, 3], dtype=torch.uint8), "a class from 0 to 2 .*; got 0 to 3"),
        (300, torch.tensor([0, 300], dtype=torch.int16), "a class from 0 to 299 .*; got 0 to 300"),
        (3, torch.tensor([0, 1, 2]), "a class from 0 to 2 .*; got 3 for 2 examples"),
        (3, torch.tensor([], dtype=torch.long), "a class from 0 to 2 .*; got 0 for 2 examples"),
        (3, torch.tensor([0.0, 1.0]), r"got shape \(2,\) of torch.float32"),
        (3, torch.eye(3, dtype=torch.long)[:2], r"got shape \(2, 3\) of torch.int64"),
        ((2,), None, r"numbers of shape \(2,\) .*; got none"),
        ((2,), torch.zeros(2, 3), r"numbers of shape \(2,\) .*; got shape \(2, 3\)"),
        ((2,), torch.zeros(2), r"numbers of shape \(2,\) .*; got shape \(2,\)"),
        ((2,), torch.zeros(1, 2), r"numbers of shape \(2,\) .*; got 1 for 2 examples"),
        ((2,), torch.tensor([[0.0, float("nan")]] * 2), "got NaN or infinite values"),
    ],
)
def test_invalid_conditions_raise(condition, c, message):
    program = pv.ConditionalVAE((3,), condition, 2, encoder=SMALL, decoder=SMALL)
    with pytest.raises(ValueError, match=message) as caught:
        program.check(X, *(() if c is None else (c,)))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("expected ")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("classes", [3, 300])  # in uint8, 300 would be 44
def test_classes_of_any_integer_type(dtype, classes):
    program = pv.ConditionalVAE((3,), classes, 2, encoder=SMALL, decoder=SMALL)
    split = pv.data.Split(X, labels=torch.tensor([2, 200 % classes]))
    cast = pv.data.Split(X, labels=split.labels.to(dtype))
    bounds = [pv.evaluate(program, s, num_samples=5) for s in (split, cast)]
    assert bounds[0].elbo == bounds[1].elbo


@pytest.mark.parametrize("c", [None, torch.tensor([0]), torch.tensor([0, 1, 2])])
def test_model_and_guide_need_one_condition_per_example(c):
    program = pv.ConditionalVAE((3,), 3, 2, encoder=SMALL, decoder=SMALL)
    for call in (program.model, program.guide):
        with pytest.raises(
            ValueError, match="expected a class from 0 to 2 as the condition of each example"
        ):
            call(X, c)


@pytest.mark.parametrize("condition", [0, -2, True, (2, 0), "ten"])
def test_invalid_condition_argument(condition):
    with pytest.raises(ValueError, match=r"expected .*condition"):
        pv.ConditionalVAE((3,), condition, 2)
