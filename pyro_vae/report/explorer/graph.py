"""Graphs of tensor operations that a page runs in JavaScript.

A function of tensors is traced into ATen operations, and composite ones are decomposed. What does
not depend on the arguments is computed here and becomes a constant. ``graph.js`` has the rest:
:data:`OPERATIONS`.
"""

from __future__ import annotations

import base64
import math
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.func import functionalize

from ...compiler.trace import NotTraceableError, trace_graph

__all__ = ["OPERATIONS", "Tensors", "UnsupportedOperationError", "make_graph"]


def _read_operations() -> frozenset[str]:
    script = Path(__file__).with_name("graph.js").read_text(encoding="utf-8")
    table = script.partition("const OPERATIONS = {\n")[2].partition("\n};")[0]
    return frozenset(re.findall(r"^  (\w+)[:,(]", table, re.MULTILINE))


#: The operations of ``graph.js``.
OPERATIONS = _read_operations()
#: Names of ATen for operations that are the same in the page.
_ALIASES = {
    **dict.fromkeys(("alias", "detach", "lift_fresh_copy", "contiguous"), "clone"),
    **dict.fromkeys(("_unsafe_view", "reshape"), "view"),
    "_softmax": "softmax",
    "_to_copy": "to_copy",
    "_standard_gamma": "standard_gamma",
    "_sample_dirichlet": "sample_dirichlet",
    "rand_like": "rand",
    "randn_like": "randn",
}
#: Results of these depend on the shape of their argument alone.
_CONSTANT = frozenset({"empty_like", "full_like", "ones_like", "zeros_like"})
_aten: Any = torch.ops.aten
#: Composite operations of networks, in addition to those that are not core operations of ATen.
_DECOMPOSED = (
    *("_log_softmax", "addcmul", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log_sigmoid_forward", "logsumexp", "mish", "native_batch_norm"),
    *("native_dropout", "native_layer_norm", "pixel_shuffle", "prelu", "rsub", "silu"),
    *("softplus", "softshrink", "square", "stack", "threshold", "unbind"),
)
#: Operations of the page whose parts are not.
_KEPT = ("upsample_nearest2d", "native_group_norm")


class UnsupportedOperationError(ValueError):
    """Raised for a function with an operation that a page cannot run."""


class Tensors:
    """A pool of float32 tensors, equal ones stored once, as base64 of little-endian numbers."""

    def __init__(self) -> None:
        self._parts: dict[bytes, int] = {}
        self._size = 0

    def add(self, tensor: Tensor) -> dict[str, Any]:
        """Return the place of a tensor: the ``offset`` of its numbers, and its ``shape``."""
        array = tensor.detach().cpu().to(torch.float32).contiguous().numpy()
        content = array.astype("<f4").tobytes()
        if content not in self._parts:
            self._parts[content] = self._size
            self._size += array.size
        return {"offset": self._parts[content], "shape": list(tensor.shape)}

    def encode(self) -> str:
        """Return all numbers, one after the other."""
        return base64.b64encode(b"".join(self._parts)).decode()


def make_graph(
    function: Callable[..., Tensor], *args: Tensor, tensors: Tensors
) -> list[dict[str, Any]]:
    """Trace ``function(*args)`` into the nodes of a graph, whose last is the result.

    Arguments:
        function: maps tensors to one tensor. Shapes are fixed to those of this call.
        *args: example arguments.
        tensors: the pool that receives the constants.

    Returns:
        Nodes as JSON values. The first are the arguments, ``{"op": "input"}``; a constant has the
        ``offset`` of its values; any other has its ``op``, its ``shape``, the ``kind`` of its
        values (``f``, ``i`` or ``b``) and ``args``, in which ``{"node": i}`` is the i-th node.

    Raises:
        UnsupportedOperationError: if the page lacks an operation of the function, or if the
            function cannot be traced, because its control flow depends on values.
    """
    composite = get_decompositions([getattr(torch.ops.aten, name) for name in _DECOMPOSED])
    table = {
        op: f
        for op, f in {**core_aten_decompositions(), **composite}.items()
        if str(op).split(".")[1] not in _KEPT
    }
    try:
        graph, closure = trace_graph(lambda *inputs: (function(*inputs),), *args)
        # in two steps: a program cannot be run under a functional transform
        pure = functionalize(graph, remove="mutations")
        graph, _ = trace_graph(pure, *args, *closure, decompositions=table)
    except NotTraceableError as error:
        raise UnsupportedOperationError(f"control flow that depends on values ({error})") from error
    return _Lowering(graph, [*args], closure, tensors).nodes


class _Lowering:
    """Computes the constants of a graph and turns the other operations into JSON values."""

    def __init__(
        self, graph: fx.GraphModule, args: list[Tensor], closure: list[Tensor], tensors: Tensors
    ) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._tensors = tensors
        self._index: dict[fx.Node, int] = {}
        self._known: dict[fx.Node, Any] = {}
        *nodes, output = graph.graph.nodes
        placeholders = [node for node in nodes if node.op == "placeholder"]
        for node, tensor in zip(placeholders, [*args, *closure], strict=True):
            if len(self.nodes) < len(args):
                self._append(node, {"op": "input", **self._describe(tensor)})
            else:
                self._known[node] = tensor
        (result,) = output.args[0]
        for node in _needed(result):
            if node.op != "placeholder":
                self._lower(node)
        self._place(result)
        if self._index[result] != len(self.nodes) - 1:
            self._append(result, {**self._call("clone", [result]), **self._describe(result)})

    def _lower(self, node: fx.Node) -> None:
        name, target = _name(node), node.target
        is_known = all(argument in self._known for argument in node.all_input_nodes)
        is_random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
        if name in _CONSTANT or (is_known and not is_random):
            arguments = fx.map_arg((node.args, node.kwargs), self._constant)
            assert callable(target)
            self._known[node] = target(*arguments[0], **arguments[1])  # type: ignore[index]
            return
        if name not in OPERATIONS or not _is_supported(name, node):
            raise UnsupportedOperationError(f"the operation {name}")
        self._append(node, {**self._call(name, _positional(node)), **self._describe(node)})

    def _constant(self, node: fx.Node) -> Any:
        # of an operation whose result does not depend on the values
        return self._known[node] if node in self._known else torch.zeros(node.meta["val"].shape)

    def _call(self, name: str, args: list[Any]) -> dict[str, Any]:
        return {"op": name, "args": [self._argument(value) for value in args]}

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"node": self._place(value)}
        if isinstance(value, list | tuple):
            return [self._argument(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}
        return value if isinstance(value, bool | int | float | str) else None

    def _place(self, node: fx.Node) -> int:
        if node not in self._index:
            value = self._known[node]
            if not isinstance(value, Tensor):
                raise UnsupportedOperationError(f"a constant of {type(value).__name__}")
            entry = {**self._tensors.add(value), "op": "constant", "kind": _kind(value)}
            self._append(node, entry)
        return self._index[node]

    def _append(self, node: fx.Node, entry: dict[str, Any]) -> None:
        self._index[node] = len(self.nodes)
        self.nodes.append(entry)

    @staticmethod
    def _describe(value: fx.Node | Tensor) -> dict[str, Any]:
        result = value.meta["val"] if isinstance(value, fx.Node) else value
        if not isinstance(result, Tensor):  # several results, of which getitem takes one
            return {}
        return {"shape": list(result.shape), "kind": _kind(result)}


def _needed(result: fx.Node) -> list[fx.Node]:
    """Return the nodes that a result depends on, in order."""
    needed, queue = set[fx.Node](), [result]
    while queue:
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue += node.all_input_nodes
    return [node for node in result.graph.nodes if node in needed]


def _name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    packet = getattr(node.target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else str(node.target)
    return _ALIASES.get(name, name)


def _positional(node: fx.Node) -> list[Any]:
    """Return the arguments of a node in the order of its schema, with defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(node.args)
    values: Mapping[str, Any] = node.kwargs
    return [
        node.args[i] if i < len(node.args) else values.get(a.name, a.default_value)
        for i, a in enumerate(schema.arguments)
    ]


def _is_supported(name: str, node: fx.Node) -> bool:
    """Whether the page runs an operation with these arguments."""
    if name == "index_put":  # only as x[mask] = number
        x, indices, values = (argument for argument in node.args[:3])
        (index, *more) = indices  # type: ignore[misc]
        mask, value = index.meta["val"], values.meta["val"]  # type: ignore[union-attr]
        same = mask.shape == x.meta["val"].shape  # type: ignore[union-attr]
        return not more and mask.dtype == torch.bool and same and value.numel() == 1
    if name == "convolution":
        return len(node.meta["val"].shape) == 4
    if name == "multinomial":
        _, count, with_replacement, *_ = _positional(node)
        return count == 1 or bool(with_replacement)
    return True


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "b"
    return "f" if tensor.is_floating_point() else "i"
