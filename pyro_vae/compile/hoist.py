"""A graph in two: what no draw reaches, to be done once, and the rest, to be done for each draw."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from .rewrites import FormulaRewriter

__all__ = ["hoist_invariants"]

_aten = torch.ops.aten
#: What makes a constant, in the shape of a tensor whose numbers it does not read.
_CONSTANTS = (
    _aten.empty_like.default,
    _aten.full_like.default,
    _aten.ones_like.default,
    _aten.zeros_like.default,
)


@torch.no_grad()
def hoist_invariants(
    graph: GraphModule, inputs: Sequence[Tensor], changing: int = 0
) -> tuple[GraphModule, GraphModule]:
    """Takes out of a graph what is the same at every call on the same inputs.

    An encoder's outputs, the components of a prior, the casts of weights: whatever is computed
    from the inputs without a random number. Not taken out is what costs nothing where it is, and
    memory where it is kept: constants, and numbers repeated for every draw.

    Arguments:
        graph: of :func:`~pyro_vae.compile.trace.trace_graph`. One that changes its inputs stays whole.
        inputs: what it is called with.
        changing: how many of them, the first, are new at every call: nothing of them is settled.

    Returns:
        ``once``, of the inputs, giving a tuple of tensors; and ``each``, of the inputs and then
        those tensors, giving what the graph gives, by the same random operations in the same
        order. Some of the others are done by formulas that are faster when they are fused.
    """
    functional = torch.func.functionalize(FormulaRewriter(graph).run)
    with torch.random.fork_rng():
        graph = make_fx(functional, tracing_mode="fake")(*inputs)
    _repeat_late(graph.graph)
    nodes = list(graph.graph.nodes)
    given = [n for n in nodes if n.op == "placeholder"]
    settled = set[Node]() if any(map(_changes, nodes)) else _settled(nodes, given[:changing])
    settled |= _row_by_row(graph.graph, settled)
    nodes = list(graph.graph.nodes)
    kept = [n for n in nodes if n in settled and any(user not in settled for user in n.users)]
    once, each = Graph(), Graph()
    known = {node: once.placeholder(node.name) for node in given}
    _copied(once, (node for node in nodes if node in settled), known)
    once.output(tuple(known[node] for node in kept))
    known = {}
    for node in (*given, *kept):
        known[node] = each.placeholder(node.name)
        known[node].meta = node.meta
    _copied(each, (node for node in nodes if node not in settled and node not in known), known)
    return GraphModule(graph, once), GraphModule(graph, each)


def _repeat_late(graph: Graph) -> None:
    """Makes f(x repeated) to f(x) repeated: a logarithm of what all draws share is taken once."""
    if any(node.target is _aten.as_strided.default for node in graph.nodes):
        return  # which reads a memory layout that is another now
    for node in graph.find_nodes(op="call_function", target=_aten.view.default):
        node.target = _aten.reshape.default
    for node in list(graph.nodes):
        if _draws(node) or not _pointwise(node) or len(node.all_input_nodes) != 1:
            continue
        if node.target is _aten.clone.default:
            continue  # it is there for the layout
        (repeated,) = node.all_input_nodes
        source = repeated
        while source.target is _aten.expand.default:
            source = source.args[0]
        if _numel(source) < _numel(repeated):
            value = node.meta["val"]
            with graph.inserting_before(node):
                first = graph.node_copy(node, lambda _, source=source: source)
                late = graph.call_function(_aten.expand.default, (first, [*value.shape]))
            first.meta = {"val": value.new_empty(source.meta["val"].shape)}
            late.meta = {"val": value}
            node.replace_all_uses_with(late)
            graph.erase_node(node)


def _row_by_row(graph: Graph, settled: set[Node]) -> set[Node]:
    """Lays out settled right factors of products, as Wᵀ of x Wᵀ; gives the nodes that do so.

    On a CPU a product otherwise brings its factor into that order at every call.
    """
    copies = set[Node]()
    for node in graph.find_nodes(op="call_function", target=_aten.mm.default):
        right: Any = node.args[1]
        value = right.meta["val"]
        if node in settled or right not in settled or value.is_cuda or value.is_contiguous():
            continue
        options: Any = {"memory_format": torch.contiguous_format}
        with graph.inserting_before(node):
            copy = graph.call_function(_aten.clone.default, (right,), options)
        copy.meta = {"val": value.new_empty(value.shape)}
        node.replace_input_with(right, copy)
        copies.add(copy)
    return copies


def _copied(graph: Graph, nodes: Iterable[Node], known: dict[Node, Node]) -> None:
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)


def _settled(nodes: list[Node], changing: list[Node]) -> set[Node]:
    """What to do once."""
    drawn = set(changing)
    for node in nodes:
        if node.op == "output" or _draws(node) or any(n in drawn for n in node.all_input_nodes):
            drawn.add(node)
    same = [node for node in nodes if node not in drawn and node.op != "placeholder"]
    needed: set[Node] = set()
    for node in reversed(same):
        if not _cheap(node) or any(user in needed for user in node.users):
            needed.add(node)
    settled: set[Node] = set()
    for node in same:
        inputs = node.all_input_nodes
        ready = all(n.op == "placeholder" or n in settled for n in inputs)
        # a number repeated for every draw would only be read from memory instead
        grows = _numel(node) > max(map(_numel, inputs), default=0)
        if node in needed or (ready and not grows):
            settled.add(node)
    return settled


def _changes(node: Node) -> bool:
    """Whether a node changes a tensor in place."""
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _draws(node: Node) -> bool:
    """Whether a node draws random numbers, or may."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op not in ("placeholder", "call_function")
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # a function of functions, which may hold anything
    return torch.Tag.nondeterministic_seeded in node.target.tags


def _cheap(node: Node) -> bool:
    """Whether a node makes a constant, looks at a tensor, or is done number by number."""
    target: Any = node.target
    if target is operator.getitem or target in _CONSTANTS or not node.all_input_nodes:
        return True
    return target.is_view or _pointwise(node)


def _pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _numel(node: Node) -> int:
    """The numbers in a node's tensor, or in the largest of several."""
    value = node.meta.get("val")
    several = value if isinstance(value, list | tuple) else [value]
    return max((v.numel() for v in several if isinstance(v, Tensor)), default=0)
