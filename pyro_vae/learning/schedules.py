"""Schedules: numbers that change while a program learns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any

__all__ = ["Cyclical", "LinearWarmUp", "Schedule", "check_number"]


@dataclass(frozen=True)
class Schedule(ABC):
    """The base of all schedules: a number for every moment of learning.

    A new schedule is a frozen dataclass and defines :meth:`__call__`.
    """

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """The number after ``epoch`` passes over the data, 0 at first, with its fraction."""


@dataclass(frozen=True)
class LinearWarmUp(Schedule):
    """Rises from ``start`` to ``end`` over so many epochs, and stays there.

    Arguments:
        epochs: how long it takes.
        start: the number at first.
        end: the number at last.

    Raises:
        ValueError: if ``epochs`` is not positive, or ``start`` or ``end`` is negative.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2015), section 3.1; Ladder
        Variational Autoencoders (Sønderby et al., 2016), section 2.3.
        https://arxiv.org/abs/1511.06349 https://arxiv.org/abs/1602.02282
    """

    epochs: float = 100.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, least=1e-12)
        check_number("start", self.start)
        check_number("end", self.end)

    def __call__(self, epoch: float) -> float:
        part = min(1.0, epoch / self.epochs)
        return self.start + part * (self.end - self.start)


@dataclass(frozen=True)
class Cyclical(Schedule):
    """Rises from ``start`` to ``end`` again and again, and rests at ``end`` in between.

    Arguments:
        period: the epochs from one beginning to the next.
        rising: the fraction of a period in which it rises.
        start: the number at each beginning.
        end: the number at which it rests.

    Raises:
        ValueError: if ``period`` is not positive, ``rising`` is not in (0, 1], or ``start`` or
            ``end`` is negative.

    References:
        Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al.,
        2019), equation 6. https://arxiv.org/abs/1903.10145
    """

    period: float = 20.0
    rising: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_number("period", self.period, least=1e-12)
        check_number("rising", self.rising, least=1e-12, most=1.0)
        check_number("start", self.start)
        check_number("end", self.end)

    def __call__(self, epoch: float) -> float:
        part = min(1.0, epoch / self.period % 1.0 / self.rising)
        return self.start + part * (self.end - self.start)


def check_number(
    name: str, value: Any, *, least: float = 0.0, most: float = math.inf, or_schedule: bool = False
) -> None:
    """Refuses what is no number ≥ ``least``, ≤ ``most`` and finite, nor a schedule if it may be.

    Raises:
        ValueError: saying what was expected of ``name``.
    """
    if or_schedule and isinstance(value, Schedule):
        return
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not least <= number <= most or number == math.inf:
        bounds = "> 0" if least else "≥ 0"
        limit = f" and ≤ {most:g}" if most < math.inf else ""
        other = ", or a schedule" if or_schedule else ""
        raise ValueError(f"expected {name} {bounds}{limit} and finite{other}; got {value!r}")
