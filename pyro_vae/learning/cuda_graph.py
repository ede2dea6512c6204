"""Capture the training step as a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["CudaGraph", "enable_capturable"]

_log = logging.getLogger("pyro_vae")

#: Eager calls before capture, in which libraries allocate their workspaces.
_WARM_UP_CALLS = 3


class CudaGraph:
    """Function of GPU tensors, captured as a CUDA graph after its first calls.

    Replaying a graph avoids the launch overhead of small kernels. Tensors that the function
    updates in place (weights, optimizer state) keep their storage. Random numbers come from the
    default generator of the GPU, which advances with every replay.

    A function that cannot be captured runs eagerly, and the reason is logged.

    Arguments:
        function: maps tensors to a tensor, without device synchronisation.
        like: example inputs, whose shapes, dtypes and devices hold for every call.
    """

    def __init__(self, function: Callable[..., Tensor], like: Sequence[Tensor]) -> None:
        self._function = function
        self._inputs = [tensor.clone() for tensor in like]
        self._stream = torch.cuda.Stream(like[0].device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output = torch.empty(())

    def __call__(self, *tensors: Tensor) -> Tensor:
        for static, tensor in zip(self._inputs, tensors, strict=True):
            static.copy_(tensor)
        self._calls += 1
        if self._calls == _WARM_UP_CALLS + 1:
            self._capture()
        if self._graph is None:
            return self._run_eagerly()
        self._graph.replay()
        return self._output.clone()

    def _capture(self) -> None:
        """Record the function without executing it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._output = self._function(*self._inputs)
        except RuntimeError as error:
            reason = str(error).strip().partition(chr(10))[0]
            _log.warning("steps are not captured as a CUDA graph: %s", reason)
        else:
            self._graph = graph

    def _run_eagerly(self) -> Tensor:
        """Run the function on the stream used for capture."""
        current = torch.cuda.current_stream(self._inputs[0].device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = self._function(*self._inputs)
        current.wait_stream(self._stream)
        return output


def enable_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Enable torch's ``capturable`` mode of an optimizer, if it has one.

    The learning rate becomes a tensor that schedules update in place.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
