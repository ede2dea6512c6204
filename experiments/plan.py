"""Plan of a table: its cells, the hours that each takes on this machine, the command for Slurm."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence

import torch

import pyro_vae as pv
from pyro_vae.learning.trainer import MIN_COMPILED_STEPS
from pyro_vae.learning.training import resolve_device

from .cells import FAILURES, Cell, format_error
from .tables import Table

__all__ = ["format_plan"]

#: Steps and test examples that are timed for a cell without a run.
_NUM_STEPS, _NUM_EXAMPLES = 200, 10
#: Time limits on Slurm are this multiple of the longest estimate, and at most a day.
_MARGIN, _MAX_MINUTES = 1.5, 24 * 60


def _estimate_seconds(cell: Cell, device: str) -> tuple[float, float, str]:
    """Return the seconds of training and evaluation, without measures, and their source.

    They are recorded in the run folder, or else extrapolated from a few steps and examples.

    Raises:
        ValueError, OSError, ModuleNotFoundError: if it cannot be trained, e.g. without its data.
    """
    result, preset = cell.run.read_result(), cell.table.presets[cell.preset]
    if "fit" in result and "bounds" in result:
        per_epoch = result["fit"]["seconds"] / result["fit"]["epochs"]
        training = per_epoch * cell.expected.settings.fit.epochs
        return training, result["bounds"]["seconds"], "its finished run"
    experiment = cell.experiment(device)
    data, arguments = experiment.load_data(), experiment.fit_arguments
    model = experiment.build_model(data)
    part = data.train.head(arguments["batch_size"] * _NUM_STEPS)
    clock, times = _choose_clock(device), []
    # the first epoch compiles, if the whole training would
    num_steps = math.ceil(len(data.train) / arguments["batch_size"]) * arguments["epochs"]
    short = {**arguments, "epochs": 2, "patience": None, "checkpoint_every": 1}
    if short["compile"] is None and num_steps >= MIN_COMPILED_STEPS:
        short["compile"] = True
    pv.fit(model, part, **short, on_epoch=lambda _: times.append(clock()))
    training = (times[1] - times[0]) / len(part) * len(data.train) * arguments["epochs"]
    model = model.to(resolve_device(device))
    examples = data.test.head(_NUM_EXAMPLES)
    start = clock()
    pv.evaluate(model, examples, num_samples=preset.num_samples)
    per_example = (clock() - start) / len(examples)
    evaluation = per_example * min(len(data.test), preset.num_data or len(data.test))
    num_steps = math.ceil(len(part) / arguments["batch_size"])
    return training, evaluation, f"{num_steps} steps, {len(examples)} examples"


def _choose_clock(device: str) -> Callable[[], float]:
    """Return processor time for one thread, which other programs do not stretch, or wall time."""
    is_one_thread = resolve_device(device).type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if is_one_thread else time.perf_counter


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
    hours = [0.0]
    for cell in cells:
        try:
            training, evaluation, source = _estimate_seconds(cell, device)
        except FAILURES as error:
            lines.append(f"{cell!s:{width}}{'–':>10}{'–':>12}   {format_error(error)}")
            continue
        hours.append((training + evaluation) / 3600)
        numbers = f"{training / 3600:10.3g}{evaluation / 3600:12.3g}"
        state = cell.incomplete_reason() or "finished"
        lines.append(f"{cell!s:{width}}{numbers}   {source:24}{state}")
    lines += ["", f"total: {sum(hours):.3g} hours, without measures"]
    if "paper" in table.presets:
        minutes = _MAX_MINUTES
        if preset == "paper" and any(hours):
            minutes = min(minutes, math.ceil(60 * _MARGIN * max(hours)))
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
