"""Long computations in blocks: resumed to the same bits, and never from another's checkpoint."""

from __future__ import annotations

import functools
import os

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import LinearGaussian

from pyro_vae.evaluation.resumable import fingerprint, in_blocks

X = torch.arange(11.0).reshape(11, 1)


class Count:
    """Columns of a block, which is killed at a given start."""

    def __init__(self, killed_at=None):
        self.starts, self.killed_at = [], killed_at

    def __call__(self, rows, advance):
        if rows.start == self.killed_at:
            raise KeyboardInterrupt
        self.starts.append(rows.start)
        advance(0.5)
        x = X[rows]
        return {"noise": torch.randn(len(x), 2), "x": x[:, 0].double()}


def test_the_blocks_are_joined_in_order_and_do_not_depend_on_each_other(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = in_blocks(Count(), 11, block=4, entropy=(1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(whole["x"], np.arange(11.0))
    assert whole["noise"].shape == (11, 2) and len(np.unique(whole["noise"])) == 22
    part = in_blocks(Count(), 8, block=4, entropy=(1, 2))
    np.testing.assert_array_equal(part["noise"], whole["noise"][:8])
    other = in_blocks(Count(), 11, block=4, entropy=(1, 3))
    assert not np.isin(other["noise"], whole["noise"]).any()


def test_a_killed_computation_goes_on_to_the_same_bits(tmp_path):
    file = tmp_path / "deep" / "a.ckpt"
    arguments = {"block": 4, "entropy": (0,), "checkpoint": file, "key": "k"}
    whole = in_blocks(Count(), 11, block=4, entropy=(0,))
    with pytest.raises(KeyboardInterrupt):
        in_blocks(Count(killed_at=8), 11, **arguments)
    again = Count()
    resumed = in_blocks(again, 11, **arguments)
    assert again.starts == [8]
    assert whole.keys() == resumed.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values)
        assert resumed[name].dtype == values.dtype
    # what is finished is not computed again, and nothing else is left in the folder
    third = Count()
    np.testing.assert_array_equal(in_blocks(third, 11, **arguments)["noise"], whole["noise"])
    assert third.starts == [] and os.listdir(file.parent) == ["a.ckpt"]


@pytest.mark.parametrize(
    "changed", [{"key": "other"}, {"block": 5}, {"entropy": (1,)}, {"size": 12}]
)
def test_the_checkpoint_of_something_else_is_refused(changed, tmp_path):
    file = tmp_path / "a.npz"
    arguments = {"size": 11, "block": 4, "entropy": (0,), "checkpoint": file, "key": "k"}
    in_blocks(Count(), **arguments)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="it is of one with other settings, data or weights"):
        in_blocks(Count(), **arguments | changed)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"what is this", None])
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, x=np.zeros(3))
    file.write_bytes(file.read_bytes()[:100] if content is None else content)
    with pytest.raises(ValueError, match="cannot be read as one: remove it"):
        in_blocks(Count(), 11, block=4, entropy=(0,), checkpoint=file)


def test_the_bar_moves_within_a_block(capsys):
    seen = []

    def compute(rows, advance):
        for _ in range(4):
            advance(0.25)
        seen.append(rows)
        return {"x": X[rows]}

    in_blocks(compute, 11, block=4, entropy=(0,), progress=True, desc="gaps")
    err = capsys.readouterr().err
    assert "gaps: 100%" in err and len(seen) == 3
    in_blocks(compute, 11, block=4, entropy=(0,))
    assert capsys.readouterr().err == ""


def test_a_fingerprint_is_of_all_that_decides():
    one, same, other = LinearGaussian(2), LinearGaussian(2), LinearGaussian(2, shift=0.1)
    assert fingerprint(one.model) == fingerprint(same.model) != fingerprint(other.model)
    assert fingerprint(one.model) != fingerprint(one.guide)
    same.eval()
    assert fingerprint(one.guide) == fingerprint(same.guide)
    linear = torch.nn.Linear(2, 2)
    before = fingerprint(linear)
    with torch.no_grad():
        linear.weight += 1e-6
    assert fingerprint(linear) != before
    bound = [fingerprint(functools.partial(pow, exp=n)) for n in (1, 2)]
    assert bound[0] != bound[1]
    assert fingerprint(X) != fingerprint(X[:, 0]) != fingerprint(X[:, 0].double())
    assert fingerprint(1.0, [2, "a"]) == fingerprint(1.0, (2, "a")) != fingerprint(1.0, [2], "a")
    assert fingerprint(1.0) != fingerprint(1.0 + 1e-15)


def test_a_fingerprint_knows_the_parameter_store():
    def model(x):
        return pyro.param("a", torch.zeros(()))

    before = fingerprint(model)
    model(X)
    with_zero = fingerprint(model)
    with torch.no_grad():
        pyro.param("a").fill_(1.0)
    assert len({before, with_zero, fingerprint(model)}) == 3


def test_a_fingerprint_knows_what_a_function_is_made_of(monkeypatch):
    def made(width, net):
        def helped(z):
            return net(z) * width

        def model(x):
            return helped(x)

        return model

    torch.manual_seed(0)
    one, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    known = fingerprint(made(1.0, one))
    assert fingerprint(made(1.0, one)) == known
    assert len({known, fingerprint(made(2.0, one)), fingerprint(made(1.0, other))}) == 3
    assert fingerprint(lambda x: x + 1.0) != fingerprint(lambda x: x + 2.0)
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x - 1)
    known = fingerprint(of_the_file)
    monkeypatch.setitem(globals(), "SCALES", [2.0])
    assert fingerprint(of_the_file) != known


SCALES = [1.0]


def of_the_file(x):
    return x * SCALES[0] if len(x) < 2 else of_the_file(x[:1])


def test_a_fingerprint_knows_what_an_object_holds():
    class Program:
        def __init__(self, scale):
            self.scale, self.itself = scale, self.model

        def model(self, x):
            return x * self.scale

    known = fingerprint(Program(1.0).model)
    assert fingerprint(Program(1.0).model) == known != fingerprint(Program(2.0).model)
