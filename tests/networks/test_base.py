"""Initialisation, output bias, norms, dropout and standardisation of all networks."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors
from pyro_vae.core.components import Heads
from pyro_vae.models import inference
from pyro_vae.networks.base import Bias, GatedLinear

#: Networks wide enough for statistical tests.
WIDE_NETWORKS = {
    "MLP": partial(networks.MLP, hidden=(40, 50), norm="layer"),
    "GatedMLP": partial(networks.GatedMLP, hidden=(40, 50)),
    "ConvNet": partial(networks.ConvNet, channels=(12, 20), hidden=(30,), norm="batch"),
    "ResNet": partial(networks.ResNet, channels=(12, 20), norm="layer"),
}
SIDES = {"encoder": ((2, 9, 8), (2, 5)), "decoder": ((10,), (2, 9, 8))}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def _weight_matrices(network):
    """Yield each weight matrix with fan_in + fan_out, as counted for convolutions."""
    layers = [
        m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    for layer in layers:
        outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        parts = 2 if isinstance(layer, GatedLinear) or layer is layers[-1] else 1
        for matrix in layer.weight.chunk(parts, outputs):
            yield matrix.detach(), sum(matrix.shape[:2]) * matrix[0, 0].numel()


def _check_norms_are_default(network):
    for layer in network.modules():
        if isinstance(layer, NORMS):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make", WIDE_NETWORKS.values(), ids=WIDE_NETWORKS)
class TestInitialWeights:
    def test_glorot(self, make, side):
        in_shape, out_shape = SIDES[side]
        network = make(in_shape, Heads(out_shape), init="glorot")
        pooled = []
        for matrix, fans in _weight_matrices(network):
            bound = math.sqrt(6 / fans)
            assert matrix.abs().max() <= bound
            pooled.append(matrix.flatten() / bound)
        # Kolmogorov–Smirnov, false-alarm rate 1e-4; detects a fan off by 10 %
        pooled = torch.cat(pooled)
        assert len(pooled) > 3000
        assert stats.kstest(pooled.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4
        _check_norms_are_default(network)
        biases = {n: p for n, p in network.named_parameters() if n.endswith("bias")}
        assert biases and all((p == 0).all() for p in biases.values())

    @pytest.mark.parametrize("sigma", [0.01, 1])
    def test_normal(self, make, side, sigma):
        network = make(*SIDES[side], init=sigma, output_bias="data")
        _check_norms_are_default(network)
        values = []
        for layer in network.modules():
            if not isinstance(layer, NORMS):
                values += [p.detach().flatten() for p in layer.parameters(recurse=False)]
        values = torch.cat(values)
        # the same test; sigma is the standard deviation, not the variance
        assert stats.kstest(values.numpy(), stats.norm(0, sigma).cdf).pvalue > 1e-4
        biases = [
            m.bias.detach()
            for m in network.modules()
            if not isinstance(m, NORMS) and getattr(m, "bias", None) is not None
        ]
        assert biases and all(b.std() > 0.3 * sigma for b in biases if len(b.flatten()) > 8)

    def test_torch(self, make, side):
        torch.manual_seed(3)
        network = make(*SIDES[side])
        torch.manual_seed(3)
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                before = module.weight.clone()
                module.reset_parameters()  # torch's initialisation, from the same seed
                assert torch.equal(module.weight, before)


def test_glorot_treats_gates_as_a_separate_matrix():
    layer = networks.GatedMLP((30,), (3,), hidden=(50,), init="glorot").layers[0]
    # the maximum of 1500 uniform values exceeds 0.97 of the bound: false-alarm rate 1e-19 each
    for half in layer.weight.detach().chunk(2):
        assert 0.97 < half.abs().max() / math.sqrt(6 / (30 + 50)) <= 1


def _max_over_bound(matrix, fans):
    return float(matrix.detach().abs().max()) / math.sqrt(6 / fans)


# The maximum of n uniform values exceeds 0.85 of the bound, except with probability 0.85^n. With
# the bound of all heads together, that of the smallest would be below.
@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (posteriors.DiagonalNormal, [40, 40]),
        (posteriors.FullCovarianceNormal, [40, 40, 1600]),
        (partial(posteriors.LowRankNormal, rank=3), [40, 40, 120]),
        (partial(posteriors.PlanarFlow, flows=2), [40, 40, 162]),
        (posteriors.PowerSpherical, [40, 1]),
    ],
)
def test_glorot_treats_heads_of_a_posterior_as_separate_matrices(make, sizes):
    encoder = partial(networks.MLP, hidden=(60,), init="glorot")
    weight = make((4,), 40, encoder).network.layers[-1].weight
    assert len(weight) == sum(sizes)
    for head in weight.split(sizes):
        assert 0.85 < _max_over_bound(head, 60 + len(head)) <= 1


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (likelihoods.Bernoulli, 1),
        (partial(likelihoods.Gaussian, scale="decoded"), 2),
        (likelihoods.Beta, 2),
        (likelihoods.DiscretizedLogistic, 2),
        (partial(likelihoods.MixtureOfDiscretizedLogistics, components=2), 3),
        (partial(likelihoods.MixtureOfDiscretizedLogistics, components=2, coupling=True), 10),
        (partial(likelihoods.Categorical, levels=3), 1),
        (partial(likelihoods.NegativeBinomial, library="decoded"), None),
    ],
)
def test_glorot_treats_heads_of_a_likelihood_as_separate_matrices(make, count):
    layers = {
        networks.MLP: partial(networks.MLP, hidden=(60,), init="glorot"),
        networks.ConvNet: partial(networks.ConvNet, channels=(60,), init="glorot"),
    }
    for decoder in layers.values():
        likelihood = make(5, (3, 4, 4), decoder)
        layer = likelihood.network.layers[-1]
        outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        for head in layer.weight.chunk(count or likelihood.params_per_pixel + 1, outputs):
            fans = sum(head.shape[:2]) * head[0, 0].numel()
            assert 0.97 < _max_over_bound(head, fans) <= 1


def test_glorot_treats_heads_of_columns_and_of_the_ladder_as_separate_matrices():
    network = partial(networks.MLP, hidden=(40,), init="glorot")
    parts = [partial(likelihoods.Gaussian, scale="decoded"), likelihoods.Bernoulli]
    groups = [list(range(30)), list(range(30, 70))]
    columns = likelihoods.Columns(5, (70,), network, parts, groups)
    for head in columns.network.layers[-1].weight.split([30, 30, 40]):
        assert 0.85 < _max_over_bound(head, 40 + len(head)) <= 1
    ladder = inference.TopDown((4,), (40, 50), [network, network], features=60, init="glorot")
    for layer, size in zip(ladder.heads, (40, 50), strict=True):
        for head in layer.weight.chunk(2):
            assert 0.85 < _max_over_bound(head, 60 + size) <= 1


def test_heads_must_have_all_elements_and_survive_a_copy():
    with pytest.raises(
        ValueError, match=r"expected heads with 6 elements.*\(2, 3\); got sizes \(3,\)"
    ):
        Heads((2, 3), [3])
    heads = copy.deepcopy(Heads((2, 3), [5, 1]))
    assert (heads, heads.sizes) == ((2, 3), (5, 1))


@pytest.mark.parametrize("make", WIDE_NETWORKS.values(), ids=WIDE_NETWORKS)
class TestOutputBias:
    def test_is_the_output_if_the_weights_are_zero(self, make):
        network = make(*SIDES["decoder"], output_bias="data")
        for layer in network.layers[-2:]:
            for name, parameter in layer.named_parameters():
                if name == "weight":
                    nn.init.zeros_(parameter)
        value = torch.randn(2, 9, 8)
        network.init_output_bias(lambda: value)
        out = network.eval()(torch.randn(6, 10))
        assert torch.equal(out, value.expand(6, 2, 9, 8))

    def test_is_initialised_only_once_even_after_load_state_dict(self, make):
        network = make(*SIDES["decoder"], output_bias="data")
        value = torch.randn(2, 9, 8)
        network.init_output_bias(lambda: value)
        other = make(*SIDES["decoder"], output_bias="data")
        other.load_state_dict(network.state_dict())
        for again in (network, other):
            again.init_output_bias(lambda: pytest.fail("initialised twice"))
            assert torch.equal(again.layers[-1].bias.detach().reshape(value.shape), value)

    def test_is_unchanged_if_not_initialised_or_not_requested(self, make):
        torch.manual_seed(1)
        with_option = make(*SIDES["encoder"], output_bias="data")
        torch.manual_seed(1)
        plain = make(*SIDES["encoder"])
        state = plain.state_dict()
        for name, tensor in with_option.state_dict().items():
            assert name == "started" or torch.equal(tensor, state[name])
        plain.init_output_bias(lambda: pytest.fail("not needed"))
        assert "started" not in plain.state_dict()


def test_image_decoder_has_a_bias_per_pixel_only_with_data():
    shape = (1, 8, 8)
    biases = [networks.ConvNet((5,), shape, output_bias=b).layers[-1].bias for b in (None, "data")]
    assert [tuple(b.shape) for b in biases] == [(1,), shape]
    # no redundant bias per channel
    last = networks.ConvNet((5,), shape, output_bias="data").layers[-2]
    assert isinstance(last, nn.ConvTranspose2d) and last.bias is None


def test_bias():
    bias = Bias((2, 3))
    nn.init.normal_(bias.bias)
    torch.testing.assert_close(bias(torch.zeros(4, 2, 3)), bias.bias.expand(4, 2, 3))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(4), r"expected initial outputs of shape \(3,\); got \(4,\)"),
        (
            torch.full((3,), math.inf),
            r"expected finite initial outputs of shape \(3,\); got NaN or inf",
        ),
    ],
)
def test_invalid_initial_outputs_raise(outputs, message):
    network = networks.MLP((2,), (3,), output_bias="data")
    before = network.layers[-1].bias.clone()
    with pytest.raises(ValueError, match=message):
        network.init_output_bias(lambda: outputs)
    assert torch.equal(network.layers[-1].bias, before) and not network.started


class TestNorms:
    def test_layer_norm_is_per_example(self):
        network = networks.MLP((4,), (3,), hidden=(6,), norm="layer", activation=nn.Identity)
        x = torch.randn(5, 4)
        hidden = nn.functional.layer_norm(network.layers[0](x), (6,))
        torch.testing.assert_close(network(x), network.layers[-1](hidden))

    def test_layer_norm_of_images_is_over_channels_and_pixels(self):
        network = networks.ConvNet((2, 5, 6), (3,), channels=(4,), norm="layer")
        h = network.layers[1](torch.randn(7, 2, 5, 6))
        torch.testing.assert_close(
            network.layers[2](h), nn.functional.layer_norm(h, (4, 3, 3)), atol=1e-5, rtol=1e-4
        )

    def test_batch_norm_is_over_every_leading_dimension_in_training(self):
        network = networks.MLP((4,), (3,), hidden=(6,), norm="batch", activation=nn.Identity)
        x = torch.randn(5, 2, 4)
        flat = network.layers[0](x.reshape(10, 4))
        expected = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
        out = network(x)
        torch.testing.assert_close(out, network.layers[-1](expected).reshape(5, 2, 3))
        # the running mean for evaluation is updated with momentum 0.1
        norm = network.layers[1]
        torch.testing.assert_close(norm.running_mean, 0.1 * flat.mean(0).detach())

    def test_batch_norm_needs_two_inputs(self):
        for make in (networks.MLP, networks.ConvNet, networks.ResNet):
            network = make((1, 4, 4), (3,), norm="batch")
            message = "expected at least 2 inputs in training with batch norm; got 1: choose a batc"
            for batch in ((1,), (), (1, 1)):
                with pytest.raises(ValueError, match=message):
                    network(torch.zeros(*batch, 1, 4, 4))
            network.eval()(torch.zeros(1, 4, 4))

    @pytest.mark.parametrize(("size", "batch_size"), [(5, 2), (5, 4), (1, 10), (3, 1)])
    def test_minibatch_of_one_raises_before_training(self, size, batch_size):
        small = partial(networks.MLP, hidden=(5,), norm="batch")
        x = torch.bernoulli(torch.full((size, 3), 0.5))
        vae = pv.VAE((3,), 2, encoder=small)
        before = {n: p.clone() for n, p in vae.state_dict().items()}
        message = (
            "expected at least 2 examples in every minibatch, for batch norm; got 1 in the last "
            f"minibatch of {size} examples by {batch_size}: choose another batch_size"
        )
        with pytest.raises(ValueError, match=message):
            pv.fit(vae, x, epochs=1, batch_size=batch_size)
        assert all(torch.equal(p, before[n]) for n, p in vae.state_dict().items())
        pv.fit(vae, torch.cat([x, x[:1]]), epochs=1, batch_size=max(batch_size, 2))
        # also for a user-defined network
        own = pv.VAE((3,), 2, encoder=lambda i, o: _UserNetwork(i, o))
        with pytest.raises(ValueError, match=message):
            pv.fit(own, x, epochs=1, batch_size=batch_size)
        # other norms accept a minibatch of one
        vae = pv.VAE((3,), 2, encoder=partial(small, norm="layer"))
        pv.fit(vae, x, epochs=1, batch_size=batch_size)


class _UserNetwork(nn.Module):
    """A user-defined network with batch norm."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.linear = nn.Linear(in_shape[0], math.prod(out_shape))
        self.norm, self.out_shape = nn.BatchNorm1d(math.prod(out_shape)), out_shape

    def forward(self, x):
        return self.norm(self.linear(x)).reshape(-1, *self.out_shape)


class TestStandardize:
    def test_uses_the_moments_of_all_elements(self):
        x = 5 + 3 * torch.randn(40, 4)
        network = networks.MLP((4,), (3,), hidden=(), standardize=True)
        network.fit_standardization(x)
        torch.testing.assert_close(network.input_mean, x.mean())
        torch.testing.assert_close(network.input_scale, x.std(correction=0))
        expected = network.layers((x - x.mean()) / x.std(correction=0))
        torch.testing.assert_close(network(x), expected)

    @pytest.mark.parametrize("make", WIDE_NETWORKS.values(), ids=WIDE_NETWORKS)
    def test_inputs_are_unchanged_before_fitting(self, make):
        torch.manual_seed(0)
        network = make(*SIDES["encoder"], standardize=True).eval()
        torch.manual_seed(0)
        plain = make(*SIDES["encoder"]).eval()
        x = 7 + torch.randn(6, 2, 9, 8)
        assert torch.equal(network(x), plain(x))
        network.fit_standardization(x)
        plain.fit_standardization(x)  # no effect
        scaled = (x - x.mean()) / x.std(correction=0)
        torch.testing.assert_close(network(x), plain(scaled), rtol=1e-4, atol=1e-4)
        assert {*network.state_dict()} - {*plain.state_dict()} == {"input_mean", "input_scale"}

    def test_is_fitted_only_once_even_after_load_state_dict(self):
        network, other = (networks.MLP((4,), (3,), standardize=True) for _ in range(2))
        x = torch.randn(40, 4)
        network.fit_standardization(x)
        other.load_state_dict(network.state_dict())
        for again in (network, other):
            again.fit_standardization(9 * x + 1)
            assert torch.equal(again.input_mean, network.input_mean)
            torch.testing.assert_close(again.input_scale, x.std(correction=0))

    def test_constant_data_are_only_centred(self):
        network = networks.MLP((4,), (3,), hidden=(), standardize=True)
        network.fit_standardization(torch.full((5, 4), 7.0))
        assert network.input_mean == 7 and network.input_scale == 1
        assert not network.uninitialized_option
        out = network(torch.full((2, 4), 7.0))
        torch.testing.assert_close(out, network.layers[-1].bias.expand(2, 3))


@pytest.mark.parametrize("make", [networks.MLP, networks.GatedMLP, networks.ConvNet])
def test_dropout_is_only_for_training(make):
    network = make((1, 6, 6), (3,), dropout=0.5)
    x = torch.randn(8, 1, 6, 6)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


#: Arguments that GatedMLP does not have.
NOT_IN_GATED_MLP = ("norm", "activation")


@pytest.mark.parametrize("name", ["MLP", "GatedMLP", "ConvNet", "ResNet"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "group"}, "expected norm to be 'batch', 'layer' or None; got 'group'"),
        ({"dropout": 1.0}, r"expected dropout in \[0, 1\); got 1.0"),
        ({"dropout": -0.1}, r"expected dropout in \[0, 1\); got -0.1"),
        ({"dropout": True}, r"expected dropout in \[0, 1\); got True"),
        ({"init": "xavier"}, "expected init to be 'torch', 'glorot' or a standard dev.*'xavier'"),
        ({"init": 0.0}, "or a standard deviation > 0; got 0.0"),
        ({"init": -1}, "or a standard deviation > 0; got -1"),
        ({"init": math.inf}, "or a standard deviation > 0; got inf"),
        ({"init": math.nan}, "or a standard deviation > 0; got nan"),
        ({"init": True}, "or a standard deviation > 0; got True"),
        ({"output_bias": "mean"}, "expected output_bias to be 'data' or None; got 'mean'"),
        ({"hidden": (1,), "norm": "layer"}, "expected at least 2 units per layer for norm 'layer'"),
        ({"hidden": 200}, "expected hidden to be a tuple of positive integers; got 200: write"),
        ({"hidden": "200"}, "expected hidden to be a tuple of positive integers; got '200'"),
        ({"dropout": "a"}, r"expected dropout in \[0, 1\); got 'a'"),
        ({"dropout": None}, r"expected dropout in \[0, 1\); got None"),
        ({"dropout": math.nan}, r"expected dropout in \[0, 1\); got nan"),
        ({"hidden": (2.5,)}, "expected every number in hidden to be a positive integer; got 2.5"),
    ],
)
def test_invalid_arguments_raise(name, arguments, message):
    if name == "GatedMLP" and {*arguments} & {*NOT_IN_GATED_MLP}:
        return
    with pytest.raises(ValueError, match=message):
        getattr(networks, name)((1, 8, 8), (3,), **arguments)
