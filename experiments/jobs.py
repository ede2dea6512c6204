"""Run the cells of a table as submitit jobs, on Slurm or on the local machine.

A job calls :meth:`Cell.attempt`. A killed job resumes from its run folder, finished cells are not
submitted, and submitit requeues jobs that reach Slurm's time limit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .cells import Cell

try:
    import submitit
    from submitit.helpers import Checkpointable, environment_variables
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "expected the package submitit for --jobs; it is not installed: pip install "
        "'pyro-vae[grid]', or leave --jobs out"
    ) from error

__all__ = ["cancel_on_exit", "parse_slurm_options", "run_jobs", "run_queue"]

_ROOT = Path(__file__).parents[1]
#: Default time limit of a job; submitit's is two minutes.
_DEFAULT_MINUTES = 24 * 60


class _Job(Checkpointable):
    """Job that runs a cell, resubmitted unchanged after Slurm's time limit."""

    def __call__(self, cell: Cell, device: str) -> str | None:
        return cell.attempt(device)


def parse_slurm_options(args: Sequence[str]) -> dict[str, Any]:
    """Parse ``--slurm key=value …``. Values are parsed as JSON where possible.

    Raises:
        ValueError: if an argument is not of the form ``key=value``.
    """
    options = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        if not (key and equals):
            raise ValueError(f"expected --slurm KEY=VALUE; got {arg!r}: e.g. timeout_min=60")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def run_jobs(
    cells: Sequence[Cell], folder: Path, jobs: int, device: str, options: Mapping[str, Any]
) -> bool:
    """Run unfinished cells as jobs, wait for them, and return whether one failed.

    The jobs are cancelled if this process is interrupted or terminated; the same call resumes.

    Arguments:
        cells: the cells to run.
        folder: folder of the jobs' logs.
        jobs: maximum number of jobs at a time.
        device: ``auto``, ``cpu`` or ``cuda``.
        options: parameters of ``submitit.AutoExecutor``; those for Slurm only start with
            ``slurm_``.

    Raises:
        ValueError: if submitit rejects a parameter.
    """
    executor = _make_executor(folder, device, options)
    waiting = []
    for cell in cells:
        if cell.incomplete_reason() is None:
            print(f"{cell}: already finished", flush=True)
        else:
            waiting.append(cell)
    if waiting:
        print(f"{len(waiting)} jobs, {executor.cluster}, {jobs} at a time; logs: {folder}")
    # lets the jobs import this package
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with environment_variables(PYTHONPATH=path), cancel_on_exit():
        failed = run_queue(waiting, jobs, lambda cell: executor.submit(_Job(), cell, device))
    for cell, job, problem in failed:
        print(f"{cell}: {problem}; its log is {job.paths.stderr}", file=sys.stderr)
    return bool(failed)


def _make_executor(folder: Path, device: str, options: Mapping[str, Any]) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(folder)
    defaults: dict[str, Any] = {"name": folder.parent.name, "timeout_min": _DEFAULT_MINUTES}
    if executor.cluster == "local" and device != "cpu" and torch.cuda.is_available():
        defaults["gpus_per_node"] = 1  # otherwise submitit hides all GPUs
    try:
        executor.update_parameters(**{**defaults, **options})
    except (NameError, AssertionError, ValueError) as error:
        raise ValueError(
            f"expected --slurm to name parameters of submitit's AutoExecutor (timeout_min, mem_gb, "
            f"gpus_per_node, slurm_partition, …); got {dict(options)}: {str(error).splitlines()[0]}"
        ) from error
    return executor


@contextmanager
def cancel_on_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that running jobs are cancelled and not orphaned.

    submitit ends local jobs with SIGINT. Shell scripts start background processes with SIGINT
    ignored, and child processes inherit this; a no-op handler is not inherited.
    """

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, leave)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_queue(
    cells: Sequence[Cell],
    max_jobs: int,
    submit: Callable[[Cell], submitit.Job[str | None]],
    poll_seconds: float = 0.5,
) -> list[tuple[Cell, submitit.Job[str | None], str]]:
    """Run at most ``max_jobs`` cells at a time. Return the failed ones with their problems."""
    waiting, failed = list(cells), []
    running: dict[Cell, submitit.Job[str | None]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max_jobs:
                cell = waiting.pop(0)
                running[cell] = submit(cell)
            for cell, job in [item for item in running.items() if item[1].done()]:
                del running[cell]
                problem = _get_problem(job)
                print(f"{cell}: failed" if problem else cell.status_line(), flush=True)
                if problem:
                    failed.append((cell, job, problem))
            time.sleep(poll_seconds if running else 0)
    finally:
        for job in running.values():
            job.cancel(check=False)
    return failed


def _get_problem(job: submitit.Job[str | None]) -> str | None:
    """Return the last line of a job's problem, or ``None`` if it succeeded."""
    try:
        problem = job.result()
    except submitit.core.utils.UncompletedJobError:
        return f"the job ended without a result ({job.state.lower()})"
    return problem and problem.strip().splitlines()[-1]
