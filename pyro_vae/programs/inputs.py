"""What a program is called with: the data, and their labels if it conditions on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.components import Labels
from ..data.splits import Split, materialize
from .base import Program, label_use

__all__ = ["ProgramInputs", "check_data", "prepare", "program_args", "program_labels"]


class ProgramInputs(NamedTuple):
    """What a program and data come to: both are called as ``model(x, *args, **kwargs)``."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def prepare(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> ProgramInputs:
    """What a program is called with, on its own device, after its ``check`` has seen it.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`; one whose
            pixels or noise are drawn anew at every use has them drawn once, with ``seed``.
        args: further arguments of model and guide, as are ``kwargs``. A program that
            conditions on labels is given those of a ``Split`` if there are none.
        kwargs: by name.
        seed: of the binarisation or the noise, if they are drawn anew at every use.

    Returns:
        ``(model, guide, x, args, kwargs)``.

    Raises:
        ValueError: if a label is missing that the program conditions on, or if the program
            refuses the data.
    """
    model, guide = program if isinstance(program, tuple) else (program.model, program.guide)
    kwargs = dict(kwargs or {})
    # labels that the caller gives by himself are those that count
    x, *own = (materialize(data, seed),) if args or kwargs else program_args(program, data, seed)
    args = (*own, *args)
    if isinstance(program, torch.nn.Module):
        device = next((p.device for p in program.parameters()), x.device)
        x, *rest = (_moved(value, device) for value in (x, *args))
        args = tuple(rest)
        kwargs = {name: _moved(value, device) for name, value in kwargs.items()}
    if hasattr(program, "check"):
        conditioned = label_use(program) is Labels.CONDITION
        conditions = (*args, *kwargs.values())[:1] if conditioned else ()
        program.check(x, *conditions)  # type: ignore[union-attr]
    return ProgramInputs(model, guide, x, args, kwargs)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def program_args(program: object, data: Split | Tensor, seed: int) -> tuple[Tensor, ...]:
    """What the program is called with to score data: ``(x,)``, or ``(x, labels)``.

    Arguments:
        program: a program; one with ``labels`` CONDITION is called with the labels.
        data: the data.
        seed: of the binarisation or the noise, if they are drawn anew at every use.

    Raises:
        ValueError: if the program conditions on labels and a datum has none.
    """
    x = materialize(data, seed)
    if label_use(program) is not Labels.CONDITION:
        return (x,)
    labels = program_labels(program, data)
    assert labels is not None  # or it was refused
    return x, labels


def program_labels(program: object, data: Split | Tensor) -> Tensor | None:
    """The labels that a program looks at, ``(N, …)``, if there are any.

    Raises:
        ValueError: if it conditions on labels and a datum has none.
    """
    what = label_use(program)
    labels = data.labels if isinstance(data, Split) else None
    if what is Labels.UNUSED:
        return None
    if what is Labels.CONDITION:
        missing = int((~data.known).sum()) if isinstance(data, Split) else len(data)
        if missing:
            remedy = "give pv.data.Split(x, labels=c)"
            if labels is not None:
                remedy = "leave these out, and data.labelled at null"
            raise ValueError(
                f"expected a label for every datum, which {type(program).__name__} conditions "
                f"on; got {missing} of {len(data)} without: {remedy}"
            )
    return labels


def check_data(program: object, data: Split | Tensor, seed: int) -> None:
    """Lets a program with a method ``check`` refuse data, and labels that it looks at.

    Raises:
        ValueError: if it does.
    """
    labels = program_labels(program, data)
    if hasattr(program, "check"):
        x = materialize(data, seed)
        program.check(x) if labels is None else program.check(x, labels)  # type: ignore[attr-defined]
