"""The tracking of one training by several trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import distributed
from ...core.validation import did_you_mean
from ...data import Split
from . import services
from .base import Tracker, flatten
from .csv import CSV

__all__ = ["TrackingSession", "find_tracker", "find_trackers", "log_folder", "log_result"]

_log = logging.getLogger("pyro_vae")

_NAMES: dict[str, type[Tracker]] = {
    cls.__name__: cls
    for cls in (CSV, services.MLflow, services.TensorBoard, services.Trackio, services.WandB)
}


def find_trackers(trackers: Sequence[Tracker | str]) -> list[Tracker]:
    """Return trackers by name, or as given, whose packages are installed.

    Raises:
        ModuleNotFoundError: if a package is missing.
        ValueError, TypeError: as :func:`find_tracker` does.
    """
    found = list(map(find_tracker, trackers))
    for tracker in found:
        tracker.check_package()
    return found


def find_tracker(tracker: Tracker | str) -> Tracker:
    """Return a tracker with its default settings by name, in any case; or the tracker given.

    Raises:
        ValueError: if there is none of this name.
        TypeError: if it is neither a name nor a tracker.
    """
    if isinstance(tracker, Tracker):
        return tracker
    if not isinstance(tracker, str):
        raise TypeError(
            f"expected log to have trackers or their names; got {type(tracker).__name__}"
        )
    for name, cls in _NAMES.items():
        if name.casefold() == tracker.casefold():
            return cls()
    raise ValueError(
        f"expected log to have trackers or their names, {', '.join(map(str.lower, _NAMES))}; got "
        f"{tracker!r}{did_you_mean(tracker, [*map(str.lower, _NAMES)])}"
    )


def log_folder(checkpoint: Path | None) -> Path:
    """Return the folder of the trackers' folders: beside a checkpoint, or by the time."""
    if checkpoint is not None:
        return checkpoint.parent / "logs"
    return Path("logs") / datetime.now().strftime("%Y%m%d-%H%M%S")


def log_result(
    trackers: Sequence[Tracker],
    result: Mapping[str, Any],
    *,
    name: str,
    config: Mapping[str, Any],
    folder: Path,
) -> None:
    """Add a result to the records of a training, or to new ones if it was not recorded.

    Arguments:
        trackers: the trackers.
        result: plain values that may be nested; lists are left out.
        name, config: see :meth:`Tracker.start`.
        folder: the folder of the trackers' folders.
    """
    values = {k: v for k, v in flatten(result) if isinstance(v, int | float | str)}
    for tracker in trackers:
        tracker.start(name, config, folder / type(tracker).__name__.lower(), resume=True)
        failed = True
        try:
            tracker.log_summary(values)
            failed = False
        finally:
            tracker.finish(failed)


class TrackingSession:
    """A context in which a training is recorded by trackers, which are closed at its end.

    Errors of a tracker when it starts are raised. Later ones end its record with a warning, as a
    server that cannot be reached must not end a training. Only the main process records.

    Arguments:
        trackers: the trackers.
        program: the program that is trained.
        examples: examples whose reconstructions are shown, of which it uses the first.
        seed: seed of the pictures.
        name, config, resume: see :meth:`Tracker.start`.
        folder: the folder of the trackers' folders.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        program: Any,
        examples: Split | Tensor,
        *,
        seed: int,
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        resume: bool = False,
    ) -> None:
        self._trackers = list(trackers) if distributed.is_main_process() else []
        self._program, self._examples, self._seed = program, examples, seed
        self._name, self._config, self._folder = name, config, folder
        self._resume, self._epoch = resume, 0

    def __enter__(self) -> TrackingSession:
        started: list[Tracker] = []
        try:
            for tracker in self._trackers:
                own = self._folder / type(tracker).__name__.lower()
                tracker.start(self._name, self._config, own, resume=self._resume)
                started.append(tracker)
        except BaseException:
            for tracker in started:
                with suppress(Exception):
                    tracker.finish(failed=True)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        failed = error is not None

        def close(tracker: Tracker) -> None:
            is_logged = tracker.pictures and self._epoch % tracker.pictures == 0
            try:
                if not (failed or is_logged):
                    self._log_pictures(tracker)
            finally:
                tracker.finish(failed)

        self._for_all(close)

    def log_epochs(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs of a history that a tracker does not have yet, and pictures if due.

        A training that was killed between two checkpoints repeats epochs; they are logged once.
        """
        self._epoch = len(epochs)

        def log(tracker: Tracker) -> None:
            done = tracker.state.get("epoch", 0)
            for record in epochs[done:]:
                metrics = {k: v for k, v in record.items() if k != "epoch"}
                tracker.log_metrics(metrics, record["epoch"])
            if len(epochs) > done:
                tracker.save_state(epoch=len(epochs))
                if tracker.pictures and len(epochs) % tracker.pictures == 0:
                    self._log_pictures(tracker)

        self._for_all(log)

    def _log_pictures(self, tracker: Tracker) -> None:
        # loaded only if needed, as it takes time
        from .pictures import draw_pictures

        try:
            with torch.no_grad():
                pictures = draw_pictures(self._program, self._examples, self._seed)
        except ValueError as error:  # p(x|z) has no mean, or the program needs more arguments
            _log.info("no pictures are logged: %s", error)
            return
        for name, pixels in pictures.items():
            tracker.log_picture(name, pixels, self._epoch)

    def _for_all(self, function: Callable[[Tracker], None]) -> None:
        for tracker in [*self._trackers]:
            try:
                function(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                _log.warning(
                    "%s stops recording, and training continues: %s: %s",
                    *(type(tracker).__name__, type(error).__name__, error),
                )
