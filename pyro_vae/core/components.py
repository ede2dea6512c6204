"""Base class and interfaces of the interchangeable components."""

from __future__ import annotations

import inspect
import math
from abc import ABC, ABCMeta
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import PyroModule
from torch import Tensor, nn

#: The shape of one example or one network output, without batch dimensions.
Shape = tuple[int, ...]


class Heads(tuple[int, ...]):
    """Output shape of a network with several heads, e.g. the mean and the log scale of a normal.

    Each head counts as a matrix of its own in ``init="glorot"``.

    Arguments:
        shape: the shape of one output.
        sizes: the number of elements of each head, in order. If not given, the heads are stacked
            along the first dimension.

    Raises:
        ValueError: if the sizes do not add up to the number of elements.
    """

    sizes: tuple[int, ...]

    def __new__(cls, shape: Shape, sizes: Sequence[int] | None = None) -> Heads:
        heads = super().__new__(cls, shape)
        heads.sizes = (math.prod(shape[1:]),) * shape[0] if sizes is None else tuple(sizes)
        if sum(heads.sizes) != math.prod(shape):
            raise ValueError(
                f"expected heads with {math.prod(shape)} elements, as in the shape {tuple(shape)}; "
                f"got sizes {heads.sizes}"
            )
        return heads

    @staticmethod
    def sizes_of(shape: Shape) -> tuple[int, ...]:
        """Return the sizes of the heads of any shape. A plain tuple is that of a single head."""
        return shape.sizes if isinstance(shape, Heads) else (math.prod(shape),)


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


class Factory(type):
    """Metaclass of classes that a program calls: their first arguments are those of the program.

    ``Gaussian(scale=0.5)`` instead of ``partial(Gaussian, scale=0.5)`` gets an error with that
    remedy.
    """

    @property
    def __signature__(cls) -> inspect.Signature:
        # inspect would show the signature of __call__ below
        signature = inspect.signature(cls.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        required = [
            p.name
            for p in inspect.signature(cls).parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in kwargs
        ]
        if required and not args:
            own = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
            name = cls.__name__
            remedy = f"functools.partial({name}, {own})" if own else f"the class {name} itself"
            raise TypeError(
                f"expected {name}({', '.join(required)}, …), whose first arguments a program sets; "
                f"got {own or 'none of them'}: pass {remedy} to the program"
            )
        return super().__call__(*args, **kwargs)


class ComponentType(Factory, AbstractModule):
    """Metaclass of components."""


class Component(PyroModule, ABC, metaclass=ComponentType):
    """A module whose ``forward`` returns a distribution: a prior, a likelihood or a posterior."""

    def __repr__(self) -> str:
        # PyroModule renames the class; print the name that the user knows
        return nn.Module.__repr__(self)


class NetworkWrapper(nn.Module):
    """Base class of modules around one network, whose options stay in effect."""

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__()
        self.network: Any = network


def unwrap(network: Any) -> Any:
    """Return the network inside its wrappers."""
    return unwrap(network.network) if isinstance(network, NetworkWrapper) else network


def init_standardization(network: object, x: Tensor) -> None:
    """Compute a network's input statistics from the training data, if it standardises inputs."""
    fit_standardization = getattr(unwrap(network), "fit_standardization", None)
    if fit_standardization is not None:
        fit_standardization(x)
