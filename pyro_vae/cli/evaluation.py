"""Commands for the slower diagnostics of a trained model."""

from __future__ import annotations

from typing import Any

from .. import posteriors
from ..config import experiment, jsonargparse_compat
from ..evaluation import Annealing
from ..evaluation.annealing.rate_distortion_curve import DEFAULT_BETAS
from ..evaluation.bounds import DEFAULT_KS
from ..runs import evaluations
from ..runs.run import Run
from .options import Command, add_annealing, add_device, make_data_parser, make_parser

__all__ = ["COMMANDS"]


def bdmc(args: list[str]) -> None:
    """Bound log p(x) of simulated data from both sides by bidirectional Monte Carlo."""
    parser = make_parser(bdmc)
    parser.add_argument("run", type=str, help="folder of a finished run")
    parser.add_argument(
        "--num-data", type=int, default=64, metavar="N", help="number of examples to simulate"
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=5000,
        metavar="K",
        help="importance samples per example, for comparison with L_K",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and the sampling")
    add_device(parser)
    add_annealing(parser, "forward and reverse annealing")
    run, options = _parse_run(parser, args)
    print(evaluations.evaluate_bdmc(run, progress=True, **options).table(DEFAULT_KS))
    _print_next_step(run, "bdmc")


def gaps(args: list[str]) -> None:
    """Split log p(x) − ELBO into the amortisation gap and the approximation gap."""
    known = jsonargparse_compat.component_names(posteriors)
    parser = make_data_parser(gaps, 100)
    parser.add_argument(
        "--train", action="store_true", help="compare with the same number of training examples"
    )
    parser.add_argument(
        "--family",
        type=str | None,
        default=None,
        metavar="POSTERIOR",
        help=f"variational family to refit instead of the model's own (one of {', '.join(known)})",
    )
    parser.add_argument(
        "--richer",
        type=str | None,
        default="FullCovarianceNormal",
        metavar="POSTERIOR",
        help="richer variational family, to see how much of the gap it closes, or null",
    )
    parser.add_argument("--num-steps", type=int, default=500, help="Adam steps per example")
    parser.add_argument("--step-size", type=float, default=0.05, help="initial step size of Adam")
    parser.add_argument("--num-draws", type=int, default=4, help="samples per example and step")
    parser.add_argument(
        "--num-samples", type=int, default=5000, help="samples per example to evaluate each q"
    )
    parser.add_argument(
        "--no-ais", action="store_true", help="use importance sampling only, without AIS"
    )
    add_device(parser)
    add_annealing(parser, "annealed importance sampling")
    run, options = _parse_run(parser, args)
    for key in ("family", "richer"):
        options[key] = _find_posterior(key, options[key], known)
    if options.pop("no_ais"):
        options["annealing"] = None
    print(evaluations.evaluate_gaps(run, progress=True, **options))
    _print_next_step(run, "gaps")


def latents(args: list[str]) -> None:
    """Measure active units, the KL of each latent and the mutual information with the data."""
    parser = make_data_parser(latents, None)
    parser.add_argument("--num-samples", type=int, default=64, help="samples per example")
    parser.add_argument(
        "--num-draws", type=int, default=10_000, help="samples from the aggregate posterior"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.01,
        help="a unit is active if the variance of its posterior mean exceeds this threshold",
    )
    add_device(parser)
    run, options = _parse_run(parser, args)
    print(evaluations.evaluate_latents(run, progress=True, **options))
    _print_next_step(run, "latents")


def rate_distortion(args: list[str]) -> None:
    """Compute the rate–distortion curve of the prior and the decoder by AIS."""
    parser = make_data_parser(rate_distortion, 100)
    parser.add_argument(
        "--betas",
        type=list[float],
        default=list(DEFAULT_BETAS),
        help="points of the curve, β = −1/slope",
    )
    add_device(parser)
    add_annealing(parser, "annealing, from the prior with the adaptive schedule")
    parser.set_defaults({"annealing.initial": "prior", "annealing.schedule": "adaptive"})
    run, options = _parse_run(parser, args)
    curve, own = evaluations.evaluate_rate_distortion(run, progress=True, **options)
    print(curve)
    print(f"q itself: rate {own.rate:.3f}, distortion {own.distortion:.3f}, on or above the curve")
    _print_next_step(run, "rate_distortion")


COMMANDS: tuple[Command, ...] = (bdmc, gaps, latents, rate_distortion)


def _parse_run(parser: Any, args: list[str]) -> tuple[Run, dict[str, Any]]:
    """Return the run and the options, which are checked before any file is opened."""
    options = experiment.parse_args(parser, args).as_dict()
    if "annealing" in options:
        options["annealing"] = Annealing(**options["annealing"])
    return Run(options.pop("run")), options


def _find_posterior(key: str, name: str | None, known: list[str]) -> Any:
    if name is not None and name not in known:
        raise ValueError(
            f"expected {key} to be one of {', '.join(known)}; got {name!r}"
            f"{jsonargparse_compat.did_you_mean(name, known)}"
        )
    return None if name is None else getattr(posteriors, name)


def _print_next_step(run: Run, name: str) -> None:
    print(f"per-example results: {run.evaluation_file(name)}   next: pyro-vae report {run.folder}")
