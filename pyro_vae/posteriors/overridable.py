"""Networks with an output that can be overridden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..core.components import NetworkWrapper
from .base import Posterior

__all__ = ["OverridableNetwork"]


class OverridableNetwork(NetworkWrapper):
    """A network with an output that can be overridden, to make q(z|x) a function of that output.

    Arguments:
        network: the wrapped network; ``None`` if the output is always overridden.
    """

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__(network)
        self._override: Tensor | None = None
        self._outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self._override is not None:
            return self._override
        self._outputs.append(self.network(x))
        return self._outputs[-1]

    def output_for(self, family: Posterior, x: Tensor) -> Tensor:
        """Return the network's output in a forward pass of ``family``, which sets its input."""
        self._outputs.clear()
        family(x)
        return self._outputs.pop()

    @contextmanager
    def override(self, output: Tensor) -> Iterator[None]:
        """Return ``output`` for any input inside this context."""
        self._override = output
        try:
            yield
        finally:
            self._override = None
