"""Parts of a program: created by its factories, with checks of types and shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.components import NetworkFactory, NetworkWrapper, Shape, unwrap
from ..core.evaluation_mode import eval_mode
from ..core.validation import has_channels_last
from ..networks.base import Network

__all__ = ["CheckedFactory", "make_part"]

Part = TypeVar("Part", bound=nn.Module)


def make_part(call: str, base: type[Part], factory: Callable[..., Part], *args: Any) -> Part:
    """Return ``factory(*args)``, a part of a program.

    Arguments:
        call: the call as documented, such as ``prior(latent_dim)``, for messages.
        base: the base class of the part.
        factory: a class, a ``functools.partial`` of one, or another callable.
        *args: the arguments that the program sets.

    Raises:
        ValueError: if ``factory`` is an instance, cannot be called with these arguments, or does
            not return a ``base``.
    """
    name, expected = call.partition("(")[0], f"expected a class or another factory {call}"
    if base is nn.Module:
        remedy = "pass a class of pv.networks, a partial of one, or a module"
    else:
        home = base.__module__.split(".", 1)[1].removesuffix(".base")
        remedy = f"pass a class of pv.{home}, or a partial of one"
    cls = factory.func if isinstance(factory, partial) else factory
    if isinstance(factory, base):
        kind = type(factory).__name__
        raise ValueError(
            f"{expected}; got an instance of {kind}: pass {name}={kind}, or "
            f"functools.partial({kind}, …) to set its other arguments"
        )
    if not callable(factory) or (isinstance(cls, type) and not issubclass(cls, base)):
        got = cls.__name__ if isinstance(cls, type) else repr(factory)
        raise ValueError(f"{expected}; got {got}: {remedy}")
    try:
        part = factory(*args)
    except TypeError as error:
        raise ValueError(f"{expected}; the call failed with {error}: {remedy}") from error
    if not isinstance(part, base):
        raise ValueError(f"{expected}; it returned a {type(part).__name__}: {remedy}")
    return part


@dataclass(frozen=True)
class CheckedFactory:
    """Network factory whose networks check the shape of their outputs.

    Guards against silent errors: an output that lacks a dimension would broadcast in a density,
    and an image network would treat any two dimensions as height and width. The networks of a
    factory are not wrapped, so they keep their class and parameter names.

    Arguments:
        name: the argument of the program, for messages.
        source: a factory, ``source(in_shape, out_shape)``; or a module, which is the network
            itself and maps ``(B, *in_shape)`` to B outputs of ``prod(out_shape)`` elements each.
        event_shape: the shape of one example.
        reads_data: whether the inputs of the networks contain examples, whose unobserved values
            (NaN) become zeros once ``expects_missing`` is set.

    Raises:
        ValueError: when called, if the source does not fit, makes an image network for data that
            are not images or have their channels last, or makes a network with a mask that does
            not read data. A network raises it when called if it does not map
            ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``.
    """

    name: str
    source: NetworkFactory | nn.Module
    event_shape: Shape
    reads_data: bool = False

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        if isinstance(self.source, nn.Module):
            network: nn.Module = _GivenNetwork(self.name, self.source, in_shape, out_shape)
        else:
            network = make_part(
                f"{self.name}(in_shape, out_shape)", nn.Module, self.source, in_shape, out_shape
            )
            # a module-level function, so that the network can be copied and pickled
            network.register_forward_hook(partial(_check_outputs, in_shape, out_shape))
        if getattr(unwrap(network), "images_only", False):
            _check_image_shape(self.event_shape)
        if self.reads_data:
            _accept_missing(network)
        elif isinstance(unwrap(network), Network) and unwrap(network).mask:
            raise ValueError(
                f"expected mask only for a network that reads the data; got it for the "
                f"{self.name}: set its mask to false"
            )
        return network


def _check_image_shape(event_shape: Shape) -> None:
    if len(event_shape) < 2:
        raise ValueError(
            f"expected event_shape to end in a height and a width; got {event_shape}: "
            f"use an MLP for data that are not images"
        )
    if has_channels_last(event_shape):
        height, width, channels = event_shape
        raise ValueError(
            f"expected images (channels, H, W); got event_shape {event_shape}, whose last "
            f"dimension looks like the channels: pass x.permute(0, 3, 1, 2) and event_shape "
            f"{(channels, height, width)}, or, if these are {height} channels of {width} × "
            f"{channels} pixels, x.unsqueeze(1) and event_shape {(1, *event_shape)}"
        )


def _accept_missing(network: Any) -> None:
    """Let a network read data with unobserved values, once ``expects_missing`` is set."""
    inner = unwrap(network)
    if isinstance(inner, Network):
        inner.expects_missing = False
    else:
        network.expects_missing = False
        network.register_forward_pre_hook(_fill_missing)


def _fill_missing(network: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not network.expects_missing:
        return None
    x, *others = inputs
    return (torch.where(x.isnan(), 0.0, x), *others)


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


class _GivenNetwork(NetworkWrapper):
    """A module as the network of a part: it sees one batch dimension, its outputs are reshaped."""

    def __init__(self, name: str, network: nn.Module, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__(network)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.size = math.prod(out_shape)
        like = next(chain(network.parameters(), network.buffers()), torch.zeros(()))
        try:
            with torch.no_grad(), eval_mode(self):
                self(torch.zeros(2, *in_shape, dtype=like.dtype, device=like.device))
        except Exception as error:
            sizes = ", ".join(map(str, ("B", *in_shape)))
            raise ValueError(
                f"expected a module {name} that maps ({sizes}) to (B, {self.size}), the elements "
                f"of {self.out_shape}; {type(network).__name__} failed for B = 2: {error}"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.in_shape)]
        flat = x.reshape(-1, *self.in_shape)
        outputs = self.network(flat)
        if len(outputs) != len(flat) or outputs.numel() != len(flat) * self.size:
            got = tuple(outputs.shape)
            raise ValueError(f"expected outputs of shape ({len(flat)}, {self.size}); got {got}")
        return outputs.reshape(*batch, *self.out_shape)
