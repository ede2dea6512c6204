"""Cache of compiled graphs, and the decision when compiling pays off."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .trace import Graph, NotTraceableError, compile_graph

__all__ = ["compile_cached", "log_not_compiled", "worth_compiling"]

_log = logging.getLogger("pyro_vae")

#: Elements of the widest site, over all particles and examples, above which compiling pays off:
#: about 2.7 million pairs of 784-pixel images, or 25 s on one CPU core.
_MIN_ELEMENTS = 1 << 31
#: Compiled graphs of this process, by their code and input metadata.
_cache: dict[tuple[Any, ...], Graph] = {}
_MAX_CACHED = 32
#: Reasons that were already logged.
_logged: set[str] = set()


def worth_compiling(num_elements: float) -> bool:
    """Whether a computation of this many elements is large enough to compile.

    Decided by size rather than by timing, so that it is reproducible.
    """
    return num_elements >= _MIN_ELEMENTS


def log_not_compiled(error: NotTraceableError) -> None:
    """Log once why a program is not compiled."""
    if str(error) not in _logged:
        _logged.add(str(error))
        _log.warning("the program is not compiled and runs eagerly: %s", error)


def compile_cached(graph: GraphModule, inputs: list[Tensor]) -> Graph:
    """Compile a graph, or return it from the cache of this process.

    Raises:
        NotTraceableError: as :func:`~pyro_vae.compiler.trace.compile_graph` does.
    """
    if any(node.op == "get_attr" for node in graph.graph.nodes):
        return compile_graph(graph, inputs)  # its code does not contain these tensors
    metadata = tuple((v.shape, v.stride(), v.dtype, v.device) for v in inputs)
    key = (graph.code, metadata, torch.get_num_threads())
    if key not in _cache:
        while len(_cache) >= _MAX_CACHED:
            del _cache[next(iter(_cache))]
        _cache[key] = compile_graph(graph, inputs)
    return _cache[key]
