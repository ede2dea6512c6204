"""A data set as its latents, in a file that any program reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core import files
from ..core.validation import positive_int
from ..data import Split
from ..programs.base import Program
from ..programs.inputs import program_args
from .latent_paths import Typical
from .runner import Runner, checked, rows_of, running

__all__ = ["encode"]


def encode(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    path: str | Path | None = None,
    seed: int = 0,
    chunk_size: int = 500,
) -> dict[str, np.ndarray]:
    """The latents of every datum, by the guide; written to an ``.npz`` file if one is named.

    A site that knows its moments gives ``SITE.mean`` and ``SITE.std``; of several layers, each
    given the means before it. One that does not (a flow) gives a draw, ``SITE.draw``; a
    discrete one its most probable value, ``SITE.mode``; one on the unit sphere the direction
    of its mean, ``SITE.direction``.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: a tensor ``(N, …)``, or a split, whose labels go into ``labels``.
        *args: further arguments of model and guide; tensors of leading size N are per datum.
        path: the file, written whole or not at all; ``numpy.load`` reads it without pickle.
        seed: of the draws and the binarisation.
        chunk_size: how many data to encode at once.

    Returns:
        What the file holds: arrays of leading size N.

    Raises:
        ValueError: if the data cannot be scored, or the program has no weights per datum.
        OSError: if the file cannot be written; an old one is kept.
    """
    positive_int("chunk_size", chunk_size)
    x, *labels = program_args(program, data, seed) if isinstance(data, Split) else (data,)
    x, args = checked(program, x, (*labels, *args))
    parts: list[dict[str, np.ndarray]] = []
    with running(program, seed, 27):
        runner = Runner.of(program, x[:chunk_size], rows_of(slice(0, chunk_size), len(x), args))
        for start in range(0, len(x), chunk_size):
            rows = slice(start, min(start + chunk_size, len(x)))
            parts.append(_columns(runner.on(x[rows], rows_of(rows, len(x), args))))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if isinstance(data, Split) and data.labels is not None:
        columns["labels"] = data.labels.cpu().numpy()
    if path is not None:
        files.write(Path(path), lambda file: _save(file, columns))
    return columns


def _columns(runner: Runner) -> dict[str, np.ndarray]:
    typical = Typical()
    latents, fns = runner.under(typical)
    columns = {}
    for name, value in latents.items():
        if name in runner.noise:
            continue
        kind = typical.kinds[name]
        columns[f"{name}.{kind}"] = value
        if kind == "mean":
            columns[f"{name}.std"] = fns[name].variance.sqrt().reshape(value.shape)
    return {name: value.cpu().numpy() for name, value in columns.items()}


def _save(file: Path, columns: dict[str, np.ndarray]) -> None:
    # through a handle, because numpy adds .npz to a name without it
    with file.open("wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **columns)  # type: ignore[arg-type]
