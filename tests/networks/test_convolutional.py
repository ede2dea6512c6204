"""Convolutional networks: geometry, mirrored decoders, residual blocks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from pyro_vae import networks
from pyro_vae.networks.convolutional import _Residual

SIZES = {
    (8, 8): [(4, 4), (2, 2), (1, 1)],
    (28, 28): [(14, 14), (7, 7), (4, 4)],
    (28, 20): [(14, 10), (7, 5), (4, 3)],
    (7, 9): [(4, 5), (2, 3), (1, 2)],
    (1, 5): [(1, 3), (1, 2), (1, 1)],
    (1, 1): [(1, 1), (1, 1), (1, 1)],
    (2, 3): [(1, 2), (1, 1), (1, 1)],
}
NETWORKS = {"ConvNet": networks.ConvNet, "ResNet": partial(networks.ResNet, blocks=1)}


def _sizes(network, x):
    """Return the image sizes before and after each strided convolution."""
    sizes = []
    for layer in network.modules():
        if isinstance(layer, nn.ConvTranspose2d) or getattr(layer, "stride", (1,))[0] == 2:
            layer.register_forward_hook(
                lambda _, inputs, output: sizes.append((inputs[0].shape[-2:], output.shape[-2:]))
            )
    network(x)
    return [tuple(a) for a, _ in sizes] + [tuple(sizes[-1][1])]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "×".join(map(str, s)))
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_geometry(make, size, kernel):
    options = {"channels": (2, 3, 4), "kernel": kernel}
    encoder = make((1, *size), (2, 5), **options)
    assert _sizes(encoder, torch.randn(1, 1, *size)) == [size, *SIZES[size]]
    decoder = make((5,), (1, *size), **options)
    assert _sizes(decoder, torch.randn(1, 5)) == [*SIZES[size][::-1], size]
    assert decoder(torch.randn(6, 2, 5)).shape == (6, 2, 1, *size)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_leading_dimensions_are_channels(make):
    torch.manual_seed(0)
    pair = make((2, 3, 4, 5), (7,), channels=(2,))
    torch.manual_seed(0)
    flat = make((6, 4, 5), (7,), channels=(2,))
    x = torch.randn(8, 2, 3, 4, 5)
    assert torch.equal(pair(x), flat(x.flatten(1, 2)))
    torch.manual_seed(0)
    pair = make((7,), (2, 3, 4, 5), channels=(2,))
    torch.manual_seed(0)
    flat = make((7,), (6, 4, 5), channels=(2,))
    z = torch.randn(8, 7)
    assert torch.equal(pair(z).flatten(1, 2), flat(z))
    # an image without channel dimension has one channel
    assert make((4, 5), (7,))(torch.randn(3, 4, 5)).shape == (3, 7)
    assert make((), (4, 5))(torch.randn(3)).shape == (3, 4, 5)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_decoder_mirrors_the_encoder(make):
    options = {"channels": (3, 6), "hidden": (11, 13)}
    encoder, decoder = make((2, 9, 8), (10,), **options), make((10,), (2, 9, 8), **options)

    def weight_shapes(network):
        return [
            tuple(sorted(m.weight.shape[:2]))
            for m in network.modules()
            if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        ]

    assert weight_shapes(encoder) == weight_shapes(decoder)[::-1]


def test_receptive_fields_are_aligned():
    # the pixel at row 3 reaches only rows 3 // 2 and 3 // 2 + 1
    encoder = networks.ConvNet((1, 16, 12), (3,), channels=(4,))
    decoder = networks.ConvNet((3,), (1, 16, 12), channels=(4,))
    x = torch.zeros(1, 1, 16, 12)
    x[..., 3, 8] = 1
    changed = (encoder.layers[1](x) - encoder.layers[1](0 * x))[0].abs().sum(0)
    assert changed.nonzero().tolist() == [[1, 4], [2, 4]]
    h = torch.zeros(1, 4, 8, 6)
    h[..., 2, 4] = 1
    changed = (decoder.layers[-1](h) - decoder.layers[-1](0 * h))[0, 0].abs()
    assert changed.nonzero().tolist() == [[r, c] for r in (3, 4, 5) for c in (7, 8, 9)]


def test_residual_block_adds_to_its_input():
    network = networks.ResNet((1, 6, 6), (3,), channels=(4, 5), blocks=3)
    blocks = [m for m in network.modules() if isinstance(m, _Residual)]
    assert len(blocks) == 6
    h = torch.randn(2, 4, 3, 3)
    act, first, act_again, second = blocks[0].branch
    torch.testing.assert_close(blocks[0](h), h + second(act_again(first(act(h)))))
    # with zero branches, the network equals a ConvNet with the same weights
    plain = networks.ConvNet((1, 6, 6), (3,), channels=(4, 5))
    weights = [p for n, p in network.named_parameters() if "branch" not in n]
    for target, source in zip(plain.parameters(), weights, strict=True):
        target.data.copy_(source.data)
    for block in blocks:
        nn.init.zeros_(block.branch[-1].weight), nn.init.zeros_(block.branch[-1].bias)
    x = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(network(x), plain(x))


def test_deep_residual_networks_have_finite_gradients_at_every_depth():
    network = networks.ResNet((1, 8, 8), (3,), channels=(8,), blocks=20, norm="batch")
    network(torch.randn(16, 1, 8, 8)).square().sum().backward()
    norms = [p.grad.norm() for n, p in network.named_parameters() if n.endswith("weight")]
    assert max(norms) < 1e4 and min(norms) > 1e-4


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        (((9,), (3,)), {}, r"end in a height and a width; got \(9,\) and \(3,\): use an MLP"),
        (((1, 8, 8), (3,)), {"kernel": 4}, "expected kernel to be odd; got 4"),
        (((1, 8, 8), (3,)), {"kernel": 0}, "expected kernel to be a positive integer; got 0"),
        (
            ((1, 8, 8), (3,)),
            {"channels": ()},
            "expected channels to have at least one level; got an empty list",
        ),
        (
            ((1, 8, 8), (3,)),
            {"channels": 32},
            "expected channels to be a tuple of pos.*; got 32: write",
        ),
        (((3,), (1, 8, 8)), {"channels": (4, 0)}, "expected every number in channels to be a pos"),
        (((3,), (1, 8, 8)), {"hidden": (0,)}, "expected every number in hidden to be a positive"),
    ],
)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_invalid_arguments_raise(make, shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*shapes, **arguments)


def test_blocks_must_be_positive():
    with pytest.raises(ValueError, match="expected blocks to be a positive integer; got 0"):
        networks.ResNet((1, 8, 8), (3,), blocks=0)
