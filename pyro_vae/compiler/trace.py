"""Trace a function of tensors, such as a Pyro program, into a flat graph and compile it.

Pyro's handlers run in Python and cost more than the operations of a small network. Tracing with
``make_fx`` leaves only the tensor operations, which TorchInductor fuses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from ..core.evaluation_mode import run_eagerly
from .allocator import keep_freed_memory

__all__ = ["NotTraceableError", "compile_graph", "is_tracing", "trace_graph"]

#: A compiled function of the tensors of its graph, in order.
Graph = Callable[..., tuple[Tensor, ...]]


class NotTraceableError(RuntimeError):
    """Raised if a function cannot be traced into a single graph or compiled."""


@torch.no_grad()
def trace_graph(
    function: Callable[..., tuple[Tensor, ...]],
    *args: Tensor,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
) -> tuple[GraphModule, list[Tensor]]:
    """Trace ``function(*args)`` into a graph of ATen operations.

    Shapes and Python values are fixed to those of this call; each call of the graph draws fresh
    random numbers. Tracing leaves random generators, and floating-point tensors that the function
    changes in place, unchanged; counters, such as that of batch norm, may advance.

    Arguments:
        function: maps tensors to a tuple of tensors. It may read tensors from its closure, such
            as parameters, and change them in place.
        *args: example inputs.
        decompositions: operations to replace by simpler ones, see ``torch._decomp``.

    Returns:
        The graph, called with ``args`` followed by the tensors of the closure; and the latter,
        detached. They share memory with the originals, so the graph sees later updates.

    Raises:
        NotTraceableError: if control flow depends on tensor values, or an operation cannot be
            traced.
    """
    try:
        with torch.random.fork_rng(), pyro.validation_enabled(False), run_eagerly():
            trace = make_fx(
                function,
                decomposition_table=decompositions,
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )
            graph = trace(*args)
    except Exception as error:  # operations raise errors of various types
        raise NotTraceableError(_first_line(error)) from error
    return graph, _lift_closure(graph)


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Graph:
    """Compile a graph of :func:`trace_graph` with TorchInductor.

    Its graph and machine code are cached on disk, in Inductor's folder, by graph, metadata of the
    inputs, options, number of threads, instruction set and version of torch. The compiled graph
    draws the same random numbers as the original.

    Arguments:
        graph: the graph.
        inputs: example inputs; shapes, dtypes and devices are fixed.

    Raises:
        NotTraceableError: if Inductor cannot compile the graph, e.g. without a C++ compiler.
    """
    keep_freed_memory()
    options: dict[str, Any] = {"fallback_random": True, "cpp.threads": torch.get_num_threads()}
    try:
        with torch.no_grad(), warnings.catch_warnings(), _graph_cache():
            warnings.simplefilter("ignore")  # Inductor's internal warnings
            function: Any = torch._inductor.compile(graph, list(inputs), options=options)
    except Exception as error:
        raise NotTraceableError(_first_line(error)) from error
    return function


@contextmanager
def _graph_cache() -> Iterator[None]:
    """Let Inductor look for the graph in its cache on disk, and store it there.

    It does so only within a tracing context that knows about shapes, as ``torch.compile`` has one.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    config: Any = getattr(torch.compiler, "config", None)
    if not hasattr(config, "cache_key_tag"):  # before torch 2.7
        yield
        return
    # Inductor's key lacks the instruction set, which decides the generated code
    tag = f"{config.cache_key_tag} {torch.backends.cpu.get_cpu_capability()}"
    context = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))
    with config.patch(cache_key_tag=tag), tracing(context):
        yield


def is_tracing() -> bool:
    """Whether a graph is being traced, so that many small operations cost nothing."""
    return get_proxy_mode() is not None


def _lift_closure(graph: GraphModule) -> list[Tensor]:
    """Turn the tensors stored in a graph into inputs, and return them."""
    nodes = graph.graph
    lifted: dict[str, Any] = {}
    last = [node for node in nodes.nodes if node.op == "placeholder"][-1]
    for node in [node for node in nodes.nodes if node.op == "get_attr"]:
        if node.target not in lifted:
            with nodes.inserting_after(last):
                last = lifted[node.target] = nodes.placeholder(f"lifted_{len(lifted)}")
            last.meta = node.meta
        node.replace_all_uses_with(lifted[node.target])
        nodes.erase_node(node)
    tensors = [getattr(graph, name).detach() for name in lifted]
    for name in lifted:
        delattr(graph, name)
    graph.recompile()
    return tensors


def _first_line(error: BaseException) -> str:
    """First line of the innermost message in a chain of errors without messages."""
    while not str(error).strip() and error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
