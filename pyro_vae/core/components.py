"""Base class and interfaces of the interchangeable components."""

from __future__ import annotations

from abc import ABC, ABCMeta
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Protocol, runtime_checkable

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import PyroModule
from torch import Tensor, nn

#: The shape of one example or one network output, without batch dimensions.
Shape = tuple[int, ...]

#: ``factory(in_shape, out_shape)`` returns a module that maps ``(*batch, *in_shape)`` to
#: ``(*batch, *out_shape)`` for any leading batch dimensions.
NetworkFactory = Callable[[Shape, Shape], nn.Module]


@runtime_checkable
class DataInitialized(Protocol):
    """A module that is initialised once from the training data, before training."""

    def init_from_data(self, x: Tensor) -> None:
        """Initialize from data ``x``, ``(N, *event_shape)``; later calls do nothing."""


class Encoder(Protocol):
    """Interface of an approximate posterior q(z|x), for priors that depend on it (VampPrior)."""

    event_shape: Shape
    latent_dim: int

    def __call__(self, x: Tensor) -> Distribution:
        """Return q(z|x) with batch shape ``batch`` and event shape ``(latent_dim,)``."""
        ...


class Space(Enum):
    """Sample space of the latent variables."""

    REAL = "ℝ^D"
    SPHERE = "the unit sphere"

    def __str__(self) -> str:
        return self.value


class Labels(Enum):
    """How a program uses the labels of the examples."""

    #: ``model(x)``: labels are ignored.
    UNUSED = "unused"
    #: ``model(x, labels)`` is p(x | labels), with ``guide(x, labels)``.
    CONDITION = "condition"
    #: ``model(x, labels)`` is p(x, labels), trained on the known labels (not −1); ``model(x)``
    #: is p(x).
    PARTIAL = "partial"


class AbstractModule(ABCMeta, type(PyroModule)):
    """Metaclass of modules that are both abstract base classes and ``PyroModule``."""


class Component(PyroModule, ABC, metaclass=AbstractModule):
    """A module whose ``forward`` returns a distribution: a prior, a likelihood or a posterior."""

    def __repr__(self) -> str:
        # PyroModule renames the class; print the name that the user knows
        return nn.Module.__repr__(self)


def checked_factory(factory: NetworkFactory, event_shape: Shape) -> NetworkFactory:
    """Network factory whose networks check the shape of their outputs.

    Guards against silent errors: an output that lacks a dimension would broadcast in a density,
    and an image network would treat any two dimensions as height and width. Networks are not
    wrapped, so they keep their class and parameter names.

    Arguments:
        factory: makes an encoder or a decoder.
        event_shape: the shape of one example.

    Returns:
        A factory that raises a ``ValueError`` if it makes an image network for data that are not
        images. A network raises a ``ValueError`` when called if it does not map
        ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``.
    """
    return partial(_make_checked, factory, tuple(event_shape))


def _make_checked(
    factory: NetworkFactory, event_shape: Shape, in_shape: Shape, out_shape: Shape
) -> nn.Module:
    network = factory(in_shape, out_shape)
    if getattr(network, "images_only", False) and len(event_shape) < 2:
        raise ValueError(
            f"expected event_shape to end in a height and a width; got {event_shape}: use an MLP "
            f"for data that are not images"
        )
    if isinstance(network, nn.Module):
        # a module-level function, so that the network can be copied and pickled
        check = partial(_check_outputs, tuple(in_shape), tuple(out_shape))
        network.register_forward_hook(check)
    return network


def _check_outputs(
    in_shape: Shape, out_shape: Shape, network: nn.Module, inputs: tuple[Any, ...], outputs: Any
) -> None:
    x, *_ = inputs
    expected = (*x.shape[: x.ndim - len(in_shape)], *out_shape)
    got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if got != expected:
        raise ValueError(
            f"expected network outputs of shape {expected} for inputs of shape {tuple(x.shape)}; "
            f"got {got}: a network must map (…, *in_shape) to (…, *out_shape)"
        )
