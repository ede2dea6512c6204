"""Rewrite graph operations into formulas that are faster when fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["FormulaRewriter", "rewrite_formulas"]


@torch.no_grad()
def rewrite_formulas(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Return an equivalent graph of ATen operations with faster formulas.

    Arguments:
        graph: the graph.
        inputs: example inputs.

    See :class:`FormulaRewriter` for the formulas.
    """
    return make_fx(FormulaRewriter(graph).run, tracing_mode="fake")(*inputs)


class FormulaRewriter(Interpreter):
    """Interpreter of a graph of ATen operations that adds the bias of a layer after the product.

    The sum can then be fused with the next operation. It is written as subtraction of the
    negative, because TorchInductor would turn a sum into ``addmm`` again.
    """

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten.addmm.default and not kwargs and args[0].ndim == 1:
            bias, a, b = args
            return torch.mm(a, b) - (-bias)
        return super().call_function(target, args, kwargs)
