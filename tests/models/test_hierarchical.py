"""Hierarchical VAE, compared with a linear-Gaussian model with known log p(x)."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise

import pyro
import pytest
import streams
import torch
from components import SMALL, component_class
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

import pyro_vae as pv
from pyro_vae.likelihoods import Gaussian
from pyro_vae.models.inference import BottomUp, TopDown
from pyro_vae.networks import MLP, ConvNet
from pyro_vae.posteriors import (
    DiagonalNormal,
    FullCovarianceNormal,
    PlanarFlow,
    PowerSpherical,
    SemiAmortized,
)

LINEAR = partial(MLP, hidden=())
NOISE = 0.7


def _set_linear(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _set_normal(network, weight, bias, scale_tril):
    """Set a linear network of a normal: mean ``weight @ x + bias``, constant covariance."""
    full = network.out_shape[0] > 2
    rows = [bias, scale_tril.diagonal().log()]
    if full:
        rows.append((scale_tril.tril(-1) * len(bias) ** 0.5).flatten())
    bias = torch.cat(rows)
    zeros = torch.zeros(len(bias) - len(weight), weight.shape[1], dtype=weight.dtype)
    _set_linear(network.layers[-1], torch.cat([weight, zeros]), bias)


class Truth:
    """z₂ ~ N(0, I), z₁ ~ N(A z₂ + a, diag S²), x ~ N(W z₁ + b, s² I), in float64."""

    def __init__(self, dims=(3, 2), data_dim=4, diagonal=False):
        generator = streams.generator(3)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.dims, self.data_dim = dims, data_dim
        self.A, self.a = randn(*dims), randn(dims[0])
        self.W, self.b = randn(data_dim, dims[0]), randn(data_dim)
        if diagonal:
            self.A, self.W = (m.diagonal().abs().add(0.5).diag() for m in (self.A, self.W))
        self.S = randn(dims[0]).mul(0.3).exp()
        self.cov1 = self.A @ self.A.T + self.S.square().diag()
        eye = torch.eye(data_dim, dtype=torch.float64)
        self.marginal = torch.distributions.MultivariateNormal(
            self.b + self.W @ self.a, self.W @ self.cov1 @ self.W.T + NOISE**2 * eye
        )
        self.x = self.marginal.sample((6,))
        self.log_evidence = self.marginal.log_prob(self.x)

    def program(self, inference):
        """Create a hierarchy with this model and an untrained guide."""
        program = pv.HierarchicalVAE(
            (self.data_dim,),
            self.dims,
            likelihood=partial(Gaussian, scale=NOISE),
            inference=inference,
            encoders=LINEAR,
            decoders=LINEAR,
        ).double()
        _set_linear(program.likelihood.network.layers[-1], self.W, self.b)
        _set_normal(program.conditionals[0].network, self.A, self.a, self.S.diag())
        return program

    def upward(self):
        """Yield weight, bias and Cholesky factor of the exact p(z₁|x) and p(z₂|z₁)."""
        marginal1 = torch.linalg.inv(self.cov1)
        yield _posterior(self.W, self.b, self.a, marginal1, NOISE**-2 * torch.eye(self.data_dim))
        zero, eye = (torch.zeros(self.dims[1]), torch.eye(self.dims[1]))
        yield _posterior(self.A, self.a, zero, eye, self.S.pow(-2).diag())


def _posterior(matrix, offset, prior_mean, prior_precision, noise_precision):
    """Return p(z | y) of y = matrix z + offset + noise: weight, bias and Cholesky factor."""
    prior_mean, prior_precision, noise_precision = (
        t.double() for t in (prior_mean, prior_precision, noise_precision)
    )
    covariance = torch.linalg.inv(prior_precision + matrix.T @ noise_precision @ matrix)
    weight = covariance @ matrix.T @ noise_precision
    bias = covariance @ prior_precision @ prior_mean - weight @ offset
    return weight, bias, torch.linalg.cholesky(covariance)


def _exact_bottom_up():
    truth = Truth()
    program = truth.program(partial(BottomUp, posterior=FullCovarianceNormal))
    for layer, parts in zip(program.inference.layers, truth.upward(), strict=True):
        _set_normal(layer.network, *parts)
    return truth, program


def _exact_top_down():
    """A model without correlations: the bottom-up estimate of z₁ is p(x|z₁) as a density of z₁."""
    truth = Truth((3, 3), 3, diagonal=True)
    program = truth.program(partial(TopDown, features=3, activation=torch.nn.Identity))
    eye, zero = torch.eye(3), torch.zeros(3)
    for network in program.inference.upward:
        _set_linear(network.layers[-1], eye, zero)
    w, heads = truth.W.diagonal(), program.inference.heads
    zeros = torch.zeros(3, 3, dtype=torch.float64)
    _set_linear(
        heads[0],
        torch.cat([(1 / w).diag(), zeros]),
        torch.cat([-truth.b / w, (NOISE / w).log()]),
    )
    # z₂ given x: x = W A z₂ + (W a + b) + noise of both layers
    noise = (w * truth.S).square() + NOISE**2
    weight, bias, factor = _posterior(
        truth.W @ truth.A, truth.W @ truth.a + truth.b, zero, eye, (1 / noise).diag()
    )
    _set_linear(heads[1], torch.cat([weight, zeros]), torch.cat([bias, factor.diagonal().log()]))
    return truth, program


@pytest.mark.parametrize("make", [_exact_bottom_up, _exact_top_down])
def test_log_weights_of_the_exact_posterior_equal_log_p_of_x(make):
    truth, program = make()
    log_w = pv.log_weights(program.model, program.guide, truth.x, num_samples=7)
    # the fixed scale 0.7 was rounded to float32 in the likelihood's __init__
    torch.testing.assert_close(log_w, truth.log_evidence.expand(7, 6), rtol=0, atol=2e-6)


@pytest.mark.parametrize("make", [_exact_bottom_up, _exact_top_down])
def test_bounds_increase_to_log_p_of_x(make):
    # 5 standard errors of each mean: false alarm < 1e-5 in total
    truth, program = make()
    with torch.no_grad():
        for name, parameter in program.inference.named_parameters():
            if "bias" in name:
                parameter.add_(0.15)
    bounds = pv.evaluate(program, truth.x, num_samples=20_000, ks=(1, 2, 5, 50, 500))
    expected, values = float(truth.log_evidence.mean()), list(bounds.iwae.values())
    rows = bounds.estimates
    assert all(a < b for a, b in pairwise(values))
    assert bounds.elbo < expected - 0.05
    for k in (1, 2, 5, 50, 500):
        row = rows[f"iwae_{k}"]
        assert row.value < expected + 5 * row.se_monte_carlo
    log_evidence = rows["log_evidence"]
    assert abs(log_evidence.value - expected) < 5 * log_evidence.se_monte_carlo + 1e-3
    # also per example
    assert abs(bounds.per_datum["log_evidence"] - truth.log_evidence.numpy()).max() < 0.05


def test_single_layer_equals_a_vae():
    torch.manual_seed(1)
    vae = pv.VAE((2, 3), 4, encoder=SMALL, decoder=SMALL)
    hierarchy = pv.HierarchicalVAE((2, 3), (4,), encoders=SMALL, decoders=[SMALL])
    hierarchy.inference.layers[0].load_state_dict(vae.posterior.state_dict())
    hierarchy.likelihood.load_state_dict(vae.likelihood.state_dict())
    assert sum(p.numel() for p in hierarchy.parameters()) == sum(
        p.numel() for p in vae.parameters()
    )
    x = torch.bernoulli(torch.full((5, 2, 3), 0.5))
    a, b = (pv.evaluate(program, x, num_samples=50, seed=3) for program in (vae, hierarchy))
    assert a.elbo == b.elbo and a.iwae == b.iwae
    for objective in (pv.objectives.ELBO(analytic_kl=True), pv.objectives.IWAE(5)):
        losses = []
        for program in (vae, hierarchy):
            pyro.set_rng_seed(0)
            losses.append(objective.loss(program.model, program.guide, x))
        assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "posterior",
    [partial(SemiAmortized, steps=2), partial(PlanarFlow, flows=2)],
    ids=component_class,
)
def test_single_layer_takes_any_posterior_and_prior(posterior):
    x = torch.bernoulli(torch.full((5, 3), 0.5))
    for prior, inference in (
        (pv.priors.StandardNormal, partial(BottomUp, posterior=posterior)),
        (partial(pv.priors.VampPrior, components=2), BottomUp),
        (pv.priors.UniformSphere, partial(BottomUp, posterior=PowerSpherical)),
    ):
        program = pv.HierarchicalVAE((3,), (2,), prior, inference=inference, encoders=SMALL)
        bounds = pv.evaluate(program, x, num_samples=50)
        assert bounds.elbo < bounds.log_evidence < 0


@pytest.mark.parametrize(
    "inference",
    [
        BottomUp,
        partial(BottomUp, posterior=FullCovarianceNormal),
        partial(BottomUp, posterior=partial(PlanarFlow, flows=2)),
        partial(TopDown, features=6),
    ],
)
@pytest.mark.parametrize("dims", [(3,), (4, 2), (2, 4, 3)])
def test_any_depth_and_particle_dimensions(inference, dims):
    program = pv.HierarchicalVAE((2, 3), dims, inference=inference, encoders=SMALL, decoders=SMALL)
    x = torch.bernoulli(torch.full((5, 2, 3), 0.5))
    with pyro.plate("outer", 3, dim=-3), pyro.plate("particles", 4, dim=-2):
        guide = poutine.trace(program.guide).get_trace(x)
        model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(x)
    for trace in (guide, model):
        trace.compute_log_prob()
        for i, size in enumerate(dims, 1):
            assert trace.nodes[f"z{i}"]["value"].shape == (3, 4, 5, size)
            assert trace.nodes[f"z{i}"]["log_prob"].shape == (3, 4, 5)
    # every particle is independent
    values = {f"z{i}": guide.nodes[f"z{i}"]["value"][2, 1] for i in range(1, len(dims) + 1)}
    single = poutine.trace(poutine.condition(program.model, values)).get_trace(x)
    single.compute_log_prob()
    for name in (*values, "x"):
        expected = model.nodes[name]["log_prob"][2, 1]
        torch.testing.assert_close(single.nodes[name]["log_prob"], expected)
    samples = Predictive(program.model, num_samples=7)(size=6)
    assert samples["x"].shape == (7, 6, 2, 3) and samples["z1"].shape == (7, 6, dims[0])


def test_analytic_kl_of_top_down_but_not_bottom_up(caplog):
    """Estimator B is unbiased for the ELBO: 5 standard errors of 20 runs, false alarm < 1e-4."""
    truth, program = _exact_top_down()
    x = truth.x[:1]
    elbo = pv.objectives.ELBO(num_particles=4000)
    assert elbo.uses_analytic_kl(program.model, program.guide, x)
    # with the exact guide estimator A has no noise; B has that of log p(x|z) and the KLs
    values = [-elbo.loss(program.model, program.guide, x) for _ in range(20)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / math.sqrt(20)
    assert abs(mean - float(truth.log_evidence[0])) < 5 * error < 0.05
    assert not [r for r in caplog.records if r.name == "pyro_vae"]
    truth, program = _exact_bottom_up()
    assert not pv.objectives.ELBO().uses_analytic_kl(program.model, program.guide, truth.x)


@pytest.mark.parametrize("inference", [BottomUp, partial(TopDown, features=(20, 10))])
def test_iwae_two_layer_architecture(inference):
    """The IWAE paper's x–200–200–h1(100)–100–100–h2(50) and its decoder."""
    wide, narrow = partial(MLP, hidden=(200, 200)), partial(MLP, hidden=(100, 100))
    program = pv.HierarchicalVAE(
        (28, 28), (100, 50), inference=inference, encoders=[wide, narrow], decoders=[wide, narrow]
    )

    def widths(network):
        linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
        return [linear[0].in_features, *(m.out_features for m in linear)]

    assert widths(program.likelihood) == [100, 200, 200, 784]
    assert widths(program.conditionals) == [50, 100, 100, 2 * 100]
    if inference is BottomUp:
        first, second = program.inference.layers
        assert widths(first) == [784, 200, 200, 2 * 100]
        assert widths(second) == [100, 100, 100, 2 * 50]
        # weights and biases: 237,400 + 30,300 in the encoders, 35,400 + 217,984 in the decoders
        assert sum(p.numel() for p in program.parameters()) == 521_084
    else:
        first, second = program.inference.upward
        assert widths(first) == [784, 200, 200, 20] and widths(second) == [20, 100, 100, 10]
        assert widths(program.inference.heads) == [20, 200, 100]


@pytest.mark.parametrize("inference", [BottomUp, partial(TopDown, features=50, init=0.03)])
def test_init_applies_to_every_network(inference):
    parts = partial(MLP, hidden=(50,), init=0.03)
    program = pv.HierarchicalVAE(
        (28, 28), (50, 50), inference=inference, encoders=parts, decoders=parts
    )
    for name, parameter in program.named_parameters():
        # sample standard deviation of at least 50 values: false alarm < 1e-5 in total
        error = 0.03 / (2 * parameter.numel()) ** 0.5
        assert abs(parameter.detach().std() - 0.03) < 5.5 * error, name


def test_ladder_heads_use_the_default_init_of_linear_layers():
    torch.manual_seed(4)
    program = TopDown((3,), (4, 2), [LINEAR, LINEAR], features=6)
    torch.manual_seed(4)
    layers = [torch.nn.Linear(3, 6), torch.nn.Linear(6, 6)]
    layers += [torch.nn.Linear(6, 8), torch.nn.Linear(6, 4)]
    assert [n for n, _ in program.heads.named_parameters()] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    ]
    weights = [p for p in program.parameters() if p.ndim == 2]
    assert all(torch.equal(a, b.weight) for a, b in zip(weights, layers, strict=True))


@pytest.mark.parametrize("inference", [BottomUp, partial(TopDown, features=4)])
def test_only_the_first_networks_depend_on_the_training_data(inference):
    x = torch.bernoulli(torch.full((40, 3), 0.8)) * 7.0
    start = {"output_bias": "data", "init": 0.01}
    first = partial(SMALL, standardize=True), partial(SMALL, **start)
    program = pv.HierarchicalVAE(
        (3,),
        (4, 2),
        likelihood=Gaussian,
        inference=inference,
        encoders=[first[0], SMALL],
        decoders=[first[1], SMALL],
    )
    pv.initialize(program, x)
    network = dict(program.inference.named_modules())[
        "layers.0.network" if inference is BottomUp else "upward.0"
    ]
    scale, mean = torch.std_mean(x, correction=0)
    torch.testing.assert_close(network.input_mean, mean)
    torch.testing.assert_close(network.input_scale, scale)
    mean = program.likelihood(torch.zeros(4)).mean
    torch.testing.assert_close(mean, x.mean(0), atol=0.05, rtol=0)
    for name, option in (("encoders", {"standardize": True}), ("decoders", start)):
        with pytest.raises(
            ValueError, match=f"only the first of the {name} to depend on the train"
        ):
            pv.HierarchicalVAE(
                (3,), (4, 2), inference=inference, **{name: partial(SMALL, **option)}
            )


@pytest.mark.parametrize("inference", [BottomUp, partial(TopDown, features=6)])
def test_trains_with_plain_pyro_svi(inference):
    program = pv.HierarchicalVAE(
        (2, 3), (4, 2), inference=inference, encoders=SMALL, decoders=SMALL
    )
    x = torch.bernoulli(torch.rand(1, 2, 3)).expand(50, 2, 3)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.06}), Trace_ELBO())
    losses = [svi.step(x) / 50 for _ in range(120)]
    # with 50 copies of one example log p(x) → 0
    assert losses[-1] < 0.5 < 3 < losses[0]
    copied = copy.deepcopy(program)
    assert {n for n, _ in copied.named_parameters()} == {n for n, _ in program.named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dims": ()}, "expected latent_dims to have a number for each layer; got none"),
        (
            {"latent_dims": 5},
            "expected latent_dims to be a tuple of positive integers; got 5: write",
        ),
        ({"latent_dims": (5, 0)}, "expected every number in latent_dims to be a positive integer"),
        ({"encoders": [SMALL] * 3}, "expected encoders to be one factory, .* the 2 layers; got 3"),
        ({"decoders": []}, "expected decoders to be one factory, .* the 2 layers; got 0"),
        ({"decoders": [SMALL, ConvNet]}, r"event_shape to end in a height.*; got \(4,\)"),
        (
            {"prior": partial(pv.priors.VampPrior, components=3)},
            "does not depend on q.*; got VampPrior: use",
        ),
        ({"prior": pv.priors.UniformSphere}, "latents in the same space; got prior UniformSphere"),
        (
            {"prior": pv.priors.UniformSphere, "inference": TopDown},
            "for TopDown; got UniformSphere on the unit sphere: choose",
        ),
        (
            {"inference": partial(BottomUp, posterior=PowerSpherical)},
            r"the space of p\(z_i \| z_\{i\+1\}\); got PowerSpherical",
        ),
        (
            {"inference": partial(BottomUp, posterior=SemiAmortized)},
            "the layer below alone; got SemiAmortized",
        ),
        (
            {"inference": partial(TopDown, features=(3, 4, 5))},
            "one for each of the 2 layers; got",
        ),
        (
            {"inference": partial(TopDown, features=0)},
            "expected every number in features to be a positive",
        ),
        (
            {"inference": partial(TopDown, features=2.5)},
            "features to be a tuple of positive integers",
        ),
        ({"inference": partial(TopDown, init="he")}, "expected init to be 'torch', 'glorot' or"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    parts = {"latent_dims": (4, 2), "encoders": SMALL, "decoders": SMALL, **arguments}
    with pytest.raises(ValueError, match=message) as caught:
        pv.HierarchicalVAE((3,), **parts)
    assert "\n" not in str(caught.value)


def test_repr_and_site_names():
    program = pv.HierarchicalVAE((3,), (2, 2), inference=TopDown)
    assert "TopDown(" in str(program) and "DiagonalNormal(" in str(program)
    x = torch.zeros(4, 3)
    names = [n for n in poutine.trace(program.guide).get_trace(x).stochastic_nodes if n != "data"]
    assert names == ["z2", "z1"]
    assert isinstance(program.conditionals[0], DiagonalNormal)
