"""Plan of a table: its cells, the hours that each takes on this machine, the command for Slurm."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import pyro_vae as pv
from pyro_vae.config.experiment import Experiment
from pyro_vae.data import Dataset
from pyro_vae.learning.training import resolve_device

from .cells import FAILURES, Cell, format_error
from .tables import Table

__all__ = ["Hours", "estimate_hours", "format_plan"]

#: Steps and test examples that are timed for a cell without a run.
_NUM_STEPS, _NUM_EXAMPLES = 20, 10
#: Time limits on Slurm are this multiple of the longest estimate, and at most a day.
_MARGIN, _MAX_MINUTES = 1.5, 24 * 60


@dataclass(frozen=True)
class Hours:
    """Hours of training and evaluation of a cell, without its measures.

    Attributes:
        training: all epochs.
        evaluation: all test examples.
        source: how they were measured.
    """

    training: float
    evaluation: float
    source: str


def estimate_hours(cell: Cell, device: str = "auto") -> Hours:
    """Return the hours of a cell, recorded in its run folder or else extrapolated.

    Raises:
        ValueError, OSError, ModuleNotFoundError: if it cannot be trained, e.g. without its data.
    """
    result = cell.run.read_result()
    if "fit" in result and "bounds" in result:
        epochs = cell.expected.settings.fit.epochs
        training = result["fit"]["seconds"] / result["fit"]["epochs"] * epochs
        return Hours(training / 3600, result["bounds"]["seconds"] / 3600, "its finished run")
    experiment = cell.experiment(device)
    data = experiment.load_data()
    training, evaluation = _time_steps(cell, experiment, data, device)
    source = f"{_NUM_STEPS} steps, {_NUM_EXAMPLES} examples"
    return Hours(training / 3600, evaluation / 3600, source)


def _time_steps(
    cell: Cell, experiment: Experiment, data: Dataset, device: str
) -> tuple[float, float]:
    """Return the seconds of training and evaluation, extrapolated from a few steps."""
    arguments, preset = experiment.fit_arguments, cell.table.presets[cell.preset]
    model = experiment.build_model(data)
    part = data.train.head(arguments["batch_size"] * _NUM_STEPS)
    # the first epoch compiles
    short = {**arguments, "epochs": 2, "patience": None, "checkpoint_every": 1}
    seconds = pv.fit(model, part, **short)["seconds"][-1]
    training = seconds / len(part) * len(data.train) * arguments["epochs"]
    model = model.to(resolve_device(device))
    examples = data.test.head(_NUM_EXAMPLES)
    start = time.perf_counter()
    pv.evaluate(model, examples, num_samples=preset.num_samples)
    per_example = (time.perf_counter() - start) / len(examples)
    return training, per_example * min(len(data.test), preset.num_data or len(data.test))


def format_plan(table: Table, preset: str, cells: Sequence[Cell], device: str = "auto") -> str:
    """Format the cells with their hours, and the command for the paper's budget on Slurm."""
    name = resolve_device(device).type
    width = max(len(str(cell)) for cell in cells)
    lines = [
        f"{table.name}, preset {preset}: {len(cells)} cells; hours on this machine ({name}, "
        f"{torch.get_num_threads()} threads)",
        "",
        f"{'cell':{width}}{'training':>10}{'evaluation':>12}   {'measured by':24}state",
    ]
    total, longest = 0.0, 0.0
    for cell in cells:
        state = cell.incomplete_reason() or "finished"
        try:
            hours = estimate_hours(cell, device)
        except FAILURES as error:
            lines.append(f"{cell!s:{width}}{'–':>10}{'–':>12}   {format_error(error)}")
            continue
        sum_ = hours.training + hours.evaluation
        total, longest = total + sum_, max(longest, sum_)
        numbers = f"{hours.training:10.3g}{hours.evaluation:12.3g}"
        lines.append(f"{cell!s:{width}}{numbers}   {hours.source:24}{state}")
    lines += ["", f"total: {total:.3g} hours, without measures"]
    if "paper" in table.presets:
        limit = math.ceil(60 * _MARGIN * longest) if preset == "paper" and longest else math.inf
        minutes = min(_MAX_MINUTES, limit)
        lines += [
            "the paper's budget on Slurm; a job at its time limit is queued again:",
            _slurm_command(table, preset, cells, f"timeout_min={minutes}", name == "cuda"),
        ]
    return "\n".join(lines)


def _slurm_command(table: Table, preset: str, cells: Sequence[Cell], limit: str, gpu: bool) -> str:
    """Return the command that runs the same rows and seeds with the paper's budget."""
    seeds = sorted({cell.seed for cell in cells})
    rows = list(dict.fromkeys(cell.row for cell in cells))
    options = [] if seeds == [0] else ["--seeds", *map(str, seeds)]
    if rows == table.rows(preset):
        rows = table.rows("paper")
    else:
        options += ["--only", *rows]
    device = "gpus_per_node=1" if gpu else "cpus_per_task=1"
    options += ["--jobs", str(len(rows) * len(seeds)), "--slurm", limit, "mem_gb=8", device]
    return f"{table.command('paper')} {shlex.join(options)}"
