"""Advice for data whose scale is too large for the networks that read them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..core.evaluation_mode import before_modules, preserve_buffers
from ..networks.base import Network

__all__ = ["advise_scaling", "explain_invalid_parameters"]

#: Largest root mean square of the inputs of a network without a remark. The outputs of an untrained
#: ConvNet or ResNet are up to about 0.3 times as large, and the scale of q(z|x) is their
#: exponential: e⁸ = 3000 at 30. Bytes of images, with about 100, overflow its square in float32.
#: Hidden units with tanh saturate from about 5 on. Standardised data have 1.
_MAX_RMS = 30.0


def advise_scaling(program: nn.Module, args: Sequence[Any]) -> str | None:
    """Return advice if the guide's networks read values that are too large; ``None`` otherwise.

    Runs the guide once, which consumes random numbers. Layers count by what reaches them, so that
    a network that standardises or normalises its inputs needs no advice.

    Arguments:
        program: the program.
        args: arguments of the program: a minibatch of x, and others.
    """
    found = _find_large_inputs(program, args)
    if not found:
        return None
    x = args[0].detach().nan_to_num()
    is_integer = bool((x == x.round()).all())
    networks = [name for name, (module, _) in found.items() if isinstance(module, Network)]
    options = sorted({_option(program, name) for name in networks})
    remedies = []
    if not (is_integer and options):
        # a likelihood of levels or counts needs them as they are
        remedies.append("standardise the data, (x − mean) / std (--data.scale standard)")
    if options:
        flags = " ".join(f"--model.{option}.standardize true" for option in options)
        remedies.append(f"set standardize=True of the {' and the '.join(options)} ({flags})")
    size = max(rms for _, rms in found.values())
    return (
        f"the inputs of {', '.join(map(repr, found))} have a root mean square of {size:.3g} (at "
        f"most {_MAX_RMS:g} is safe, 1 is best): {', or '.join(remedies)}"
    )


@contextmanager
def explain_invalid_parameters(program: nn.Module, args: Sequence[Any]) -> Iterator[None]:
    """Raise advice in place of torch's error of invalid parameters, if large inputs explain it."""
    try:
        yield
    except ValueError as error:
        is_invalid = "to satisfy the constraint" in str(error)
        advice = advise_scaling(program, args) if is_invalid else None
        if advice is None:
            raise
        raise ValueError(
            f"expected finite parameters of q(z|x) before training; got NaN, zero or infinite "
            f"scales, because {advice}"
        ) from error


@torch.no_grad()
def _find_large_inputs(
    program: nn.Module, args: Sequence[Any]
) -> dict[str, tuple[nn.Module, float]]:
    """Return networks without normalisation whose inputs are large, with their root mean squares.

    A layer that is not in a :class:`~pyro_vae.networks.base.Network` stands for itself.
    """
    owners: dict[nn.Module, tuple[str, nn.Module]] = {}
    for name, module in program.named_modules():
        if isinstance(module, Network):
            owners |= dict.fromkeys(module.modules(), (name, module))
        else:
            owners.setdefault(module, (name, module))
    found: dict[str, tuple[nn.Module, float]] = {}

    def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not isinstance(layer, nn.Linear | _ConvNd) or layer not in owners or not inputs:
            return
        name, owner = owners[layer]
        is_network = isinstance(owner, Network)
        if name not in found and not _is_normalized(owner if is_network else program):
            # under a functional transform, tensors have no values
            with suppress(RuntimeError):
                values = inputs[0].detach().double()
                rms = float(values[values.isfinite()].square().mean().sqrt())
                if rms > _MAX_RMS:
                    found[name] = owner, rms

    guide: Any = program.guide
    with (
        before_modules(record),
        preserve_buffers([program]),
        poutine.block(),
        pyro.validation_enabled(False),
    ):
        guide(*args)
    return found


def _is_normalized(module: nn.Module) -> bool:
    norms = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return any(isinstance(child, norms) for child in module.modules())


def _option(program: nn.Module, name: str) -> str:
    """Return the argument of the program that creates the network of this name."""
    arguments = inspect.signature(type(program).__init__).parameters
    known = ("classifier",) if name.startswith("classifier") else ("encoder", "encoders")
    return next((argument for argument in known if argument in arguments), name)
