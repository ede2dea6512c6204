"""Selection of steady benchmark turns: all cores and a shared cache must be available."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import rounds
import steady


class FakeChecks:
    """A worker that answers with a sequence of speed-ups and exchange rates."""

    def __init__(self, *checks: float | tuple[float, float]) -> None:
        self.checks = [check if isinstance(check, tuple) else (check, 100.0) for check in checks]

    def ask(self, **request):
        return {"values": [*self.checks.pop(0)]}


@pytest.mark.parametrize(
    ("checks", "is_steady"),
    [
        ([1.9, 1.8], True),  # available before and after
        ([1.1, 1.2, 1.7, 1.9], True),  # available after waiting
        ([1.9, 1.1], False),  # lost during the turn
        ([(1.9, 100.0), (1.9, 70.0)], True),
        ([(1.9, 100.0), (1.9, 30.0)], False),  # moved to cores without a shared cache
    ],
)
def test_turn_is_steady_if_all_cores_are_available(checks, is_steady, monkeypatch):
    monkeypatch.setattr(steady, "_PAUSE", 0)
    worker: Any = FakeChecks(*checks)
    turn = steady.CoreMonitor(worker, 2).run_turn(lambda: {"seconds": 3.0})
    assert turn == steady.Turn({"seconds": 3.0}, is_steady)
    assert not worker.checks
    assert steady.CoreMonitor(None, 2).run_turn(dict).steady


def test_monitor_waits_for_a_shared_cache(monkeypatch):
    monkeypatch.setattr(steady, "_PAUSE", 0)
    worker: Any = FakeChecks((1.9, 100.0), (1.9, 100.0), (1.9, 20.0), (1.9, 90.0), (1.9, 95.0))
    monitor = steady.CoreMonitor(worker, 2)
    assert monitor.run_turn(dict).steady
    assert monitor.run_turn(dict).steady
    assert not worker.checks


def test_monitor_stops_waiting_after_the_maximum_number_of_checks(monkeypatch):
    monkeypatch.setattr(steady, "_PAUSE", 0)
    worker: Any = FakeChecks(*[1.0] * steady._MAX_CHECKS)
    assert not steady.CoreMonitor(worker, 2).run_turn(dict).steady


def test_unsteady_turns_are_repeated_and_excluded():
    steadiness = iter([True, False, True, True, True, True])
    turns = rounds.interleave(
        ["a"],
        3,
        lambda name: steady.Turn({"seconds": 1.0}, next(steadiness)),
        lambda turns: steady.has_enough_steady_turns(turns, 3),
    )
    assert [turn.steady for turn in turns["a"]] == [True, False, True, True]
    seconds = steady.select_seconds(turns)["a"]
    assert [math.isnan(s) for s in seconds] == [False, True, False, False]
    # a round that is unsteady for one contender has no ratio
    summary = rounds.summarise_ratio(seconds, [2.0, 0.1, 2.0, 2.0])
    assert summary == {"median": 0.5, "quartiles": [0.5, 0.5], "range": [0.5, 0.5]}


def _make_turns(steadiness: str) -> list[steady.Turn]:
    return [steady.Turn({"seconds": 1.0}, flag == "1") for flag in steadiness]


@pytest.mark.parametrize(
    ("ours", "theirs", "num_excluded"),
    [
        ("11101", "01111", (1, 1)),  # three rounds in common
        ("11010", "01111", (0, 0)),  # two rounds in common: too few
        ("00000", "11111", (0, 0)),
    ],
)
def test_all_rounds_count_if_too_few_steady_rounds_are_shared(ours, theirs, num_excluded):
    seconds = steady.select_seconds(
        {"ours": _make_turns(ours), "theirs": _make_turns(theirs), "limit": _make_turns("11111")}
    )
    counts = [sum(map(math.isnan, seconds[name])) for name in ("ours", "theirs")]
    assert tuple(counts) == num_excluded
