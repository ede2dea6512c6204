"""The files of a run: where they are, how they are read, written and set aside."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..core import files
from ..evaluation import Bounds
from ..learning import History
from ..models import Autoencoder
from .provenance import device_name

__all__ = ["RULERS", "RunError", "RunFiles"]

#: What may be measured of a run besides its bounds: each has a file ``NAME.nc``, an entry in
#: ``result.json``, and ``NAME.npz`` to go on from while it is not finished.
RULERS = ("bdmc", "gaps", "latents", "rate_distortion")

#: The prefix of the folder that holds replaced files until there are new ones.
_ASIDE = ".replaced-"

Read = TypeVar("Read")


class RunError(ValueError):
    """A run folder that cannot be used as asked."""


class RunFiles:
    """The folder of one run and what is in it.

    Arguments:
        folder: the folder, which need not be there yet.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.metrics = self.folder / "metrics.jsonl"
        self.state = self.folder / "state.pt"
        self.weights = self.folder / "weights.safetensors"
        self.bounds = self.folder / "bounds.nc"
        self.annealing = self.folder / "annealing.npz"
        self.result = self.folder / "result.json"
        self.report = self.folder / "report.html"
        self.figures = self.folder / "figures"

    @property
    def name(self) -> str:
        return self.folder.name

    def ruler(self, name: str) -> Path:
        """The file of one of :data:`RULERS`."""
        return self.folder / f"{name}.nc"

    def unfinished(self, name: str) -> Path:
        """What one of :data:`RULERS`, or AIS, goes on from; parts of it may lie beside it."""
        return self.folder / f"{name}.npz"

    def forget(self, name: str) -> None:
        """Removes what one of :data:`RULERS`, or AIS, would go on from."""
        for path in self._unfinished(name):
            path.unlink()

    def read_result(self) -> dict[str, Any]:
        """``result.json``, or nothing yet.

        Raises:
            RunError: if the file is damaged.
        """
        if not self.result.is_file():
            return {}
        try:
            content = json.loads(self.result.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            content = None
        if not isinstance(content, dict):
            raise RunError(
                f"expected {self.result} to be a JSON object; it is damaged: remove it and "
                f"evaluate again"
            )
        return content

    def read_bounds(self) -> Bounds:
        """``bounds.nc``.

        Raises:
            RunError: if the run has not been evaluated.
        """
        self._check_complete()
        if not self.bounds.is_file():
            raise RunError(
                f"the run in {self.folder} has no bounds yet: `pyro-vae evaluate {self.folder}`"
            )
        return self._read(self.bounds, Bounds.from_netcdf, "evaluate")

    def read_ruler(self, name: str, reader: Callable[[Path], Read]) -> Read:
        """The file of one of :data:`RULERS`, which is there.

        Raises:
            RunError: if ``reader`` refuses it.
        """
        return self._read(self.ruler(name), reader, name.replace("_", "-"))

    def read_metrics(self) -> History:
        """``metrics.jsonl`` as a :class:`~pyro_vae.History`."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            return History([json.loads(line) for line in lines])
        except ValueError as error:
            raise RunError(
                f"expected a JSON object on every line of {self.metrics}; it is damaged: remove it "
                f"and its metrics are written anew by `pyro-vae fit --run {self.folder} --resume`"
            ) from error

    def stored_config(self) -> Path:
        """``config.yaml``.

        Raises:
            RunError: if there is none.
        """
        if not self.config.is_file():
            raise RunError(
                f"expected {self.folder} to be the folder of a run; it has no config.yaml"
            )
        return self.config

    def record(self, name: str, summary: dict[str, Any], model: Autoencoder, start: float) -> None:
        """Writes what was measured into ``result.json``.

        Arguments:
            name: what it is called there.
            summary: the figures, for JSON.
            model: what was measured, where it was.
            start: when it began, by ``time.perf_counter``.
        """
        seconds = time.perf_counter() - start
        self._update({name: {**summary, "seconds": seconds, "device": device_name(model)}})

    def _unfinished(self, name: str) -> list[Path]:
        whole = self.unfinished(name)
        return [path for path in (whole, *self.folder.glob(f"{whole.name}.*")) if path.is_file()]

    def _read(self, path: Path, reader: Callable[[Path], Read], command: str) -> Read:
        try:
            return reader(path)
        except ValueError as error:
            raise RunError(
                f"{path} is damaged or foreign: `pyro-vae {command} {self.folder}` writes it anew"
            ) from error

    def _check_complete(self) -> None:
        self.stored_config()
        if not self.weights.is_file():
            raise RunError(
                f"the run in {self.folder} is incomplete, its training has not ended: go on with "
                f"`pyro-vae fit --run {self.folder} --resume`"
            )

    @contextmanager
    def _replacing(self, going_on: bool) -> Iterator[None]:
        """Sets aside what training makes out of date, and brings it back if none takes place.

        Other files in the folder are nobody's business here.
        """
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        measured = [p for name in RULERS for p in (self.ruler(name), *self._unfinished(name))]
        measured += [self.bounds, *self._unfinished("annealing")]
        stale = [self.weights, *measured, self.report, self.figures]
        stale += [] if going_on else [self.state, self.metrics]
        written = [path for path in (self.config, self.result) if path.exists()]
        before = self.state.stat().st_mtime_ns if going_on else None
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=_ASIDE) as name:
            aside = Path(name)
            for path in written:  # copied: a run killed here must still find its configuration
                shutil.copy2(path, aside)
            for path in (path for path in stale if path.exists()):
                path.rename(aside / path.name)
            try:
                yield
            except Exception:
                if self.state.exists() and self.state.stat().st_mtime_ns != before:
                    raise
                for path in (self.config, self.result):
                    path.unlink(missing_ok=True)
                for kept in list(aside.iterdir()):
                    kept.rename(self.folder / kept.name)
                if new:
                    shutil.rmtree(self.folder)
                raise

    def _remove_leftovers(self) -> None:
        """Removes the temporary files of a run that was killed while it wrote."""
        for path in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(path)
        for whole in (
            self.config,
            self.metrics,
            self.state,
            self.weights,
            self.bounds,
            self.annealing,
            self.result,
            *(p for name in RULERS for p in (self.ruler(name), self.unfinished(name))),
        ):
            for path in files.leftovers(whole):
                path.unlink()
        for path in self.folder.glob(f".{self.annealing.name}-*"):  # of one of several processes
            path.unlink()

    def _write_metrics(self, history: History) -> None:
        lines = (json.dumps(record) for record in history.epochs)
        files.write_text(self.metrics, "\n".join(lines) + "\n")

    def _update(self, entries: dict[str, Any]) -> None:
        self._write_result({**self.read_result(), **entries})

    def _write_result(self, content: dict[str, Any]) -> None:
        files.write_text(self.result, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
