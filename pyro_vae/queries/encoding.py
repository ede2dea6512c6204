"""Encoding of a data set into latents, with export to an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import files
from ..core.random import Stream
from ..core.validation import positive_int
from ..data import Split
from ..programs.arguments import map_batched
from ..programs.audit import reads_plate_index
from ..programs.base import Program, empty_program
from ..programs.context import evaluating
from ..programs.enumeration.posterior import with_enumerated_posterior
from ..programs.inputs import (
    AnyData,
    block_seed,
    check_blockwise,
    data_arguments,
    is_large,
    prepare,
    program_dtype,
    read_with_arguments,
    split_program,
)
from ..programs.masks import scored_latents
from .latent_paths import compute_guide_centres
from .runner import Runner

__all__ = ["encode"]


def encode(
    program: Program | tuple[Any, Any],
    data: AnyData,
    *args: Any,
    path: str | Path | None = None,
    seed: int = 0,
    chunk_size: int = 500,
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    """Encode each example with the guide, and optionally write the latents to an ``.npz`` file.

    The columns depend on the distribution of the site SITE:

    * ``SITE.mean`` and ``SITE.std`` if its moments are known; in a hierarchy, they are given the
      means of the preceding sites;
    * ``SITE.draw``, a sample, if they are not (a flow);
    * ``SITE.mode``, the most probable value, if it is discrete;
    * ``SITE.direction``, the direction of the mean, on the unit sphere;
    * ``SITE.centre``, the value for the means of the auxiliary sites, in an autoguide.

    Values that are masked, such as those after the end of a time series, are NaN.

    Arguments:
        program: any object with a ``model`` and a ``guide``, or a pair of them. The model may
            observe anything, and may be ``None`` in a pair: only the guide is used.
        data: the data, a tensor ``(N, …)`` or anything that :func:`~pyro_vae.data.as_split`
            accepts. The labels of a split are returned as ``labels``, the rows of its file as
            ``row``. Data that are not in memory and take more than 256 MiB are encoded in blocks.
        *args: additional arguments of model and guide, as are ``**kwargs``; tensors of leading
            size N are per example.
        path: the file, written atomically; ``numpy.load`` reads it without pickle.
        seed: seed of the samples and of the binarisation.
        chunk_size: number of examples to encode at once.

    Returns:
        The columns, arrays of leading size N.

    Raises:
        ValueError: if ``path`` is that of a ``.csv`` file, if the examples cannot be scored, or the
            program's weights per example are not defined.
        OSError: if the file cannot be written; an existing file is kept.

    Example:
        >>> pv.queries.encode(vae, x)["z.mean"].shape
        (20, 2)
    """
    positive_int("chunk_size", chunk_size)
    if path is not None and Path(path).suffix == ".csv":
        raise ValueError(
            f"expected path to be that of an .npz file; got {path}: name an .npz file, or pass the "
            f"columns to pandas"
        )
    if isinstance(program, tuple) and len(program) == 2 and program[0] is None:
        program = empty_program, program[1]
    data = read_with_arguments(program, data, kwargs)
    if isinstance(data, Split) and is_large(data):
        columns = _encode_blocks(program, data, args, seed, chunk_size)
    else:
        columns = _encode(program, data, args, seed, chunk_size)
    if isinstance(data, Split) and data.labels is not None:
        columns["labels"] = data.labels.cpu().numpy()
    if isinstance(data, Split) and data.rows is not None:
        columns["row"] = data.rows.cpu().numpy()
    if path is not None:
        files.atomic_write_npz(Path(path), columns)
    return columns


def _encode(
    program: Any, data: Split | Tensor, args: tuple[Any, ...], seed: int, chunk_size: int
) -> dict[str, np.ndarray]:
    has_model = split_program(program)[0] is not empty_program
    inputs = prepare(program, data, args, seed=seed, check=has_model)
    inputs = with_enumerated_posterior(inputs)
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.ENCODE):
        if not has_model and reads_plate_index(inputs):
            chunk_size = len(inputs.x)
        runner = Runner.for_guide(inputs.select(slice(0, chunk_size)), has_model=has_model)
        if not has_model:
            _check_independent(runner)
        scored = scored_latents(inputs, chunk_size)
        chunks = [
            _compute_columns(replace(runner, inputs=chunk))
            for _, chunk in inputs.blocks(chunk_size)
        ]
    return _erase_masked(_concatenate(chunks), scored)


def _check_independent(runner: Runner) -> None:
    """Check that the guide encodes an example alike with and without others.

    The audit of a program with a model checks this, too.

    Raises:
        ValueError: if it does not.
    """
    rows = slice(0, (len(runner.inputs.x) + 1) // 2)
    part = compute_guide_centres(runner.select(rows))
    for name, point in compute_guide_centres(runner).items():
        if name not in part:  # a loop over time has fewer sites for shorter sequences
            continue
        expected, value = point.value[rows], part[name].value
        if point.kind != "draw" and not torch.allclose(expected, value, rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"expected a guide that encodes each example on its own; got one whose site "
                f"{name!r} changes with the other examples of a run, e.g. by a batch statistic"
            )


def _encode_blocks(
    program: Any, data: Split, args: tuple[Any, ...], seed: int, chunk_size: int
) -> dict[str, np.ndarray]:
    """Encode data that are not in memory, each block with its own random stream."""
    args, kwargs = data_arguments(program, data, args, {})
    parts = []
    for rows, x in data.iter_materialized(seed, program_dtype(program)):
        block_args, block_kwargs = map_batched(lambda t, r=rows: t[r], len(data), args, kwargs)
        block = Split(x, arguments=block_kwargs)
        if rows.start == 0:
            check_blockwise(prepare(program, block, block_args, check=False))
        parts.append(_encode(program, block, block_args, block_seed(seed, rows.start), chunk_size))
    return _concatenate(parts)


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the columns of blocks; NaN where a block does not have one."""
    sizes = [len(next(iter(part.values()))) for part in parts]
    result = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        shape = next(part[name].shape[1:] for part in parts if name in part)
        columns = (
            part[name] if name in part else np.full((size, *shape), np.nan, np.float32)
            for part, size in zip(parts, sizes, strict=True)
        )
        result[name] = np.concatenate([*columns])
    return result


def _erase_masked(
    columns: dict[str, np.ndarray], scored: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Replace masked values by NaN, such as those after the end of a time series."""
    result = {}
    for name, column in columns.items():
        site, _, _ = name.rpartition(".")
        mask = scored[site].cpu().numpy() if site in scored else np.ones(1, dtype=bool)
        if not mask.all():
            if mask.shape != column.shape:
                mask = mask.reshape(len(mask), -1).any(1).reshape(-1, *(1,) * (column.ndim - 1))
            column = np.where(mask, column, np.nan).astype(np.result_type(column, np.float32))
        result[name] = column
    return result


def _compute_columns(runner: Runner) -> dict[str, np.ndarray]:
    columns = {}
    for name, point in compute_guide_centres(runner).items():
        if name in runner.noise_sites:
            continue
        columns[f"{name}.{point.kind}"] = point.value
        if point.std is not None:
            columns[f"{name}.std"] = point.std
    return {name: value.cpu().numpy() for name, value in columns.items()}
