"""Selection of steady turns: all cores and a shared cache were available before and after."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from process import Worker

__all__ = ["CoreMonitor", "Turn", "has_enough_steady_turns", "select_seconds"]

#: Minimum speed-up, as a fraction of the number of threads.
_MIN_SPEEDUP = 0.75
#: Minimum rate of data exchange between threads, as a fraction of the best rate so far. Without
#: a shared cache the rate drops by a factor of ten.
_MIN_RATE = 0.5
#: Maximum number of checks before a turn, and the pause between them in seconds.
_MAX_CHECKS, _PAUSE = 60, 0.5
#: Minimum number of rounds in which two contenders are both steady; with fewer, all rounds count.
_MIN_SHARED_ROUNDS = 3


@dataclass(frozen=True)
class Turn:
    """The answer of a contender and whether the machine was steady during the turn."""

    answer: dict[str, Any]
    steady: bool


class CoreMonitor:
    """Checks before and after each turn that the threads have a core each and share a cache.

    On a virtual machine this changes within seconds, so that even the contenders of one round
    would run on different machines. Without all cores, contenders with few matrix products or
    little communication between threads would be favoured.

    Arguments:
        worker: the process of the contender ``cores``; ``None`` switches the checks off.
        threads: number of threads per contender.
    """

    def __init__(self, worker: Worker | None, threads: int) -> None:
        self._worker, self._threads = worker, threads
        self._best_rate = 0.0

    def run_turn(self, work: Callable[[], dict[str, Any]]) -> Turn:
        """Run ``work`` once the cores are available or the maximum number of checks is reached."""
        before = any(self._cores_available() or time.sleep(_PAUSE) for _ in range(_MAX_CHECKS))
        answer = work()
        return Turn(answer, before and self._cores_available())

    def _cores_available(self) -> bool:
        if self._worker is None:
            return True
        speedup, rate = self._worker.ask(run=1)["values"]
        self._best_rate = max(self._best_rate, rate)
        return speedup >= _MIN_SPEEDUP * self._threads and rate >= _MIN_RATE * self._best_rate


def has_enough_steady_turns(turns: Mapping[str, Sequence[Turn]], rounds: int) -> bool:
    """Return whether every contender has at least ``rounds`` steady turns."""
    return all(sum(turn.steady for turn in row) >= rounds for row in turns.values())


def select_seconds(turns: Mapping[str, Sequence[Turn]]) -> dict[str, list[float]]:
    """Return the seconds of each contender's turns, with NaN for unsteady turns.

    Ratios to the first contender are computed round by round. If it shares fewer than three
    steady rounds with any other contender, all turns count.
    """
    first = next(iter(turns.values()))
    shared = (
        sum(a.steady and b.steady for a, b in zip(first, row, strict=True))
        for row in turns.values()
    )
    keep_all = min(shared) < _MIN_SHARED_ROUNDS
    return {
        name: [turn.answer["seconds"] if turn.steady or keep_all else math.nan for turn in row]
        for name, row in turns.items()
    }
