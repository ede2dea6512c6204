"""Commands for the evaluations of a trained model, derived from their declarations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, Literal

from ..config.signatures import document_arguments
from ..evaluation import EVALUATIONS, Bounds, Evaluation
from ..evaluation.results import Result
from ..learning.trackers import Tracker
from ..runs.provenance import format_bits_per_dim
from ..runs.run import Run
from .opened_run import print_scale
from .parsers import Command

__all__ = ["COMMANDS"]

Device = Literal["auto", "cpu", "cuda"]


def _make_command(evaluation: Evaluation) -> Command:
    """Return a function whose arguments are a run and the options of an evaluation."""

    def command(run: Run, **options: Any) -> None:
        entry: dict[str, Any] = {}

        def on_result(result: Result, written: dict[str, Any]) -> None:
            entry.update(written)
            _print_result(result, written)

        log = options.pop("log") or ()
        run.compute(evaluation.name, progress=True, on_result=on_result, log=log, **options)
        if evaluation.result is Bounds:
            print_scale(run)
        if "data" in entry:  # new data, which the report does not show
            print(f"per-example results: {run.folder / entry['data']['file']}")
            return
        file = run.evaluation_file(evaluation.name)
        print(f"per-example results: {file}   next: pyro-vae report {run.folder}")

    texts = {
        **document_arguments(evaluation.function),
        **document_arguments(evaluation.compute),
        "run": "folder of a finished run",
        "device": "device to compute on",
        "log": "trackers that record the result with the training of the run",
    }
    folder = inspect.Parameter("run", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Run)
    device = inspect.Parameter(
        "device", inspect.Parameter.KEYWORD_ONLY, default="auto", annotation=Device
    )
    log = inspect.Parameter(
        "log", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=list[Tracker] | None
    )
    parameters = [folder, *evaluation.parameters.values(), device, log]
    summary = (inspect.getdoc(evaluation.compute) or "").partition("\n")[0]
    lines = [f"    {p.name}: {texts.get(p.name, '')}" for p in parameters]
    command.__name__ = evaluation.command.replace("-", "_")
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.replaced = evaluation.replaced  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = "\n".join([summary, "", "Arguments:", *lines])
    return command


def _print_result(result: Result, entry: Mapping[str, Any]) -> None:
    """Print a result before it is written, so that it is not lost if the disk is full."""
    print(result)
    if "bits_per_dim" in entry:
        print(format_bits_per_dim(entry["bits_per_dim"]))
    sys.stdout.flush()


COMMANDS: tuple[Command, ...] = tuple(map(_make_command, EVALUATIONS.values()))
