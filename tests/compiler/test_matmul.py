"""Backend library and precision of matrix products."""

from __future__ import annotations

import copy
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import streams
import torch
import torch.nn.functional as F
from components import small_vae
from torch import Tensor

import pyro_vae as pv
from pyro_vae.compiler import matmul
from pyro_vae.learning import CompiledSVI, svi
from pyro_vae.programs import importance_weights


def _round(value: Tensor) -> Tensor:
    return value.bfloat16().float()


def _reference_weights(vae, x, noise, rounds):
    """Log weights of a VAE with explicit layers, rounded to bfloat16 or not."""

    def network(layers, value):
        for layer in layers:
            if isinstance(layer, torch.nn.Linear):
                w = layer.weight
                if rounds:
                    value, w = _round(value), _round(w)
                value = value @ w.T
                value = (_round(value) if rounds else value) + layer.bias
            else:
                value = layer(value)
        return value

    loc, log_scale = network(vae.posterior.network.layers, x).unflatten(-1, (2, -1)).unbind(-2)
    z = loc + noise * log_scale.exp()
    logits = network(vae.likelihood.network.layers, z)
    log_likelihood = (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    return log_likelihood + (noise.square() / 2 - z.square() / 2 + log_scale).sum(-1)


@pytest.fixture
def vae():
    vae = small_vae(event_shape=(40,), latent_dim=3)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return vae


X = torch.bernoulli(torch.full((9, 40), 0.3), generator=streams.generator(0))


@torch.no_grad()
@pytest.mark.parametrize("compile", [False, True])
def test_bfloat16_rounds_only_layers(vae, compile):
    pyro.set_rng_seed(1)
    actual = pv.log_weights(
        vae.model, vae.guide, X, num_samples=6, precision="bfloat16", compile=compile
    )
    assert actual.dtype is torch.float32
    pyro.set_rng_seed(1)
    exact = pv.log_weights(vae.model, vae.guide, X, num_samples=6)
    # the noise of the run, which follows the trace that finds the layout
    pyro.set_rng_seed(1)
    importance_weights.find_layout(vae.model, vae.guide, X)
    noise = torch.randn(6, 9, 3)
    torch.testing.assert_close(
        exact, _reference_weights(vae, X, noise, False), rtol=1e-5, atol=1e-4
    )
    expected = _reference_weights(vae, X, noise, True)
    # sums close to a rounding boundary may round either way
    error = (actual - expected).abs()
    assert error.median() < 1e-4 and error.mean() < 0.1 * (actual - exact).abs().mean()


def _check_rounded(actual: Tensor, exact: Tensor, bias: Any = 0.0) -> None:
    """Check that values are exact ones rounded to bfloat16, plus a bias in float32."""
    expected = exact.bfloat16().float() + bias
    assert actual.dtype is torch.float32
    assert not torch.allclose(actual, exact.float() + bias, rtol=1e-5, atol=1e-5)
    # sums close to a tie may round either way
    assert ((actual - expected).abs() > 1e-5).float().mean() < 0.02
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-2)


def test_bfloat16_rounds_products_and_their_gradients():
    """Forward and backward of a linear layer, beside products in float64 of rounded factors."""
    layer, generator = torch.nn.Linear(30, 20), streams.generator(1)
    x = torch.randn(2, 25, 30, generator=generator, requires_grad=True)
    g = torch.randn(2, 25, 20, generator=generator)
    with matmul.layer_precision("bfloat16"):
        y = layer(x)
    # the gradient of the mode is that of the graph, also outside the context
    dx, dw, db = torch.autograd.grad(y, [x, layer.weight, layer.bias], g)
    rx, rw, rg = (_round(v).double() for v in (x, layer.weight, g))
    _check_rounded(y, rx @ rw.T, layer.bias)
    _check_rounded(dx, rg @ rw)
    _check_rounded(dw, rg.flatten(0, 1).T @ rx.flatten(0, 1))
    torch.testing.assert_close(db, g.sum((0, 1)))  # not rounded


def test_bfloat16_rounds_convolutions():
    generator = streams.generator(2)
    x = torch.randn(3, 2, 9, 9, generator=generator)
    for layer in (torch.nn.Conv2d(2, 5, 3, stride=2), torch.nn.ConvTranspose2d(2, 5, 3, stride=2)):
        for value in (x, x[0]):  # with and without a batch
            with matmul.layer_precision("bfloat16"):
                actual = layer(value)
            bias = layer.bias[:, None, None]
            if layer.transposed and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                expected = _add_rounded_terms(_round(value), _round(layer.weight.data)) + bias
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
                continue
            exact = copy.deepcopy(layer).double()
            exact.weight.data = _round(layer.weight.data).double()
            exact.bias.data.zero_()
            _check_rounded(actual, exact(_round(value).double()), bias)


def _add_rounded_terms(x: Tensor, weight: Tensor) -> Tensor:
    """Return a transposed convolution of stride 2 as torch computes it without oneDNN.

    The products over channels are rounded, and so is each sum of those that overlap.
    """
    *_, height, width = x.shape
    terms = torch.einsum("...chw,cokl->...oklhw", x.double(), weight.double())
    columns = terms.flatten(-5, -3).flatten(-2).bfloat16()
    return F.fold(columns, (2 * height + 1, 2 * width + 1), 3, stride=2).float()


def test_other_products_are_not_rounded():
    a, b = torch.randn(2, 20, 20, generator=streams.generator(3))
    exact = a @ b, torch.einsum("ij,jk->ik", a, b), torch.linalg.cholesky(a @ a.T + torch.eye(20))
    double = torch.nn.functional.linear(a.double(), b.double())
    with matmul.layer_precision("bfloat16"):
        rounded = (
            a @ b,
            torch.einsum("ij,jk->ik", a, b),
            torch.linalg.cholesky(a @ a.T + torch.eye(20)),
        )
        assert torch.equal(torch.nn.functional.linear(a.double(), b.double()), double)
    assert all(map(torch.equal, exact, rounded))


def test_tf32_is_allowed_within_the_context():
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [setting.fp32_precision for setting in settings]
    with pytest.raises(RuntimeError, match="inside"), matmul.layer_precision("tf32"):
        assert [setting.fp32_precision for setting in settings] == ["tf32", "tf32"]
        raise RuntimeError("inside")
    assert [setting.fp32_precision for setting in settings] == before


NO_INSTRUCTIONS = ["this processor has no instructions for it"]


@pytest.mark.parametrize(
    ("cpuinfo", "reasons"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16", []),
        (
            "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16",
            ["this Intel processor has AVX-512 but not AMX for it"],
        ),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16", []),
        ("flags\t\t: fpu avx2", NO_INSTRUCTIONS),
        ("Features\t: fp asimd bf16", []),
        ("Features\t: fp asimd", NO_INSTRUCTIONS),
        ("", []),  # unknown
    ],
)
def test_slow_bfloat16_is_logged_once(cpuinfo, reasons, monkeypatch, caplog):
    monkeypatch.setattr(matmul, "_cpuinfo", lambda: cpuinfo)
    matmul._log_slow_bfloat16.cache_clear()
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for _ in range(2):
            matmul.check_training_precision("bfloat16", torch.float32, torch.device("cpu"))
    messages = [r.getMessage() for r in caplog.records]
    assert messages == [
        f"precision bfloat16 is slower than float32 here: {reason}" for reason in reasons
    ]


def test_slow_evaluations_in_bfloat16_are_logged_once(vae, monkeypatch, caplog):
    # not cpuinfo, of which other functions keep what they have read
    monkeypatch.setattr(matmul, "_find_slow_bfloat16", lambda device: f"{device} is slow")
    matmul._log_slow_bfloat16.cache_clear()
    messages = []
    for precision in ("float32", "bfloat16", "bfloat16"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pyro_vae"):
            pv.log_weights(vae.model, vae.guide, X, num_samples=2, precision=precision)
        messages.append([r.getMessage() for r in caplog.records])
    assert messages == [[], ["precision bfloat16 is slower than float32 here: cpu is slow"], []]


def test_invalid_precisions_raise(vae):
    half: Any = "half"
    with pytest.raises(ValueError, match="expected precision to be float32 or bfloat16; got 'half"):
        pv.log_weights(vae.model, vae.guide, X, num_samples=2, precision=half)


@pytest.fixture
def library(monkeypatch):
    """Function that returns the precision setting of oneDNN inside the context."""
    monkeypatch.delenv("PYRO_VAE_MATMUL", raising=False)
    monkeypatch.setattr(matmul, "_is_accurate", lambda: True)

    def inside() -> str:
        with matmul.matmul_backend():
            return torch.backends.mkldnn.matmul.fp32_precision

    return inside


def test_onednn_is_used_on_amd_processors_or_on_request(library, monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    for vendor, choice, expected in (
        ("AuthenticAMD", "auto", "bf16"),
        ("GenuineIntel", "auto", before),
        ("", "auto", before),
        ("AuthenticAMD", "mkl", before),
        ("GenuineIntel", "onednn", "bf16"),
    ):
        monkeypatch.setattr(matmul, "_vendor", lambda vendor=vendor: vendor)
        monkeypatch.setenv("PYRO_VAE_MATMUL", choice)
        assert library() == expected, (vendor, choice)
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    monkeypatch.setenv("PYRO_VAE_MATMUL", "blis")
    message = "expected PYRO_VAE_MATMUL to be auto, mkl or onednn; got 'blis'"
    with pytest.raises(ValueError, match=message):
        library()


@pytest.mark.parametrize(
    ("family", "examples", "samples", "is_large"),
    [
        (25, 20, 1, False),
        (25, 127, 1, False),
        (25, 20, 50, True),
        (26, 20, 1, False),
        (26, 32, 1, True),
    ],
)
def test_products_of_few_rows_use_mkl(family, examples, samples, is_large, monkeypatch):
    """The largest product of a step has as many rows as the decoder has inputs."""
    monkeypatch.setattr(matmul, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(matmul, "_family", lambda: family)
    monkeypatch.setattr(matmul, "_is_accurate", lambda: True)
    monkeypatch.delenv("PYRO_VAE_MATMUL", raising=False)
    network = partial(pv.networks.MLP, hidden=(130,))
    vae = pv.VAE((200,), 2, encoder=network, decoder=network)
    used = []

    def run(graph, inputs):
        def call(*args):
            used.append(torch.backends.mkldnn.matmul.fp32_precision)
            return graph(*args)

        return call

    monkeypatch.setattr(svi, "compile_graph", run)
    objective = pv.objectives.IWAE(samples)
    CompiledSVI(vae.model, vae.guide, pyro.optim.Adam({}), objective).step(
        torch.ones(examples, 200)
    )
    assert used and all((setting == "bf16") == is_large for setting in used)


def test_first_evaluation_of_a_process_is_compiled(vae, monkeypatch, caplog):
    # oneDNN's accuracy is measured at its first use, which must not become part of the graph
    monkeypatch.setenv("PYRO_VAE_MATMUL", "onednn")
    matmul._is_accurate.cache_clear()
    pv.evaluate(vae, X, num_samples=4, compile=True)
    assert "not compiled" not in caplog.text and matmul._is_accurate.cache_info().currsize == 1


def test_precision_of_gpu_products_is_unchanged(library, monkeypatch):
    monkeypatch.setenv("PYRO_VAE_MATMUL", "onednn")
    before = torch.backends.cuda.matmul.fp32_precision
    with matmul.matmul_backend():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.backends.cuda.matmul.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_onednn_must_be_as_accurate_as_mkl(monkeypatch, caplog):
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(matmul, "_MAX_ERROR_RATIO", math.inf)
    assert matmul._is_accurate.__wrapped__()
    monkeypatch.setattr(matmul, "_MAX_ERROR_RATIO", 0.0)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert not matmul._is_accurate.__wrapped__()
    assert "using MKL for matrix products" in caplog.text
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    ("cpuinfo", "family"),
    [("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", 26), ("", 0)],
)
def test_family_is_read_from_cpuinfo(cpuinfo, family, monkeypatch):
    monkeypatch.setattr(matmul, "_cpuinfo", lambda: cpuinfo)
    assert matmul._family.__wrapped__() == family


def test_vendor_is_read_from_cpuinfo():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text()
        vendors = [name for name in ("AuthenticAMD", "GenuineIntel") if name in text]
        assert matmul._vendor() == (vendors or [""])[0]
