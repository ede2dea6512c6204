"""Arguments of a program: the data, and the labels if it conditions on them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.components import Labels
from ..core.evaluation_mode import owning_modules
from ..core.random import Stream
from ..data import containers, splits
from ..data.arguments import as_argument
from ..data.containers import Container, block_slices
from ..data.kinds import is_unobserved
from ..data.splits import Split, as_data, contains_nan
from .arguments import ProgramInputs, map_batched, order_arguments, spread_arguments
from .audit import audit_inputs, reads_plate_index
from .autoguides import sample_directly
from .base import Program, data_plate, label_use
from .context import evaluating
from .plates import normalize_plate

__all__ = [
    "AnyData",
    "AnyProgram",
    "add_split_arguments",
    "blank_examples",
    "block_seed",
    "check_blockwise",
    "check_data",
    "check_examples",
    "data_arguments",
    "expect_missing",
    "is_large",
    "materialize",
    "normalize_order",
    "prepare",
    "program_args",
    "program_dtype",
    "program_labels",
    "read_data",
    "read_with_arguments",
    "split_program",
]

#: A program, a pair of model and guide, or a model that is followed by its guide and the data.
AnyProgram = Program | tuple[Any, Any] | Callable[..., Any]
#: The data, of any type that :func:`pyro_vae.data.as_split` accepts, or the guide of a model that
#: is followed by the data.
AnyData = Any


def prepare(
    program: AnyProgram,
    data: AnyData,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    *,
    plate: str | None = None,
    check: bool = True,
) -> ProgramInputs:
    """Prepare the arguments of a program on its device, check the data and audit the program.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them. Also a model, if
            ``data`` is its guide and the first of ``args`` the data.
        data: the data, a tensor ``(N, …)``, a :class:`~pyro_vae.data.Split`, or anything that
            :func:`~pyro_vae.data.as_split` accepts. Except for a tensor, it gets the dtype of the
            program. Dynamic binarisation or noise is drawn once, with ``seed``.
        args: further arguments of model and guide. Without ``args`` and ``kwargs``, a program
            that conditions on labels gets those of the ``Split``.
        kwargs: further keyword arguments of model and guide. They take precedence over the
            ``arguments`` of a ``Split``. Arrays of leading size N become tensors.
        seed: seed of dynamic binarisation or noise.
        plate: the name of the plate over the data; by default the attribute ``plate`` of the
            program, or else found by :func:`~.plates.normalize_plate`.
        check: whether to check the data and to audit the program; if not, the arguments are not in
            normal form.

    Returns:
        The inputs in normal form, see :func:`~.audit.audit_inputs`.

    Raises:
        ValueError: if ``program`` is not a program, if the data are of another type, have no
            examples or do not fit into memory, if the program conditions on labels and one is
            missing, if the ``check`` method of the program rejects the data, or if weights per
            datum are undefined.
    """
    program, examples, args = normalize_order(program, data, args)
    model, guide = split_program(program)
    examples = read_data(program, examples)
    check_examples(examples)
    x, is_explicit = materialize(program, examples, seed), bool(args or kwargs)
    if not is_explicit:
        expect_missing(x, program)
    kwargs = dict(kwargs or {})
    args, _ = data_arguments(program, examples, args, kwargs)
    has_labels = label_use(program) is not Labels.UNUSED and bool(args or kwargs)
    owners = owning_modules(program, model, guide)  # type: ignore[arg-type]
    device = next((p.device for owner in owners for p in owner.parameters()), x.device)

    def move(value: Any) -> Any:
        value = as_argument(value, len(x))
        return value.to(device) if isinstance(value, Tensor) else value

    args = tuple(map(move, args))
    kwargs = {name: move(value) for name, value in kwargs.items()}
    x = x.to(device)
    inputs = add_split_arguments(ProgramInputs(model, guide, x, args, kwargs), examples)
    inputs = sample_directly(inputs)
    inputs = normalize_plate(inputs, plate or data_plate(program))
    if not check:
        return inputs
    labels = (*args, *kwargs.values())[:1] if has_labels else ()
    _check_tensor(program, x, *labels)
    return audit_inputs(inputs)


def normalize_order(program: Any, data: Any, args: tuple[Any, ...]) -> tuple[Any, Any, tuple]:
    """Return program, data and further arguments, also from the order model, guide, data."""
    if callable(data):
        return (program, data), args[0] if args else None, args[1:]
    return program, data, args


def split_program(program: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the model and the guide of a program or of a pair.

    Raises:
        ValueError: if ``program`` is neither.
    """
    if isinstance(program, tuple) and len(program) == 2:
        return program
    model, guide = (getattr(program, name, None) for name in ("model", "guide"))
    if isinstance(program, type) or model is None or guide is None:
        name = f"the class {program.__name__}" if isinstance(program, type) else None
        raise ValueError(
            f"expected an object with a model and a guide, such as a VAE, or a pair (model, "
            f"guide); got {name or type(program).__name__}"
        )
    return model, guide


def read_data(program: object, data: Any, name: str = "x") -> Split | Tensor:
    """Return the data of a program as a tensor or a split, see :func:`~pyro_vae.data.as_split`.

    The labels of a torch ``Dataset`` are read only if the program uses labels.

    Raises:
        ValueError: if the data are of another type.
    """
    return as_data(data, name, read_labels=label_use(program) is not Labels.UNUSED)


def read_with_arguments(
    program: object, data: Any, kwargs: Mapping[str, Any], name: str = "x"
) -> Split | Tensor:
    """Return :func:`read_data` with keyword arguments of the program among its arguments.

    They replace arguments of a split of the same name.
    """
    examples = read_data(program, data, name)
    if not kwargs:
        return examples
    split = examples if isinstance(examples, Split) else Split(examples)
    return replace(split, arguments={**(split.arguments or {}), **kwargs})


def check_examples(x: Split | Tensor) -> None:
    """Raise a ``ValueError`` unless ``x`` contains at least one example."""
    shape = x.values.shape if isinstance(x, Split) else x.shape
    if not shape or not shape[0]:
        raise ValueError(f"expected x to be a tensor of shape (N ≥ 1, …); got shape {tuple(shape)}")


def program_dtype(program: object) -> torch.dtype:
    """Return the dtype of a program's parameters; torch's default if it has several or none."""
    model, guide = split_program(program)
    owners = owning_modules(program, model, guide)  # type: ignore[arg-type]
    parameters = (p for owner in owners for p in owner.parameters() if p.is_floating_point())
    dtypes = {parameter.dtype for parameter in parameters}
    return dtypes.pop() if len(dtypes) == 1 else torch.get_default_dtype()


def blank_examples(program: object, size: int) -> Tensor | None:
    """Return zeros of the shape of examples, for a model that needs data to run.

    ``None`` if the model takes ``size``, and runs without data, or if the program does not state
    the shape of an example, ``event_shape``.
    """
    model, _ = split_program(program)
    shape = getattr(program, "event_shape", None)
    if shape is None or "size" in inspect.signature(model).parameters:
        return None
    device = next((p.device for owner in owning_modules(model) for p in owner.parameters()), None)
    return torch.zeros(size, *shape, dtype=program_dtype(program), device=device)


def materialize(program: object, data: Split | Tensor, seed: int) -> Tensor:
    """Return the examples as a likelihood sees them, with randomness fixed by ``seed``.

    Raises:
        ValueError: if they do not fit into memory.
    """
    return splits.materialize(data, seed, program_dtype(program))


def is_large(data: Split) -> bool:
    """Whether data are not in memory, and are too large to be loaded at once."""
    size = 4 * len(data) * math.prod(data.event_shape)
    return isinstance(data.values, Container) and size > containers.RESIDENT_BYTES


def check_blockwise(inputs: ProgramInputs) -> None:
    """Check that a program can run on a block of examples as if these were all.

    Raises:
        ValueError: if it reads parameters or data by the index of an example.
    """
    with evaluating(inputs.model, inputs.guide, seed=0, stream=Stream.AUDIT_BLOCKS):
        if reads_plate_index(inputs):
            raise ValueError(
                "expected a program that does not read the index of the plate, for data that are "
                "evaluated in blocks; got one whose tensors have a row per example: pass data in "
                "memory, e.g. data.materialize(seed)"
            )


def block_seed(seed: int, start: int) -> int:
    """Return the seed of the block of examples from ``start``."""
    return int(np.random.SeedSequence([seed, start]).generate_state(1)[0])


def program_args(program: object, data: Split | Tensor, seed: int) -> tuple[Tensor, ...]:
    """Return the arguments that score data: ``(x,)``, or ``(x, labels)`` if conditional.

    Dynamic binarisation or noise is drawn with ``seed``.

    Raises:
        ValueError: if the program conditions on labels and one is missing.
    """
    x = materialize(program, data, seed)
    expect_missing(x, program)
    labels = program_labels(program, data) if label_use(program) is Labels.CONDITION else None
    return (x,) if labels is None else (x, labels)


def data_arguments(
    program: object, data: Split | Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the further arguments of a program, with those of a split.

    A program that conditions on labels gets those of the split first, unless there are explicit
    arguments. Keyword arguments take precedence over the ``arguments`` of the split.

    Raises:
        ValueError: if the program conditions on labels and one is missing.
    """
    if not (args or kwargs) and label_use(program) is Labels.CONDITION:
        labels = program_labels(program, data)
        args = () if labels is None else (labels,)
    own = data.arguments if isinstance(data, Split) else None
    return args, {**(own or {}), **kwargs}


def add_split_arguments(inputs: ProgramInputs, data: Split | Tensor) -> ProgramInputs:
    """Append the ``arguments`` of a split to those of a program, which replace them by name.

    They become arguments by position, which every use of the inputs passes on.
    """
    model, guide, x, args, kwargs = inputs
    own = (data.arguments if isinstance(data, Split) else None) or {}
    own = {name: value for name, value in own.items() if name not in kwargs}
    if not own:
        return inputs
    own = {n: v.to(x.device) if isinstance(v, Tensor) else v for n, v in own.items()}
    ordered = order_arguments((model, guide), args, own, kwargs)
    if ordered is not None:
        return inputs._replace(args=ordered)
    model, guide = (spread_arguments(function, [*own]) for function in (model, guide))
    return ProgramInputs(model, guide, x, (*args, *own.values()), kwargs)


def expect_missing(x: Tensor, *programs: object) -> None:
    """Let programs with a method ``expect_missing()`` expect unobserved values, if x has NaN."""
    methods = [m for program in programs if (m := getattr(program, "expect_missing", None))]
    if methods and contains_nan(x):
        for method in methods:
            method()


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

    Data of more than 16 MiB are checked in blocks.

    Raises:
        ValueError: if the program rejects the data.
    """
    labels = program_labels(program, data)
    args = () if labels is None else (labels,)
    if isinstance(data, Tensor):
        _check_tensor(program, data, *args)
    elif hasattr(program, "check"):
        blocks = data.iter_materialized(seed, program_dtype(program))
        try:
            _check_blocks(program, blocks, len(data), *args)
        except ValueError:
            if isinstance(data.values, Container):
                raise
            # decides, and reports about all examples
            _check(program, materialize(program, data, seed), *args)


def _check_tensor(program: object, x: Tensor, *args: Any) -> None:
    """Check examples and further arguments in blocks, with errors about all examples."""
    try:
        blocks = ((rows, x[rows]) for rows in block_slices(x))
        _check_blocks(program, blocks, len(x), *args)
    except ValueError:
        _check(program, x, *args)


def _check_blocks(
    program: object, blocks: Iterable[tuple[slice, Tensor]], size: int, *args: Any
) -> None:
    """Check blocks of examples, and the parts of all arguments that are per datum."""
    unobserved, any_checked = None, False
    for rows, x in blocks:
        parts, _ = map_batched(lambda t, rows=rows: t[rows], size, args, {})
        if is_unobserved(x):
            expect_missing(x, program)
            unobserved = x, parts
        else:
            _check(program, x, *parts)
            any_checked = True
    if unobserved is not None and not any_checked:
        # no value is observed
        _check(program, unobserved[0], *unobserved[1])


def _check(program: Any, x: Tensor, *labels: Tensor) -> None:
    if hasattr(program, "check"):
        program.check(x, *labels)
