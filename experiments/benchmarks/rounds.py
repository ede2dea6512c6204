"""Interleaved rounds and their summaries.

The speed of a shared machine drifts by more than the contenders differ. Contenders therefore take
turns, and ratios are computed within each round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "DisagreementError",
    "check_estimates_agree",
    "check_losses_agree",
    "interleave",
    "rotate",
    "summarise",
    "summarise_ratio",
    "summarise_ratios",
]

T = TypeVar("T")


class DisagreementError(ValueError):
    """The results of the contenders differ, so that their times must not be compared."""


def rotate(names: Sequence[str], turn: int) -> list[str]:
    """Return the order of contenders in a round; each round starts with the next contender."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def interleave(
    names: Sequence[str],
    rounds: int,
    work: Callable[[str], T],
    is_enough: Callable[[Mapping[str, Sequence[T]]], bool] | None = None,
) -> dict[str, list[T]]:
    """Return the results of ``work(name)`` in each round.

    With ``is_enough``, up to ``rounds`` further rounds run until it is true.
    """
    results: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(rounds if is_enough is None else 2 * rounds):
        if turn >= rounds and is_enough is not None and is_enough(results):
            break
        for name in rotate(names, turn):
            results[name].append(work(name))
    return results


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and range, ignoring NaN, to four digits."""
    low, median, high = np.nanpercentile(values, [25, 50, 75])
    return {
        "median": _round(median),
        "quartiles": [_round(low), _round(high)],
        "range": [_round(np.nanmin(values)), _round(np.nanmax(values))],
    }


def summarise_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the summary of ours / theirs, computed round by round."""
    return summarise([a / b for a, b in zip(ours, theirs, strict=True)])


def summarise_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return the ratios of ours to each other contender, and of ours in eager mode to Pyro."""
    pairs = [("ours", name) for name in seconds if name != "ours"]
    if {"ours_eager", "pyro"} <= {*seconds}:
        pairs.append(("ours_eager", "pyro"))
    return {f"{a} / {b}": summarise_ratio(seconds[a], seconds[b]) for a, b in pairs}


def check_losses_agree(losses: Mapping[str, Sequence[float]], tolerance: float = 0.03) -> None:
    """Check that all contenders train alike.

    They start from the same weights and see the same minibatches. Their losses differ by their
    noise and its effect on Adam's first steps, whose length does not depend on the gradient's
    magnitude: 1 to 2 %. A contender without the KL divergence would be off by 10 %, one without
    an optimiser by 20 % within a few rounds.

    Arguments:
        losses: the mean loss of each contender and round, in nats per datum.
        tolerance: maximum relative distance from the median of all contenders.

    Raises:
        DisagreementError: naming the first contender beyond the tolerance.
    """
    for turn, values in enumerate(zip(*losses.values(), strict=True)):
        median = float(np.nanmedian(values))
        for name, value in zip(losses, values, strict=True):
            if not abs(value - median) <= tolerance * abs(median):
                raise DisagreementError(
                    f"expected the loss of {name!r} in round {turn} within {tolerance:.0%} of the "
                    f"median of all contenders, {median:.2f} nats per datum; got {value:.2f}: the "
                    f"contenders do not do the same work"
                )


def check_estimates_agree(estimates: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Check that the contenders' L_K of the same images agree within Monte Carlo error.

    The error of the mean over images is estimated from its spread over rounds, pooled over
    contenders, because all draw the same number of samples from the same q. The tolerance is five
    standard errors of a difference; with 20 degrees of freedom the false-alarm rate is 1e-4.

    Arguments:
        estimates: L_K of each image in nats, for each contender and round; only the images
            common to all contenders are compared.

    Raises:
        DisagreementError: naming the first contender beyond the tolerance.
    """
    common = min(len(row) for rows in estimates.values() for row in rows)
    means = {name: [np.mean(row[:common]) for row in rows] for name, rows in estimates.items()}
    variance = np.mean([np.var(values, ddof=1) for values in means.values()])
    center = np.mean([np.mean(values) for values in means.values()])
    for name, values in means.items():
        # float32 sums over 784 pixels differ in the fourth decimal
        error = 5 * np.sqrt(variance / len(values)) + 1e-3
        if not abs(np.mean(values) - center) <= error:
            raise DisagreementError(
                f"expected the mean L_K of {name!r} on {common} images within {error:.3f} nats of "
                f"the mean of all contenders, {center:.3f}; got {np.mean(values):.3f}: the "
                f"contenders do not compute the same estimate"
            )


def _round(value: float) -> float:
    return float(f"{value:.4g}")
