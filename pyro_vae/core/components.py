"""The base of every exchangeable part."""

from __future__ import annotations

from abc import ABC, ABCMeta
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Protocol, runtime_checkable

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import PyroModule
from torch import Tensor, nn

#: The shape of one datum or of one network output, without batch dimensions.
Shape = tuple[int, ...]

#: ``factory(in_shape, out_shape)`` makes a module that maps ``(*batch, *in_shape)`` to
#: ``(*batch, *out_shape)`` for any leading batch dimensions.
NetworkFactory = Callable[[Shape, Shape], nn.Module]


@runtime_checkable
class DataInitialized(Protocol):
    """A module that looks at the training data once, before training."""

    def init_from_data(self, x: Tensor) -> None:
        """Starts from data ``x``, ``(N, *event_shape)``; does nothing the second time."""


class Encoder(Protocol):
    """An approximate posterior q(z|x), as a prior that depends on it (VampPrior) sees it."""

    event_shape: Shape
    latent_dim: int

    def __call__(self, x: Tensor) -> Distribution:
        """q(z|x): batch shape ``batch``, event shape ``(latent_dim,)``."""
        ...


class Space(Enum):
    """Where latent variables live."""

    REAL = "ℝ^D"
    SPHERE = "the unit sphere"

    def __str__(self) -> str:
        return self.value


class Labels(Enum):
    """What a program does with what is known of a datum besides the datum itself."""

    #: ``model(x)``: they are not looked at.
    UNUSED = "unused"
    #: ``model(x, labels)`` is p(x | labels), and ``guide(x, labels)`` goes with it.
    CONDITION = "condition"
    #: ``model(x, labels)`` is p(x, labels), to learn from where they are known (not −1), and
    #: ``model(x)`` is p(x).
    PARTIAL = "partial"


class AbstractModule(ABCMeta, type(PyroModule)):
    """Joins the metaclasses of ``ABC`` and ``PyroModule``, which Python refuses to guess."""


class Component(PyroModule, ABC, metaclass=AbstractModule):
    """A module whose ``forward`` returns a distribution: a prior, a likelihood or a posterior."""

    def __repr__(self) -> str:
        # PyroModule renames the class; the user knows it under the name that was written
        return nn.Module.__repr__(self)


def checked_factory(factory: NetworkFactory, event_shape: Shape) -> NetworkFactory:
    """The same factory, whose networks are refused where they would give wrong numbers in silence.

    A network that forgets a dimension of its outputs broadcasts in a density, and one of images
    takes any two dimensions for a height and a width. Nothing is wrapped: a network keeps its
    class and the names of its weights.

    Arguments:
        factory: makes an encoder or a decoder.
        event_shape: the shape of one datum.

    Returns:
        A factory that raises a ``ValueError`` if it makes a network of images for data that are
        none. Its networks raise one if they are called and do not map ``(*batch, *in_shape)``
        to ``(*batch, *out_shape)``.
    """
    return partial(_make_checked, factory, tuple(event_shape))


def _make_checked(
    factory: NetworkFactory, event_shape: Shape, in_shape: Shape, out_shape: Shape
) -> nn.Module:
    network = factory(in_shape, out_shape)
    if getattr(network, "images_only", False) and len(event_shape) < 2:
        raise ValueError(
            f"expected event_shape to end in a height and a width; got {event_shape}: use an MLP "
            f"for data that are no images"
        )
    if isinstance(network, nn.Module):
        # of the module's level, so that the network can be copied and pickled
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
            f"expected the network's outputs of shape {expected} for inputs {tuple(x.shape)}; got "
            f"{got}: a network maps (…, *in_shape) to (…, *out_shape)"
        )
