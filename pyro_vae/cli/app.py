"""The command line: ``pyro-vae fit | evaluate | compare | report | list | sample | …``."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..compile.matmul import Precision
from ..config import catalogue, experiment, jsonargparse_compat
from ..core import distributed
from ..evaluation import Annealing
from ..learning.diagnostics import NonFiniteLossError
from ..runs import comparison
from ..runs.run import Run
from . import evaluation, experiments, queries
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
            return _COMMANDS[args[0]](args[1:]) or 0
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


def evaluate(args: list[str]) -> None:
    """Bound and estimate log p(x) of held-out data by importance sampling."""
    from ..report.tables import format_bits_per_dim

    parser = cli_options.make_data_parser(evaluate, None)
    parser.add_argument(
        "--num-samples", type=int, default=5000, metavar="K", help="samples per example"
    )
    parser.add_argument("--ks", type=list[int], default=[5, 50, 500, 5000], help="L_k to print")
    cli_options.add_device(parser)
    parser.add_argument(
        "--keep-log-weights", action="store_true", help="store the raw log weights in bounds.nc"
    )
    parser.add_argument(
        "--corrected",
        action="store_true",
        help="add log p̂ from PSIS-smoothed weights and with jackknife bias correction",
    )
    parser.add_argument(
        "--defensive",
        type=float | None,
        default=None,
        help="add log p̂ from a mixture of q and the prior; the value is the weight of the prior",
    )
    parser.add_argument(
        "--tolerance",
        type=float | None,
        default=None,
        help="sample each example until the standard error of log p̂ falls below this value, at "
        "most --num-samples times",
    )
    parser.add_argument(
        "--compile",
        type=bool | None,
        default=None,
        help="compile the program; by default only for long evaluations",
    )
    parser.add_argument(
        "--precision",
        type=Precision,
        default="float32",
        help="precision of the network layers; the effect of bfloat16 is measured and printed",
    )
    parser.add_argument("--ais", action="store_true", help="add annealed importance sampling (AIS)")
    parser.add_argument(
        "--escalate", action="store_true", help="use AIS for the examples with a bad k̂"
    )
    cli_options.add_annealing(
        parser, "options of --ais and --escalate, also as e.g. --ais.num_steps"
    )
    # --ais.X and --escalate.X are aliases of --annealing.X
    aliased = [re.sub(r"^--(ais|escalate)\.", "--annealing.", arg) for arg in args]
    options = experiment.parse_args(parser, aliased).as_dict()
    annealing = _pop_annealing(options, args)
    options |= {key: annealing for key in ("ais", "escalate") if options[key]}
    run = Run(options.pop("run"))
    print(run.evaluate(progress=True, **options).table(options["ks"]))
    bits = run.read_result()["bounds"].get("bits_per_dim")
    if bits is not None:
        print(format_bits_per_dim(bits))
    print(f"per-example results: {run.bounds}   next: pyro-vae report {run.folder}")


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
        *(fit, evaluate, *evaluation.COMMANDS, compare, report),
        *(*queries.COMMANDS, experiments.experiment, list_),
    )
}

#: The commands that support several processes.
_DISTRIBUTED_COMMANDS = ("fit", "evaluate")


def _resume_hint(args: Sequence[str]) -> str:
    """Return how to resume an interrupted command, if it keeps a checkpoint."""
    if args[0] == "fit":
        return "; resume with `pyro-vae fit --run … --resume`"
    has_checkpoint = args[0] in ("bdmc", "gaps", "rate-distortion") or {"--ais", "--escalate"} & {
        *args
    }
    return "; repeat the command to resume" if has_checkpoint else ""


def _pop_annealing(options: dict[str, Any], args: Sequence[str]) -> Annealing:
    """Remove the annealing settings from the options and return them.

    Raises:
        ValueError: if they are given without AIS, or if a value is out of range.
    """
    given = [a for a in args if re.match(r"--(annealing|ais\.|escalate\.)", a)]
    if given and not (options["ais"] or options["escalate"]):
        raise ValueError(f"expected --ais or --escalate with {given[0]}; got neither: add one")
    return Annealing(**options.pop("annealing"))


def _format_usage() -> str:
    title = "usage: pyro-vae COMMAND ...   (pyro-vae COMMAND --help shows its options)"
    lines = [
        f"  {name:15} {cli_options.command_summary(command)}" for name, command in _COMMANDS.items()
    ]
    return "\n".join([title, "", *lines])


def _option_value(args: Sequence[str], name: str) -> str | None:
    for arg, following in zip(args, [*args[1:], None], strict=False):
        if arg == name:
            return following
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None
