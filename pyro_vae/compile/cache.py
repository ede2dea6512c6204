"""When to compile, and what was compiled before."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .trace import Graph, NotTraceableError, compile_graph

__all__ = ["compile_cached", "log_not_compiled", "worth_compiling"]

_log = logging.getLogger("pyro_vae")

#: Numbers of the widest sites, over all particles and data, from which on compiling is worth its
#: seconds: some 2.7 million pairs of images of 784 pixels, about 25 s of one processor.
_WORTHWHILE = 1 << 31
#: Compiled graphs of this process, by their code and what they were compiled for.
_known: dict[tuple[Any, ...], Graph] = {}
#: As many are kept.
_MOST_KNOWN = 32
#: Why programs were not compiled, for nobody wants to read it twice.
_told: set[str] = set()


def worth_compiling(numbers: float) -> bool:
    """Whether so many numbers to compute are worth compiling: by count, not by the clock."""
    return numbers >= _WORTHWHILE


def log_not_compiled(error: NotTraceableError) -> None:
    """Says once why something is not compiled."""
    if str(error) not in _told:
        _told.add(str(error))
        _log.warning("the program is not compiled and runs eagerly: %s", error)


def compile_cached(graph: GraphModule, inputs: list[Tensor]) -> Graph:
    """The graph compiled, now or before: whoever asks again pays for the tracing only.

    Raises:
        NotOneGraphError: as :func:`~pyro_vae.compile.trace.compile_graph` does.
    """
    if any(node.op == "get_attr" for node in graph.graph.nodes):
        return compile_graph(graph, inputs)  # what it holds is not in its code
    about = tuple((v.shape, v.stride(), v.dtype, v.device) for v in inputs)
    key = (graph.code, about, torch.get_num_threads())
    if key not in _known:
        while len(_known) >= _MOST_KNOWN:
            del _known[next(iter(_known))]
        _known[key] = compile_graph(graph, inputs)
    return _known[key]
