"""Runs: train, evaluate and open the folder of an experiment."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import safetensors
import safetensors.torch

from ..config.experiment import Experiment
from ..core import distributed, files
from ..core.validation import did_you_mean
from ..data import Dataset
from ..evaluation import EVALUATIONS, Bounds
from ..evaluation.results import Result
from ..learning import History, checkpoint, fit
from ..learning.trackers.base import Tracker
from ..learning.trackers.session import TrackingSession, find_trackers, log_result
from ..learning.training import resolve_device
from ..likelihoods import Categorical, Columns
from ..models import Autoencoder
from ..programs import inputs
from .files import RunError
from .opening import MUTABLE_SETTINGS, TrainedRun
from .provenance import (
    collect_provenance,
    describe_units,
    device_name,
    process_count,
    weights_checksum,
)

__all__ = ["Run", "RunError", "load"]

_log = logging.getLogger("pyro_vae")


class Run(TrainedRun):
    """The folder of one run; all files are written atomically.

    ``config.yaml`` (fully resolved), ``metrics.jsonl``, ``state.pt`` (checkpoint of training),
    ``weights.safetensors`` (after training), ``result.json``, ``report.html``, ``explorer.html``,
    ``figures/``, ``logs/`` (of trackers) and ``NAME.nc`` of each of
    :data:`~pyro_vae.evaluation.EVALUATIONS`; during a long one also ``NAME.npz`` (its
    checkpoint).

    ``result.json`` has the SHA-256 of the weights, and every ``NAME.nc`` that of the weights that
    it is a result of. One process trains in the folder, and none evaluates meanwhile.

    Arguments:
        folder, plugin, data: as for :class:`~.opening.TrainedRun`; the folder need not exist yet.
    """

    def fit(
        self,
        experiment: Experiment,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        on_epoch: Callable[[Autoencoder, Dataset, History], None] | None = None,
        log: Sequence[Tracker | str] = (),
    ) -> History:
        """Train the experiment in this folder.

        Several processes can train together, see :func:`~pyro_vae.fit`. The folder must be
        visible to all of them. Only the main process writes to it.

        Arguments:
            experiment: the experiment to train.
            resume: resume the run in the folder, if there is one.
            overwrite: replace the run in the folder.
            progress: show a progress bar on the standard error.
            on_epoch: called after every epoch in the main process with the model, the data and
                the history. Evaluating the model in it does not affect training.
            log: trackers that record the training, see :func:`~pyro_vae.fit`; their files are in
                the folder ``logs`` of the run.

        Returns:
            The training history.

        Raises:
            RunError: if the folder contains a run and neither ``resume`` nor ``overwrite`` is
                given, if the run has another configuration or its state is missing, or if another
                process writes to the folder.
        """
        self.check_folder(resume, overwrite)
        trackers = find_trackers(log)
        with ExitStack() as stack:
            with distributed.main_process_first():
                if distributed.is_main_process():
                    stack.enter_context(self._exclusive_for_training())
                self._check_experiment(experiment, resume, overwrite)
            return self._train(experiment, resume, progress, on_epoch, trackers)

    def _train(
        self,
        experiment: Experiment,
        resume: bool,
        progress: bool,
        on_epoch: Callable[[Autoencoder, Dataset, History], None] | None,
        trackers: Sequence[Tracker],
    ) -> History:
        """Train in this folder, with all locks."""
        # check everything before any file is changed
        resolve_device(experiment.settings.fit.device)
        with distributed.main_process_first():
            data = experiment.load_data()
        self._check_data(experiment, data, resume)
        model = experiment.build_model(data)
        if progress and data.columns is not None and distributed.is_main_process():
            print(f"columns: {'; '.join(map(str, data.columns))}", file=sys.stderr)
            if isinstance(model.likelihood, Columns):
                parts = model.likelihood.describe([column.name for column in data.columns])
                print(f"likelihoods: {parts}", file=sys.stderr)
        _warn_about_categories(model, data)
        inputs.check_data(model, data.train, experiment.seed)
        resuming = resume and self.state.is_file()
        if resuming:
            checkpoint.load_checkpoint(self.state)
            saved = self.read_result().get("fit", {}).get("state")
            if saved not in (None, self._state_checksum()):
                raise RunError(
                    f"expected {self.state} to be the state in which the run was finished; it is "
                    f"that of another training: restore it, or train again with --overwrite"
                )
        elif resume and (self.metrics.is_file() or self.weights.is_file()):
            raise RunError(
                f"expected {self.state} to resume from; the file is missing, although the run has "
                f"been trained: restore it, or train from the start with --overwrite"
            )
        provenance = collect_provenance(experiment, data)
        if experiment.start_from is not None:
            provenance["start"] = self._load_start(experiment.start_from, model, resuming)
        if resuming:
            provenance["started"] = self.read_result().get("started", provenance["started"])
        train = partial(
            fit,
            model,
            data.train,
            valid=data.valid if len(data.valid) else None,
            checkpoint=self.state,
            resume=resuming,
            progress=progress,
            **experiment.fit_arguments,
        )
        # all processes must have read the folder before the main process writes to it
        distributed.all_gather(None)
        if not distributed.is_main_process():
            history = train()
            distributed.all_gather(None)
            return history
        checkpoint_every = experiment.settings.fit.checkpoint_every

        session = TrackingSession(
            trackers,
            model,
            data.valid if len(data.valid) else data.train,
            seed=experiment.seed,
            name=self.name,
            config=experiment.settings_dict(),
            folder=self.logs,
            resume=resuming,
        )

        def after_epoch(history: History) -> None:
            _check_self_contained(model)
            if len(history) % checkpoint_every == 0:
                self._publish()
                self._write_metrics(history)
            session.log_epochs(history.epochs)
            if on_epoch is not None:
                on_epoch(model, data, history)

        result = {"config": experiment.settings_dict(), **provenance}
        with self._replace_outdated_files(experiment.to_yaml(), result), session:
            history = train(on_epoch=after_epoch)
        # also needed if no epoch was left, e.g. if a run was killed after its last checkpoint
        files.atomic_write_text(self.config, experiment.to_yaml())
        metrics = self._write_metrics(history)
        weights = safetensors.torch.save(
            {name: t.contiguous() for name, t in model.state_dict().items()}
        )
        files.atomic_write_bytes(self.weights, weights)
        fit_entry = {
            "epochs": len(history),
            "steps": history["step"][-1],
            "best_epoch": history.best_epoch,
            "seconds": sum(history["seconds"]),
            "device": device_name(model),
            "parameters": sum(p.numel() for p in model.parameters()),
            **process_count(),
            "last": history.epochs[-1],
            "weights": files.sha256(weights),
            "metrics": files.sha256(metrics),
            "state": self._state_checksum(),
        }
        self._update_result({**result, "fit": fit_entry})
        distributed.all_gather(None)
        return history

    def evaluate(self, split: str = "test", **options: Any) -> Bounds:
        """Evaluate the trained model on a split, see :meth:`compute`.

        Arguments:
            split: ``test``, ``valid`` or ``train``.
            **options: those of ``pyro-vae evaluate``: ``num_data`` and the options of
                :func:`~pyro_vae.evaluate`.
        """
        bounds = self.compute("bounds", split=split, **options)
        assert isinstance(bounds, Bounds)
        return bounds

    def compute(
        self,
        name: str,
        *,
        device: str = "auto",
        progress: bool = False,
        on_result: Callable[[Result, dict[str, Any]], None] | None = None,
        log: Sequence[Tracker | str] = (),
        **options: Any,
    ) -> Result:
        """Compute an evaluation of the trained model and write its file and ``result.json``.

        The result of new data is written to a separate file, ``NAME.CHECKSUM.nc``, and that of the
        data of the run stays as it is.

        Several processes can evaluate together, see :func:`~pyro_vae.evaluate`. An interrupted
        computation resumes from its checkpoint if it is repeated with the same options.

        Arguments:
            name: one of :data:`~pyro_vae.evaluation.EVALUATIONS`.
            device: ``auto``, ``cpu`` or ``cuda``.
            progress: show progress bars on the standard error.
            on_result: called in the main process with the result and its entry of
                ``result.json`` before files are written.
            log: trackers that record the result with the training, see :meth:`fit`.
            **options: the options of its command.

        Returns:
            The result.

        Raises:
            RunError: if the run is not finished, if another process trains it or computes the
                same evaluation, or if its weights have changed meanwhile. The result is not
                written then.
            OSError: if the folder cannot be written to.
            ValueError: if the name is unknown, if the split is empty, if an option is out of
                range, or if the model does not support the evaluation.
        """
        if name not in EVALUATIONS:
            raise ValueError(
                f"expected one of {', '.join(EVALUATIONS)}; got {name!r}"
                f"{did_you_mean(name, EVALUATIONS)}"
            )
        evaluation = EVALUATIONS[name]
        options = evaluation.bind(options)
        trackers = find_trackers(log)
        with ExitStack() as stack:
            with distributed.main_process_first():
                self.require_config()
                if distributed.is_main_process():
                    stack.enter_context(self.exclusive(name))
                experiment = self._open_experiment()
                data, tag = self._load_data(experiment)
                model, weights = self._open_program(experiment, device, data)
            key = name if tag is None else f"{name}.{tag}"
            start = time.perf_counter()
            result = evaluation.compute(
                model, data, checkpoint=self.checkpoint_file(key), progress=progress, **options
            )
            if "split" in options:
                examples = data.take(options["split"], options["num_data"])
                result = result.with_rows(examples.rows)
            if distributed.is_main_process():
                entry = {
                    **({"split": options["split"]} if "split" in options else {}),
                    "num_data": len(result),
                    **result.summary(),
                    **describe_units(result, data, model),
                    **process_count(),
                    "seconds": time.perf_counter() - start,
                    "device": device_name(model),
                    "weights": weights,
                    **({} if tag is None else {"data": self._describe_new(data, key)}),
                }
                if on_result is not None:
                    on_result(result, entry)
                self._write_evaluation(key, result, entry)
                if evaluation.is_resumable(options):
                    for path in self._checkpoint_parts(key):
                        path.unlink()
                log_result(
                    trackers,
                    {key: entry},
                    name=self.name,
                    config=experiment.settings_dict(),
                    folder=self.logs,
                )
            distributed.all_gather(None)
            return result

    def _describe_new(self, data: Dataset, key: str) -> dict[str, Any]:
        """Return the provenance of new data, and the file of their result."""
        file = self.evaluation_file(key).name
        return {**self._data_changes, "checksum": data.checksum, "file": file}

    def _write_evaluation(self, name: str, result: Result, entry: dict[str, Any]) -> None:
        """Write the file of an evaluation and its entry of ``result.json``."""
        # possible only without locks, e.g. on another machine or by copying files
        if not self.weights.is_file() or weights_checksum(self.weights) != entry["weights"]:
            raise RunError(
                f"the weights of {self.folder} have changed during the computation: the result is "
                f"not written; repeat the command"
            )
        result.to_netcdf(self.evaluation_file(name), provenance=entry)
        self._update_result({name: entry})

    def is_finished(self, experiment: Experiment) -> bool:
        """Whether all epochs of ``experiment`` are done, so that resuming would do nothing.

        Raises:
            RunError: if the run has another configuration, or if a file is damaged.
        """
        if not (self.config.is_file() and self.weights.is_file()):
            return False
        self._check_experiment(experiment, resume=True, overwrite=False)
        result = self.read_result()
        if "fit" not in result:
            return False
        # resuming writes damaged files again
        for file, key in ((self.metrics, "metrics"), (self.weights, "weights")):
            if not file.is_file() or result["fit"].get(key) not in (
                None,
                files.sha256(file.read_bytes()),
            ):
                return False
        # early stopping leaves fewer epochs than configured
        same_epochs = experiment.settings.fit.epochs == result["config"]["fit"]["epochs"]
        return same_epochs or experiment.settings.fit.epochs <= result["fit"]["epochs"]

    def check_folder(self, resume: bool, overwrite: bool) -> None:
        """Check that a run can be trained in this folder.

        Raises:
            RunError: if it contains other files, or a run and not one of the two is given.
        """
        self._complete_replacement()
        if self._is_new():
            return
        if not self.config.is_file():
            raise RunError(
                f"expected {self.folder} to be a new folder or the folder of a run; it contains "
                f"other files: choose another --run"
            )
        if overwrite and resume:
            raise RunError("expected --resume or --overwrite; got both")
        if not (resume or overwrite):
            raise RunError(
                f"{self.folder} already contains a run: continue it with --resume, replace it with "
                f"--overwrite, or choose another --run"
            )

    def _check_experiment(self, experiment: Experiment, resume: bool, overwrite: bool) -> None:
        """Raise if the experiment cannot be trained in this folder."""
        self.check_folder(resume, overwrite)
        if not resume or not self.config.is_file():
            return
        trained = self._load_experiment(experiment.settings.plugin)
        differences = experiment.differences(trained)
        changed = [key for key in differences if key not in MUTABLE_SETTINGS]
        # moved files, whose checksums are verified
        ours, theirs = experiment.data_arguments, trained.data_arguments
        for part in ("valid", "test"):
            if isinstance(ours[part], str) and isinstance(theirs[part], str):
                changed = [key for key in changed if key != f"data.{part}"]
        if changed:
            raise RunError(
                f"{self.folder} has another configuration ({', '.join(changed)} differ): resume "
                f"with its own config.yaml, or choose another --run"
            )

    def _load_start(self, folder: Path, model: Autoencoder, resuming: bool) -> dict[str, str]:
        """Load the initial weights from the run in ``folder`` and return their provenance.

        When resuming, only check that these weights have not changed.
        """
        source = Run(folder)
        source._check_trained()
        start = {"run": source.name, "weights": weights_checksum(source.weights)}
        if resuming:
            before = self.read_result().get("start", {}).get("weights", start["weights"])
            if before != start["weights"]:
                raise RunError(
                    f"the weights of {folder} have changed since {self.folder} was started from "
                    f"them (checksum {start['weights'][:12]}…, before {before[:12]}…): restore "
                    f"them, or train again with --overwrite"
                )
            return start
        source._load_weights(
            model, f"expected start_from to be a run of the same model; cannot load {folder}"
        )
        return start


def _check_self_contained(model: Autoencoder) -> None:
    """Raise if Pyro's parameter store has parameters that the saved weights would lack."""
    owned = set(model.parameters())
    foreign = [n for n, p in pyro.get_param_store().named_parameters() if p not in owned]
    if foreign:
        raise RunError(
            f"expected a program that owns its parameters, which are saved with the run; got "
            f"{foreign[0].replace('$$$', '.')!r}, which only Pyro's parameter store has: make it a "
            f"PyroParam or a network of the program"
        )


def _warn_about_categories(model: Autoencoder, data: Dataset) -> None:
    """Warn if the numbers of categories would be scored as quantities."""
    names = [c.name for c in data.columns or () if c.type == "categorical"]
    if names and not isinstance(model.likelihood, Columns | Categorical):
        _log.warning(
            "%s scores the categories of %s as numbers, whose order has no meaning: use the "
            "likelihood Columns, or leave these columns out by data.drop",
            type(model.likelihood).__name__,
            ", ".join(names),
        )


def load(
    folder: Path | str,
    plugin: str | Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> Run:
    """Open the folder of a finished run.

    Arguments:
        folder: what ``pyro-vae fit --run`` wrote, or ``hf://USER/NAME[@REVISION]``, what ``pyro-vae
            push`` uploaded to the Hugging Face hub.
        plugin: the plugins that the run uses, as modules or files. They are imported, which
            executes their code; those that only the run itself names are not.
        data: options of :func:`~pyro_vae.data.load` for the new place of the data, or for new data,
            e.g. ``{"path": "new.npy"}``.

    Returns:
        The :class:`Run`: its trained ``program``, its ``data``, ``read_bounds()`` and more.

    Raises:
        RunError: if the folder is not that of a finished run, or if its files do not belong
            together.
        PluginError: if the run uses a plugin that is not given.

    Example:
        >>> run = pv.load("runs/first")
        >>> len(pv.evaluate(run.program, run.data.test.head(10), num_samples=20))
        10
    """
    if isinstance(folder, str) and folder.startswith("hf://"):
        from .hub import download_run

        folder = download_run(folder)
    run = Run(folder, plugin, data)
    _ = run.program  # fail here, and not at the first use
    return run
