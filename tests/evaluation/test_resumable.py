"""Tests of block-wise computations with checkpoints, and of fingerprints."""

from __future__ import annotations

import functools
import io
import os
import zipfile

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import LinearGaussian

from pyro_vae.evaluation.resumable import compute_fingerprint, compute_in_blocks

X = torch.arange(11.0).reshape(11, 1)


class RecordingCompute:
    """Computes columns of a block; interrupted at a given start."""

    def __init__(self, interrupt_at=None):
        self.starts, self.interrupt_at = [], interrupt_at

    def __call__(self, rows, advance):
        if rows.start == self.interrupt_at:
            raise KeyboardInterrupt
        self.starts.append(rows.start)
        advance(0.5)
        x = X[rows]
        return {"noise": torch.randn(len(x), 2), "x": x[:, 0].double()}


def test_blocks_are_concatenated_and_independent(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = compute_in_blocks(RecordingCompute(), 11, block=4, entropy=(1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(whole["x"], np.arange(11.0))
    assert whole["noise"].shape == (11, 2) and len(np.unique(whole["noise"])) == 22
    shorter = compute_in_blocks(RecordingCompute(), 8, block=4, entropy=(1, 2))
    np.testing.assert_array_equal(shorter["noise"], whole["noise"][:8])
    other = compute_in_blocks(RecordingCompute(), 11, block=4, entropy=(1, 3))
    assert not np.isin(other["noise"], whole["noise"]).any()


def test_interrupted_computation_resumes_to_same_bits(tmp_path):
    file = tmp_path / "deep" / "a.ckpt"
    arguments = {"block": 4, "entropy": (0,), "checkpoint": file, "key": ("k",)}
    whole = compute_in_blocks(RecordingCompute(), 11, block=4, entropy=(0,))
    with pytest.raises(KeyboardInterrupt):
        compute_in_blocks(RecordingCompute(interrupt_at=8), 11, **arguments)
    second = RecordingCompute()
    resumed = compute_in_blocks(second, 11, **arguments)
    assert second.starts == [8]
    assert whole.keys() == resumed.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values)
        assert resumed[name].dtype == values.dtype
    # finished blocks are not recomputed, and the folder has no other files
    third = RecordingCompute()
    np.testing.assert_array_equal(
        compute_in_blocks(third, 11, **arguments)["noise"], whole["noise"]
    )
    assert third.starts == [] and os.listdir(file.parent) == ["a.ckpt"]


@pytest.mark.parametrize(
    "changed", [{"key": ("other",)}, {"block": 5}, {"entropy": (1,)}, {"size": 12}]
)
def test_checkpoint_of_another_computation_raises(changed, tmp_path):
    file = tmp_path / "a.npz"
    arguments = {"size": 11, "block": 4, "entropy": (0,), "checkpoint": file, "key": ("k",)}
    compute_in_blocks(RecordingCompute(), **arguments)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="got one with other settings, data or weights"):
        compute_in_blocks(RecordingCompute(), **arguments | changed)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_unreadable_checkpoint_raises(content, tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, x=np.zeros(3))
    file.write_bytes(file.read_bytes()[:100] if content is None else content)
    with pytest.raises(ValueError, match="got a file that cannot be read: delete it"):
        compute_in_blocks(RecordingCompute(), 11, block=4, entropy=(0,), checkpoint=file)


@pytest.mark.parametrize("kind", ["compressed", "object", "claimed"])
def test_hostile_checkpoint_raises_before_it_is_expanded(kind, tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    if kind == "compressed":
        np.savez_compressed(file, x=np.zeros(10**7))
        assert file.stat().st_size < 10**5
        monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("expanded"))
    elif kind == "object":
        np.savez(file, x=np.array([{1, 2}], dtype=object))
    else:
        header = io.BytesIO()
        claim = {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
        np.lib.format.write_array_header_1_0(header, claim)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", header.getvalue() + b"few values")
    with pytest.raises(ValueError, match="got a file that cannot be read: delete it"):
        compute_in_blocks(RecordingCompute(), 11, block=4, entropy=(0,), checkpoint=file)


def test_progress_bar_advances_within_a_block(capsys):
    blocks = []

    def compute(rows, advance):
        for _ in range(4):
            advance(0.25)
        blocks.append(rows)
        return {"x": X[rows]}

    compute_in_blocks(compute, 11, block=4, entropy=(0,), progress=True, desc="gaps")
    err = capsys.readouterr().err
    assert "gaps: 100%" in err and len(blocks) == 3
    compute_in_blocks(compute, 11, block=4, entropy=(0,))
    assert capsys.readouterr().err == ""


def test_fingerprint_depends_on_weights_and_values():
    first, same, other = LinearGaussian(2), LinearGaussian(2), LinearGaussian(2, shift=0.1)
    assert (
        compute_fingerprint(first.model)
        == compute_fingerprint(same.model)
        != compute_fingerprint(other.model)
    )
    assert compute_fingerprint(first.model) != compute_fingerprint(first.guide)
    same.eval()
    assert compute_fingerprint(first.guide) == compute_fingerprint(same.guide)
    linear = torch.nn.Linear(2, 2)
    before = compute_fingerprint(linear)
    with torch.no_grad():
        linear.weight += 1e-6
    assert compute_fingerprint(linear) != before
    partials = [compute_fingerprint(functools.partial(pow, exp=n)) for n in (1, 2)]
    assert partials[0] != partials[1]
    assert (
        compute_fingerprint(X)
        != compute_fingerprint(X[:, 0])
        != compute_fingerprint(X[:, 0].double())
    )
    assert (
        compute_fingerprint(1.0, [2, "a"])
        == compute_fingerprint(1.0, (2, "a"))
        != compute_fingerprint(1.0, [2], "a")
    )
    assert compute_fingerprint(1.0) != compute_fingerprint(1.0 + 1e-15)


def test_fingerprint_depends_on_parameter_store():
    def model(x):
        return pyro.param("a", torch.zeros(()))

    before = compute_fingerprint(model)
    model(X)
    with_zero = compute_fingerprint(model)
    with torch.no_grad():
        pyro.param("a").fill_(1.0)
    assert len({before, with_zero, compute_fingerprint(model)}) == 3


def test_fingerprint_depends_on_code_and_closures(monkeypatch):
    def make_model(width, net):
        def helper(z):
            return net(z) * width

        def model(x):
            return helper(x)

        return model

    torch.manual_seed(0)
    first, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    reference = compute_fingerprint(make_model(1.0, first))
    assert compute_fingerprint(make_model(1.0, first)) == reference
    assert (
        len(
            {
                reference,
                compute_fingerprint(make_model(2.0, first)),
                compute_fingerprint(make_model(1.0, other)),
            }
        )
        == 3
    )
    assert compute_fingerprint(lambda x: x + 1.0) != compute_fingerprint(lambda x: x + 2.0)
    assert compute_fingerprint(lambda x: x + 1) != compute_fingerprint(lambda x: x - 1)
    reference = compute_fingerprint(scaled_by_global)
    monkeypatch.setitem(globals(), "SCALES", [2.0])
    assert compute_fingerprint(scaled_by_global) != reference


SCALES = [1.0]


def scaled_by_global(x):
    return x * SCALES[0] if len(x) < 2 else scaled_by_global(x[:1])


def test_fingerprint_depends_on_attributes_of_object():
    class Program:
        def __init__(self, scale):
            self.scale, self.own_method = scale, self.model

        def model(self, x):
            return x * self.scale

    reference = compute_fingerprint(Program(1.0).model)
    assert (
        compute_fingerprint(Program(1.0).model)
        == reference
        != compute_fingerprint(Program(2.0).model)
    )
