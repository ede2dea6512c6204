"""Turns that count: those at whose beginning and end the machine was all there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from process import Worker

__all__ = ["Cores", "Turn", "counted", "enough"]

#: Of the speed-up that all threads could have.
_SPEED_UP = 0.75
#: Of the best rate so far at which threads handed data over: it is ten times lower, or as it was.
_RATE = 0.5
#: How often, and after how many seconds each, the machine is looked at before a turn.
_LOOKS, _PAUSE = 60, 0.5
#: The fewest rounds that two contenders share and that are steady for both, or all rounds count.
_FEWEST = 3


@dataclass(frozen=True)
class Turn:
    """What a contender answered, and whether the machine was all there before and after."""

    answer: dict[str, Any]
    steady: bool


class Cores:
    """Looks whether the machine gives as many cores as contenders have threads, sharing a cache.

    While it does not, whoever multiplies least, or whose threads share least, is favoured, and
    it comes and goes within seconds, so that not even contenders of one round meet the same
    machine.

    Arguments:
        worker: of the contender ``cores``; ``None`` if nobody needs to look.
        threads: how many each contender has.
    """

    def __init__(self, worker: Worker | None, threads: int) -> None:
        self._worker, self._threads = worker, threads
        self._best = 0.0

    def turn(self, work: Callable[[], dict[str, Any]]) -> Turn:
        """Lets somebody work once the machine is there, or when no more time can be lost."""
        before = any(self._there() or time.sleep(_PAUSE) for _ in range(_LOOKS))
        answer = work()
        return Turn(answer, before and self._there())

    def _there(self) -> bool:
        if self._worker is None:
            return True
        speed_up, rate = self._worker.ask(run=1)["values"]
        self._best = max(self._best, rate)
        return speed_up >= _SPEED_UP * self._threads and rate >= _RATE * self._best


def enough(turns: Mapping[str, Sequence[Turn]], rounds: int) -> bool:
    """Whether everybody had so many steady turns."""
    return all(sum(turn.steady for turn in row) >= rounds for row in turns.values())


def counted(turns: Mapping[str, Sequence[Turn]]) -> dict[str, list[float]]:
    """The seconds of each contender's turns, not a number where a turn does not count.

    Ratios to the first are formed round by round. If with one of the others it shares too few
    rounds in which both are steady, the machine was never there for long enough: all count.
    """
    first = next(iter(turns.values()))
    shared = (
        sum(a.steady and b.steady for a, b in zip(first, row, strict=True))
        for row in turns.values()
    )
    every = min(shared) < _FEWEST
    return {
        name: [turn.answer["seconds"] if turn.steady or every else math.nan for turn in row]
        for name, row in turns.items()
    }
