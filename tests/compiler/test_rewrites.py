"""Formulas that replace operations of a graph."""

from __future__ import annotations

import math

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.compiler.rewrites import rewrite_formulas


def test_tanh_is_accurate_to_a_few_units_in_the_last_place():
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-30, 0, 10_001)])
    graph = rewrite_formulas(make_fx(torch.tanh)(x), [x])
    assert torch.ops.aten.tanh.default not in {node.target for node in graph.graph.nodes}
    expected = torch.tanh(x.double())
    error = (graph(x).double() - expected).abs()
    # 4 units in the last place of 1, and 8 of a smaller value
    assert error.max() < 4 * 2**-23
    assert (error <= 8 * 2**-23 * expected.abs()).all()
    assert (graph(x).abs() <= 1).all()
    ends = torch.tensor([math.inf, -math.inf, 0.0, -0.0, math.nan])
    torch.testing.assert_close(graph(ends), torch.tanh(ends), equal_nan=True)


def test_tanh_of_float64_is_unchanged():
    x = torch.zeros(3, dtype=torch.float64)
    graph = rewrite_formulas(make_fx(torch.tanh)(x), [x])
    assert torch.ops.aten.tanh.default in {node.target for node in graph.graph.nodes}
