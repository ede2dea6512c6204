"""What every program of this package is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pyro.nn import PyroModule
from torch import nn

from ..core.components import AbstractModule, Labels, Shape
from ..core.validation import positive_int
from ..likelihoods import Likelihood

__all__ = ["Autoencoder", "measure_inputs"]


class Autoencoder(PyroModule, ABC, metaclass=AbstractModule):
    """The base of all programs: a Pyro model of data, and its guide, the encoder.

    A new program defines ``model(x=None, …, size=1)`` and ``guide(x, …)``, each a
    ``pyro_method`` with every per-datum site inside ``pyro.plate("data", …)``. The observed
    site is ``"x"``, and without ``x`` the model makes ``size`` new data. The program keeps
    the distribution of that site as ``self.likelihood``. Two class attributes say what it
    wants of the data:

    * ``labels``: what it does with labels, a :class:`~pyro_vae.programs.base.Labels`;
    * ``from_data``: the arguments of ``__init__`` that the data decide, attributes of
      :class:`~pyro_vae.data.Dataset`; YAML and the command line do not ask for them.

    Arguments:
        event_shape: the shape of one datum.

    Raises:
        ValueError: if an entry of ``event_shape`` is not a positive integer.
    """

    labels: ClassVar[Labels] = Labels.UNUSED
    from_data: ClassVar[tuple[str, ...]] = ("event_shape",)
    likelihood: Likelihood

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        self.event_shape = tuple(positive_int("every size in event_shape", n) for n in event_shape)

    @abstractmethod
    def model(self, x: torch.Tensor | None = None, *args: Any, size: int = 1) -> torch.Tensor:
        """p(x, latents) for data ``(N, *event_shape)``, or for ``size`` new data."""

    @abstractmethod
    def guide(self, x: torch.Tensor, *args: Any, size: int = 1) -> Any:
        """q(latents | x) for data ``(N, *event_shape)``."""

    def check(self, x: torch.Tensor, *args: Any) -> None:
        """Refuses data that this program cannot score.

        Raises:
            ValueError: if the shape is not ``(N, *event_shape)`` with N ≥ 1, if the type is
                not that of the weights, or if the likelihood has no density at a value.
        """
        if x.shape[1:] != self.event_shape or not len(x):
            expected = ", ".join(map(str, ("N ≥ 1", *self.event_shape)))
            raise ValueError(f"expected x.shape ({expected}); got {tuple(x.shape)}")
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype:
            raise ValueError(f"expected x of {dtype}, as the model's weights are; got {x.dtype}")
        self.likelihood.check(x)

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)


def measure_inputs(network: object, x: torch.Tensor) -> None:
    """Lets a network that standardises its inputs measure the training data ``x``; once."""
    measure = getattr(network, "measure", None)
    if measure is not None:
        measure(x)
