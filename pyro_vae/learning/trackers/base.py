"""The base class of trackers, which record trainings in the tools that show and compare them."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core import files
from ...core.validation import as_path, positive_int

__all__ = ["Tracker", "flatten"]

#: The file in a tracker's folder that says which record a resumed training continues.
_STATE = "tracker.json"


class Tracker(ABC):
    """Base class of trackers: records metrics, configuration, pictures and results of a training.

    A tracker is given to ``fit(…, log=[…])``, which calls :meth:`start`, :meth:`log_metrics` after
    every epoch, and :meth:`finish`, in the main process only. A subclass defines :meth:`open` and
    the methods that it calls.

    Attributes:
        state: plain values that identify the record, such as the id that a server has given; they
            are kept in the folder, so that a resumed training continues the same record.

    Arguments:
        folder: folder of the tracker's files; by default ``logs/NAME`` in the folder of the run or
            of the checkpoint, and else ``logs/TIME/NAME`` in the working directory.
        pictures: number of epochs between two pictures of samples and reconstructions; by default
            they are logged once, after training.

    Raises:
        ValueError: if ``pictures`` is not positive.
    """

    #: The package that the tracker needs; the extra that installs it has the same name.
    requires: str | None = None

    def __init__(self, folder: Path | str | None = None, pictures: int | None = None) -> None:
        self.folder = None if folder is None else as_path(folder)
        self.pictures = None if pictures is None else positive_int("pictures", pictures)
        self.state: dict[str, Any] = {}

    def start(
        self, name: str, config: Mapping[str, Any], folder: Path, *, resume: bool = False
    ) -> None:
        """Open the record of a training.

        Arguments:
            name: name of the training.
            config: its configuration, plain values that may be nested.
            folder: the default of ``folder``.
            resume: whether to continue the record in the folder, if there is one.

        Raises:
            ModuleNotFoundError: if the package of the tracker is not installed.
        """
        self.check_package()
        self.folder = self.folder or folder
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / _STATE
        self.state = {}
        if resume and file.is_file():
            self.state = json.loads(file.read_text(encoding="utf-8"))
        self.open(name, config, resumed=bool(self.state))
        self.save_state()

    def check_package(self) -> None:
        """Raise a ``ModuleNotFoundError`` if the package of the tracker is not installed."""
        if self.requires is None:
            return
        spec = importlib.util.find_spec(self.requires)
        # a folder of that name, such as W&B's own in the working directory, is no package
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"{type(self).__name__} needs {self.requires}: pip install "
                f"'pyro-vae[{self.requires}]'",
                name=self.requires,
            )

    def save_state(self, **values: Any) -> None:
        """Add values to :attr:`state` and write it to the folder."""
        self.state.update(values)
        assert self.folder is not None
        files.atomic_write_text(self.folder / _STATE, json.dumps({**self.state}))

    @abstractmethod
    def open(self, name: str, config: Mapping[str, Any], *, resumed: bool) -> None:
        """Create the record, or reopen that of :attr:`state` if ``resumed``."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Add the metrics of an epoch, in nats per datum where they are bounds."""

    @abstractmethod
    def log_picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """Add a picture, an array ``(H, W, 3)`` of ``uint8``."""

    @abstractmethod
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Add final values, such as an estimate of log p(x) and its error."""

    @abstractmethod
    def finish(self, failed: bool = False) -> None:
        """Close the record."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
