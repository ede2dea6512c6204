"""Hoist work that does not depend on the samples (e.g. the encoder) out of a graph."""

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
#: Operations that create a constant with the shape of their input.
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
    """Split a graph into a part that runs once and a part that runs for each sample.

    Hoists everything that depends on the inputs but not on random numbers: an encoder's outputs,
    the components of a prior, casts of weights. Constants and expanded tensors are not hoisted,
    as they are cheap to recompute but cost memory to store.

    Arguments:
        graph: a graph of :func:`~pyro_vae.compiler.trace.trace_graph`. If it changes its inputs in
            place, nothing is hoisted.
        inputs: example inputs.
        changing: number of leading inputs that differ between calls: work that depends on them
            is not hoisted.

    Returns:
        ``once``, which maps the inputs to a tuple of tensors; and ``each``, which maps the inputs
        followed by those tensors to the outputs of the graph. Random operations keep their order;
        others may be replaced by the formulas of :class:`~.rewrites.FormulaRewriter`.
    """
    functional = torch.func.functionalize(FormulaRewriter(graph).run)
    with torch.random.fork_rng():
        graph = make_fx(functional, tracing_mode="fake")(*inputs)
    nodes = list(graph.graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    changed = placeholders[:changing]
    hoisted = set[Node]() if any(map(_is_mutating, nodes)) else _find_hoistable(nodes, changed)
    outputs = [n for n in nodes if n in hoisted and any(user not in hoisted for user in n.users)]
    once, each = Graph(), Graph()
    copies = {node: once.placeholder(node.name) for node in placeholders}
    _copy_nodes(once, (node for node in nodes if node in hoisted), copies)
    once.output(tuple(copies[node] for node in outputs))
    copies = {}
    for node in (*placeholders, *outputs):
        copies[node] = each.placeholder(node.name)
        copies[node].meta = node.meta
    _copy_nodes(
        each, (node for node in nodes if node not in hoisted and node not in copies), copies
    )
    return GraphModule(graph, once), GraphModule(graph, each)


def _copy_nodes(graph: Graph, nodes: Iterable[Node], copies: dict[Node, Node]) -> None:
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)


def _find_hoistable(nodes: list[Node], changing: list[Node]) -> set[Node]:
    """Nodes to compute once: neither random nor dependent on changing inputs, and worth storing."""
    variant = set(changing)
    for node in nodes:
        random = node.op == "output" or _is_random(node)
        if random or any(n in variant for n in node.all_input_nodes):
            variant.add(node)
    invariant = [node for node in nodes if node not in variant and node.op != "placeholder"]
    needed: set[Node] = set()
    for node in reversed(invariant):
        if not _is_cheap(node) or any(user in needed for user in node.users):
            needed.add(node)
    hoisted: set[Node] = set()
    for node in invariant:
        inputs = node.all_input_nodes
        ready = all(n.op == "placeholder" or n in hoisted for n in inputs)
        # storing an expanded tensor would replace cheap arithmetic by memory traffic
        grows = _numel(node) > max(map(_numel, inputs), default=0)
        if node in needed or (ready and not grows):
            hoisted.add(node)
    return hoisted


def _is_mutating(node: Node) -> bool:
    """Whether a node changes a tensor in place."""
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_random(node: Node) -> bool:
    """Whether a node may draw random numbers."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op not in ("placeholder", "call_function")
    tags = getattr(node.target, "tags", None)
    # a higher-order operator has no tags and may contain any operation
    return tags is None or torch.Tag.nondeterministic_seeded in tags


def _is_cheap(node: Node) -> bool:
    """Whether a node creates a constant or a view, or works pointwise."""
    target: Any = node.target
    if target is operator.getitem or target in _CONSTANTS or not node.all_input_nodes:
        return True
    return target.is_view or _is_pointwise(node)


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _numel(node: Node) -> int:
    """Number of elements of a node's tensor, or of its largest tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return max((v.numel() for v in values if isinstance(v, Tensor)), default=0)
