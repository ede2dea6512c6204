"""Side by side: who works when, and what is made of the times.

A shared machine's speed drifts by more than contenders differ. So they take turns, and a ratio
is formed within each turn, where both had the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "DisagreementError",
    "agree_on_estimates",
    "agree_on_losses",
    "interleaved",
    "order",
    "ratio",
    "ratios",
    "summary",
]

Told = TypeVar("Told")


class DisagreementError(ValueError):
    """Contenders that do not compute the same must not be compared."""


def order(names: Sequence[str], turn: int) -> list[str]:
    """Who works when in a round: in turn, and each time another first."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def interleaved(
    names: Sequence[str],
    rounds: int,
    work: Callable[[str], Told],
    enough: Callable[[Mapping[str, Sequence[Told]]], bool] | None = None,
) -> dict[str, list[Told]]:
    """What ``work(name)`` gives in each round; up to twice as many until it is ``enough``."""
    told: dict[str, list[Told]] = {name: [] for name in names}
    for turn in range(rounds if enough is None else 2 * rounds):
        if turn >= rounds and enough is not None and enough(told):
            break
        for name in order(names, turn):
            told[name].append(work(name))
    return told


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and range of those that are numbers, to four digits."""
    low, median, high = np.nanpercentile(values, [25, 50, 75])
    return {
        "median": _rounded(median),
        "quartiles": [_rounded(low), _rounded(high)],
        "range": [_rounded(np.nanmin(values)), _rounded(np.nanmax(values))],
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The summary of ours / theirs, formed round by round."""
    return summary([a / b for a, b in zip(ours, theirs, strict=True)])


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Of ours to each of the others, and of ours without a compiler to Pyro."""
    pairs = [("ours", name) for name in seconds if name != "ours"]
    if {"ours_eager", "pyro"} <= {*seconds}:
        pairs.append(("ours_eager", "pyro"))
    return {f"{a} / {b}": ratio(seconds[a], seconds[b]) for a, b in pairs}


def agree_on_losses(losses: Mapping[str, Sequence[float]], tolerance: float = 0.03) -> None:
    """Refuses contenders that do not learn the same: mean losses of each round, nats per datum.

    They start from the same weights and go through the same minibatches, so only their noise
    differs, and where it took Adam's first steps, which are as long for a small gradient as for
    a large one: that is one or two parts in a hundred. One that left out the KL divergence
    would be off by ten, one that left out its optimiser by twenty within a few rounds.

    Raises:
        DisagreementError: naming the first that is further from the median of all.
    """
    for turn, values in enumerate(zip(*losses.values(), strict=True)):
        middle = float(np.nanmedian(values))
        for name, value in zip(losses, values, strict=True):
            if not abs(value - middle) <= tolerance * abs(middle):
                raise DisagreementError(
                    f"expected the loss of {name!r} in round {turn} to be {middle:.2f} nats per "
                    f"datum, the median of all, to within {tolerance:.0%}; got {value:.2f}: it "
                    f"does other work than the others"
                )


def agree_on_estimates(estimates: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Refuses contenders whose L_K of the same images differ by more than Monte Carlo error.

    The error of the mean over images is known from its spread over rounds, pooled over
    contenders, for all draw as many samples from the same q. Five standard errors of a
    difference, which 20 degrees of freedom exceed once in 10,000 times.

    Arguments:
        estimates: for each contender and round L_K of each image, in nats; the images that
            all have judged are compared.

    Raises:
        DisagreementError: naming the first that is further from the mean of all.
    """
    common = min(len(row) for rows in estimates.values() for row in rows)
    means = {name: [np.mean(row[:common]) for row in rows] for name, rows in estimates.items()}
    variance = np.mean([np.var(values, ddof=1) for values in means.values()])
    middle = np.mean([np.mean(values) for values in means.values()])
    for name, values in means.items():
        # float32 sums of 784 pixels differ in the fourth digit after the point
        error = 5 * np.sqrt(variance / len(values)) + 1e-3
        if not abs(np.mean(values) - middle) <= error:
            raise DisagreementError(
                f"expected the mean L_K of {name!r} on {common} images to be {middle:.3f} nats, "
                f"that of all, to within {error:.3f}; got {np.mean(values):.3f}: it judges "
                f"otherwise than the others"
            )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
