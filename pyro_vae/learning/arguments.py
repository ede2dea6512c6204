"""Further arguments of a program in training: masks, lengths, covariates, settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..core.components import Labels
from ..core.validation import did_you_mean
from ..data.arguments import as_argument, as_arguments, is_per_datum
from ..data.splits import Split, checksum
from ..programs.base import label_use
from ..programs.inputs import split_program
from ..programs.minibatches import MinibatchForm, name_arguments

__all__ = ["collect_arguments", "describe_shared", "validation_arguments"]


def collect_arguments(
    program: Any,
    data: Split | Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    arguments: Mapping[str, Any] | None,
    options: Sequence[str],
) -> dict[int | str, Any]:
    """Return the further arguments of a program, those of the data included.

    Arguments:
        program: a program, or a pair of model and guide.
        data: the training data, whose own arguments the others replace.
        args, kwargs, arguments: those given to ``fit``.
        options: the names of fit's own options.

    Returns:
        The arguments by name, or by position after x and the labels.

    Raises:
        ValueError: if the program does not accept them, or lacks some.
    """
    model, guide = split_program(program)
    explicit = as_arguments(arguments, len(data))
    twice = sorted(explicit.keys() & kwargs.keys())
    if twice:
        raise ValueError(f"expected the argument {twice[0]!r} once; got it twice, in arguments too")
    own = (data.arguments if isinstance(data, Split) else None) or {}
    use = label_use(program)
    num_first = 1 + int(use is not Labels.UNUSED)
    given = name_arguments(model, guide, args, {**kwargs, **explicit}, num_first)
    found = {**own, **{key: as_argument(value, len(data)) for key, value in given.items()}}
    if use is not Labels.PARTIAL:  # which is called with and without labels
        for kind, function in (("model", model), ("guide", guide)):
            _check_call(kind, function, num_first, found, kwargs, options)
    return found


def _check_call(
    kind: str,
    function: Callable[..., Any],
    num_first: int,
    arguments: Mapping[int | str, Any],
    kwargs: Mapping[str, Any],
    options: Sequence[str],
) -> None:
    """Raise if a function cannot be called with x, the labels if any, and the arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    positional = [None] * (num_first + sum(isinstance(key, int) for key in arguments))
    named = {key: None for key in arguments if isinstance(key, str)}
    parameters = signature.parameters.values()
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [name for name in named if name not in signature.parameters and not accepts_all]
    if unknown:
        hint = did_you_mean(unknown[0], options) if unknown[0] in kwargs else ""
        raise ValueError(
            f"expected options of fit and arguments of the {kind}; got {unknown[0]!r}, which is "
            f"neither{hint}"
        )
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        missing = [
            p.name
            for p in list(parameters)[len(positional) :]
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in named
        ]
        if not missing:
            raise ValueError(f"the {kind} cannot be called with these arguments: {error}") from None
        name = missing[0]
        remedy = f"arguments={{{name!r}: …}}" if name in options else f"fit(program, x, {name}=…)"
        raise ValueError(
            f"expected the argument {name!r} of the {kind}; got none: pass {remedy}, with one row "
            f"per example if it is a tensor of data"
        ) from None


def validation_arguments(form: MinibatchForm, valid: Split | Tensor) -> tuple[Tensor, ...]:
    """Return the further tensors per datum of validation data.

    Raises:
        ValueError: if some are missing, or if parameters per example cannot score other examples.
    """
    if form.reads_index or form.needs_all:
        raise ValueError(
            "expected no validation data for a program with parameters per training example, which "
            "cannot score other examples; got some: leave valid out, or use a guide that computes "
            "q(z|x) from x"
        )
    own = (valid.arguments if isinstance(valid, Split) else None) or {}
    unknown = [name for name in own if name not in (*form.keys, *form.shared)]
    if unknown:
        raise ValueError(
            f"expected the arguments of the training data in the validation data; got "
            f"{unknown[0]!r} too: pass it with the training data, or leave it out"
        )
    tensors = []
    for key in form.keys:
        if isinstance(key, int):
            raise ValueError(
                f"expected training arguments by name with validation data; got the one at "
                f"position {key}, whose name differs between model and guide: pass it by name"
            )
        if not is_per_datum(own.get(key), len(valid)):
            got = "none" if key not in own else "another value"
            raise ValueError(
                f"expected the argument {key!r} of the validation data, with one row for each of "
                f"{len(valid)} examples; got {got}: pass "
                f"valid=pv.data.Split(x, arguments={{{key!r}: …}})"
            )
        tensors.append(own[key])
    return tuple(tensors)


def describe_shared(arguments: Mapping[int | str, Any]) -> list[str]:
    """Return arguments that all examples share as text, tensors by their checksum."""
    texts = []
    for key, value in arguments.items():
        text = type(value).__name__
        if isinstance(value, Tensor):
            text = checksum([value])
        elif isinstance(value, bool | int | float | str | tuple):
            text = repr(value)
        texts.append(f"{key}: {text}")
    return texts
