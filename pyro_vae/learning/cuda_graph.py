"""A step as one launch of a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["CudaGraph", "make_capturable"]

_log = logging.getLogger("pyro_vae")

#: Steps made one kernel after the other before one is captured: libraries allocate in them.
_WARM_UP = 3


class CudaGraph:
    """A function of tensors on a GPU, captured as a CUDA graph after its first calls.

    Kernels that each take microseconds wait for nobody then. What the function changes in
    place, weights and the optimiser's state, stays where it was; what it draws comes from the
    default generator of the GPU, which a graph keeps moving.

    A function that cannot be captured runs kernel by kernel, and the log says why.

    Arguments:
        function: of tensors, giving a tensor; it must not wait for the GPU.
        like: what it will be called with; shapes, types and devices hold for every call.
    """

    def __init__(self, function: Callable[..., Tensor], like: Sequence[Tensor]) -> None:
        self._function = function
        self._inputs = [tensor.clone() for tensor in like]
        self._stream = torch.cuda.Stream(like[0].device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output = torch.empty(())

    def __call__(self, *tensors: Tensor) -> Tensor:
        for place, tensor in zip(self._inputs, tensors, strict=True):
            place.copy_(tensor)
        self._calls += 1
        if self._calls == _WARM_UP + 1:
            self._capture()
        if self._graph is None:
            return self._apart()
        self._graph.replay()
        return self._output.clone()

    def _capture(self) -> None:
        """Records the function, which is not executed."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._output = self._function(*self._inputs)
        except RuntimeError as error:
            reason = str(error).strip().partition(chr(10))[0]
            _log.warning("steps are not captured as a CUDA graph: %s", reason)
        else:
            self._graph = graph

    def _apart(self) -> Tensor:
        """A call on the stream on which it will be captured."""
        current = torch.cuda.current_stream(self._inputs[0].device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = self._function(*self._inputs)
        current.wait_stream(self._stream)
        return output


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Lets a CUDA graph hold an optimiser's step, if torch has that form of it.

    Its step size is then a tensor that schedules change in place.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
