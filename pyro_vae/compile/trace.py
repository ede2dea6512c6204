"""A function of tensors, Pyro programs and all, as one flat graph; and that graph compiled.

Pyro's handlers decide in Python which operations there are, and cost more than the operations of a
small network. Run once under ``make_fx`` they leave nothing but the operations, which
TorchInductor fuses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode

from .allocator import keep_freed_memory

__all__ = ["NotTraceableError", "compile_graph", "is_tracing", "trace_graph"]

#: A function of the tensors it was traced with, in their order.
Graph = Callable[..., tuple[Tensor, ...]]


class NotTraceableError(RuntimeError):
    """A function is no single graph of tensor operations, or none can be compiled here."""


@torch.no_grad()
def trace_graph(
    function: Callable[..., tuple[Tensor, ...]], *args: Tensor
) -> tuple[GraphModule, list[Tensor]]:
    """The operations of ``function(*args)``, whatever Python was between them.

    Shapes, and Python's own values, are those of this call; draws are made anew at every call
    of the graph. Random generators, and tensors of floating point that the function changes in
    place, are as before; counters, as batch norm has one, may move.

    Arguments:
        function: of tensors, giving a tuple of tensors. It may use others that it finds elsewhere,
            and change them in place.
        *args: what it is called with.

    Returns:
        The graph, to be called with ``args`` and then the tensors it found elsewhere; and those
        tensors themselves, detached: they share their memory, so that the graph sees what
        becomes of them.

    Raises:
        NotOneGraphError: if which operations there are depends on the numbers in a tensor, or if
            an operation cannot be recorded.
    """
    try:
        with torch.random.fork_rng(), pyro.validation_enabled(False), _NothingRead():
            graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*args)
    except Exception as error:  # whatever cannot be recorded says so in its own way
        raise NotTraceableError(_first_line(error)) from error
    return graph, _lifted(graph)


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Graph:
    """A graph from :func:`trace_graph`, fused by TorchInductor; torch caches what that gives on disk.

    It draws the same random numbers as the graph uncompiled would.

    Arguments:
        graph: the graph.
        inputs: what it will be called with; shapes, types and devices hold for every call.

    Raises:
        NotOneGraphError: if Inductor cannot compile here, as without a C++ compiler.
    """
    keep_freed_memory()
    options: dict[str, Any] = {"fallback_random": True}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Inductor's own, of what it tries
            function: Any = torch._inductor.compile(graph, list(inputs), options=options)
    except Exception as error:
        raise NotTraceableError(_first_line(error)) from error
    return function


def is_tracing() -> bool:
    """Whether a graph is being recorded, in which many small operations cost nothing."""
    return get_proxy_mode() is not None


class _NothingRead(TorchFunctionMode):
    """While a graph is recorded a number that is read stays a tensor, if that is enough."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _lifted(graph: GraphModule) -> list[Tensor]:
    """Makes inputs of the tensors that a graph holds."""
    nodes = graph.graph
    held: dict[str, Any] = {}
    last = [node for node in nodes.nodes if node.op == "placeholder"][-1]
    for node in [node for node in nodes.nodes if node.op == "get_attr"]:
        if node.target not in held:
            with nodes.inserting_after(last):
                last = held[node.target] = nodes.placeholder(f"held_{len(held)}")
            last.meta = node.meta
        node.replace_all_uses_with(held[node.target])
        nodes.erase_node(node)
    tensors = [getattr(graph, name).detach() for name in held]
    for name in held:
        delattr(graph, name)
    graph.recompile()
    return tensors


def _first_line(error: BaseException) -> str:
    """What went wrong, of errors that were made of others the first that says something."""
    while not str(error).strip() and error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
