"""Random streams: each member of ``Stream`` has one use."""

from __future__ import annotations

import ast
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyro
import torch

from pyro_vae.core.random import Stream, seeded

PACKAGE = Path(__file__).parents[2] / "pyro_vae"


def uses() -> Counter[str]:
    """Number of places in the package that name each stream."""
    found: Counter[str] = Counter()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "Stream":
                found[node.attr] += 1
    return found


def test_every_stream_has_one_use():
    assert uses() == {stream.name: 1 for stream in Stream}


def test_streams_differ():
    draws = []
    for stream in Stream:
        with seeded(0, stream):
            draws.append(float(torch.rand(())))
    assert len(set(draws)) == len(Stream)


def test_all_generators_are_seeded_and_restored():
    def draw():
        return float(torch.rand(())), random.random(), float(np.random.rand())

    seed = int(np.random.SeedSequence([3, Stream.AIS]).generate_state(1)[0])
    pyro.set_rng_seed(seed)
    expected = draw()
    pyro.set_rng_seed(1)
    before = draw()
    pyro.set_rng_seed(1)
    with seeded(3, Stream.AIS):
        assert draw() == expected
    assert draw() == before


def test_seeds_are_registered():
    """No seed is combined with an unregistered number, except the sizes of data sets."""
    unregistered = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "seeded":
                continue
            if any(isinstance(arg, ast.Constant) for arg in node.args[1:]):
                unregistered.append(f"{file.name}")
    assert unregistered == []
