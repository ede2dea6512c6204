"""A run is a folder: its configuration, weights, metrics, bounds and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch

from ..config.experiment import Experiment, parse
from ..core import distributed, files
from ..core.validation import positive_int
from ..data import Dataset, Split
from ..evaluation import Bounds, evaluate
from ..evaluation.bounds import PRINTED
from ..learning import History, checkpoint, fit
from ..learning.training import find_device
from ..models import Autoencoder
from ..programs import inputs
from .files import RunError, RunFiles
from .provenance import (
    bits_per_dim,
    describe,
    device_name,
    labels_checksum,
    measure,
    processes,
    weights_checksum,
)

__all__ = ["Opened", "Run", "RunError"]

#: What may change when a run goes on: none alters the steps already made, and data or weights
#: that have moved are known by their checksums.
_MAY_CHANGE = {
    "fit.epochs",
    "fit.device",
    "fit.checkpoint_every",
    "data.path",
    "data.root",
    "plugin",
    "start_from",
}


class Opened(NamedTuple):
    """A finished run, and some of its data."""

    experiment: Experiment
    data: Dataset
    model: Autoencoder
    part: Split


class Run(RunFiles):
    """The folder of one run, every file of it written whole or not at all.

    ``config.yaml`` (fully resolved), ``metrics.jsonl``, ``state.pt`` (to resume from),
    ``weights.safetensors`` (when training has ended), ``bounds.nc``, ``result.json``,
    ``report.html`` and ``figures/``, and the files of :mod:`~pyro_vae.rulers`; while AIS goes on,
    ``annealing.npz`` (to resume from).
    """

    def fit(
        self,
        experiment: Experiment,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        on_epoch: Callable[[Autoencoder, Dataset, History], None] | None = None,
    ) -> History:
        """Trains the experiment in this folder.

        Several processes that all call this train it together, as :func:`~pyro_vae.fit` says; the
        folder must be one that all of them see, and the first alone writes there.

        Arguments:
            experiment: what to train.
            resume: go on with the run that the folder holds, if there is one.
            overwrite: replace it.
            progress: show a progress bar on the standard error.
            on_epoch: called after every epoch, in the first process, with the model, the data and
                what happened so far. A model that is judged there learns on as if it had not been.

        Raises:
            RunError: if the folder holds a run and neither ``resume`` nor ``overwrite`` is
                given, or if it belongs to another configuration.
        """
        self._claim(experiment, resume, overwrite)
        # whatever can be refused is refused before a file is touched
        find_device(experiment.settings.fit.device)
        with distributed.main_process_first():
            data = experiment.load_data()
        self._check_data(experiment, data, resume)
        model = experiment.build_model(data)
        inputs.check_data(model, data.train, experiment.seed)
        going_on = resume and self.state.is_file()
        if going_on:
            checkpoint.load(self.state)
        provenance = describe(experiment, data)
        if experiment.start_from is not None:
            provenance["start"] = self._start(experiment.start_from, model, going_on)
        if going_on:
            provenance["started"] = self.read_result().get("started", provenance["started"])
        learn = partial(
            fit,
            model,
            data.train,
            valid=data.valid if len(data.valid) else None,
            checkpoint=self.state,
            resume=going_on,
            progress=progress,
            **experiment.fit_arguments,
        )
        # nobody looks at the folder any more when the first process begins to write there
        distributed.all_gather(None)
        if not distributed.is_main_process():
            history = learn()
            distributed.all_gather(None)
            return history
        every = experiment.settings.fit.checkpoint_every

        def after(history: History) -> None:
            if len(history) % every == 0:
                self._write_metrics(history)
            if on_epoch is not None:
                on_epoch(model, data, history)

        with self._replacing(going_on):
            files.write_text(self.config, experiment.to_yaml())
            self._write_result({"config": experiment.settings_dict(), **provenance})
            history = learn(on_epoch=after)
        # a run killed between its last checkpoint and metrics comes here without an epoch
        self._write_metrics(history)
        tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
        files.write(self.weights, lambda file: safetensors.torch.save_file(tensors, file))
        self._update(
            {
                "fit": {
                    "epochs": len(history),
                    "steps": history["step"][-1],
                    "best_epoch": history.best_epoch,
                    "seconds": sum(history["seconds"]),
                    "device": device_name(model),
                    "parameters": sum(p.numel() for p in model.parameters()),
                    **processes(),
                    "last": history.epochs[-1],
                }
            }
        )
        distributed.all_gather(None)
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
        self._load_weights(
            model, f"{self.weights} is damaged or belongs to another model than {self.config}"
        )
        return experiment, data, model

    def opened(
        self, split: str = "test", num_data: int | None = None, device: str = "cpu"
    ) -> Opened:
        """:meth:`open`, with the model on a device, and the data that it is to be judged by.

        Arguments:
            split: ``test``, ``valid`` or ``train``.
            num_data: only the first so many data.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            RunError: as for :meth:`open`.
            ValueError: if the split is empty, or a number is out of range.
        """
        if num_data is not None:
            positive_int("num_data", num_data)
        place = find_device(device)
        experiment, data, model = self.open()
        part: Split = getattr(data, split)
        if not len(part):
            raise ValueError(f"expected {split} data; the run has none: set --split")
        part = part if num_data is None else part.head(num_data)
        return Opened(experiment, data, model.to(place), part)

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

        Several processes that all call this do it together, as :func:`~pyro_vae.evaluate` says.

        Arguments:
            split: ``test``, ``valid`` or ``train``.
            num_samples: the number K of draws for each datum.
            ks: L_k that the bounds must hold; 1, 2, 5, 10, … are always among them.
            num_data: only the first so many data.
            device: ``auto``, ``cpu`` or ``cuda``.
            progress: show a progress bar on the standard error.
            **options: for :func:`~pyro_vae.evaluate`. AIS that was interrupted goes on from
                ``annealing.npz`` when it is asked for in the same words.

        Raises:
            RunError: if the run is not finished.
            ValueError: if the split is empty, for numbers out of range, or if the model does
                not allow what is asked for.
        """
        positive_int("num_samples", num_samples)
        with distributed.main_process_first():
            _, data, model, part = self.opened(split, num_data, device)
        start = time.perf_counter()
        # the report draws L_k against k: a few more of them cost next to nothing
        curve = [c * 10**e for e in range(9) for c in (1, 2, 5) if c * 10**e <= num_samples]
        bounds = evaluate(
            model,
            part,
            num_samples=num_samples,
            ks=sorted({*ks, *curve}),
            checkpoint=self.annealing,
            progress=progress,
            **options,
        )
        if not distributed.is_main_process():
            distributed.all_gather(None)
            return bounds
        bounds.to_netcdf(self.bounds)
        if options.get("ais") or options.get("escalate"):
            self.forget("annealing")
        bits = bits_per_dim(bounds, data, model)
        summary = {
            "split": split,
            **bounds.summary(),
            "measure": measure(model),
            **({} if bits is None else {"bits_per_dim": bits}),
            **processes(),
        }
        self.record("bounds", summary, model, start)
        distributed.all_gather(None)
        return bounds

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

    def _load_weights(self, model: Autoencoder, problem: str) -> None:
        """Gives the model this run's weights; if they are no such, the problem and why."""
        try:
            model.load_state_dict(safetensors.torch.load_file(self.weights))
        except (safetensors.SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{problem}: {reason}") from error

    def _start(self, folder: Path, model: Autoencoder, going_on: bool) -> dict[str, str]:
        """Begins with the weights of the run in ``folder``; says which they are.

        Raises:
            RunError: if it is not finished, if its weights are those of another model, or, going
                on, if they are no longer those that this run began with.
        """
        first = Run(folder)
        first._check_complete()
        told = {"run": first.name, "weights": weights_checksum(first.weights)}
        if going_on:
            before = self.read_result().get("start", {}).get("weights", told["weights"])
            if before != told["weights"]:
                raise RunError(
                    f"{folder} no longer has the weights that {self.folder} began with (checksum "
                    f"{told['weights'][:12]}…, then {before[:12]}…): restore it, or fit anew with "
                    f"--overwrite"
                )
            return told
        first._load_weights(
            model,
            f"expected start_from to name a run of the same model; the weights of {folder} do not "
            f"fit",
        )
        return told

    def _experiment(self) -> Experiment:
        try:
            return parse(self.config)
        except ValueError as error:
            raise RunError(
                f"{self.config} is damaged or of another program ({error}): mend it, or replace "
                f"the run with --overwrite"
            ) from error

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
