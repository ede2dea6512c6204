"""A program with its arguments, some of which are per datum."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ProgramInputs",
    "audited_rows",
    "has_batch",
    "map_batched",
    "order_arguments",
    "spread_arguments",
]

#: Examples from each end of the data on which a program is audited.
_PART = 100


class ProgramInputs(NamedTuple):
    """A program and its arguments, to be called as ``model(x, *args, **kwargs)``."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def select(self, index: slice | Tensor) -> ProgramInputs:
        """Select examples of x and of all arguments that are tensors of leading size N."""
        return self._map(lambda t: t[index.to(t.device) if isinstance(index, Tensor) else index])

    def repeat(self, count: int) -> ProgramInputs:
        """Return the inputs with ``count`` copies of the examples."""
        return self._map(lambda tensor: torch.cat([tensor] * count))

    def blocks(self, size: int) -> Iterator[tuple[slice, ProgramInputs]]:
        """Yield the slices of consecutive blocks of at most ``size`` examples, and their inputs."""
        for start in range(0, len(self.x), size):
            rows = slice(start, min(start + size, len(self.x)))
            yield rows, self.select(rows)

    def _map(self, function: Callable[[Tensor], Tensor]) -> ProgramInputs:
        """Apply a function to x and to all arguments that are tensors of leading size N."""
        (x, *args), kwargs = map_batched(function, len(self.x), (self.x, *self.args), self.kwargs)
        return self._replace(x=x, args=tuple(args), kwargs=kwargs)


def audited_rows(x: Tensor) -> Tensor:
    """Return the indices of the examples on which a program is audited: both ends of the data."""
    rows = torch.arange(len(x), device=x.device)
    return rows if len(rows) <= 2 * _PART else torch.cat([rows[:_PART], rows[-_PART:]])


def has_batch(size: int, values: tuple[Any, ...]) -> bool:
    """Whether any value is a tensor of leading size ``size``."""
    return any(isinstance(v, Tensor) and v.ndim > 0 and len(v) == size for v in values)


def map_batched(
    function: Callable[[Tensor], Tensor], size: int, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Apply a function to all per-datum tensors among the arguments."""

    def apply(value: Any) -> Any:
        return function(value) if has_batch(size, (value,)) else value

    return tuple(map(apply, args)), {key: apply(value) for key, value in kwargs.items()}


def order_arguments(
    functions: Sequence[Callable[..., Any]],
    first: tuple[Any, ...],
    named: Mapping[str, Any],
    given: Collection[str] = (),
) -> tuple[Any, ...] | None:
    """Return arguments by position, in the order in which all functions take them after x.

    Arguments:
        functions: model and guide.
        first: the first arguments after x, which replace named ones.
        named: further arguments. Defaults take the positions between them.
        given: names that are given otherwise, and must not be among these positions.

    Returns:
        The arguments, or ``None`` if the functions have no common order of this kind.
    """
    orders = []
    for function in functions:
        try:
            parameters = [*inspect.signature(function).parameters.values()]
        except (TypeError, ValueError):
            return None
        if not all(p.kind is p.VAR_POSITIONAL or p.kind is p.VAR_KEYWORD for p in parameters):
            orders.append([p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:])
    count, values = len(first), [*first]
    pending = set(named) - {p.name for order in orders for p in order[:count]}
    for same in zip(*(order[count:] for order in orders), strict=False):
        if not pending:
            break
        name, default = same[0].name, same[0].default
        if any(p.name != name or p.default is not default for p in same) or name in given:
            return None
        if name not in named and default is inspect.Parameter.empty:
            return None
        values.append(named.get(name, default))
        pending.discard(name)
    return None if pending else tuple(values)


def spread_arguments(
    function: Callable[..., Any],
    keys: Sequence[int | str],
    shared: Mapping[int | str, Any] | None = None,
) -> Callable[..., Any]:
    """Return a function that takes its last arguments in the order of ``keys``.

    Arguments:
        function: a model or a guide.
        keys: the positions (after the first arguments) or the names of the last arguments.
        shared: values of further arguments, by position or name. Tensors follow x to its device.
    """
    bound = shared or {}

    @functools.wraps(function, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        count = len(args) - len(keys)
        values = dict(zip(keys, args[count:], strict=True))
        for key, value in bound.items():
            values[key] = value.to(args[0].device) if isinstance(value, Tensor) else value
        positional = [values[key] for key in sorted(k for k in values if isinstance(k, int))]
        named = {key: value for key, value in values.items() if isinstance(key, str)}
        return function(*args[:count], *positional, **named, **kwargs)

    return run
