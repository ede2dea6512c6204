"""Files with a row per example that commands write, named by ``--output``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from torch import Tensor

from ..core import files
from ..core.validation import as_path
from ..data import Column
from ..data.columns import decode_columns
from ..runs.run import Run

__all__ = ["check_output", "write_examples"]


def check_output(run: Run, output: Path, has_examples: bool = False) -> Path:
    """Return the path of a file that can be written and belongs neither to the run nor its data.

    Arguments:
        run: the run.
        output: the file.
        has_examples: whether the file will contain examples, which must be vectors for ``.csv``.

    Raises:
        ValueError: if it cannot be written, which would otherwise be known after the work.
    """
    path = as_path(output)
    if path.resolve().is_relative_to(run.folder.resolve()):
        raise ValueError(
            f"expected --output outside the folder of the run, whose files it could replace; got "
            f"{output}: choose another folder"
        )
    if path.is_dir():
        raise ValueError(f"expected --output to be a file; got the folder {output}: add a name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"expected --output in a folder that can be written; got {folder}: {error.strerror}"
        ) from error
    # errors of the run come before those of its data
    shape = run.program.event_shape
    if has_examples and path.suffix == ".csv" and len(shape) != 1:
        raise ValueError(
            f"expected --output to be an .npz file for examples of shape {shape}; got {output}, "
            f"whose rows are vectors: name an .npz file"
        )
    if path.exists() and any(path.samefile(file) for file in run.data_files):
        raise ValueError(f"expected another --output than the data of the run; got {output}")
    return path


def write_examples(
    path: Path,
    arrays: Mapping[str, Tensor | np.ndarray | None],
    *,
    columns: Sequence[Column] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write arrays of leading size N to a file: ``.csv``, a row per example, or else ``.npz``.

    In a CSV file, an array with D elements per example takes D columns, NAME.0, NAME.1, …. The
    values ``x`` of a table get the names of its columns and of their categories, and ``labels``
    those of the classes.

    Arguments:
        path: the file, which is written atomically.
        arrays: the arrays by name; ``None`` is left out.
        columns: the columns of the table, if ``x`` is in the units of one.
        classes: the names of the classes.

    Raises:
        OSError: if the file cannot be written; an existing one is kept.
    """
    values = {name: _to_numpy(value) for name, value in arrays.items() if value is not None}
    if path.suffix == ".csv":
        files.atomic_write_text(path, _format_csv(values, columns, classes))
    else:
        files.atomic_write_npz(path, values)
    for name, value in values.items():
        print(f"{name}: {value.dtype} {value.shape}")
    print(f"per-example results: {path.resolve()}")


def _to_numpy(value: Tensor | np.ndarray) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _format_csv(
    arrays: Mapping[str, np.ndarray],
    columns: Sequence[Column] | None,
    classes: Sequence[str] | None,
) -> str:
    table: dict[str, Any] = {}
    for name, values in arrays.items():
        if name == "x" and columns is not None:
            table |= decode_columns(values, columns)
        elif name == "labels" and classes is not None and values.ndim == 1:
            table[name] = [classes[i] if i >= 0 else None for i in values.tolist()]
        elif values.ndim > 1:  # latents may have several dimensions
            parts = values.reshape(len(values), -1).T
            table |= {f"{name}.{i}": part.astype(str) for i, part in enumerate(parts)}
        else:
            table[name] = values.astype(str)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue()
