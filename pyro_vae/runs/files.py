"""Files of a run folder: paths, reading, writing and replacing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from ..config.experiment import as_plugin_names
from ..config.plugins import find_plugin
from ..core import files
from ..core.documents import load_json, read_text
from ..evaluation import EVALUATIONS, Bounds
from ..evaluation.results import Result
from ..learning import History

__all__ = ["RunError", "RunFiles"]

#: Prefix of the folder that holds replaced files until training has started.
_BACKUP_PREFIX = ".replaced-"


class RunError(ValueError):
    """Raised if a run folder cannot be used as requested."""


class RunFiles:
    """The files in the folder of one run.

    The methods that read a file raise :class:`RunError` if it is damaged.

    Arguments:
        folder: the folder, which need not exist yet.
        plugin: the plugins to import when the run is opened, which must be outside the folder.
            Those that the run names are not imported unless they are given here.

    Raises:
        RunError: if a plugin is inside the folder.
    """

    def __init__(self, folder: Path | str, plugin: str | Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.plugins = as_plugin_names(plugin)
        for name in self.plugins:
            file = find_plugin(name)
            if file is not None and file.is_relative_to(self.folder.resolve()):
                raise RunError(
                    f"expected a plugin outside the run folder {self.folder}; got {file}: if you "
                    f"trust its code, move it elsewhere"
                )
        self.config = self.folder / "config.yaml"
        self.metrics = self.folder / "metrics.jsonl"
        self.state = self.folder / "state.pt"
        self.weights = self.folder / "weights.safetensors"
        self.bounds = self.evaluation_file("bounds")
        self.result = self.folder / "result.json"
        self.report = self.folder / "report.html"
        self.figures = self.folder / "figures"

    @property
    def name(self) -> str:
        return self.folder.name

    def evaluation_file(self, name: str) -> Path:
        """Return the path of the result of one of :data:`~pyro_vae.evaluation.EVALUATIONS`."""
        return self.folder / f"{name}.nc"

    def checkpoint_file(self, name: str) -> Path:
        """Return the path of the checkpoint of an evaluation, a prefix of those of its parts."""
        return self.folder / f"{name}.npz"

    def read_result(self) -> dict[str, Any]:
        """Return the contents of ``result.json``; empty if the file does not exist."""
        if not self.result.is_file():
            return {}
        try:
            content = load_json(read_text(self.result))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise RunError(
                f"expected {self.result} to be a JSON object; the file is damaged: remove it and "
                f"evaluate again"
            )
        return content

    def read_bounds(self) -> Bounds:
        """Return the contents of ``bounds.nc``; raise if the run has not been evaluated."""
        self._check_trained()
        if not self.bounds.is_file():
            raise RunError(
                f"the run in {self.folder} has no bounds yet: run `pyro-vae evaluate {self.folder}`"
            )
        bounds = self.read_evaluation("bounds")
        assert isinstance(bounds, Bounds)
        return bounds

    def read_evaluation(self, name: str) -> Result:
        """Return the result of an evaluation, whose file must exist."""
        evaluation, path = EVALUATIONS[name], self.evaluation_file(name)
        try:
            return evaluation.result.from_netcdf(path)
        except ValueError as error:
            raise RunError(
                f"{path} is damaged or from another version: replace it with "
                f"`pyro-vae {evaluation.command} {self.folder}`"
            ) from error

    def read_metrics(self) -> History:
        """Return the contents of ``metrics.jsonl``."""
        try:
            return History([load_json(line) for line in read_text(self.metrics).splitlines()])
        except ValueError as error:
            raise RunError(
                f"expected a JSON object on every line of {self.metrics}; the file is damaged: "
                f"remove it and write it again with `pyro-vae fit --run {self.folder} --resume`"
            ) from error

    def require_config(self) -> Path:
        """Return the path of ``config.yaml``; raise if it does not exist."""
        if not self.config.is_file():
            raise RunError(
                f"expected {self.folder} to be the folder of a run; it has no config.yaml"
            )
        return self.config

    def _checkpoint_parts(self, name: str) -> list[Path]:
        file = self.checkpoint_file(name)
        return [path for path in (file, *self.folder.glob(f"{file.name}.*")) if path.is_file()]

    def _check_trained(self) -> None:
        self.require_config()
        if not self.weights.is_file():
            raise RunError(
                f"the run in {self.folder} is incomplete, its training has not finished: resume "
                f"with `pyro-vae fit --run {self.folder} --resume`"
            )

    @contextmanager
    def _replace_outdated_files(self, resuming: bool) -> Iterator[None]:
        """Set aside the files that training makes obsolete; restore them if it fails to start.

        Other files in the folder are left untouched.
        """
        is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_temporary_files()
        outdated = [self.weights, self.report, self.figures]
        outdated += [] if resuming else [self.state, self.metrics]
        for name in EVALUATIONS:
            outdated += [self.evaluation_file(name), *self._checkpoint_parts(name)]
        rewritten = [self.config, self.result]
        before = self.state.stat().st_mtime_ns if resuming else None
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=_BACKUP_PREFIX) as folder:
            backup = Path(folder)
            for path in filter(Path.exists, rewritten):
                # copied, so that a killed run still has its configuration
                shutil.copy2(path, backup)
            for path in filter(Path.exists, outdated):
                path.rename(backup / path.name)
            try:
                yield
            except Exception:
                if self.state.exists() and self.state.stat().st_mtime_ns != before:
                    raise
                for path in rewritten:
                    path.unlink(missing_ok=True)
                for path in list(backup.iterdir()):
                    path.rename(self.folder / path.name)
                if is_new:
                    shutil.rmtree(self.folder)
                raise

    def _remove_temporary_files(self) -> None:
        """Remove the temporary files of a run that was killed while writing."""
        for path in self.folder.glob(f"{_BACKUP_PREFIX}*"):
            shutil.rmtree(path)
        targets = [self.config, self.metrics, self.state, self.weights, self.result]
        stale: list[Path] = []
        for name in EVALUATIONS:
            targets += [self.evaluation_file(name), self.checkpoint_file(name)]
            # of one of several processes
            stale += self.folder.glob(f".{self.checkpoint_file(name).name}-*")
        for path in {*stale, *chain.from_iterable(map(files.stale_temporary_files, targets))}:
            path.unlink()

    def _write_metrics(self, history: History) -> None:
        lines = (json.dumps(record) for record in history.epochs)
        files.atomic_write_text(self.metrics, "\n".join(lines) + "\n")

    def _update_result(self, entries: dict[str, Any]) -> None:
        self._write_result({**self.read_result(), **entries})

    def _write_result(self, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        files.atomic_write_text(self.result, text + "\n")
