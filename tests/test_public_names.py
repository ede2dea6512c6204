"""The names of ``import pyro_vae as pv``, its short help, and messages for first mistakes."""

from __future__ import annotations

import ast
import builtins
import pydoc
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from components import PROGRAMS, SMALL, component_class, small_vae
from torch import nn

import pyro_vae as pv
from pyro_vae.models.inference import BottomUp

SOURCE = ast.parse(Path(pv.__file__).read_text(encoding="utf-8"))
EXPORTS = {a.asname for n in ast.walk(SOURCE) if isinstance(n, ast.ImportFrom) for a in n.names}
EXPORTS -= {None}  # TYPE_CHECKING, Any, version


def test_every_import_is_an_export_and_in_the_map():
    relative = [n for n in ast.walk(SOURCE) if isinstance(n, ast.ImportFrom) and n.level]
    # a plain import would not be re-exported to type checkers
    assert all(alias.asname == alias.name for node in relative for alias in node.names)
    assert {*dir(pv)} >= EXPORTS
    documented = set(re.findall(r"\w+", pv.__doc__))
    assert documented >= EXPORTS
    star: dict = {}
    exec("from pyro_vae import *", star)
    assert star.keys() >= EXPORTS
    assert not {*star} - {"__builtins__"} & {*dir(builtins)}  # e.g. a package named compile
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        pv.laod  # noqa: B018


FRESH = """
import sys
import torch, pyro
before = {*sys.modules}
import pyro_vae as pv
loaded = {m.split(".")[1] if m.startswith("pyro_vae.") else m for m in {*sys.modules} - before}
print(*sorted(loaded - {"pyro_vae", "html", "html.entities"}))  # small
lazy = {n: getattr(pv, n) for n in dir(pv) if n in pv._LAZY}
print(*(pv._LAZY.keys() ^ lazy.keys()), pv.__version__)
"""


def test_the_import_loads_what_training_needs(tmp_path):
    """No other library than those of torch and Pyro, and no package above ``learning``."""
    checked = next(n for n in SOURCE.body if isinstance(n, ast.If))  # if TYPE_CHECKING
    names = {a.asname for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert names == pv._LAZY.keys()  # types as they are at run time
    printed = subprocess.check_output([sys.executable, "-c", FRESH], text=True).splitlines()
    packages = "compiler core data distributions learning likelihoods models networks posteriors"
    assert printed[0] == f"{packages} priors programs"
    assert printed[1:] == [pv.__version__]


def test_help_is_short():
    assert len(pydoc.render_doc(pv).splitlines()) < 150


@pytest.mark.parametrize("name", [name for name in PROGRAMS if "," not in name])
def test_an_instance_instead_of_a_class(name):
    make = PROGRAMS[name]
    data = {"event_shape": (4,), "condition": 2, "num_classes": 2}
    shapes = {key: data[key] for key in component_class(make).from_data}
    program = make(**shapes)
    parts = {"prior": program.prior, "likelihood": program.likelihood}
    parts |= {n: getattr(program, n) for n in ("posterior", "inference") if hasattr(program, n)}
    for argument, part in parts.items():
        kind = type(part).__name__
        message = (
            rf"expected a class or another factory {argument}\(.*\); got an instance of {kind}: "
            rf"pass {argument}={kind}, or functools\.partial\({kind}, …\) to set its other arg"
        )
        with pytest.raises(ValueError, match=message):
            make(**shapes, **{argument: part})


class WithoutArguments(pv.priors.Prior):
    def __init__(self):
        super().__init__(2)

    def forward(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"prior": "VampPrior"},
            "prior\\(latent_dim\\); got 'VampPrior': pass a class of pv.priors",
        ),
        (
            {"prior": torch.distributions.Normal(0, 1)},
            r"got Normal\(loc: .*: pass a class of pv.pri",
        ),
        ({"prior": torch.distributions.Normal}, "got Normal: pass a class of pv.priors, or a part"),
        ({"prior": WithoutArguments}, "takes 1 positional argument but 2 were given: pass a class"),
        ({"prior": lambda latent_dim: None}, "it returned a NoneType: pass a class of pv.priors"),
        ({"posterior": pv.likelihoods.Bernoulli}, "got Bernoulli: pass a class of pv.posteriors"),
        (
            {"posterior": partial(pv.priors.FlowPrior, flows=2)},
            r"posterior\(event_shape, latent_dim, encoder\); got FlowPrior: pass a class of pv.p",
        ),
        (
            {"likelihood": lambda *sizes: pv.priors.StandardNormal(2)},
            "it returned a StandardNormal: pass a class of pv.likelihoods",
        ),
        ({"encoder": nn.Linear}, "encoder.*; the call failed with .*: pass .*, or a module"),
        ({"decoder": "MLP"}, "decoder.*; got 'MLP': pass a class of pv.networks"),
        (
            {"encoder": nn.Linear(3, 5)},
            r"a module encoder that maps \(B, 3\) to \(B, 4\), the elements of \(2, 2\); Linear "
            r"failed for B = 2: expected outputs of shape \(2, 4\); got \(2, 5\)",
        ),
        ({"decoder": nn.Linear(7, 3)}, r"decoder that maps \(B, 2\).*; Linear failed for .*mat1"),
    ],
)
def test_an_unsuitable_factory(parts, message):
    with pytest.raises(ValueError, match=message):
        small_vae(**parts)


def test_sizes_that_are_not_a_tuple():
    with pytest.raises(ValueError, match=r"event_shape to be a tuple .*; got 5: write \(5,\)"):
        pv.VAE(5, 2)
    with pytest.raises(ValueError, match=r"a class or another factory inference\(.*BottomUp"):
        pv.HierarchicalVAE((3,), (2, 2), inference=BottomUp((3,), (2, 2), [SMALL, SMALL]))
    for network in (pv.networks.MLP, pv.networks.GatedMLP):
        with pytest.raises(ValueError, match=r"in_shape to be a tuple .*; got 9: write \(9,\)"):
            network(9, 4)


class Flat(nn.Sequential):
    """A plain network of images: one batch dimension, one dimension of outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))


def test_modules_as_networks():
    """A module is the network itself: its weights are trained, in any number of dimensions."""
    x = torch.bernoulli(torch.full((20, 1, 2, 3), 0.3))
    labels = torch.arange(20) % 2
    encoder, decoder = Flat(6, 4), Flat(2, 6)
    before = [p.clone() for p in (*encoder.parameters(), *decoder.parameters())]
    vae = pv.VAE(x.shape[1:], 2, encoder=encoder, decoder=decoder)
    pv.fit(vae, x, epochs=2, objective=pv.objectives.IWAE(k=3))
    after = [*encoder.parameters(), *decoder.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    bounds = pv.evaluate(vae, x, num_samples=30)
    assert bounds.elbo < bounds.log_evidence < 0
    # a conditional encoder gets the example and its class as one vector
    parts = {"encoder": nn.Linear(6 + 2, 4), "decoder": Flat(2 + 2, 6)}
    program = pv.ConditionalVAE(x.shape[1:], 2, 2, **parts)
    assert pv.evaluate(program, pv.data.Split(x, labels=labels), num_samples=30).elbo < 0
    # a module is one network: a list has one for each layer
    layers = {"encoders": [Flat(6, 6), Flat(3, 4)], "decoders": [Flat(3, 6), Flat(2, 6)]}
    assert pv.HierarchicalVAE((1, 2, 3), (3, 2), **layers).guide(x)[1].shape == (20, 2)
    with pytest.raises(ValueError, match="one for each of the 2 layers; got 1"):
        pv.HierarchicalVAE((1, 2, 3), (3, 2), encoders=Flat(6, 6))


def test_a_module_keeps_its_options():
    x = torch.rand(50, 3) + 5
    encoder = pv.networks.MLP((3,), (4,), hidden=(), standardize=True)
    image_encoder = pv.networks.ConvNet((3, 4, 4), (2, 2), channels=(3,))
    vae = pv.VAE((3,), 2, likelihood=pv.likelihoods.Gaussian, encoder=encoder)
    pv.initialize(vae, x)
    torch.testing.assert_close(encoder.input_mean, x.mean())
    program = pv.ConditionalVAE((1, 4, 4), 2, 2, encoder=image_encoder)
    assert program.posterior.network.takes_images
    with pytest.raises(ValueError, match="expected event_shape to end in a height and a width"):
        pv.VAE((48,), 2, encoder=lambda *shapes: image_encoder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (x, x), r"to be a tensor .*; got a tuple: pass pv.data.Split\(x, labels=y\)"),
        (lambda x: {"x": x}, "or a pv.data.Split; got a dict: pass one of its arrays"),
        (lambda x: iter(x), "got a generator, which is read only once: pass a list, or a torch"),
        (lambda x: [["a"]], "expected real numbers; got an array of strings: convert it to"),
        (lambda x: pv.data.load("digits", binarize="none"), "whole Dataset: pass data.train, data"),
        (lambda x: x.to(torch.uint8), r"pass x.to\(torch.float32\), or x / 255 for the bytes"),
        (lambda x: x.double(), r"got torch.float64: pass x.to\(torch.float32\)$"),
        (lambda x: x.unsqueeze(1), r"got \(6, 1, 3\): reshape x, or set event_shape to \(1, 3\)"),
    ],
)
def test_data_in_another_form(make, message):
    data = make(torch.ones(6, 3))
    with pytest.raises(ValueError, match=message):
        pv.fit(small_vae(), data, epochs=1)
    with pytest.raises(ValueError, match=message):
        pv.evaluate(small_vae(), data, num_samples=5)


@pytest.mark.parametrize(
    ("event_shape", "order"), [((3, 4, 5), (0, 2, 3, 1)), ((4, 5, 3), (0, 3, 1, 2))]
)
def test_images_with_their_channels_elsewhere_are_not_reshaped(event_shape, order):
    vae = small_vae(event_shape=event_shape)
    x = torch.ones(6, *event_shape).permute(order)
    back = ", ".join(str(order.index(i)) for i in range(1, 4))
    with pytest.raises(ValueError, match=rf"got \(6, .*\): pass x.permute\(0, {back}\)$"):
        pv.fit(vae, x, epochs=1)


def test_data_without_a_choice_of_binarisation():
    message = "binarize to be one of dynamic, static, threshold, none; got nothing: log-likelihoods"
    with pytest.raises(ValueError, match=message):
        pv.data.load("digits")
    with pytest.raises(ValueError, match="got 'dinamic'; did you mean dynamic\\?"):
        pv.data.load("digits", binarize="dinamic")


def test_printed_data_are_short():
    data = pv.data.load("digits", binarize="dynamic")
    assert str(data) == (
        "Dataset 'digits': 1455 + 162 + 180 examples (train + valid + test) of shape (1, 8, 8), "
        "0/1; binarize=dynamic, labels: classes 0 … 9"
    )
    assert str(data.test) == (
        "Split(values=torch.uint8 (180, 1, 8, 8), labels=torch.int64 (180,), peak=16, dynamic=True)"
    )
    named = pv.data.Split(torch.ones(2, 3), labels=np.array(["b", "a"]))
    assert str(named) == (
        "Split(values=torch.float32 (2, 3), labels=torch.int64 (2,), classes=('a', 'b'))"
    )
    with pytest.raises(ValueError, match=r"labels: expected real numbers; got an array of complex"):
        pv.data.Split(torch.ones(2, 3), labels=np.array([1j, 2]))
