"""Sweeps over settings: trials chosen by Optuna, ranked by a reliable estimate of log p(x)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..config.experiment import Experiment, as_plugin_names, parse
from ..core import files
from ..core.documents import load_yaml, read_text
from ..core.locks import LockHeldError, exclusive_lock
from ..core.validation import as_path, positive_int
from ..evaluation import Bounds, evaluate
from ..learning import History
from ..learning.diagnostics import NonFiniteLossError
from ..models import Autoencoder
from .comparison import subtract
from .files import RunError
from .run import Run

__all__ = ["SweepError", "read_space", "sweep"]

_log = logging.getLogger("pyro_vae")

#: The keys of a range in a space.
_RANGE_KEYS = ("low", "high", "log", "step")


class SweepError(RunError):
    """A sweep cannot continue; the message is one sentence."""


def sweep(
    config: Path | str,
    space: Path | str,
    folder: Path | str,
    *,
    trials: int = 20,
    finalists: int = 3,
    num_data: int | None = None,
    seed: int = 0,
    jobs: int = 0,
    plugin: str | Sequence[str] = (),
) -> str:
    """Search for settings with a high log p(x) of the validation data.

    Trials are proposed by Optuna's tree-structured Parzen estimator, and stopped early by its
    median rule on the validation ELBO after each epoch. The best of them by that ELBO are ranked
    by log p̂ of the validation data (``reliable=True``), with paired differences. The test data
    are not used: evaluate the winner on them once.

    Each trial is an ordinary run in ``trials/``. Called again, a sweep continues: finished trials
    are kept, interrupted ones resume. Several processes may work on the same folder.

    Arguments:
        config: YAML file of an experiment with validation data.
        space: YAML file of the options that vary, see :func:`read_space`.
        folder: folder of the sweep.
        trials: number of trials in all.
        finalists: number of runs to rank.
        num_data: use only the first validation examples for the ranking.
        seed: seed of the proposals.
        jobs: work on the trials in this number of submitit jobs, on Slurm or on this machine,
            instead of in this process.
        plugin: modules or files whose classes the configuration uses.

    Returns:
        The table of the ranking, which ``ranking.txt`` has, too. ``sweep.json`` has all trials,
        and ``sweep.png`` shows them.

    Raises:
        ModuleNotFoundError: if Optuna, or with ``jobs`` submitit, is not installed.
        SweepError: if the folder is that of another sweep, if there are no validation data, or if
            no trial has finished.
        ValueError: if the space or an argument is invalid.
    """
    positive_int("trials", trials)
    positive_int("finalists", finalists)
    work = _Sweep(as_path(config), as_path(space), as_path(folder), seed, as_plugin_names(plugin))
    work.check()
    if jobs:
        _run_jobs(work, trials, positive_int("jobs", jobs))
    else:
        work.run(trials)
    return work.rank(finalists, num_data)


def read_space(file: Path) -> dict[str, Any]:
    """Return the options that vary: a list of values, or a range.

    ::

        model.latent_dim: [5, 10, 20]
        model.prior: [StandardNormal, VampPrior]
        fit.optimizer.lr: {low: 0.0003, high: 0.01, log: true}
        objective.k: {low: 1, high: 50}

    Bounds that are both integers make a range of integers.

    Raises:
        ValueError: if the file has no options, if one is neither a list nor a range, or if one
            changes the data, with which log p(x) of two trials cannot be compared.
    """
    space = load_yaml(read_text(file))
    if not isinstance(space, dict) or not space:
        raise ValueError(f"expected options and their values in {file}; got {space!r}")
    for name, value in space.items():
        if name.partition(".")[0] == "data":
            raise ValueError(
                f"expected options of model, objective and fit in {file}; got {name}: log p(x) of "
                f"other data cannot be compared"
            )
        if isinstance(value, list) and value:
            continue
        values: dict[str, Any] = value if isinstance(value, dict) else {}
        if not {"low", "high"} <= values.keys() or values.keys() - {*_RANGE_KEYS}:
            raise ValueError(
                f"expected {name} in {file} to be a list of values or a range {{low: …, high: …, "
                f"log: …, step: …}}; got {value!r}"
            )
        if not values["low"] < values["high"]:
            raise ValueError(f"expected low < high for {name} in {file}; got {values}")
    return space


class _Sweep:
    """The folder of a sweep and its study."""

    def __init__(
        self, config: Path, space: Path, folder: Path, seed: int, plugins: list[str]
    ) -> None:
        self.config, self.folder, self._seed, self._plugins = config, folder, seed, plugins
        self.space = read_space(space)
        self._optuna = _import_optuna()

    def check(self) -> None:
        """Raise before any training if the configuration or the folder does not fit."""
        first = {name: _first_value(values) for name, values in self.space.items()}
        experiment = self._make_experiment(first)
        if experiment.settings.data.valid == 0:
            raise SweepError(
                f"expected validation data, by which trials are judged; got data.valid = 0 in "
                f"{self.config}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "space.json"
        given = {"space": self.space, "config": read_text(self.config)}
        with exclusive_lock(self.folder / ".space.lock", wait=60):
            if not file.is_file():
                files.atomic_write_text(file, json.dumps(given, indent=2))
        if json.loads(read_text(file)) != json.loads(json.dumps(given)):
            raise SweepError(
                f"{self.folder} belongs to a sweep of another space or configuration: choose "
                f"another folder"
            )

    def run(self, trials: int) -> None:
        """Resume interrupted trials, then run new ones until there are ``trials`` in all."""
        study = self._open_study()
        running = self._optuna.trial.TrialState.RUNNING
        for frozen in study.get_trials(deepcopy=False, states=(running,)):
            # a trial of another process that still works on it is locked
            with suppress(LockHeldError):
                trial = self._optuna.trial.Trial(study, frozen._trial_id)
                with exclusive_lock(self._lock_file(trial)):
                    self._finish_trial(study, trial, len(frozen.intermediate_values))
        waiting = self._optuna.trial.TrialState.WAITING
        while True:
            with exclusive_lock(self.folder / ".ask.lock", wait=60):
                started = [t for t in study.get_trials(deepcopy=False) if t.state != waiting]
                if len(started) >= trials:
                    break
                trial = study.ask()
                lock = exclusive_lock(self._lock_file(trial))
                lock.__enter__()
            try:
                self._finish_trial(study, trial)
            finally:
                lock.__exit__(None, None, None)

    def _lock_file(self, trial: Any) -> Path:
        return self.folder / f".trial-{trial.number}.lock"

    def _finish_trial(self, study: Any, trial: Any, reported: int = 0) -> None:
        """Train a trial, ``reported`` epochs of which are known, to its end; tell the study."""
        state = self._optuna.trial.TrialState
        chosen = {n: self._suggest(trial, n, values) for n, values in self.space.items()}
        try:
            value = self._train(trial, chosen, reported)
        except self._optuna.TrialPruned:
            _log.info("trial %d is stopped early", trial.number)
            study.tell(trial, state=state.PRUNED)
        except RunError:  # of the folder or the sweep, not of the settings
            raise
        except (ValueError, NonFiniteLossError) as error:  # settings that cannot be trained
            _log.warning("trial %d has no result: %s", trial.number, error)
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=state.FAIL)
        else:
            study.tell(trial, value)

    def _suggest(self, trial: Any, name: str, values: Any) -> Any:
        """Return the trial's value of an option; choices are stored by their JSON text."""
        if isinstance(values, list):
            return json.loads(trial.suggest_categorical(name, [json.dumps(v) for v in values]))
        low, high, log = values["low"], values["high"], values.get("log", False)
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, step=values.get("step", 1), log=log)
        return trial.suggest_float(name, low, high, step=values.get("step"), log=log)

    def _train(self, trial: Any, chosen: Mapping[str, Any], reported: int) -> float:
        experiment = self._make_experiment(chosen)
        run = Run(self._run_folder(trial.number), self._plugins)

        def report(model: Any, data: Any, history: History) -> None:
            nonlocal reported
            self._check_measure(trial.study, model)
            for epoch in range(reported, len(history)):
                trial.report(history["valid_elbo"][epoch], epoch)
            reported = max(reported, len(history))
            if trial.should_prune():
                raise self._optuna.TrialPruned

        resume = run.config.is_file()
        if not (resume and run.is_finished(experiment)):
            run.fit(experiment, resume=resume, on_epoch=report)
        metrics = [json.loads(line) for line in read_text(run.metrics).splitlines()]
        return max(record["valid_elbo"] for record in metrics)

    def _check_measure(self, study: Any, model: Autoencoder) -> None:
        """Raise unless log p(x) of a model can be compared with that of the trials before."""
        likelihood = getattr(model, "likelihood", None)
        measure = type(model).__name__ if likelihood is None else likelihood.measure
        first = study.user_attrs.get("measure", measure)
        study.set_user_attr("measure", first)
        if measure != first:
            raise SweepError(
                f"expected trials whose log p(x) can be compared; got a {measure} and a {first}: "
                f"search for the likelihood within one of the two"
            )

    def _make_experiment(self, chosen: Mapping[str, Any]) -> Experiment:
        argv = ["--config", str(self.config)]
        argv += [f"--{name}={_as_argument(value)}" for name, value in chosen.items()]
        plugins = ["--plugin", json.dumps(self._plugins)] if self._plugins else []
        return parse([*argv, *plugins])

    def _run_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04}"

    def _open_study(self) -> Any:
        optuna = self._optuna
        backend = optuna.storages.journal.JournalFileBackend(str(self.folder / "study.log"))
        count = len(list((self.folder / "trials").glob("*")))
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="sweep",
            load_if_exists=True,
            direction="maximize",
            # a continued sweep must not propose its first trials again
            sampler=optuna.samplers.TPESampler(seed=self._seed + count),
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=2),
        )

    def rank(self, finalists: int, num_data: int | None) -> str:
        """Evaluate the best trials, write the files of the sweep, and return the table."""
        study = self._open_study()
        trials = study.get_trials(deepcopy=False)
        done = [t for t in trials if t.state.name == "COMPLETE" and math.isfinite(t.value)]
        if not done:
            reasons = {t.user_attrs.get("error") for t in trials} - {None}
            raise SweepError(
                f"expected at least one finished trial in {self.folder}; got none of "
                f"{len(trials)}{': ' + '; '.join(sorted(map(str, reasons))) if reasons else ''}"
            )
        best = sorted(done, key=lambda t: -t.value)[:finalists]
        bounds = {t.number: self._evaluate(t.number, num_data) for t in best}
        log_p = {number: found.log_evidence for number, found in bounds.items()}
        order = sorted(bounds, key=lambda number: -log_p[number])
        lines = [*_format_ranking([bounds[number] for number in order], order), "", "settings:"]
        settings = {t.number: self._settings(t) for t in trials}
        lines += [f"{n:04}  {_format_settings(settings[n])}" for n in order]
        lines += ["", f"to evaluate the winner on the test data: {self._run_folder(order[0])}"]
        entries = [
            {
                "trial": t.number,
                "state": t.state.name.lower(),
                "settings": settings[t.number],
                "valid_elbo": t.value,
                "epochs": len(t.intermediate_values),
                "log_evidence": log_p.get(t.number),
                **t.user_attrs,
            }
            for t in trials
        ]
        text = json.dumps({"trials": entries, "ranking": order}, indent=2, ensure_ascii=False)
        files.atomic_write_text(self.folder / "sweep.json", text + "\n")
        table = "\n".join(lines)
        files.atomic_write_text(self.folder / "ranking.txt", table + "\n")
        figure = plot_trials(entries, self.space, order)
        files.atomic_write(
            self.folder / "sweep.png", lambda path: figure.savefig(path, format="png", dpi=120)
        )
        return table

    def _evaluate(self, number: int, num_data: int | None) -> Bounds:
        """Return the bounds of the validation data under a trial, computed once.

        They are no result of its run, which is free for the test data.
        """
        run = Run(self._run_folder(number), self._plugins)
        data = run.data.valid
        data = data if num_data is None else data.head(num_data)
        file = self.folder / "ranking" / f"{number:04}.nc"
        if file.is_file() and len(bounds := Bounds.from_netcdf(file)) == len(data):
            return bounds
        bounds = evaluate(run.program, data, reliable=True)
        bounds.to_netcdf(file)
        return bounds

    def _settings(self, trial: Any) -> dict[str, Any]:
        return {
            name: json.loads(value) if isinstance(self.space[name], list) else value
            for name, value in trial.params.items()
        }


def plot_trials(
    entries: Sequence[Mapping[str, Any]], space: Mapping[str, Any], ranking: Sequence[int]
) -> Figure:
    """Return a figure with a panel per option: the best validation ELBO of each trial.

    Arguments:
        entries: the trials of ``sweep.json``.
        space: the options, see :func:`read_space`; those with one value have no panel.
        ranking: the trials that were evaluated, from the best.
    """
    names = [n for n, v in space.items() if not isinstance(v, list) or len(v) > 1] or [*space]
    figure = Figure(figsize=(3.2 * len(names), 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    finished = [e for e in entries if e["valid_elbo"] is not None]
    for axis, name in zip(axes, names, strict=True):
        for label, marker, chosen in (
            ("stopped early", "x", [e for e in finished if e["state"] == "pruned"]),
            ("finished", "o", [e for e in finished if e["state"] == "complete"]),
            ("ranked", "*", [e for e in finished if e["trial"] in ranking]),
        ):
            values = [e["settings"][name] for e in chosen]
            if not all(isinstance(v, int | float) for v in values):
                values = [str(v) for v in values]
            axis.plot(values, [e["valid_elbo"] for e in chosen], marker, label=label)
        axis.set_xlabel(name)
        if isinstance(space[name], dict) and space[name].get("log"):
            axis.set_xscale("log")
    axes[0].set_ylabel("validation ELBO (nats)")
    axes[0].legend(fontsize="small")
    return figure


def _format_ranking(bounds: Sequence[Bounds], numbers: Sequence[int]) -> list[str]:
    """Return the lines of a table: log p̂ of the trials, with paired differences from the first."""
    head = f"{'trial':>5}{'N':>7}{'ELBO':>11}{'log p̂':>11}{'± data':>9}{'k̂>limit':>9}"
    lines = [f"{head}{'log p̂ − first':>16}{'± paired':>10}"]
    for found, number in zip(bounds, numbers, strict=True):
        row = (
            f"{number:05}{len(found):7}{found.elbo:11.3f}{found.log_evidence:11.3f}"
            f"{found.estimates['log_evidence'].se_data:9.3f}{len(found.unreliable):9}"
        )
        if found is not bounds[0]:
            row += "{:16.3f}{:10.3f}".format(*subtract(found, bounds[0]))
        lines.append(row)
    return [*lines, "validation data, nats per datum, higher is better"]


def _run_jobs(work: _Sweep, trials: int, jobs: int) -> None:
    """Run the trials in submitit jobs, and wait for them."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "jobs need submitit: pip install 'pyro-vae[grid]', or leave jobs out", name=error.name
        ) from error
    executor = submitit.AutoExecutor(folder=work.folder / "jobs")
    executor.update_parameters(timeout_min=24 * 60)
    submitted = [executor.submit(work.run, trials) for _ in range(jobs)]
    failed = [job.exception() for job in submitted if job.exception() is not None]
    if len(failed) == len(submitted):
        raise SweepError(f"expected a job to finish; got {failed[0]}")
    for error in failed:
        _log.warning("a job failed, the others did its trials: %s", error)


def _import_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "sweeps need optuna: pip install 'pyro-vae[sweep]'", name=error.name
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _first_value(values: Any) -> Any:
    return values[0] if isinstance(values, list) else values["low"]


def _as_argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _format_settings(settings: Mapping[str, Any]) -> str:
    parts = (f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in settings.items())
    return ", ".join(parts)
