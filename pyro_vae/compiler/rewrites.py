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
    """Interpreter of a graph of ATen operations that replaces two of them.

    - The bias of a layer is added after the product, so that the sum can be fused with the next
      operation. It is written as subtraction of the negative, because TorchInductor would turn a
      sum into ``addmm`` again.
    - The tanh of float32 numbers on a CPU is a rational function, which takes a quarter of the time
      of the function that TorchInductor calls.
    """

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten.addmm.default and not kwargs and args[0].ndim == 1:
            bias, a, b = args
            return torch.mm(a, b) - (-bias)
        if target is torch.ops.aten.tanh.default:
            (x,) = args
            if x.dtype is torch.float32 and x.device.type == "cpu":
                return _tanh(x)
        return super().call_function(target, args, kwargs)


#: Coefficients of tanh x ≈ x P(x²) / Q(x²) in float32, of the highest power first, and the |x| from
#: which it is 1 after rounding. Source: Eigen, ``generic_fast_tanh_float``.
_NUMERATOR = (
    *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11),
    *(5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
)
_DENOMINATOR = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)
_SATURATED = 7.90531110763549805


def _tanh(x: Tensor) -> Tensor:
    """Return tanh x with an error of a few units in the last place."""
    x = x.clamp(-_SATURATED, _SATURATED)
    square = x * x
    return x * _evaluate_polynomial(_NUMERATOR, square) / _evaluate_polynomial(_DENOMINATOR, square)


def _evaluate_polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    first, second, *others = coefficients
    value = first * x + second
    for coefficient in others:
        value = value * x + coefficient
    return value
