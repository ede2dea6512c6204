"""What a program is called with: the data, and their labels if it conditions on them."""

from __future__ import annotations

from torch import Tensor

from ._programs import Labels, labels_of
from .data.splits import Split

__all__ = ["check", "fixed", "inputs", "labels_for"]


def fixed(data: Split | Tensor, seed: int) -> Tensor:
    """The data as a likelihood sees them, what is drawn anew drawn once with ``seed``."""
    return data.fixed(seed) if isinstance(data, Split) else data


def inputs(program: object, data: Split | Tensor, seed: int) -> tuple[Tensor, ...]:
    """What the program is called with to score data: ``(x,)``, or ``(x, labels)``.

    Arguments:
        program: a program; one with ``labels`` CONDITION is called with the labels.
        data: the data.
        seed: of the binarisation or the noise, if they are drawn anew at every use.

    Raises:
        ValueError: if the program conditions on labels and a datum has none.
    """
    x = fixed(data, seed)
    if labels_of(program) is not Labels.CONDITION:
        return (x,)
    labels = labels_for(program, data)
    assert labels is not None  # or it was refused
    return x, labels


def labels_for(program: object, data: Split | Tensor) -> Tensor | None:
    """The labels that a program looks at, ``(N, …)``, if there are any.

    Raises:
        ValueError: if it conditions on labels and a datum has none.
    """
    what = labels_of(program)
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


def check(program: object, data: Split | Tensor, seed: int) -> None:
    """Lets a program with a method ``check`` refuse data, and labels that it looks at.

    Raises:
        ValueError: if it does.
    """
    labels = labels_for(program, data)
    if hasattr(program, "check"):
        x = fixed(data, seed)
        program.check(x) if labels is None else program.check(x, labels)  # type: ignore[attr-defined]
