"""The data of a trained run: those that it was trained on, moved files, and new data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from ..config.experiment import Experiment
from ..core.components import Labels
from ..core.validation import as_path
from ..data import Column, Dataset, Split
from ..data.loading import load, load_unsplit
from ..data.scaling import Scale
from ..models import Autoencoder
from ..programs.base import label_use

__all__ = [
    "DATA_OPTIONS",
    "RunData",
    "absolute_changes",
    "describe_shapes",
    "find_files",
    "load_run_data",
    "make_label_examples",
    "recorded_columns",
    "recorded_scale",
    "recorded_shapes",
]

_log = logging.getLogger("pyro_vae")

#: The options of :func:`~pyro_vae.data.load` that say where data are. A trained run accepts others
#: than those it was trained with.
DATA_OPTIONS = ("name", "root", "path", "valid", "test", "key", "labels_key", "channels")
#: The entry of ``result.json`` with the properties of data that the program depends on.
_SHAPES = "shapes"


class RunData(NamedTuple):
    """Data for a trained run.

    Attributes:
        dataset: the data; new ones are all test data, in the order of the file.
        tag: ``None`` for the data of the run; of new data, the start of their checksum.
    """

    dataset: Dataset
    tag: str | None = None


def describe_shapes(experiment: Experiment, data: Any) -> dict[str, Any]:
    """Return the properties of data that the program depends on, as JSON values."""
    values = {name: getattr(data, name) for name in experiment.program.from_data}
    plain = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
    is_plain = all(isinstance(v, int) or _is_shape(v) for v in plain.values())
    return {_SHAPES: plain} if is_plain else {}


def recorded_shapes(experiment: Experiment, entry: Mapping[str, Any]) -> SimpleNamespace | None:
    """Return the properties in an entry made by :func:`describe_shapes`.

    Runs of earlier versions, and programs of plugins that depend on other values, have none.
    """
    values = entry.get(_SHAPES, {})
    if not values.keys() >= set(experiment.program.from_data):
        return None
    plain = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return SimpleNamespace(columns=recorded_columns(entry), scale=recorded_scale(entry), **plain)


def recorded_columns(entry: Mapping[str, Any]) -> tuple[Column, ...] | None:
    """Return the columns of a table in the entry of the data in ``result.json``."""
    columns = entry.get("columns")
    return None if columns is None else tuple(map(Column.from_dict, columns))


def recorded_scale(entry: Mapping[str, Any]) -> Scale | None:
    """Return the scale in the entry of the data in ``result.json``."""
    return Scale.from_dict(entry["scale"]) if "scale" in entry else None


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) for size in value)


def load_run_data(
    experiment: Experiment, entry: Mapping[str, Any], changes: Mapping[str, Any]
) -> RunData:
    """Load the data of a run, or new data in the same representation.

    Data are those of the run if their checksum is. Otherwise they are new.

    Arguments:
        experiment: the experiment of the run.
        entry: the entry of the data in ``result.json``.
        changes: the :data:`DATA_OPTIONS` that differ from those of the experiment.

    Raises:
        FileNotFoundError: if a file is missing, with the option that names another one.
        ValueError: if new data have another shape than those of the run, or as for
            :func:`~pyro_vae.data.load`.
    """
    settings = experiment.data_arguments
    if not changes:
        try:
            return RunData(load(**settings))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; if it is elsewhere, or for new data, add --data.path"
            ) from error
    moved = {**settings, **changes}
    try:
        dataset = load(**moved)
    except (FileNotFoundError, ValueError):  # too few to split, or a part of the files only
        dataset = None
    if dataset is not None and dataset.checksum == entry.get("checksum"):
        return RunData(dataset)
    return _load_new(moved, changes, entry)


def _load_new(
    settings: Mapping[str, Any], changes: Mapping[str, Any], entry: Mapping[str, Any]
) -> RunData:
    file = next((changes[k] for k in ("path", "test", "valid") if k in changes), settings["path"])
    names = (
        *("name", "binarize", "values", "root", "key", "labels_key", "channels"),
        *("size", "colour", "layer", "seed"),
    )
    known: dict[str, Any] = {"peak": entry["peak"]} if "peak" in entry else {}
    event_shape = entry.get(_SHAPES, {}).get("event_shape")
    if settings["name"] == "images" and event_shape:
        known["colour"] = event_shape[0] == 3
    known |= {"scale": recorded_scale(entry), "columns": recorded_columns(entry)}
    known["classes"] = tuple(entry["classes"]) if "classes" in entry else None
    dataset = load_unsplit(**{"path": file, **{n: settings[n] for n in names}, **known})
    source = file or dataset.name
    if event_shape is not None and list(dataset.event_shape) != event_shape:
        raise ValueError(
            f"expected examples of shape {tuple(event_shape)}, as the run was trained on; got "
            f"{dataset.event_shape} in {source}: use data of the same shape"
        )
    _log.warning(
        "%s: %d examples, other data than those of the run; all of them are used as test data, in "
        "the order of the file",
        source,
        len(dataset.test),
    )
    return RunData(dataset, dataset.checksum[:12])


def make_label_examples(program: Autoencoder, entry: Mapping[str, Any]) -> Split | None:
    """Return an example of zeros for each class, or one without a label; ``None`` if unknown."""
    scale = recorded_scale(entry)
    if label_use(program) is Labels.UNUSED:
        return Split(torch.zeros(1, *program.event_shape), scale=scale)
    shapes = entry.get(_SHAPES, {})
    classes = shapes.get("num_classes", shapes.get("condition"))
    if not isinstance(classes, int):
        return None
    placeholders = torch.zeros(classes, *program.event_shape)
    return Split(placeholders, labels=torch.arange(classes), scale=scale)


def find_files(experiment: Experiment, changes: Mapping[str, Any]) -> list[Path]:
    """Return the files and folders that exist among those of the run and of ``changes``."""
    options = (experiment.data_arguments, changes)
    names = [values.get(key) for values in options for key in ("path", "valid", "test")]
    paths = [as_path(name) for name in names if isinstance(name, str)]
    return [path for path in paths if path.exists()]


def absolute_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those that are not set, with absolute paths."""
    paths = ("root", "path", "valid", "test")
    given = {name: value for name, value in changes.items() if value is not None}
    return {
        name: str(as_path(value).absolute()) if name in paths else value
        for name, value in given.items()
    }
