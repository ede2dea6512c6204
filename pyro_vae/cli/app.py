"""The command line: ``pyro-vae fit | evaluate | compare | report | list | sample | …``."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from ..config import catalogue, experiment, jsonargparse_compat
from ..core import distributed
from ..evaluation import EVALUATIONS
from ..learning.diagnostics import NonFiniteLossError
from ..runs import comparison
from ..runs.run import Run
from . import evaluation, experiments, parsers, queries
from . import options as cli_options
from .options import Command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Arguments:
        argv: the arguments after the program name; ``sys.argv[1:]`` by default.

    Returns:
        The exit status: 0, or 1 after printing an error in one sentence, or 130 after an
        interrupt. With several processes only the main process prints, and an error is printed
        only by the process that fails first.
    """
    logging.basicConfig(format="%(message)s")
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--"]:  # `torchrun -m pyro_vae -- …`; without it torchrun would parse --run
        args = args[1:]
    if not args or args[0] in ("-h", "--help"):
        print(_format_usage())
        return 0
    if args[0] not in _COMMANDS:
        expected = f"expected a command, {', '.join(_COMMANDS)}"
        hint = jsonargparse_compat.did_you_mean(args[0], _COMMANDS)
        print(f"pyro-vae: {expected}; got {args[0]!r}{hint}", file=sys.stderr)
        return 1
    try:
        with distributed.process_group(), _output_of_main_process(args[0]):
            command = _COMMANDS[args[0]]
            if list(inspect.signature(command).parameters) == ["args"]:
                return command(args[1:]) or 0
            return parsers.call(command, args[1:]) or 0
    except (ValueError, OSError, ModuleNotFoundError, NonFiniteLossError) as error:
        _print_error(" ".join(str(error).split()))
        return 1
    except KeyboardInterrupt:
        _print_error(f"interrupted{_resume_hint(args)}")
        return 130


@contextmanager
def _output_of_main_process(command: str) -> Iterator[None]:
    """Silence all processes but the main one.

    Raises:
        ValueError: if the command does not support several processes.
    """
    if distributed.world_size() > 1 and command not in _DISTRIBUTED_COMMANDS:
        raise ValueError(
            f"expected {' or '.join(_DISTRIBUTED_COMMANDS)} under torchrun with "
            f"{distributed.world_size()} processes; got {command}, which every process would "
            f"repeat: run it without torchrun"
        )
    if distributed.is_main_process():
        yield
        return
    logging.getLogger().setLevel(logging.ERROR)
    with redirect_stdout(None):
        yield


def _print_error(sentence: str) -> None:
    if distributed.is_first_failure():
        print(f"pyro-vae: {sentence}", file=sys.stderr)


def fit(args: list[str]) -> None:
    """Train a model and save it to a run folder."""
    folder = _option_value(args, "--run")
    if "--resume" in args and folder and not any(a.startswith("--config") for a in args):
        args = ["--config", str(Run(folder).require_config()), *args]
    parser = experiment.make_experiment_parser(
        args,
        prog="pyro-vae fit",
        usage="pyro-vae fit --config FILE --run FOLDER [--OPTION VALUE ...]",
        description=cli_options.command_summary(fit),
        epilog="To show the options of a class: pyro-vae fit --model.prior.help VampPrior",
    )
    parser.add_argument("--run", type=str, required=True, metavar="FOLDER", help="run folder")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted run")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing run in the folder"
    )
    settings = experiment.parse_args(parser, args)
    run = Run(settings.run)
    chosen = experiment.Experiment(parser, settings)
    if settings.resume and run.is_finished(chosen):
        print(f"{run.folder} is already finished; raise --fit.epochs to continue")
        return
    history = run.fit(chosen, settings.resume, settings.overwrite, progress=True)
    last = history.epochs[(history.best_epoch or len(history)) - 1]
    valid = f", validation ELBO {last['valid_elbo']:.3f}" if "valid_elbo" in last else ""
    objective = type(chosen.objective).__name__
    print(f"{objective} after epoch {last['epoch']}: {last['elbo']:.3f} nats per datum{valid}")
    print(f"run: {run.folder}   next: pyro-vae evaluate {run.folder}")


def compare(args: list[str]) -> None:
    """Compare evaluated runs side by side, with paired differences."""
    parser = cli_options.make_parser(compare)
    parser.add_argument("runs", nargs="+", type=str, help="folders of evaluated runs")
    print(comparison.compare(*experiment.parse_args(parser, args).runs))


def report(args: list[str]) -> None:
    """Write an HTML report of a run, with its curves, samples and diagnostics."""
    from ..report import write_report

    parser = cli_options.make_parser(report)
    parser.add_argument("run", type=str, help="folder of an evaluated run")
    run = Run(experiment.parse_args(parser, args).run)
    write_report(run)
    print(f"report: {run.report.resolve()}")


def list_(args: list[str]) -> None:
    """List the available components, e.g. `list`, `list priors` or `list priors VampPrior`."""
    parser = cli_options.make_parser(list_)
    parser.add_argument(
        "names", nargs="*", type=str, help="kind of component, and name of a component"
    )
    names = experiment.parse_args(parser, args).names
    if len(names) > 2:
        raise ValueError(f"expected a kind and a name; got {' '.join(names)}")
    describe = catalogue.describe_component if len(names) == 2 else catalogue.list_components
    print(describe(*names))


_COMMANDS: dict[str, Command] = {
    cli_options.command_name(command): command
    for command in (
        *(fit, *evaluation.COMMANDS, compare, report),
        *(*queries.COMMANDS, experiments.experiment, list_),
    )
}

#: The commands that support several processes.
_DISTRIBUTED_COMMANDS = ("fit", *(e.command for e in EVALUATIONS.values() if e.is_distributed))


def _resume_hint(args: Sequence[str]) -> str:
    """Return how to resume an interrupted command, if it keeps a checkpoint."""
    if args[0] == "fit":
        return "; resume with `pyro-vae fit --run … --resume`"
    given = {arg.removeprefix("--"): True for arg in args}
    has_checkpoint = any(
        e.command == args[0] and e.is_resumable(given) for e in EVALUATIONS.values()
    )
    return "; repeat the command to resume" if has_checkpoint else ""


def _format_usage() -> str:
    title = "usage: pyro-vae COMMAND ...   (pyro-vae COMMAND --help shows its options)"
    lines = [
        f"  {name:15} {parsers.command_summary(command)}" for name, command in _COMMANDS.items()
    ]
    return "\n".join([title, "", *lines])


def _option_value(args: Sequence[str], name: str) -> str | None:
    for arg, following in zip(args, [*args[1:], None], strict=False):
        if arg == name:
            return following
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None
