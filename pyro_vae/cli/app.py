"""The command line: ``pyro-vae fit | evaluate | compare | report | list | sample | …``."""

from __future__ import annotations

import logging
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib import metadata
from pathlib import Path

from ..config import catalogue
from ..config.experiment import EXPERIMENT_OPTIONS, Experiment, ExperimentParser
from ..config.parser import Layer, read_file
from ..config.signatures import signature_options
from ..core import distributed
from ..core.validation import did_you_mean
from ..evaluation import EVALUATIONS
from ..learning.trackers import Tracker
from ..runs import comparison
from ..runs.run import Run
from . import evaluation, generation, inference, process
from .anomaly_scores import anomaly
from .output_files import check_output
from .parsers import Command, call, command_name, command_summary

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Arguments:
        argv: the arguments after the program name; ``sys.argv[1:]`` by default.

    Returns:
        The exit status: 0, or 1 after printing an error in one sentence, or 128 + n after an
        interrupt by signal n (130 after Ctrl-C). With several processes only the main process
        prints, and an error is printed only by the process that fails first.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--"]:  # `torchrun -m pyro_vae -- …`; without it torchrun would parse --run
        del args[0]
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    with process.standard_streams():
        logging.basicConfig(format="%(message)s")
        try:
            with process.handle_signals():
                status = _run(args)
                process.flush_output()
                return status
        except Exception as error:
            _print_error(error, debug)
            return 1
        except KeyboardInterrupt as interrupt:
            number = getattr(interrupt, "number", signal.SIGINT)
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            if distributed.is_first_failure():
                print(f"pyro-vae: interrupted{by}{_resume_hint(args)}", file=sys.stderr)
            return 128 + number


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_format_usage())
        return 0
    if args[0] == "--version":
        print(f"pyro-vae {metadata.version('pyro-vae')}")
        return 0
    if args[0] not in _COMMANDS:
        raise ValueError(
            f"expected a command, {', '.join(_COMMANDS)}; got {args[0]!r}"
            f"{did_you_mean(args[0], _COMMANDS)}"
        )
    _check_given_once(args)
    with distributed.process_group(), _output_of_main_process(args[0]):
        command = _COMMANDS[args[0]]
        run = _parse_and_fit if command is fit else partial(call, command)
        return run(args[1:]) or 0


def _check_given_once(args: Sequence[str]) -> None:
    """Raise a ``ValueError`` if an option is given twice, of which one would be ignored."""
    names = [arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")]
    # several YAML files are merged
    repeated = [n for n in names if names.count(n) > 1 and n != "--config"]
    if repeated:
        raise ValueError(f"expected {repeated[0]} once; got it {names.count(repeated[0])} times")


def _print_error(error: Exception, debug: bool) -> None:
    if not distributed.is_first_failure():
        return
    if debug:
        traceback.print_exception(error)
    sentence, is_expected = process.describe_error(error)
    if not is_expected:
        where = "see the traceback above" if debug else process.save_traceback(error)
        sentence = f"{sentence}; this is a fault of pyro-vae or of a plugin: {where}"
    # control characters of a name in a file could reprogram the terminal
    sentence = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda c: repr(c[0])[1:-1], sentence)
    print(f"pyro-vae: {sentence}", file=sys.stderr)


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


def fit(
    experiment: Experiment,
    *,
    run: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    log: list[Tracker] | None = None,
    print_config: bool = False,
) -> None:
    """Train a model and save it to a run folder.

    Arguments:
        experiment: the experiment to train.
        run: run folder, required for training.
        resume: resume an interrupted run.
        overwrite: replace an existing run in the folder.
        log: tracker that records the training in RUN/logs, or a list of trackers.
        print_config: print the resolved configuration and exit.
    """
    if print_config:
        print(experiment.to_yaml(), end="")
        return
    if run is None:
        raise ValueError("expected a run folder; got nothing: add --run FOLDER")
    folder = Run(run, experiment.settings.plugin)
    if resume and folder.is_finished(experiment):
        print(f"{run} is already finished; raise --fit.epochs to continue")
        return
    history = folder.fit(experiment, resume, overwrite, progress=True, log=log or ())
    last = history.epochs[(history.best_epoch or len(history)) - 1]
    valid = f", validation ELBO {last['valid_elbo']:.3f}" if "valid_elbo" in last else ""
    objective = type(experiment.objective).__name__
    print(f"{objective} after epoch {last['epoch']}: {last['elbo']:.3f} nats per datum{valid}")
    print(f"run: {run}   next: pyro-vae evaluate {run}")


class _FitParser(ExperimentParser):
    """Parser of an experiment that reads the YAML file of a run to resume."""

    def prepare(self, files: list[Layer], given: list[Layer]) -> list[Layer]:
        values = {name: value for layer in [*files, *given] for name, value in layer.items()}
        resume, overwrite = (values.get(k) in (True, "true") for k in ("resume", "overwrite"))
        if isinstance(values.get("run"), str):
            run = Run(values["run"], self._plugins(given))
            if resume and "config" not in values:
                file = run.require_config()
                files, given = read_file(file), [{"config": str(file)}, *given]
            run.check_folder(resume, overwrite)
        return super().prepare(files, given)


def _parse_and_fit(argv: Sequence[str]) -> None:
    own = signature_options(fit, skip=("experiment",))
    epilog = "To show the options of a class: pyro-vae fit --model.prior.help VampPrior"
    options = [*own, *EXPERIMENT_OPTIONS]
    parser = _FitParser(options, "pyro-vae fit", command_summary(fit), epilog)
    settings = parser.parse(argv)
    given = parser.instantiate(settings)
    fit(Experiment(parser, settings), **{option.name: given[option.name] for option in own})


def compare(*runs: str) -> None:
    """Compare evaluated runs side by side, with paired differences.

    Arguments:
        runs: folders of evaluated runs.
    """
    print(comparison.compare(*runs))


def report(*runs: Run, output: Path | None = None) -> None:
    """Write an HTML report of a run, or a page that compares several.

    Arguments:
        runs: folders of evaluated runs; several are compared with the first.
        output: the file; by default report.html in the folder of a single run, and
            comparison.html in the current folder for several.
    """
    from ..report import write_comparison, write_report

    if not runs:
        raise ValueError("expected the folder of a run; got none: pyro-vae report RUN")
    path = None
    if output is not None:
        (path, *_) = [check_output(run, output) for run in runs]
    if len(runs) == 1:
        path = write_report(runs[0], path)
    else:
        path = write_comparison(runs, Path("comparison.html") if path is None else path)
    print(f"report: {path.resolve()}")


def export(run: Run, *, output: Path, onnx: bool = False) -> None:
    """Write encoder, decoder and importance weights as functions that need only torch.

    Arguments:
        output: new folder for the functions and their description.
        onnx: also write them as ONNX files.
    """
    from ..runs.exported_functions import export as export_program

    signature = export_program(run.program, output, onnx=onnx)
    print(f"{signature['parts']}: {', '.join(signature['functions'])} in {output}")


def push(run: Run, repository: str, *, private: bool = False) -> None:
    """Upload a run to a model repository of the Hugging Face hub, with a model card.

    Arguments:
        repository: USER/NAME.
        private: whether a new repository is private.
    """
    from ..runs import publishing

    print(f"pushed: {publishing.push(run, repository, private=private)}")


def sweep(
    config: Path,
    *,
    space: Path,
    folder: Path,
    trials: int = 20,
    finalists: int = 3,
    num_data: int | None = None,
    seed: int = 0,
    jobs: int = 0,
    plugin: list[str] | str | None = None,
) -> None:
    """Search for settings with a high log p(x) of the validation data.

    Arguments:
        config: YAML file of an experiment with validation data.
        space: YAML file with the options that vary, their values or ranges.
        folder: folder of the sweep; called again, it continues.
        trials: number of trials in all.
        finalists: number of runs that are ranked by log p̂.
        num_data: use only the first N validation examples for the ranking.
        seed: seed of the proposals.
        jobs: number of submitit jobs that work on the trials; 0 works in this process.
        plugin: module or file to import, or [MODULE, ...], whose classes the configuration uses.
    """
    from ..runs import sweeps

    print(
        sweeps.sweep(
            config,
            space,
            folder,
            trials=trials,
            finalists=finalists,
            num_data=num_data,
            seed=seed,
            jobs=jobs,
            plugin=plugin or (),
        )
    )


def list_(*names: str) -> None:
    """List the available components, e.g. `list`, `list priors` or `list priors VampPrior`.

    Arguments:
        names: kind of component, and name of a component.
    """
    if len(names) > 2:
        raise ValueError(f"expected a kind and a name; got {' '.join(names)}")
    describe = catalogue.describe_component if len(names) == 2 else catalogue.list_components
    print(describe(*names))


_COMMANDS: dict[str, Command] = {
    command_name(command): command
    for command in (
        *(fit, *evaluation.COMMANDS, compare, report, export, push, sweep),
        *(*generation.COMMANDS, *inference.COMMANDS, anomaly, list_),
    )
}

#: The commands that support several processes.
_DISTRIBUTED_COMMANDS = ("fit", *(e.command for e in EVALUATIONS.values() if e.is_distributed))


def _resume_hint(args: Sequence[str]) -> str:
    """Return how to resume an interrupted command, if it keeps a checkpoint."""
    if args[:1] == ["fit"]:
        return "; resume with `pyro-vae fit --run … --resume`"
    given = {arg.removeprefix("--").partition("=")[0].partition(".")[0]: True for arg in args}
    has_checkpoint = any(
        [e.command] == args[:1] and e.is_resumable(given) for e in EVALUATIONS.values()
    )
    return "; repeat the command to resume" if has_checkpoint else ""


def _format_usage() -> str:
    title = "usage: pyro-vae COMMAND ...   (pyro-vae COMMAND --help shows its options)"
    lines = [f"  {name:15} {command_summary(command)}" for name, command in _COMMANDS.items()]
    debug = f"  {'--debug':15} Print the traceback of an error, with any command."
    return "\n".join([title, "", *lines, "", debug])
