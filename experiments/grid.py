"""The cells of a table as jobs of submitit: on Slurm where there is one, else on this machine.

A job only calls :func:`experiments.attempts.attempt`: a killed job resumes from its run folder, and
finished cells are not submitted. submitit requeues jobs that Slurm ends.
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

from .attempts import attempt
from .cells import Cell

try:
    import submitit
    from submitit.helpers import Checkpointable, environment_variables
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "expected the package submitit for --jobs; it is not installed: pip install "
        "'pyro-vae[grid]', or leave --jobs out"
    ) from error

__all__ = ["options", "work"]

_ROOT = Path(__file__).parents[1]
#: Seconds between two looks at the jobs.
_PAUSE = 0.5
#: Minutes of a job where nothing else is said; submitit's own are two.
_MINUTES = 24 * 60


class _Job(Checkpointable):
    """Works on a cell; submitted again as it is when Slurm's time is up."""

    def __call__(self, cell: Cell, device: str) -> str | None:
        return attempt(cell, device)


def options(words: Sequence[str]) -> dict[str, Any]:
    """What ``--slurm key=value …`` says; a value is a number where it is one.

    Raises:
        ValueError: if a word is something else.
    """
    told = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ValueError(f"expected --slurm KEY=VALUE; got {word!r}: write timeout_min=60, say")
        try:
            told[key] = json.loads(value)
        except json.JSONDecodeError:
            told[key] = value
    return told


def work(
    cells: Sequence[Cell], folder: Path, jobs: int, device: str, told: Mapping[str, Any]
) -> bool:
    """Runs the cells that are not finished, so many at a time; whether one of them failed.

    Waits for all of them, and ends them when it is interrupted or terminated. The same call goes
    on.

    Arguments:
        cells: what is to be done.
        folder: where the jobs' logs go.
        jobs: the most jobs at a time.
        device: ``auto``, ``cpu`` or ``cuda``.
        told: parameters of ``submitit.AutoExecutor``, those of Slurm alone beginning with
            ``slurm_``.

    Raises:
        ValueError: if submitit does not take a parameter.
    """
    executor = _executor(folder, device, told)
    waiting = [cell for cell in cells if not _finished(cell)]
    if waiting:
        print(f"{len(waiting)} jobs, {executor.cluster}, {jobs} at a time; logs: {folder}")
    # how the jobs find this package
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with environment_variables(PYTHONPATH=path), _jobs_end_with_us():
        failed = _all(waiting, jobs, lambda cell: executor.submit(_Job(), cell, device))
    for cell, job, problem in failed:
        print(f"{cell}: {problem}; its log is {job.paths.stderr}", file=sys.stderr)
    return bool(failed)


def _executor(folder: Path, device: str, told: Mapping[str, Any]) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(folder)
    usual: dict[str, Any] = {"name": folder.parent.name, "timeout_min": _MINUTES}
    if executor.cluster == "local" and device != "cpu" and torch.cuda.is_available():
        usual["gpus_per_node"] = 1  # or submitit hides all of them
    try:
        executor.update_parameters(**{**usual, **told})
    except (NameError, AssertionError, ValueError) as error:
        raise ValueError(
            f"expected --slurm to name parameters of submitit's AutoExecutor (timeout_min, mem_gb, "
            f"gpus_per_node, slurm_partition, …); got {dict(told)}: {str(error).splitlines()[0]}"
        ) from error
    return executor


@contextmanager
def _jobs_end_with_us() -> Iterator[None]:
    """SIGTERM raises SystemExit here; as it is it would leave the jobs to themselves.

    SIGINT, by which submitit ends jobs of this machine, is ignored in the background of a shell
    script; here it has a handler that does nothing, which they do not inherit.
    """

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, leave)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finished(cell: Cell) -> bool:
    done = cell.missing() is None
    if done:
        print(f"{cell}: finished, left as it is", flush=True)
    return done


def _all(
    cells: Sequence[Cell], most: int, submit: Callable[[Cell], submitit.Job[str | None]]
) -> list[tuple[Cell, submitit.Job[str | None], str]]:
    """Submits cells as others end; those that failed, and why."""
    waiting, failed = list(cells), []
    running: dict[Cell, submitit.Job[str | None]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                cell = waiting.pop(0)
                running[cell] = submit(cell)
            for cell, job in [item for item in running.items() if item[1].done()]:
                del running[cell]
                problem = _problem(job)
                print(f"{cell}: failed" if problem else cell.line(), flush=True)
                if problem:
                    failed.append((cell, job, problem))
            time.sleep(_PAUSE if running else 0)
    finally:
        for job in running.values():
            job.cancel(check=False)
    return failed


def _problem(job: submitit.Job[str | None]) -> str | None:
    """What went wrong in a job, in a line."""
    try:
        problem = job.result()
    except submitit.core.utils.UncompletedJobError:
        return f"the job ended without a result ({job.state.lower()})"
    return problem and problem.strip().splitlines()[-1]
