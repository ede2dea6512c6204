"""What a posterior asks of its network, taken out of the network's hands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .base import Posterior

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """A network whose word can be overruled, so that q(z|x) is a function of it.

    Arguments:
        network: the network, whose weights it holds; ``None`` if it is always overruled.
    """

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__()
        self.network = network
        self._word: Tensor | None = None
        self._said: list[Tensor] = []

    def measure(self, x: Tensor) -> None:
        """Hands the training data on to the network, if it has a use for them."""
        measure = getattr(self.network, "measure", None)
        if measure is not None:
            measure(x)

    def forward(self, x: Tensor) -> Tensor:
        if self._word is not None:
            return self._word
        assert self.network is not None
        self._said.append(self.network(x))
        return self._said[-1]

    def said_to(self, family: Posterior, x: Tensor) -> Tensor:
        """What the network says when the family, which knows what to ask, asks it of ``x``."""
        self._said.clear()
        family(x)
        return self._said.pop()

    @contextmanager
    def overruled(self, word: Tensor) -> Iterator[None]:
        """Lets it say ``word``, whatever it is asked."""
        self._word = word
        try:
            yield
        finally:
            self._word = None
