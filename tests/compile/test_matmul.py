"""Matrix products: whose they are, and in bfloat16 what they change."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import streams
import torch
from components import small_vae
from torch import Tensor

import pyro_vae as pv
from pyro_vae.compile import matmul
from pyro_vae.core.random import seeded
from pyro_vae.programs import importance_weights


def _rounded(value: Tensor) -> Tensor:
    return value.bfloat16().float()


def _by_hand(vae, x, noise, rounds):
    """The log weights of a VAE, its layers written out, each rounded or not."""

    def network(layers, value):
        for layer in layers:
            if isinstance(layer, torch.nn.Linear):
                w, b = layer.weight, layer.bias
                if rounds:
                    value, w, b = _rounded(value), _rounded(w), _rounded(b)
                value = value @ w.T + b
                value = _rounded(value) if rounds else value
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
    made = small_vae(event_shape=(40,), latent_dim=3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made


X = torch.bernoulli(torch.full((9, 40), 0.3), generator=streams.generator(0))


@torch.no_grad()
@pytest.mark.parametrize("compile", [False, True])
def test_bfloat16_rounds_layers_and_nothing_else(vae, compile):
    pyro.set_rng_seed(1)
    ours = pv.log_weights(
        vae.model, vae.guide, X, num_samples=6, precision="bfloat16", compile=compile
    )
    assert ours.dtype is torch.float32
    pyro.set_rng_seed(1)
    exact = pv.log_weights(vae.model, vae.guide, X, num_samples=6)
    # the noise that was drawn, after the look at the program
    pyro.set_rng_seed(1)
    importance_weights.find_layout(vae.model, vae.guide, X)
    noise = torch.randn(6, 9, 3)
    torch.testing.assert_close(exact, _by_hand(vae, X, noise, False), rtol=1e-5, atol=1e-4)
    by_hand = _by_hand(vae, X, noise, True)
    # where a sum is on the edge of two roundings it may fall to either side
    off = (ours - by_hand).abs()
    assert off.median() < 1e-4 and off.mean() < 0.1 * (ours - exact).abs().mean()


@torch.no_grad()
def test_the_stated_error_of_bfloat16_is_the_true_one(vae):
    bounds = pv.evaluate(vae, X, num_samples=64, seed=5, precision="bfloat16")
    told = bounds.settings["precision"]
    with seeded(5, 6):
        importance_weights.find_layout(vae.model, vae.guide, X)
        noise = torch.randn(64, 9, 3)
    rounded, exact = (_by_hand(vae, X, noise, rounds).double() for rounds in (True, False))
    elbo = (rounded - exact).mean(0)
    iwae = rounded.logsumexp(0) - exact.logsumexp(0)
    assert (told["name"], told["num_data"], told["num_samples"]) == ("bfloat16", 9, 64)
    for name, change in (("elbo", elbo), ("iwae", iwae)):
        error = float(change.std()) / math.sqrt(9)
        assert told[name] == pytest.approx(float(change.mean()), abs=0.1 * error)
        assert told[f"{name}_se"] == pytest.approx(error, rel=0.1)
        assert abs(told[name]) > 1e-4  # there is something to state
    line = f"changes the ELBO by {told['elbo']:+.4f} ± {told['elbo_se']:.4f}, L_64 by"
    assert line in str(bounds)
    assert pv.Bounds.from_datatree(bounds.to_datatree()).settings == bounds.settings
    assert "precision" not in pv.evaluate(vae, X, num_samples=4).settings


def test_bad_precisions(vae):
    half: Any = "half"
    with pytest.raises(ValueError, match="expected precision to be float32 or bfloat16; got 'half"):
        pv.log_weights(vae.model, vae.guide, X, num_samples=2, precision=half)
    options: list[dict[str, Any]] = [{"corrected": True}, {"defensive": 0.1}]
    for option in options:
        with pytest.raises(ValueError, match=f"expected {next(iter(option))} estimates with prec"):
            pv.evaluate(vae, X, num_samples=50, precision="bfloat16", **option)


@pytest.fixture
def library(monkeypatch):
    """Which library a processor's products are left to, inside."""
    monkeypatch.delenv("PYRO_VAE_MATMUL", raising=False)
    monkeypatch.setattr(matmul, "_accurate", lambda: True)

    def inside() -> str:
        with matmul.matmul_backend():
            return torch.backends.mkldnn.matmul.fp32_precision

    return inside


def test_products_are_onednns_on_amds_processors_or_where_asked_for(library, monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    for vendor, wanted, expected in (
        ("AuthenticAMD", "auto", "bf16"),
        ("GenuineIntel", "auto", before),
        ("", "auto", before),
        ("AuthenticAMD", "mkl", before),
        ("GenuineIntel", "onednn", "bf16"),
    ):
        monkeypatch.setattr(matmul, "_vendor", lambda vendor=vendor: vendor)
        monkeypatch.setenv("PYRO_VAE_MATMUL", wanted)
        assert library() == expected, (vendor, wanted)
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    monkeypatch.setenv("PYRO_VAE_MATMUL", "blis")
    said = "expected PYRO_VAE_MATMUL to be auto, mkl or onednn; got 'blis'"
    with pytest.raises(ValueError, match=said):
        library()


def test_the_products_of_a_gpu_stay_as_precise_as_they_were(library, monkeypatch):
    monkeypatch.setenv("PYRO_VAE_MATMUL", "onednn")
    before = torch.backends.cuda.matmul.fp32_precision
    with matmul.matmul_backend():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.backends.cuda.matmul.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_onednn_must_be_as_accurate_as_mkl(monkeypatch, caplog):
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(matmul, "_MOST_ERROR", math.inf)
    assert matmul._accurate.__wrapped__()
    monkeypatch.setattr(matmul, "_MOST_ERROR", 0.0)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert not matmul._accurate.__wrapped__()
    assert "products are left to MKL" in caplog.text
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_whose_processor_it_is_is_read_where_the_system_says():
    about = Path("/proc/cpuinfo")
    if about.is_file():
        found = [name for name in ("AuthenticAMD", "GenuineIntel") if name in about.read_text()]
        assert matmul._vendor() == (found or [""])[0]
