"""Programs of users in the form in which they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import distributed
from ..data.containers import Container
from ..data.items import SequentialItems
from ..data.splits import Split
from ..programs.base import trace_program
from ..programs.context import inspecting
from ..programs.minibatches import MinibatchForm, MinibatchSource, find_minibatch_form
from ..programs.modules import StoredParameters, adopt_stored_parameters, with_functions
from .batches import BatchLoader
from .input_scale import explain_invalid_parameters

__all__ = ["AdaptedProgram", "adapt_program"]

_Functions = tuple[Callable[..., Any], Callable[..., Any]]


class AdaptedProgram(NamedTuple):
    """A program in the form in which it is trained.

    Attributes:
        module: owns all parameters that are trained; its model and guide are called with the
            minibatches of the loader. The program itself, if it needs no other form.
        form: the form of the program, with its tensors and bound arguments.
        stored: its parameters that Pyro's parameter store has after training.
    """

    module: nn.Module
    form: MinibatchForm
    stored: StoredParameters


def adapt_program(
    program: nn.Module,
    functions: _Functions,
    batches: BatchLoader,
    arguments: Mapping[int | str, Any],
    plate: str | None,
    device: torch.device,
) -> AdaptedProgram:
    """Find the form in which a program is trained, and let the minibatches have its arguments.

    Arguments:
        program: the module that owns the parameters of the program, as far as they are known.
        functions: its model and guide.
        batches: the minibatches, to which the arguments with a row per example are added.
        arguments: the further arguments of model and guide.
        plate: the name of the plate over the data, if given.
        device: the device on which the program will be trained.

    Raises:
        ValueError: as for :func:`~pyro_vae.programs.minibatches.find_minibatch_form`, or if a
            program that only runs on all examples is trained on several processes.
    """
    device = _find_device(program, functions, batches, device)

    def gather(index: Tensor) -> tuple[Tensor, ...]:
        return _move(batches.gather_args(index), device)

    values = batches.data.values if isinstance(batches.data, Split) else batches.data
    source = MinibatchSource(
        len(batches.data),
        batches.first_rows,
        gather,
        is_sequential=isinstance(values, SequentialItems),
        is_resident=not isinstance(values, Container),
    )
    with explain_invalid_parameters(program, gather(source.batch)):
        form = find_minibatch_form(*functions, source, arguments, plate)
    if form.needs_all:
        if distributed.world_size() > 1:
            raise ValueError(
                "expected a program that runs on some of the examples, to train on several "
                "processes; got one that only runs on all of them: use one process"
            )
        batches.keep_order()
    batches.add_arguments(form.tensors)
    module = program
    if (form.model, form.guide) != functions:
        module = with_functions(program, form.model, form.guide)
    examples = [_move(args, device) for args in batches.example_args()]
    module, stored = adopt_stored_parameters(module, examples)
    return AdaptedProgram(module, form, stored)


def _find_device(
    program: nn.Module, functions: _Functions, batches: BatchLoader, device: torch.device
) -> torch.device:
    """Return the device on which a program is before training.

    Functions have no parameters yet: they run on the CPU, or else on the training device.
    """
    first = next(program.parameters(), None)
    if first is not None or device.type == "cpu":
        return torch.device("cpu") if first is None else first.device
    try:
        with inspecting(*functions):
            trace_program(*functions, batches.example_args()[0], {}, sum_out=False)
    except RuntimeError:
        return device
    return torch.device("cpu")


def _move(args: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in args)
