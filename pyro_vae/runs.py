"""A run is a folder: its configuration, weights, metrics, bounds and report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from . import _files, _inputs
from ._component import positive
from ._provenance import bits_per_dim, describe, device_name, labels_checksum, measure
from .config import Experiment, parse
from .data import Dataset
from .evaluation import Bounds, evaluate
from .evaluation.bounds import PRINTED
from .learning import History, checkpoint, fit
from .learning.fit import find_device
from .models import Autoencoder

__all__ = ["Run", "RunError"]

#: What may change when a run goes on: none alters the steps already made, and data that have
#: moved are known by their checksum.
_MAY_CHANGE = {"fit.epochs", "fit.device", "data.path", "data.root", "plugin"}


#: The prefix of the folder that holds replaced files until there are new ones.
_ASIDE = ".replaced-"


class RunError(ValueError):
    """A run folder that cannot be used as asked."""


class Run:
    """The folder of one run, every file of it written whole or not at all.

    ``config.yaml`` (fully resolved), ``metrics.jsonl``, ``state.pt`` (to resume from),
    ``weights.safetensors`` (when training has ended), ``bounds.nc``, ``result.json``,
    ``report.html`` and ``figures/``.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.metrics = self.folder / "metrics.jsonl"
        self.state = self.folder / "state.pt"
        self.weights = self.folder / "weights.safetensors"
        self.bounds = self.folder / "bounds.nc"
        self.result = self.folder / "result.json"
        self.report = self.folder / "report.html"
        self.figures = self.folder / "figures"

    @property
    def name(self) -> str:
        return self.folder.name

    def fit(
        self,
        experiment: Experiment,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
    ) -> History:
        """Trains the experiment in this folder.

        Raises:
            RunError: if the folder holds a run and neither ``resume`` nor ``overwrite`` is
                given, or if it belongs to another configuration.
        """
        self._claim(experiment, resume, overwrite)
        # whatever can be refused is refused before a file is touched
        find_device(experiment.settings.fit.device)
        data = experiment.load_data()
        self._check_data(experiment, data, resume)
        model = experiment.build_model(data)
        _inputs.check(model, data.train, experiment.seed)
        going_on = resume and self.state.is_file()
        if going_on:
            checkpoint.load(self.state)
        provenance = describe(experiment, data)
        if going_on:
            provenance["started"] = self.read_result().get("started", provenance["started"])
        with self._replacing(going_on):
            _files.write_text(self.config, experiment.to_yaml())
            self._write_result({"config": experiment.settings_dict(), **provenance})
            history = fit(
                model,
                data.train,
                valid=data.valid if len(data.valid) else None,
                checkpoint=self.state,
                resume=going_on,
                on_epoch=self._write_metrics,
                progress=progress,
                **experiment.fit_arguments,
            )
        # a run killed between its last checkpoint and metrics comes here without an epoch
        self._write_metrics(history)
        tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
        _files.write(self.weights, lambda file: safetensors.torch.save_file(tensors, file))
        self._update(
            {
                "fit": {
                    "epochs": len(history),
                    "steps": history["step"][-1],
                    "best_epoch": history.best_epoch,
                    "seconds": sum(history["seconds"]),
                    "device": device_name(model),
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "last": history.epochs[-1],
                }
            }
        )
        return history

    def open(self) -> tuple[Experiment, Dataset, Autoencoder]:
        """The experiment, its data and the trained model.

        Raises:
            RunError: if this is not the folder of a finished run, or its files do not fit.
        """
        self._check_complete()
        experiment = self._experiment()
        data = experiment.load_data()
        self._check_data(experiment, data, resume=True)
        model = experiment.build_model(data)
        try:
            model.load_state_dict(safetensors.torch.load_file(self.weights))
        except (safetensors.SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{self.weights} is damaged or belongs to another model than "
                f"{self.config}: {reason}"
            ) from error
        return experiment, data, model

    def evaluate(
        self,
        split: str = "test",
        num_samples: int = 5000,
        ks: Sequence[int] = PRINTED,
        num_data: int | None = None,
        device: str = "auto",
        progress: bool = False,
        **options: Any,
    ) -> Bounds:
        """Evaluates the trained model on a split of its data; writes bounds and result.

        Arguments:
            split: ``test``, ``valid`` or ``train``.
            num_samples: the number K of draws for each datum.
            ks: L_k that the bounds must hold; 1, 2, 5, 10, … are always among them.
            num_data: only the first so many data.
            device: ``auto``, ``cpu`` or ``cuda``.
            progress: show a progress bar on the standard error.
            **options: for :func:`~pyro_vae.evaluate`.

        Raises:
            RunError: if the run is not finished.
            ValueError: if the split is empty, or for numbers out of range.
        """
        positive("num_samples", num_samples)
        place = find_device(device)
        _, data, model = self.open()
        model.to(place)
        part = getattr(data, split)
        if num_data is not None:
            part = part.head(num_data)
        start = datetime.now(UTC)
        # the report draws L_k against k: a few more of them cost next to nothing
        curve = [c * 10**e for e in range(9) for c in (1, 2, 5) if c * 10**e <= num_samples]
        bounds = evaluate(
            model,
            part,
            num_samples=num_samples,
            ks=sorted({*ks, *curve}),
            progress=progress,
            **options,
        )
        seconds = (datetime.now(UTC) - start).total_seconds()
        bounds.to_netcdf(self.bounds)
        bits = bits_per_dim(bounds, data, model)
        summary = {
            "split": split,
            **bounds.summary(),
            "measure": measure(model),
            **({} if bits is None else {"bits_per_dim": bits}),
            "seconds": seconds,
            "device": device_name(model),
        }
        self._update({"bounds": summary})
        return bounds

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
        try:
            return Bounds.from_netcdf(self.bounds)
        except ValueError as error:
            raise RunError(
                f"{self.bounds} is damaged or foreign: `pyro-vae evaluate {self.folder}` writes it "
                f"anew"
            ) from error

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

    def finished(self, experiment: Experiment) -> bool:
        """Whether all epochs of ``experiment`` are done here, so that resuming adds nothing.

        Raises:
            RunError: if the folder belongs to another configuration, or is damaged.
        """
        if not (self.config.is_file() and self.weights.is_file()):
            return False
        self._claim(experiment, resume=True, overwrite=False)
        result = self.read_result()
        if "fit" not in result or not self.metrics.is_file():
            return False
        # one that stopped early has fewer epochs than it was given
        stopped = experiment.settings.fit.epochs == result["config"]["fit"]["epochs"]
        return stopped or experiment.settings.fit.epochs <= result["fit"]["epochs"]

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

    def _claim(self, experiment: Experiment, resume: bool, overwrite: bool) -> None:
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return
        if not self.config.is_file():
            raise RunError(
                f"expected {self.folder} to be a new folder or that of a run; it holds other files "
                f"and is left alone: choose another --run"
            )
        if overwrite and not resume:
            return
        if overwrite:
            raise RunError("expected --resume or --overwrite; got both")
        if not resume:
            raise RunError(
                f"{self.folder} already holds a run: go on with --resume, replace it with "
                f"--overwrite, or choose another --run"
            )
        changed = [k for k in experiment.differences(self._experiment()) if k not in _MAY_CHANGE]
        if changed:
            raise RunError(
                f"{self.folder} belongs to another configuration ({', '.join(changed)} differ): "
                f"resume with its own config.yaml, or choose another --run"
            )

    def _check_complete(self) -> None:
        self.stored_config()
        if not self.weights.is_file():
            raise RunError(
                f"the run in {self.folder} is incomplete, its training has not ended: go on with "
                f"`pyro-vae fit --run {self.folder} --resume`"
            )

    def _experiment(self) -> Experiment:
        try:
            return parse(self.config)
        except ValueError as error:
            raise RunError(
                f"{self.config} is damaged or of another program ({error}): mend it, or replace "
                f"the run with --overwrite"
            ) from error

    @contextmanager
    def _replacing(self, going_on: bool) -> Iterator[None]:
        """Sets aside what training makes out of date, and brings it back if none takes place.

        Other files in the folder are nobody's business here.
        """
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        stale = [self.weights, self.bounds, self.report, self.figures]
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
            self.result,
        ):
            for path in _files.leftovers(whole):
                path.unlink()

    def _check_data(self, experiment: Experiment, data: Dataset, resume: bool) -> None:
        before = self.read_result().get("data", {}) if resume else {}
        now = {"checksum": data.checksum, "labels": labels_checksum(experiment.program, data)}
        for key, value in now.items():
            if before.get(key) not in (None, value):
                told = "checksum" if key == "checksum" else "checksum of the labels"
                raise RunError(
                    f"the data set {data.name!r} is no longer what {self.folder} was trained on "
                    f"({told} {str(value)[:12]}…, then {before[key][:12]}…): restore it or fit anew"
                )

    def _write_metrics(self, history: History) -> None:
        lines = (json.dumps(record) for record in history.epochs)
        _files.write_text(self.metrics, "\n".join(lines) + "\n")

    def _update(self, entries: dict[str, Any]) -> None:
        self._write_result({**self.read_result(), **entries})

    def _write_result(self, content: dict[str, Any]) -> None:
        _files.write_text(self.result, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
