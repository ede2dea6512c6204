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
from ..runs.run import Run
from . import evaluation, experiments, queries
from . import options as cli_options
from .options import Command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Arguments:
        argv: the words after the program's name; those it was started with if not given.

    Returns:
        0, or 1 after printing one sentence that says what went wrong and what to do. Of several
        processes the first alone prints, and of a failure the one that meets it first.
    """
    logging.basicConfig(format="%(message)s")
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--"]:  # from `torchrun -m pyro_vae -- …`, which else takes --run for its own
        words = words[1:]
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] not in _COMMANDS:
        expected = f"expected a command, {', '.join(_COMMANDS)}"
        hint = jsonargparse_compat.did_you_mean(words[0], _COMMANDS)
        print(f"pyro-vae: {expected}; got {words[0]!r}{hint}", file=sys.stderr)
        return 1
    try:
        with distributed.process_group(), _one_voice(words[0]):
            return _COMMANDS[words[0]](words[1:]) or 0
    except (ValueError, OSError, ModuleNotFoundError, NonFiniteLossError) as error:
        _complain(" ".join(str(error).split()))
        return 1
    except KeyboardInterrupt:
        _complain(f"interrupted{_goes_on(words)}")
        return 130


@contextmanager
def _one_voice(name: str) -> Iterator[None]:
    """Lets the first of several processes alone speak.

    Raises:
        ValueError: if the command is not one that processes share.
    """
    if distributed.world_size() > 1 and name not in _SHARED:
        raise ValueError(
            f"expected {' or '.join(_SHARED)} under torchrun with {distributed.world_size()} processes; "
            f"got {name}, which would do the same in each: call it by itself"
        )
    if distributed.is_main_process():
        yield
        return
    logging.getLogger().setLevel(logging.ERROR)
    with redirect_stdout(None):
        yield


def _complain(sentence: str) -> None:
    if distributed.is_first_failure():
        print(f"pyro-vae: {sentence}", file=sys.stderr)


def fit(words: list[str]) -> None:
    """learn a model from data into a run folder"""
    folder = _option(words, "--run")
    if "--resume" in words and folder and not any(w.startswith("--config") for w in words):
        words = ["--config", str(Run(folder).stored_config()), *words]
    made = experiment.parser(
        words,
        prog="pyro-vae fit",
        usage="pyro-vae fit --config FILE --run FOLDER [--OPTION VALUE ...]",
        description=cli_options.sentence(fit),
        epilog="the options of a class: pyro-vae fit --model.prior.help VampPrior",
    )
    made.add_argument(
        "--run", type=str, required=True, metavar="FOLDER", help="the folder of the run"
    )
    made.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    made.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    settings = experiment.explained(made, words)
    run = Run(settings.run)
    chosen = experiment.Experiment(made, settings)
    if settings.resume and run.finished(chosen):
        print(f"{run.folder} is finished and left as it is: --fit.epochs with more epochs goes on")
        return
    history = run.fit(chosen, settings.resume, settings.overwrite, progress=True)
    last = history.epochs[(history.best_epoch or len(history)) - 1]
    valid = f", validation ELBO {last['valid_elbo']:.3f}" if "valid_elbo" in last else ""
    bound = type(chosen.objective).__name__
    print(f"{bound} after epoch {last['epoch']}: {last['elbo']:.3f} nats per datum{valid}")
    print(f"run: {run.folder}   next: pyro-vae evaluate {run.folder}")


def evaluate(words: list[str]) -> None:
    """bound and estimate log p(x) of held-out data by importance sampling"""
    from ..report.tables import bits_per_dim

    made = cli_options.with_data(evaluate, None)
    made.add_argument("--num-samples", type=int, default=5000, help="draws for each datum, K")
    made.add_argument("--ks", type=list[int], default=[5, 50, 500, 5000], help="the L_k to print")
    cli_options.add_device(made)
    made.add_argument(
        "--keep-log-weights", action="store_true", help="store the raw log weights in bounds.nc"
    )
    made.add_argument(
        "--corrected",
        action="store_true",
        help="add log p̂ of PSIS-smoothed weights and jackknife-corrected",
    )
    made.add_argument(
        "--defensive",
        type=float | None,
        default=None,
        help="add log p̂ by a mixture of q and the prior, which has this share of draws",
    )
    made.add_argument(
        "--tolerance",
        type=float | None,
        default=None,
        help="draw for each datum until log p̂ has this standard error, --num-samples at most",
    )
    made.add_argument(
        "--compile",
        type=bool | None,
        default=None,
        help="fuse the program into one graph; if not given, long computations do",
    )
    made.add_argument(
        "--precision",
        type=Precision,
        default="float32",
        help="of the networks' layers; what bfloat16 changes is measured and printed",
    )
    made.add_argument("--ais", action="store_true", help="add annealed importance sampling")
    made.add_argument("--escalate", action="store_true", help="AIS of the data whose k̂ is bad")
    cli_options.add_annealing(made, "how --ais and --escalate do it; --ais.num_steps works as well")
    # one set of options serves both, whichever of them it is called after
    told = [re.sub(r"^--(ais|escalate)\.", "--annealing.", word) for word in words]
    options = experiment.explained(made, told).as_dict()
    annealing = _annealing(options, words)
    options |= {key: annealing for key in ("ais", "escalate") if options[key]}
    run = Run(options.pop("run"))
    print(run.evaluate(progress=True, **options).table(options["ks"]))
    bits = run.read_result()["bounds"].get("bits_per_dim")
    if bits is not None:
        print(bits_per_dim(bits))
    print(f"per datum: {run.bounds}   next: pyro-vae report {run.folder}")


def compare(words: list[str]) -> None:
    """set evaluated runs side by side, with paired differences"""
    from ..report.tables import comparison

    made = cli_options.parser(compare)
    made.add_argument("runs", nargs="+", type=str, help="the folders of evaluated runs")
    print(comparison([Run(folder) for folder in experiment.explained(made, words).runs]))


def report(words: list[str]) -> None:
    """draw everything about a run into one HTML file"""
    from ..report import write_report

    made = cli_options.parser(report)
    made.add_argument("run", type=str, help="the folder of an evaluated run")
    run = Run(experiment.explained(made, words).run)
    write_report(run)
    print(f"report: {run.report.resolve()}")


def list_(words: list[str]) -> None:
    """show the components there are: `list`, `list priors`, `list priors VampPrior`"""
    made = cli_options.parser(list_)
    made.add_argument(
        "names", nargs="*", type=str, help="a kind of component, and one of that kind"
    )
    chosen = experiment.explained(made, words).names
    if len(chosen) > 2:
        raise ValueError(f"expected a kind and a name; got {' '.join(chosen)}")
    print(catalogue.describe(*chosen) if len(chosen) == 2 else catalogue.overview(*chosen))


_COMMANDS: dict[str, Command] = {
    cli_options.name(command): command
    for command in (
        *(fit, evaluate, *evaluation.COMMANDS, compare, report),
        *(*queries.COMMANDS, experiments.experiment, list_),
    )
}


#: The commands that several processes do together.
_SHARED = ("fit", "evaluate")


def _goes_on(words: Sequence[str]) -> str:
    """How a long computation that was interrupted is taken up again, if it is."""
    if words[0] == "fit":
        return "; `pyro-vae fit --run … --resume` goes on"
    kept = words[0] in ("bdmc", "gaps", "rate-distortion") or {"--ais", "--escalate"} & {*words}
    return "; the same command goes on" if kept else ""


def _annealing(options: dict[str, Any], words: Sequence[str]) -> Annealing:
    """How to anneal, taken out of the options.

    Raises:
        ValueError: if it is said without AIS, or if a number is out of range.
    """
    told = [w for w in words if re.match(r"--(annealing|ais\.|escalate\.)", w)]
    if told and not (options["ais"] or options["escalate"]):
        raise ValueError(f"expected --ais or --escalate beside {told[0]}; got neither: add one")
    return Annealing(**options.pop("annealing"))


def _usage() -> str:
    lines = [f"  {name:15} {cli_options.sentence(command)}" for name, command in _COMMANDS.items()]
    title = "usage: pyro-vae COMMAND …   (pyro-vae COMMAND --help shows its options)"
    return "\n".join([title, "", *lines])


def _option(words: Sequence[str], name: str) -> str | None:
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
