"""Long computations in blocks of examples, with a checkpoint of the finished blocks."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from torch import Tensor, nn

from ..core import files
from ..core.progress import progress_bar
from ..core.random import seeded
from ..data.splits import checksum

__all__ = ["CheckpointError", "compute_fingerprint", "compute_in_blocks"]

#: Name of the checkpoint entry with the fingerprint.
_KEY = "_key"
#: Types of module attributes that enter the fingerprint in addition to the weights.
_SETTING_TYPES = (
    Tensor | bool | int | float | str | tuple | types.FunctionType | types.BuiltinFunctionType
)
#: Types that enter the fingerprint when a function, or an object with methods, refers to them.
_REFERENCED_TYPES = _SETTING_TYPES | nn.Module | list | Mapping | partial | types.MethodType


class CheckpointError(ValueError):
    """A file is not a checkpoint of a computation."""


def compute_in_blocks(
    compute: Callable[[slice, Callable[[float], None]], Mapping[str, Tensor]],
    size: int,
    *,
    block: int,
    entropy: tuple[int, ...],
    checkpoint: Path | None = None,
    key: tuple[Any, ...] = (),
    progress: bool = False,
    desc: str = "",
    absent: float = math.nan,
) -> dict[str, np.ndarray]:
    """Compute columns per example block by block, and resume from a checkpoint.

    Every block has its own random stream, which does not depend on the blocks before it: a
    resumed computation gives the same bits. The checkpoint is not deleted at the end; the caller
    can delete it when the result is saved.

    Arguments:
        compute: ``compute(rows, advance)`` returns the columns of a block, of leading size
            ``len(rows)``. It may call ``advance(share)`` with the share of the block, between 0
            and 1, that was computed since the last call.
        size: the number N of examples.
        block: the number of examples per block.
        entropy: the seed; the start of the block is appended.
        checkpoint: a file for the finished blocks; ``None`` disables checkpoints.
        key: everything that the columns depend on, see :func:`compute_fingerprint`.
        progress: show a progress bar on standard error.
        desc: the label of the progress bar.
        absent: the value of a column in the blocks that do not have it.

    Returns:
        Arrays ``(N, …)`` by name.

    Raises:
        CheckpointError: if the file is not a checkpoint, or is one of another computation.
    """
    done, fingerprint = {}, ""
    if checkpoint is not None:
        fingerprint = compute_fingerprint(*key, size, block, list(entropy))
        done = _read(Path(checkpoint), fingerprint)
    first = len(next(iter(done.values()))) if done else 0
    with progress_bar(
        size,
        progress,
        initial=first,
        desc=desc,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    ) as bar:

        def advance(rows: slice, share: float) -> None:
            # rounded shares may add up to more than 1
            bar.update(min(share * (rows.stop - rows.start), rows.stop - bar.n))

        for start in range(first, size, block):
            rows = slice(start, min(start + block, size))
            with seeded(*entropy, start):
                columns = compute(rows, partial(advance, rows))
            new = {name: column.detach().cpu().numpy() for name, column in columns.items()}
            done = _append(done, new, absent)
            bar.update(rows.stop - bar.n)  # correct the shares reported within the block
            if checkpoint is not None:
                _write(Path(checkpoint), fingerprint, done)
    return done


def _append(
    done: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], absent: float
) -> dict[str, np.ndarray]:
    """Append the columns of a block to those before it, which may have other names."""
    if not done:
        return dict(new)
    parts = [done, new]
    sizes = [len(next(iter(part.values()))) for part in parts]
    result = {}
    for name in {**done, **new}:
        known = done[name] if name in done else new[name]
        columns = (
            part[name] if name in part else np.full((size, *known.shape[1:]), absent, known.dtype)
            for part, size in zip(parts, sizes, strict=True)
        )
        result[name] = np.concatenate([*columns])
    return result


def compute_fingerprint(*parts: Any) -> str:
    """Return a hash of everything that determines a result: settings, data, programs.

    Arguments:
        *parts: tensors; programs and other callables, hashed by their weights, the numbers in
            their modules, their code and the objects of the same file that it refers to, and
            Pyro's parameter store; ``None``, JSON values and objects with a complete ``repr``;
            tuples, lists and dictionaries of these.
    """
    digest = hashlib.sha256()
    for token in _tokens(parts, set()):
        digest.update(token.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _tokens(part: Any, visited: set[int]) -> Iterator[str]:
    """Yield strings that identify a part; ``visited`` are ids of functions and objects."""
    if isinstance(part, Tensor):
        yield f"{part.dtype} {tuple(part.shape)} {checksum([part.detach()])}"
    elif isinstance(part, Mapping):
        for name, value in part.items():
            yield str(name)
            yield from _tokens(value, visited)
    elif isinstance(part, tuple | list):
        yield str(len(part))
        for value in part:
            yield from _tokens(value, visited)
    elif isinstance(part, partial):
        yield from _tokens((part.func, part.args, part.keywords), visited)
    elif isinstance(part, nn.Module):
        yield from _module_tokens(part, visited)
    elif isinstance(part, type):
        yield f"{part.__module__}.{part.__qualname__}"
    elif callable(part):
        yield from _callable_tokens(part, visited)
        store = pyro.get_param_store()
        yield from _tokens(dict(sorted(store.get_state()["params"].items())), visited)
    else:
        is_plain = part is None or isinstance(part, float)
        # the repr of other objects may contain their memory address
        token = repr(part) if is_plain else json.dumps(part, default=repr)
        yield re.sub(r" at 0x[0-9a-fA-F]+", "", token)


def _module_tokens(module: nn.Module, visited: set[int]) -> Iterator[str]:
    """Yield tokens of the weights, the buffers and the settings of a module."""
    for path, part in module.named_modules():
        yield f"{path} {type(part).__qualname__}"
        for name, value in sorted(vars(part).items()):
            if name.startswith("_") or name == "training":
                continue
            if isinstance(value, _SETTING_TYPES):
                yield from _tokens((name, value), visited)
    yield from _tokens(dict(module.state_dict()), visited)


def _callable_tokens(part: Any, visited: set[int]) -> Iterator[str]:
    """Yield tokens of a function or method: its code, its object and the names it refers to.

    The weights of a program of plain functions are in their closures and in the globals of their
    file, and may not be in Pyro's parameter store yet.
    """
    yield getattr(part, "__qualname__", type(part).__qualname__)
    owner = getattr(part, "__self__", None)
    for item in (owner, getattr(part, "__func__", part)):
        if item is None or id(item) in visited or isinstance(item, types.ModuleType):
            continue
        visited.add(id(item))
        if isinstance(item, nn.Module):
            yield from _module_tokens(item, visited)
        elif isinstance(item, types.FunctionType):
            yield from _code_tokens(item.__code__)
            names = inspect.getclosurevars(item)
            defaults = (item.__defaults__, item.__kwdefaults__)
            yield from _reference_tokens({"defaults": defaults, **names.nonlocals}, item, visited)
            yield from _reference_tokens(names.globals, item, visited)
        elif not isinstance(item, type):
            yield from _reference_tokens(getattr(item, "__dict__", {}), None, visited)


def _reference_tokens(
    names: Mapping[str, Any], function: types.FunctionType | None, visited: set[int]
) -> Iterator[str]:
    """Yield tokens of the named objects; functions of other files only by their names."""
    for name, value in sorted(names.items()):
        foreign = function is not None and (
            getattr(value, "__module__", None) != function.__module__
        )
        if isinstance(value, types.FunctionType) and foreign:
            yield f"{name} {value.__module__}.{value.__qualname__}"
        elif isinstance(value, _REFERENCED_TYPES):
            yield name
            yield from _tokens(value, visited)


def _code_tokens(code: types.CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_tokens(constant)
        elif isinstance(constant, frozenset):  # its order varies by process
            yield from sorted(map(repr, constant))
        else:
            yield repr(constant)


def _read(path: Path, key: str) -> dict[str, np.ndarray]:
    """Return the finished columns; empty if there is no file yet."""
    try:
        content = files.read_with_checksum(path)
        with np.load(content, allow_pickle=False) as file:
            # written uncompressed: more is a compressed file that expands in memory
            if sum(part.file_size for part in file.zip.infolist()) > content.getbuffer().nbytes:
                raise ValueError("a compressed file")
            columns = dict(file)
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise
    except Exception as error:  # any error of the parsers means a damaged file
        raise CheckpointError(
            f"expected {path} to be a checkpoint; got a file that cannot be read: delete it, or "
            f"choose another file"
        ) from error
    if _KEY not in columns or str(columns.pop(_KEY)) != key:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of this computation; got one with other settings, "
            f"data or weights: delete it, or choose another file"
        )
    return columns


def _write(path: Path, key: str, columns: Mapping[str, np.ndarray]) -> None:
    entries: dict[str, Any] = {_KEY: np.array(key), **columns}
    with io.BytesIO() as buffer:
        np.savez(buffer, **entries)
        files.write_with_checksum(path, buffer)
