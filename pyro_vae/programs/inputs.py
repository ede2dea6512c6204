"""Arguments of a program: the data, and the labels if it conditions on them."""

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
    """A program and its arguments, to be called as ``model(x, *args, **kwargs)``."""

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
    """Prepare the arguments of a program on its device, and check the data.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`. Dynamic
            binarisation or noise is drawn once, with ``seed``.
        args: further arguments of model and guide. Without ``args`` and ``kwargs``, a program
            that conditions on labels gets those of the ``Split``.
        kwargs: further keyword arguments of model and guide.
        seed: seed of dynamic binarisation or noise.

    Returns:
        ``(model, guide, x, args, kwargs)``.

    Raises:
        ValueError: if the program conditions on labels and one is missing, or if the ``check``
            method of the program rejects the data.
    """
    model, guide = program if isinstance(program, tuple) else (program.model, program.guide)
    kwargs = dict(kwargs or {})
    # explicit arguments take precedence over the labels of the data
    x, *labels = (materialize(data, seed),) if args or kwargs else program_args(program, data, seed)
    args = (*labels, *args)
    if isinstance(program, torch.nn.Module):
        device = next((p.device for p in program.parameters()), x.device)
        x, *moved = (_to_device(value, device) for value in (x, *args))
        args = tuple(moved)
        kwargs = {name: _to_device(value, device) for name, value in kwargs.items()}
    if hasattr(program, "check"):
        conditional = label_use(program) is Labels.CONDITION
        conditions = (*args, *kwargs.values())[:1] if conditional else ()
        program.check(x, *conditions)  # type: ignore[union-attr]
    return ProgramInputs(model, guide, x, args, kwargs)


def _to_device(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def program_args(program: object, data: Split | Tensor, seed: int) -> tuple[Tensor, ...]:
    """Return the arguments that score data: ``(x,)``, or ``(x, labels)`` if conditional.

    Arguments:
        program: the program.
        data: the data.
        seed: seed of dynamic binarisation or noise.

    Raises:
        ValueError: if the program conditions on labels and one is missing.
    """
    x = materialize(data, seed)
    if label_use(program) is not Labels.CONDITION:
        return (x,)
    labels = program_labels(program, data)
    assert labels is not None  # checked by program_labels
    return x, labels


def program_labels(program: object, data: Split | Tensor) -> Tensor | None:
    """Return the labels that a program uses, ``(N, …)``, or ``None``.

    Raises:
        ValueError: if the program conditions on labels and one is missing.
    """
    use = label_use(program)
    labels = data.labels if isinstance(data, Split) else None
    if use is Labels.UNUSED:
        return None
    if use is Labels.CONDITION:
        missing = int((~data.has_label).sum()) if isinstance(data, Split) else len(data)
        if missing:
            remedy = "pass pv.data.Split(x, labels=c)"
            if labels is not None:
                remedy = "leave these out, and set data.labelled to null"
            raise ValueError(
                f"expected a label for every example, as {type(program).__name__} conditions on "
                f"labels; got {missing} of {len(data)} without: {remedy}"
            )
    return labels


def check_data(program: object, data: Split | Tensor, seed: int) -> None:
    """Call the ``check`` method of a program, if any, on the data and the labels it uses.

    Raises:
        ValueError: if the program rejects the data.
    """
    labels = program_labels(program, data)
    if hasattr(program, "check"):
        x = materialize(data, seed)
        program.check(x) if labels is None else program.check(x, labels)  # type: ignore[attr-defined]
