"""Schedules of hyperparameters over epochs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any

__all__ = ["Cyclical", "LinearWarmUp", "Schedule", "check_number"]


@dataclass(frozen=True)
class Schedule(ABC):
    """Base class of schedules: the value of a hyperparameter as a function of the epoch.

    A subclass is a frozen dataclass that defines :meth:`__call__`.
    """

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """Return the value after ``epoch`` epochs, a fractional number that starts at 0."""


@dataclass(frozen=True)
class LinearWarmUp(Schedule):
    """Linear increase from ``start`` to ``end`` over the first epochs, constant afterwards.

    Arguments:
        epochs: duration of the increase.
        start: initial value.
        end: final value.

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
        check_number("epochs", self.epochs, minimum=1e-12)
        check_number("start", self.start)
        check_number("end", self.end)

    def __call__(self, epoch: float) -> float:
        fraction = min(1.0, epoch / self.epochs)
        return self.start + fraction * (self.end - self.start)


@dataclass(frozen=True)
class Cyclical(Schedule):
    """Periodic linear increase from ``start`` to ``end``, constant for the rest of each period.

    Arguments:
        period: length of a period in epochs.
        rising: fraction of a period in which the value increases.
        start: value at the start of each period.
        end: value after the increase.

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
        check_number("period", self.period, minimum=1e-12)
        check_number("rising", self.rising, minimum=1e-12, maximum=1.0)
        check_number("start", self.start)
        check_number("end", self.end)

    def __call__(self, epoch: float) -> float:
        fraction = min(1.0, epoch / self.period % 1.0 / self.rising)
        return self.start + fraction * (self.end - self.start)


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    maximum: float = math.inf,
    or_schedule: bool = False,
) -> None:
    """Raise a ``ValueError`` unless ``value`` is a finite number in range, or a schedule."""
    if or_schedule and isinstance(value, Schedule):
        return
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not minimum <= number <= maximum or number == math.inf:
        bounds = f"{'>' if minimum else '≥'} 0 and finite"
        if maximum < math.inf:
            bounds = f"in {'(' if minimum else '['}0, {maximum:g}]"
        alternative = ", or a schedule" if or_schedule else ""
        raise ValueError(f"expected {name} {bounds}{alternative}; got {value!r}")
