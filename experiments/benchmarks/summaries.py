"""Turns of contenders, their summaries, and the checks that contenders compute the same.

The speed of a shared machine drifts by more than the contenders differ. Contenders therefore take
turns, and ratios are computed within each round of turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


class BenchmarkError(RuntimeError):
    """A contender failed or does other work than the others; the message is one sentence."""


def take_turns(
    names: Sequence[str], rounds: int, work: Callable[[str], Any]
) -> dict[str, list[Any]]:
    """Return the results of ``work(name)`` in each round; rounds begin with another contender."""
    results: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            results[name].append(work(name))
    return results


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles to four digits."""
    low, median, high = (float(f"{q:.4g}") for q in np.percentile(values, [25, 50, 75]))
    return {"median": median, "quartiles": [low, high]}


def summarise_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return the ratio of each variant of ours to each other contender, round by round."""
    pairs = [(a, b) for a in seconds if a.startswith("ours") for b in seconds if a != b]
    return {
        f"{a} / {b}": summarise([x / y for x, y in zip(seconds[a], seconds[b], strict=True)])
        for a, b in pairs
    }


def check_losses_agree(losses: Mapping[str, Sequence[float]]) -> None:
    """Check that the mean losses, in nats per datum, agree in each round.

    All start from the same weights and see the same minibatches. Noise makes losses differ by 1 to
    2 %. Without the KL divergence they would be off by 10 %, without an optimiser by 20 % soon.
    """
    for turn, values in enumerate(zip(*losses.values(), strict=True)):
        median = float(np.nanmedian(values))
        for name, value in zip(losses, values, strict=True):
            _check(name, f"loss in round {turn}", value, median, 0.03 * abs(median))


def check_estimates_agree(
    estimates: Mapping[str, Sequence[Sequence[float]]], slack: Mapping[str, float]
) -> None:
    """Check that the estimates of the same images, by round, agree within Monte Carlo error.

    The error of the mean over the images common to all is estimated from its spread over rounds,
    pooled over contenders, because all draw as many samples from the same q. Five standard errors
    are a false-alarm rate of 1e-4 with 20 degrees of freedom. ``slack`` is an additional tolerance
    by contender, in nats.
    """
    common = min(len(row) for rows in estimates.values() for row in rows)
    means = {name: [np.mean(row[:common]) for row in rows] for name, rows in estimates.items()}
    variance = np.mean([np.var(values, ddof=1) for values in means.values()])
    center = float(np.median([np.mean(values) for values in means.values()]))
    for name, values in means.items():
        # float32 sums over 784 pixels differ in the fourth decimal
        error = 5 * np.sqrt(variance / len(values)) + 1e-3 + slack.get(name, 0.0)
        _check(name, f"mean estimate of {common} images", float(np.mean(values)), center, error)


def _check(name: str, what: str, value: float, center: float, tolerance: float) -> None:
    if not abs(value - center) <= tolerance:
        raise BenchmarkError(
            f"expected the {what} of {name!r} within {tolerance:.3f} nats of the median of all "
            f"contenders, {center:.3f}; got {value:.3f}: the contenders do not do the same work"
        )
