"""Files of a run folder: paths, locks, reading, writing and replacing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..config.experiment import as_plugin_names
from ..config.plugins import find_plugin
from ..core import files
from ..core.documents import load_json, read_text
from ..core.locks import LockHeldError, exclusive_lock
from ..core.validation import as_path
from ..evaluation import EVALUATIONS, Bounds
from ..evaluation.results import Result
from ..learning import History

__all__ = ["RunError", "RunFiles"]

#: Folder with the configuration of a training that has not saved a state yet, and the file in it
#: with the SHA-256 of the state before.
_PENDING, _MARKER = ".pending", "previous-state"
#: Prefix of the folder in which version 0.3.0 set the previous run aside.
_OLD_BACKUP_PREFIX = ".replaced-"
#: Entry of result.json with the checksum of all others.
_CHECKSUM = "checksum"
#: Seconds to wait for a process that replaces a few files, and for one that removes leftovers.
_WAIT_SECONDS, _SWEEP_SECONDS = 10.0, 0.3


class RunError(ValueError):
    """Raised if a run folder cannot be used as requested."""


class RunFiles:
    """The files in the folder of one run.

    Training excludes every other command that writes to the folder, and each evaluation and the
    report exclude themselves. The locks are files named ``.NAME.lock``, of which training holds
    all. A training that replaces or extends a run leaves its files alone until it has saved its
    first state: an interrupted one changes nothing. A process killed between saving the state and
    removing the outdated files leaves the rest to the next command.

    The methods that read a file raise :class:`RunError` if it is damaged, or if it does not belong
    to the weights.

    Arguments:
        folder: the folder, which need not exist yet.
        plugin: the plugins to import when the run is opened, which must be outside the folder.
            Those that the run names are not imported unless they are given here.

    Raises:
        RunError: if a plugin is inside the folder.
    """

    def __init__(self, folder: Path | str, plugin: str | Sequence[str] = ()) -> None:
        self.folder = as_path(folder)
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
        self.explorer = self.folder / "explorer.html"
        self.figures = self.folder / "figures"
        #: The folder of the trackers' folders.
        self.logs = self.folder / "logs"
        self._pending = self.folder / _PENDING

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
                f"expected {self.result} to be a JSON object; the file is damaged: {self._repair}"
            )
        claimed = content.pop(_CHECKSUM, None)
        # older versions wrote no checksum, neither of the file nor of the weights
        is_older = claimed is None and "weights" not in content.get("fit", {})
        if not is_older and claimed != _json_checksum(content):
            raise RunError(
                f"{self.result} is damaged or was edited, its content does not have the checksum "
                f"in it: restore it, or {self._repair}"
            )
        return content

    @property
    def _repair(self) -> str:
        """How to write ``result.json`` again."""
        return f"remove it and run `pyro-vae fit --run {self.folder} --resume`"

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
        """Return the result of an evaluation, whose file must exist, with its provenance.

        Arguments:
            name: its name; for new data, followed by a dot and the start of their checksum.
        """
        evaluation, path = EVALUATIONS[name.partition(".")[0]], self.evaluation_file(name)
        repeat = f"`pyro-vae {evaluation.command} {self.folder}`"
        try:
            result = evaluation.result.from_netcdf(path)
        except ValueError as error:
            raise RunError(
                f"{path} is damaged or from another version: replace it with {repeat}"
            ) from error
        if not result.provenance:  # from an older version
            result = result.with_provenance(self.read_result().get(name, {}))
        if not result.provenance:
            raise RunError(f"{path} has no entry in {self.result}: replace it with {repeat}")
        evaluated = result.provenance.get("weights")
        current = self._check_weights(self.weights.read_bytes())
        if evaluated not in (None, current):
            raise RunError(
                f"{path} is a result of other weights than {self.weights} (SHA-256 "
                f"{evaluated[:12]}…, now {current[:12]}…): replace it with {repeat}"
            )
        return result

    def read_metrics(self) -> History:
        """Return the contents of ``metrics.jsonl``."""
        # known from the end of training
        recorded = self.read_result().get("fit", {}).get("metrics")
        try:
            content = read_text(self.metrics)
            records = [load_json(line) for line in content.splitlines()]
            if records and recorded in (None, files.sha256(content.encode())):
                return History(records)
            problem = "the file is damaged or was edited"
        except FileNotFoundError:
            problem = "the file is missing"
        except ValueError:
            problem = "the file is damaged"
        raise RunError(
            f"expected a JSON object on every line of {self.metrics}, as training wrote them; "
            f"{problem}: write it again with `pyro-vae fit --run {self.folder} --resume`"
        )

    def require_config(self) -> Path:
        """Return the path of ``config.yaml``; raise if it does not exist."""
        self._complete_replacement()
        if not self.config.is_file():
            raise RunError(
                f"expected {self.folder} to be the folder of a run; it has no config.yaml"
            )
        return self.config

    def _check_weights(self, content: bytes) -> str:
        """Return the SHA-256 of the weights; raise if training wrote others."""
        checksum, trained = files.sha256(content), self.read_result().get("fit", {}).get("weights")
        if trained not in (None, checksum):
            raise RunError(
                f"{self.weights} is damaged or belongs to another model than {self.config}: its "
                f"SHA-256 is {checksum[:12]}…, after training it was {trained[:12]}…: restore it, "
                f"or write it again with `pyro-vae fit --run {self.folder} --resume`"
            )
        return checksum

    def _checkpoint_parts(self, name: str) -> list[Path]:
        file = self.checkpoint_file(name)
        return [path for path in (file, *self.folder.glob(f"{file.name}.*")) if path.is_file()]

    def _check_trained(self) -> None:
        self.require_config()
        # result.json is written after the weights
        if not self.weights.is_file() or "fit" not in self.read_result():
            raise RunError(
                f"the run in {self.folder} is incomplete, its training has not finished: resume "
                f"with `pyro-vae fit --run {self.folder} --resume`"
            )

    @contextmanager
    def exclusive(self, *names: str) -> Iterator[None]:
        """Exclude other processes from writing the named results; all of them by default.

        Files that killed processes left are removed first.

        Raises:
            RunError: if another process writes one of them.
        """
        with ExitStack() as stack:
            for name in names or (*EVALUATIONS, "report"):
                file = self._lock_file(name)
                try:
                    stack.enter_context(exclusive_lock(file, _SWEEP_SECONDS))
                except LockHeldError as error:
                    raise RunError(
                        f"{self.folder} is in use by {error.holder}: wait until it has ended, or "
                        f"stop it"
                    ) from error
                except OSError as error:
                    raise OSError(
                        f"expected a folder that can be written to; got {self.folder}: "
                        f"{error.strerror}"
                    ) from error
            if not names:
                self._publish()
            self._remove_leftovers()
            yield

    @contextmanager
    def _exclusive_for_training(self) -> Iterator[None]:
        """Exclude all other processes; the folder is created, and removed if it stays empty."""
        is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self.exclusive():
                try:
                    yield
                except Exception:
                    if is_new and not self.config.exists():
                        # everything in it was written since, e.g. by a callback
                        shutil.rmtree(self.folder, ignore_errors=True)
                    raise
        finally:
            if is_new:
                with suppress(OSError):  # not empty
                    self.folder.rmdir()

    def _lock_file(self, name: str) -> Path:
        return self.folder / f".{name}.lock"

    @property
    def _lock_files(self) -> list[Path]:
        """The files of all locks: of the results, and of ``result.json``."""
        return [self._lock_file(name) for name in (*EVALUATIONS, "report", self.result.stem)]

    @contextmanager
    def _replace_outdated_files(self, config: str, result: dict[str, Any]) -> Iterator[None]:
        """Give the folder a new ``config.yaml`` and ``result.json`` when training has a state.

        Until then the files of a previous run are kept: call :meth:`_publish` after a state was
        saved. If the block raises an error before, everything is as it was.
        """
        is_new = not self.config.is_file()
        folder = self.folder if is_new else self._pending
        try:
            files.atomic_write_text(folder / self.config.name, config)
            self._write_result(folder / self.result.name, result)
            if not is_new:
                files.atomic_write_text(folder / _MARKER, self._state_checksum())
            yield
        except BaseException as error:
            self._finish_replacement()
            # an interrupted run keeps its configuration, to be resumed
            if is_new and isinstance(error, Exception) and not self.state.exists():
                for path in (self.config, self.result):
                    path.unlink(missing_ok=True)
            raise
        self._finish_replacement()

    def _finish_replacement(self) -> None:
        """Publish the run, or forget its configuration if it has no new state; needs all locks."""
        self._publish()
        shutil.rmtree(self._pending, ignore_errors=True)

    def _publish(self) -> None:
        """Replace the previous run if training has saved a state; needs all locks.

        A process may be killed anywhere in here: the next one repeats it.
        """
        if not self._has_new_state():
            return
        for path in (self.weights, self.report, self.explorer, self.metrics):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.figures, ignore_errors=True)
        for name in EVALUATIONS:
            # also those of new data
            others = (*self.folder.glob(f"{name}.*.nc"), *self.folder.glob(f"{name}.*.npz*"))
            for path in (self.evaluation_file(name), *self._checkpoint_parts(name), *others):
                path.unlink(missing_ok=True)
        for path in (self.config, self.result):
            pending = self._pending / path.name
            if pending.is_file():
                pending.replace(path)
        # last, as it makes the other files of the folder count
        (self._pending / _MARKER).unlink()
        shutil.rmtree(self._pending, ignore_errors=True)

    def _has_new_state(self) -> bool:
        """Whether training has saved a state and has not published its run yet."""
        try:
            before = (self._pending / _MARKER).read_text(encoding="utf-8")
        except OSError:
            return False
        return before != self._state_checksum()

    def _state_checksum(self) -> str:
        return files.sha256(self.state.read_bytes()) if self.state.is_file() else "none"

    def _complete_replacement(self) -> None:
        """Publish the run of a process that was killed after it saved its first state."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._has_new_state():
            try:
                with self.exclusive():
                    return
            except RunError:
                # the process that holds the locks is about to do it
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left; needs the lock of a result.

        No training is running, as it would hold this lock.
        """
        if not self._has_new_state():
            shutil.rmtree(self._pending, ignore_errors=True)
        for backup in self.folder.glob(f"{_OLD_BACKUP_PREFIX}*"):
            if (backup / self.state.name).exists() and not self.state.exists():
                for path in backup.iterdir():
                    path.replace(self.folder / path.name)
            shutil.rmtree(backup, ignore_errors=True)
        for path in self._temporary_targets():
            files.remove_stale_temporary_files(path)
        for file in filter(Path.exists, self._lock_files):
            with suppress(LockHeldError), exclusive_lock(file):
                pass

    def _temporary_targets(self) -> list[Path]:
        """Return the files whose temporary files may be in the folder."""
        targets = [self.config, self.metrics, self.state, self.weights, self.result]
        targets += [self.report, self.explorer]
        for name in EVALUATIONS:
            file = self.checkpoint_file(name)
            targets += [self.evaluation_file(name), file, file.with_name(f"{file.name}*.*")]
            targets += [self.folder / f"{name}.*.nc", self.folder / f"{name}.*.npz*"]
        return [*targets, self.figures / "*.png"]

    def _is_new(self) -> bool:
        """Whether the folder does not exist, or contains only leftovers of killed processes."""
        if not self.folder.is_dir():
            return not self.folder.exists()
        leftovers = {self._pending, *self._lock_files}
        leftovers.update(self.folder.glob(f"{_OLD_BACKUP_PREFIX}*"))
        for path in self._temporary_targets():
            leftovers.update(files.temporary_files(path))
        return leftovers.issuperset(self.folder.iterdir())

    def _write_metrics(self, history: History) -> bytes:
        """Write ``metrics.jsonl`` and return its content."""
        content = "".join(f"{json.dumps(record)}\n" for record in history.epochs).encode()
        files.atomic_write_bytes(self.metrics, content)
        return content

    def _update_result(self, entries: dict[str, Any]) -> None:
        """Change entries of ``result.json``, one process at a time."""
        with exclusive_lock(self._lock_file(self.result.stem), wait=_WAIT_SECONDS):
            self._write_result(self.result, {**self.read_result(), **entries})

    def _write_result(self, path: Path, content: dict[str, Any]) -> None:
        text = json.dumps(
            {**content, _CHECKSUM: _json_checksum(content)}, indent=2, ensure_ascii=False
        )
        files.atomic_write_text(path, text + "\n")


def _json_checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, which does not depend on its layout."""
    # as it is read back: keys that are numbers become strings
    plain = json.loads(json.dumps(content))
    return files.sha256(json.dumps(plain, sort_keys=True).encode())
