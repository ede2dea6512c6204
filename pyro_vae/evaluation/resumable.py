"""Long computations in blocks of data, of which those that are finished are kept."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from torch import Tensor, nn
from tqdm import tqdm

from ..core import files
from ..core.random import seeded
from ..data.splits import checksum

__all__ = ["fingerprint", "in_blocks"]

#: What a checkpoint holds besides the columns.
_KEY = "_key"
#: What of a module's attributes, besides its weights, decides what it does.
_SETTING = (
    Tensor | bool | int | float | str | tuple | types.FunctionType | types.BuiltinFunctionType
)
#: What is looked into where a function, or an object with methods, refers to it.
_REFERRED = _SETTING | nn.Module | list | Mapping | functools.partial | types.MethodType


def in_blocks(
    compute: Callable[[slice, Callable[[float], None]], Mapping[str, Tensor]],
    size: int,
    *,
    block: int,
    entropy: tuple[int, ...],
    checkpoint: Path | None = None,
    key: str = "",
    progress: bool = False,
    desc: str = "",
) -> dict[str, np.ndarray]:
    """Columns per datum, computed block by block; a computation that was killed goes on.

    Every block has random numbers of its own, so that what follows from a block does not
    depend on which others ran before it in this process: a resumed computation gives the same
    bits. The checkpoint is left where it is at the end, for the caller to remove once the
    result is safe.

    Arguments:
        compute: ``compute(rows, advance)`` gives columns of leading size ``len(rows)`` for a
            block; it may call ``advance(share)`` to say how much of it, between 0 and 1, it
            has done since the last call.
        size: the number N of data.
        block: how many of them to hand over at once.
        entropy: what every block is seeded with, together with where it starts.
        checkpoint: a file for what is finished; ``None`` keeps nothing.
        key: the :func:`fingerprint` of all that the columns depend on.
        progress: show a progress bar on the standard error.
        desc: what it is called.

    Returns:
        By name, ``(N, …)``.

    Raises:
        ValueError: if the checkpoint is that of another computation, or is none.
    """
    key = fingerprint(key, size, block, list(entropy))
    done = {} if checkpoint is None else _read(Path(checkpoint), key)
    first = len(next(iter(done.values()))) if done else 0
    with tqdm(
        total=size,
        initial=first,
        desc=desc,
        disable=not progress,
        dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    ) as bar:
        for start in range(first, size, block):
            rows = slice(start, min(start + block, size))
            with seeded(*entropy, start):
                found = compute(rows, _advance(bar, rows))
            new = {name: column.detach().cpu().numpy() for name, column in found.items()}
            done = {n: np.concatenate([done[n], v]) if done else v for n, v in new.items()}
            bar.update(rows.stop - bar.n)  # whatever it said of itself on the way
            if checkpoint is not None:
                _write(Path(checkpoint), key, done)
    return done


def fingerprint(*parts: Any) -> str:
    """A hash of whatever decides a result: settings, data, programs.

    Arguments:
        *parts: tensors; programs and other callables, of which the weights count, numbers
            that their modules hold, their own code and what it refers to in its file, and what
            Pyro's parameter store has; ``None`` and what JSON can hold, or has a ``repr`` that
            says all of it; tuples, lists and dictionaries of these.
    """
    digest = hashlib.sha256()
    for word in _words(parts, set()):
        digest.update(word.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _words(part: Any, seen: set[int]) -> Iterator[str]:
    """What tells a part from others; ``seen`` are functions and objects that were looked into."""
    if isinstance(part, Tensor):
        yield f"{part.dtype} {tuple(part.shape)} {checksum([part.detach()])}"
    elif isinstance(part, Mapping):
        for name, value in part.items():
            yield str(name)
            yield from _words(value, seen)
    elif isinstance(part, tuple | list):
        yield str(len(part))
        for value in part:
            yield from _words(value, seen)
    elif isinstance(part, functools.partial):
        yield from _words((part.func, part.args, part.keywords), seen)
    elif isinstance(part, nn.Module):
        yield from _of_module(part, seen)
    elif isinstance(part, type):
        yield f"{part.__module__}.{part.__qualname__}"
    elif callable(part):
        yield from _of_callable(part, seen)
        store = pyro.get_param_store()
        yield from _words(dict(sorted(store.get_state()["params"].items())), seen)
    else:
        yield (
            repr(part)
            if part is None or isinstance(part, float)
            else json.dumps(part, default=_told)
        )


def _told(part: Any) -> str:
    """The ``repr`` of an object, without where it happens to be in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(part))


def _of_module(module: nn.Module, seen: set[int]) -> Iterator[str]:
    """Weights and buffers, and the numbers and words that decide what is done with them."""
    for path, part in module.named_modules():
        yield f"{path} {type(part).__qualname__}"
        for name, value in sorted(vars(part).items()):
            if name.startswith("_") or name == "training":
                continue
            if isinstance(value, _SETTING):
                yield from _words((name, value), seen)
    yield from _words(dict(module.state_dict()), seen)


def _of_callable(part: Any, seen: set[int]) -> Iterator[str]:
    """A function, or a method of somebody: its code, and what it is about.

    A program that is made of plain functions has its weights in their closures and among the
    names of their file, of which Pyro's store may know nothing yet.
    """
    yield getattr(part, "__qualname__", type(part).__qualname__)
    owner = getattr(part, "__self__", None)
    for new in (owner, getattr(part, "__func__", part)):
        if new is None or id(new) in seen or isinstance(new, types.ModuleType):
            continue
        seen.add(id(new))
        if isinstance(new, nn.Module):
            yield from _of_module(new, seen)
        elif isinstance(new, types.FunctionType):
            yield from _of_code(new.__code__)
            about = inspect.getclosurevars(new)
            defaults = (new.__defaults__, new.__kwdefaults__)
            yield from _referred({"defaults": defaults, **about.nonlocals}, new, seen)
            yield from _referred(about.globals, new, seen)
        elif not isinstance(new, type):
            yield from _referred(getattr(new, "__dict__", {}), None, seen)


def _referred(
    names: Mapping[str, Any], by: types.FunctionType | None, seen: set[int]
) -> Iterator[str]:
    """What is referred to by name; functions of other files are known by theirs."""
    for name, value in sorted(names.items()):
        foreign = by is not None and getattr(value, "__module__", None) != by.__module__
        if isinstance(value, types.FunctionType) and foreign:
            yield f"{name} {value.__module__}.{value.__qualname__}"
        elif isinstance(value, _REFERRED):
            yield name
            yield from _words(value, seen)


def _of_code(code: types.CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        elif isinstance(constant, frozenset):  # in no order that another process would repeat
            yield from sorted(map(repr, constant))
        else:
            yield repr(constant)


def _read(path: Path, key: str) -> dict[str, np.ndarray]:
    """What is finished; nothing if there is no file yet."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            columns = dict(file)
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"expected {path} to be a checkpoint; it cannot be read as one: remove it, or name "
            f"another file"
        ) from error
    if _KEY not in columns or str(columns.pop(_KEY)) != key:
        raise ValueError(
            f"expected {path} to be a checkpoint of this computation; it is of one with other "
            f"settings, data or weights: remove it, or name another file"
        )
    return columns


def _write(path: Path, key: str, columns: Mapping[str, np.ndarray]) -> None:
    def writer(temporary: Path) -> None:
        with temporary.open("wb") as file:
            held: dict[str, Any] = {_KEY: np.array(key), **columns}
            np.savez(file, **held)

    files.write(path, writer)


def _advance(bar: tqdm, rows: slice) -> Callable[[float], None]:
    """Moves the bar by a share of a block."""

    def advance(share: float) -> None:
        # shares that were rounded may add up to more than there is
        bar.update(min(share * (rows.stop - rows.start), rows.stop - bar.n))

    return advance
