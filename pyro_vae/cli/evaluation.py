"""The verbs of the command line that take a trained model's measure by slower rulers."""

from __future__ import annotations

from typing import Any

from .. import posteriors
from ..config import experiment, jsonargparse_compat
from ..evaluation import Annealing
from ..evaluation.annealing.rate_distortion_curve import BETAS
from ..evaluation.bounds import PRINTED
from ..runs import evaluations
from ..runs.run import Run
from .options import Command, add_annealing, add_device, parser, with_data

__all__ = ["COMMANDS"]


def bdmc(words: list[str]) -> None:
    """enclose log p(x) of data that the model simulates, by annealing both ways"""
    made = parser(bdmc)
    made.add_argument("run", type=str, help="the folder of a finished run")
    made.add_argument("--num-data", type=int, default=64, help="how many data to simulate")
    made.add_argument(
        "--num-samples", type=int, default=5000, help="draws for each datum, K, for L_K beside it"
    )
    made.add_argument("--seed", type=int, default=0, help="of the data and the draws")
    add_device(made)
    add_annealing(made, "how to anneal, both ways")
    run, options = _parsed(made, words)
    print(evaluations.bdmc(run, progress=True, **options).table(PRINTED))
    _print_files(run, "bdmc")


def gaps(words: list[str]) -> None:
    """split log p(x) − ELBO into what the encoder and what the posterior's family lose"""
    known = jsonargparse_compat.names(posteriors)
    made = with_data(gaps, 100)
    made.add_argument("--train", action="store_true", help="compare with as many training data")
    made.add_argument(
        "--family",
        type=str | None,
        default=None,
        metavar="POSTERIOR",
        help=f"refit this one in place of the model's own (one of {', '.join(known)})",
    )
    made.add_argument(
        "--richer",
        type=str | None,
        default="FullCovarianceNormal",
        metavar="POSTERIOR",
        help="a richer one, to see what it would close, or null",
    )
    made.add_argument("--num-steps", type=int, default=500, help="of Adam, for each datum")
    made.add_argument("--step-size", type=float, default=0.05, help="the first of them")
    made.add_argument("--num-draws", type=int, default=4, help="for each datum in a step")
    made.add_argument("--num-samples", type=int, default=5000, help="draws that judge each q")
    made.add_argument("--no-ais", action="store_true", help="importance sampling alone")
    add_device(made)
    add_annealing(made, "how to anneal")
    run, options = _parsed(made, words)
    for key in ("family", "richer"):
        options[key] = _posterior(key, options[key], known)
    if options.pop("no_ais"):
        options["annealing"] = None
    print(evaluations.gaps(run, progress=True, **options))
    _print_files(run, "gaps")


def latents(words: list[str]) -> None:
    """count active units, and tell what each latent costs and what all say of the data"""
    made = with_data(latents, None)
    made.add_argument("--num-samples", type=int, default=64, help="draws for each datum")
    made.add_argument(
        "--num-draws", type=int, default=10_000, help="draws from the aggregate posterior"
    )
    made.add_argument(
        "--threshold",
        type=float,
        default=0.01,
        help="the variance of a unit's posterior mean above which it is active",
    )
    add_device(made)
    run, options = _parsed(made, words)
    print(evaluations.latents(run, progress=True, **options))
    _print_files(run, "latents")


def rate_distortion(words: list[str]) -> None:
    """trace the best trade of rate for distortion that prior and decoder allow"""
    made = with_data(rate_distortion, 100)
    made.add_argument(
        "--betas", type=list[float], default=list(BETAS), help="minus the inverse slopes to look at"
    )
    add_device(made)
    add_annealing(made, "how to anneal, which must be from the prior and adaptive")
    made.set_defaults({"annealing.initial": "prior", "annealing.schedule": "adaptive"})
    run, options = _parsed(made, words)
    curve, own = evaluations.rate_distortion(run, progress=True, **options)
    print(curve)
    print(f"q itself: rate {own.rate:.3f}, distortion {own.distortion:.3f}, at or above the curve")
    _print_files(run, "rate_distortion")


COMMANDS: tuple[Command, ...] = (bdmc, gaps, latents, rate_distortion)


def _parsed(made: Any, words: list[str]) -> tuple[Run, dict[str, Any]]:
    """The run, and what else was said, which may be refused before anything is opened."""
    options = experiment.explained(made, words).as_dict()
    if "annealing" in options:
        options["annealing"] = Annealing(**options["annealing"])
    return Run(options.pop("run")), options


def _posterior(key: str, name: str | None, known: list[str]) -> Any:
    if name is not None and name not in known:
        raise ValueError(
            f"expected {key} to be one of {', '.join(known)}; got {name!r}"
            f"{jsonargparse_compat.did_you_mean(name, known)}"
        )
    return None if name is None else getattr(posteriors, name)


def _print_files(run: Run, name: str) -> None:
    print(f"per datum: {run.ruler(name)}   next: pyro-vae report {run.folder}")
