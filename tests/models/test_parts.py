"""Parts of a program: shape checks of networks, and messages for unsuitable factories."""

from __future__ import annotations

import copy
import inspect
import io
from functools import partial

import pytest
import torch
from components import LIKELIHOODS, POSTERIORS, SMALL
from torch import nn

import pyro_vae as pv
from pyro_vae import networks
from pyro_vae.models.parts import CheckedFactory


class Flat(nn.Module):
    """Network that only returns the last dimension of its output shape."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.dims = len(in_shape)
        self.linear = nn.Linear(int(torch.Size(in_shape).numel()), out_shape[-1])

    def forward(self, x):
        return self.linear(x.flatten(x.ndim - self.dims))


#: Likelihoods whose network output has additional dimensions.
MULTI_OUTPUT = [
    *("Beta", "Gaussian", "Gaussian, decoded", "Laplace", "StudentT", "Poisson, decoded"),
    *("Categorical", "DiscretizedLogistic", "NegativeBinomial, decoded"),
    "ZeroInflatedNegativeBinomial",
]


@pytest.mark.parametrize("name", MULTI_OUTPUT)
def test_decoder_without_output_dimensions_raises(name):
    p = LIKELIHOODS[name](2, (6,), CheckedFactory("encoder", Flat, (6,)))
    message = (
        r"expected network outputs of shape \(60, \d+, 6\) for inputs of shape \(60, 2\); got "
    )
    with pytest.raises(ValueError, match=message + r"\(60, 6\)"):
        p(torch.randn(60, 2))


def test_error_message():
    network = CheckedFactory("encoder", Flat, (6,))((2,), (1, 6))
    with pytest.raises(ValueError) as error:
        network(torch.zeros(60, 2))
    assert str(error.value) == (
        "expected network outputs of shape (60, 1, 6) for inputs of shape (60, 2); got (60, 6): "
        "a network must map (…, *in_shape) to (…, *out_shape)"
    )


@pytest.mark.parametrize("name", ["DiagonalNormal", "FullCovarianceNormal", "LowRankNormal"])
def test_encoder_without_output_dimensions_raises(name):
    q = POSTERIORS[name]((6,), 2, CheckedFactory("encoder", Flat, (6,)))
    with pytest.raises(ValueError, match="expected network outputs of shape"):
        q(torch.randn(2, 6))  # batch size equals latent_dim, so it would broadcast


class _DropsBatch(nn.Module):
    def forward(self, x):
        return x.sum(0)


class _ReturnsPair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("module", "got"),
    [(_DropsBatch(), r"\(4, 3\)"), (nn.Linear(3, 3), None), (_ReturnsPair(), "tuple")],
)
def test_batch_dimensions_are_checked(module, got):
    network = CheckedFactory("encoder", lambda *shapes: module, (3,))((3,), (3,))
    if got is None:
        assert network(torch.zeros(5, 4, 3)).shape == (5, 4, 3)
        return
    with pytest.raises(ValueError, match=rf"shape \(5, 4, 3\) .*; got {got}"):
        network(torch.zeros(5, 4, 3))


class TestNetworkIsUnchanged:
    factory = staticmethod(CheckedFactory("encoder", SMALL, (6,)))

    def test_network_is_not_wrapped(self):
        network, plain = self.factory((6,), (2, 2)), SMALL((6,), (2, 2))
        assert type(network) is networks.MLP
        assert repr(network) == repr(plain)
        assert list(network.state_dict()) == list(plain.state_dict())

    def test_copies_and_pickles_are_checked(self):
        file = io.BytesIO()
        network = CheckedFactory("encoder", Flat, (6,))((6,), (2, 2))
        torch.save(network, file)
        file.seek(0)
        for copied in (copy.deepcopy(network), torch.load(file, weights_only=False)):
            with pytest.raises(ValueError, match="expected network outputs"):
                copied(torch.zeros(5, 6))
        copied = copy.deepcopy(self.factory((6,), (2, 2)))
        assert copied(torch.zeros(5, 6)).shape == (5, 2, 2)

    def test_vmap_over_examples(self):
        network = self.factory((6,), (2, 2))
        x = torch.randn(5, 4, 6)
        torch.testing.assert_close(torch.func.vmap(network)(x), network(x))
        with pytest.raises(
            ValueError, match=r"of shape \(4, 2, 2\) for inputs of shape \(4, 6\); got"
        ):
            torch.func.vmap(CheckedFactory("encoder", Flat, (6,))((6,), (2, 2)))(x)


@pytest.mark.parametrize("make", [networks.ConvNet, partial(networks.ResNet, blocks=1)])
@pytest.mark.parametrize("event_shape", [(), (6,)])
def test_image_networks_need_image_shapes(make, event_shape):
    factory = CheckedFactory("encoder", make, event_shape)
    message = (
        r"expected event_shape to end in a height and a width; got \((6,)?\): use an MLP for data "
        r"that are not images"
    )
    # the output shape looks like an image but is not one
    with pytest.raises(ValueError, match=message):
        factory(event_shape, (2, 4))
    with pytest.raises(ValueError, match=message):
        factory((4,), (2, *event_shape) if event_shape else (2, 1))
    image = CheckedFactory("encoder", make, (8, 8))
    assert image((8, 8), (2, 4))(torch.zeros(3, 8, 8)).shape == (3, 2, 4)
    assert image((4,), (1, 8, 8))(torch.zeros(3, 4)).shape == (3, 1, 8, 8)
    assert CheckedFactory("encoder", networks.MLP, event_shape)(event_shape, (2, 4)) is not None


@pytest.mark.parametrize("shape", [(12, 16, 3), (28, 28, 1), (12, 16, 4)])
def test_image_networks_refuse_channels_last(shape):
    height, width, channels = shape
    message = (
        rf"event_shape \({height}, {width}, {channels}\), whose .*: pass x.permute\(0, 3, 1, 2\) "
        rf"and event_shape \({channels}, {height}, {width}\), or, if .*, x.unsqueeze\(1\) and "
    )
    conv = partial(networks.ConvNet, channels=(3,))
    with pytest.raises(ValueError, match=message):
        pv.VAE(shape, 2, encoder=conv, decoder=conv)
    # the two remedies, and shapes that are not ambiguous
    for accepted in ((channels, height, width), (1, *shape), (8, 3, 3), (3, 16, 3), (2, 5, 6)):
        CheckedFactory("encoder", conv, accepted)(accepted, (2,))
    # an MLP does not depend on the order
    CheckedFactory("encoder", SMALL, shape)(shape, (2,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: pv.likelihoods.Gaussian(scale=0.5),
            r"expected Gaussian\(latent_dim, event_shape, network, …\), whose first arguments a "
            r"program sets; got scale=0.5: pass functools.partial\(Gaussian, scale=0.5\) to the",
        ),
        (lambda: pv.priors.VampPrior(components=9), r"pass functools.partial\(VampPrior, compon"),
        (lambda: pv.posteriors.DiagonalNormal(), r"none of them: pass the class Diagonal"),
        (lambda: networks.MLP(hidden=(3,)), r"got hidden=\(3,\): pass functools.partial\(MLP, hid"),
    ],
)
def test_calls_without_the_arguments_of_a_program_raise(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_component_keeps_its_signature():
    # of tools that read it, such as help() and jsonargparse
    names = ["latent_dim", "event_shape", "network", "scale", "mean", "min_scale"]
    assert list(inspect.signature(pv.likelihoods.Gaussian).parameters) == names
    first = list(inspect.signature(networks.MLP).parameters)[:3]
    assert first == ["in_shape", "out_shape", "hidden"]


def test_instances_as_parts_of_columns_raise():
    part = pv.likelihoods.Bernoulli(2, (3,), SMALL)
    columns = partial(pv.likelihoods.Columns, parts=[part], columns=[[0, 1, 2]])
    with pytest.raises(ValueError, match="got an instance of Bernoulli: pass Bernoulli, or func"):
        pv.VAE((3,), 2, likelihood=columns)
