"""Training in bfloat16: master weights, gradients, compiled steps, checkpoints and errors."""

from __future__ import annotations

import logging
from functools import partial

import pyro
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.compiler.matmul import layer_precision
from pyro_vae.learning import CompiledSVI, checkpoint, svi
from pyro_vae.learning.checkpoint import CheckpointError
from pyro_vae.learning.optimizers import FusedOptimizer

ADAM = partial(torch.optim.Adam, lr=0.01)
STILL = partial(torch.optim.SGD, lr=0.0)


@pytest.fixture(scope="module")
def digits():
    return pv.data.load("digits", binarize="threshold")


@pytest.fixture
def uncompiled(monkeypatch):
    """Run the traced graph without compiling it, to save time."""
    monkeypatch.setattr(svi, "compile_graph", lambda graph, inputs: graph)


def make_vae(hidden=20):
    torch.manual_seed(0)
    network = partial(pv.networks.MLP, hidden=(hidden,))
    return pv.VAE((1, 8, 8), latent_dim=3, encoder=network, decoder=network)


def fit(vae, digits, **kwargs):
    return pv.fit(vae, digits.train.head(200), **{"epochs": 1, "optimizer": ADAM, **kwargs})


class RoundedLinear(nn.Linear):
    """Linear layer whose product is rounded to bfloat16, written out."""

    def forward(self, x):
        return (x.bfloat16() @ self.weight.bfloat16().T).float() + self.bias


def round_layers(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            child.__class__ = RoundedLinear
        round_layers(getattr(module, name))


def test_training_rounds_the_layers_only(digits):
    """Weights after some steps equal those of a VAE whose layers round by themselves."""
    weights, losses = [], []
    for precision, written_out in (("float32", False), ("bfloat16", False), ("float32", True)):
        vae = make_vae()
        if written_out:
            round_layers(vae)
        losses += fit(vae, digits, epochs=2, precision=precision)["elbo"]
        weights.append(nn.utils.parameters_to_vector(vae.parameters()).detach())
    exact, rounded, reference = weights
    assert rounded.dtype is torch.float32
    # sums in another order may round otherwise at ties
    assert (rounded - reference).norm() < 0.1 * (rounded - exact).norm()
    assert losses[2:4] == pytest.approx(losses[4:], abs=1e-3)
    assert losses[2:4] != losses[:2] and losses[2:4] == pytest.approx(losses[:2], abs=0.05)


def test_state_and_validation_are_in_float32(digits, tmp_path, monkeypatch):
    records = {}
    for precision in ("float32", "bfloat16"):
        path = tmp_path / precision
        history = fit(
            make_vae(),
            digits,
            precision=precision,
            checkpoint=path,
            optimizer=STILL,
            valid=digits.test.head(100),
        )
        records[precision] = history.epochs[0]
        state = checkpoint.load_checkpoint(path)
        tensors = [v for v in state["weights"].values() if torch.is_tensor(v)]
        assert {v.dtype for v in tensors} == {torch.float32}
        assert state["settings"]["precision"] == precision
    exact, rounded = records["float32"], records["bfloat16"]
    # the same weights, as the step size is zero
    assert rounded["valid_elbo"] == exact["valid_elbo"]
    assert 0 < abs(rounded["elbo"] - exact["elbo"]) < 0.05
    fit(make_vae(), digits, precision="bfloat16", checkpoint=tmp_path / "adam")
    state = checkpoint.load_checkpoint(tmp_path / "adam")["optimizer"]["optimizer"]["state"]
    moments = [s[name] for s in state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert moments and {m.dtype for m in moments} == {torch.float32}


def take_step(digits, objective, **kwargs):
    """Take a compiled step in bfloat16, and return the reasons why it was not compiled."""
    vae = make_vae()
    optim = FusedOptimizer(ADAM)
    compiled = CompiledSVI(vae.model, vae.guide, optim, objective, precision="bfloat16", **kwargs)
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        compiled.step(digits.train.head(50).materialize(0))
    return compiled.reasons


@pytest.mark.parametrize("objective", [objectives.ELBO, partial(objectives.IWAE, 5)])
def test_compiled_steps_round_as_eager_ones(objective, digits, uncompiled, monkeypatch):
    monkeypatch.setattr(svi, "_TOLERANCE", 1e-5)
    monkeypatch.setattr(svi, "_ROUNDING_TOLERANCE", 0.7)
    assert take_step(digits, objective()) == []


def test_steps_are_compiled(digits, caplog):
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        compiled = fit(make_vae(8), digits, precision="bfloat16", compile=True)
    eager = fit(make_vae(8), digits, precision="bfloat16", compile=False)
    exact = fit(make_vae(8), digits, compile=False)
    assert "eagerly" not in caplog.text and compiled.epochs[0]["compile_seconds"] > 0
    error = abs(compiled["elbo"][0] - eager["elbo"][0])
    assert error < 0.3 * abs(exact["elbo"][0] - eager["elbo"][0])


def _scale(factor):
    """Compiler whose graph returns one gradient, the second output, times a factor."""

    def compile_graph(graph, inputs):
        def run(*args):
            loss, gradient, *more = graph(*args)
            return (loss, factor * gradient, *more)

        return run

    return compile_graph


@pytest.mark.parametrize("factor", [1.03, 0.0, float("nan")])
def test_wrong_gradients_are_found_beside_rounding(factor, digits, monkeypatch):
    monkeypatch.setattr(svi, "compile_graph", _scale(factor))
    expected = ["the compiled gradient differs from the eager gradient"]
    assert take_step(digits, objectives.ELBO()) == expected


def test_resuming_needs_the_same_precision(digits, tmp_path):
    path, whole = tmp_path / "state.pt", make_vae()
    fit(whole, digits, epochs=2, precision="bfloat16")
    fit(make_vae(), digits, precision="bfloat16", checkpoint=path)
    with pytest.raises(CheckpointError, match="belongs to a fit with another precision"):
        fit(make_vae(), digits, epochs=2, checkpoint=path, resume=True)
    resumed = make_vae()
    fit(resumed, digits, epochs=2, precision="bfloat16", checkpoint=path, resume=True)
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_checkpoints_without_a_precision_are_float32(digits, tmp_path):
    path = tmp_path / "state.pt"
    fit(make_vae(), digits, checkpoint=path)
    state = checkpoint.load_checkpoint(path)
    del state["settings"]["precision"], state["format"]
    checkpoint.save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="another precision"):
        fit(make_vae(), digits, epochs=2, checkpoint=path, resume=True, precision="bfloat16")
    assert len(fit(make_vae(), digits, epochs=2, checkpoint=path, resume=True)) == 2


def test_precisions_that_cannot_be_used_raise(digits):
    message = "expected precision to be float32, bfloat16, tf32; got 'half'"
    with pytest.raises(ValueError, match=message):
        fit(make_vae(), digits, precision="half")
    message = "expected a program in float32 with precision bfloat16; got one in float64: convert"
    with pytest.raises(ValueError, match=message):
        fit(make_vae().double(), digits, precision="bfloat16")
    message = "expected a GPU with TF32 .* with precision tf32; got the device cpu: use bfloat16 or"
    with pytest.raises(ValueError, match=message):
        fit(make_vae(), digits, precision="tf32", device="cpu")


def test_context_ends_with_the_step(digits):
    """Neither an epoch nor an error in it leaves layers rounded."""
    layer, x = nn.Linear(9, 9), torch.randn(5, 9)
    before = layer(x)
    fit(make_vae(), digits, precision="bfloat16")
    assert torch.equal(layer(x), before)
    with layer_precision("bfloat16"):
        assert not torch.equal(layer(x), before)
    assert torch.equal(layer(x), before)
