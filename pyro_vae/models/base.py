"""Base class of the programs of this package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pyro.nn import PyroModule
from torch import nn

from ..core.components import AbstractModule, Labels, Shape
from ..core.validation import positive_int
from ..likelihoods import Likelihood

__all__ = ["Autoencoder", "init_standardization"]


class Autoencoder(PyroModule, ABC, metaclass=AbstractModule):
    """Base class of programs: a Pyro model of the data and its guide, the encoder.

    Subclasses define ``model(x=None, …, size=1)`` and ``guide(x, …)``, each a ``pyro_method``
    with every per-datum site inside ``pyro.plate("data", …)``. The observed site is ``"x"``;
    without ``x`` the model samples ``size`` new examples. The distribution of this site is
    stored as ``self.likelihood``. Two class attributes describe how the program uses the data:

    * ``labels``: how it uses labels, a :class:`~pyro_vae.core.components.Labels`;
    * ``from_data``: the arguments of ``__init__`` that are determined by the data, attributes
      of :class:`~pyro_vae.data.Dataset`. They are not set in YAML or on the command line.

    Arguments:
        event_shape: shape of one example.

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
        """Run p(x, latents) on data ``(N, *event_shape)``, or sample ``size`` new examples."""

    @abstractmethod
    def guide(self, x: torch.Tensor, *args: Any, size: int = 1) -> Any:
        """Run q(latents | x) on data ``(N, *event_shape)``."""

    def check(self, x: torch.Tensor, *args: Any) -> None:
        """Raise if this program cannot score the data.

        Raises:
            ValueError: if the shape is not ``(N, *event_shape)`` with N ≥ 1, if the dtype is
                not that of the weights, or if the likelihood has no density at a value.
        """
        if x.shape[1:] != self.event_shape or not len(x):
            expected = ", ".join(map(str, ("N ≥ 1", *self.event_shape)))
            raise ValueError(f"expected x.shape ({expected}); got {tuple(x.shape)}")
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype:
            raise ValueError(f"expected x of {dtype}, like the model's weights; got {x.dtype}")
        self.likelihood.check(x)

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)


def init_standardization(network: object, x: torch.Tensor) -> None:
    """Compute a network's input statistics from the training data, if it standardises inputs."""
    fit_standardization = getattr(network, "fit_standardization", None)
    if fit_standardization is not None:
        fit_standardization(x)
