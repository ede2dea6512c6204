"""Turns of a benchmark that count: while the machine gives every core, and a cache they share."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import rounds
import steady


class Looks:
    """A worker that answers with one speed-up, and one rate of handing over, after the other."""

    def __init__(self, *found: float | tuple[float, float]) -> None:
        self.found = [look if isinstance(look, tuple) else (look, 100.0) for look in found]

    def ask(self, **request):
        return {"values": [*self.found.pop(0)]}


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ([1.9, 1.8], True),  # there before and after
        ([1.1, 1.2, 1.7, 1.9], True),  # waited for
        ([1.9, 1.1], False),  # lost on the way
        ([(1.9, 100.0), (1.9, 70.0)], True),
        ([(1.9, 100.0), (1.9, 30.0)], False),  # moved to where they share none
    ],
)
def test_a_turn_counts_while_every_core_is_there(found, counts, monkeypatch):
    monkeypatch.setattr(steady, "_PAUSE", 0)
    looks: Any = Looks(*found)
    turn = steady.Cores(looks, 2).turn(lambda: {"seconds": 3.0})
    assert turn == steady.Turn({"seconds": 3.0}, counts)
    assert not looks.found
    assert steady.Cores(None, 2).turn(dict).steady


def test_cores_that_share_no_cache_are_waited_for(monkeypatch):
    monkeypatch.setattr(steady, "_PAUSE", 0)
    looks: Any = Looks((1.9, 100.0), (1.9, 100.0), (1.9, 20.0), (1.9, 90.0), (1.9, 95.0))
    cores = steady.Cores(looks, 2)
    assert cores.turn(dict).steady
    assert cores.turn(dict).steady
    assert not looks.found


def test_cores_that_never_come_do_not_hold_everything_up(monkeypatch):
    monkeypatch.setattr(steady, "_PAUSE", 0)
    looks: Any = Looks(*[1.0] * steady._LOOKS)
    assert not steady.Cores(looks, 2).turn(dict).steady


def test_unsteady_turns_are_made_up_for_and_left_out():
    steadily = iter([True, False, True, True, True, True])
    turns = rounds.interleaved(
        ["a"],
        3,
        lambda name: steady.Turn({"seconds": 1.0}, next(steadily)),
        lambda found: steady.enough(found, 3),
    )
    assert [turn.steady for turn in turns["a"]] == [True, False, True, True]
    seconds = steady.counted(turns)["a"]
    assert [math.isnan(s) for s in seconds] == [False, True, False, False]
    # in the round that does not count for one, there is no ratio
    found = rounds.ratio(seconds, [2.0, 0.1, 2.0, 2.0])
    assert found == {"median": 0.5, "quartiles": [0.5, 0.5], "range": [0.5, 0.5]}


def _row(steadily):
    return [steady.Turn({"seconds": 1.0}, there == "1") for there in steadily]


@pytest.mark.parametrize(
    ("ours", "theirs", "left_out"),
    [
        ("11101", "01111", (1, 1)),  # three rounds in common
        ("11010", "01111", (0, 0)),  # two: there is no telling with which machine
        ("00000", "11111", (0, 0)),
    ],
)
def test_where_two_share_hardly_a_steady_round_all_count(ours, theirs, left_out):
    seconds = steady.counted({"ours": _row(ours), "theirs": _row(theirs), "limit": _row("11111")})
    found = [sum(map(math.isnan, seconds[name])) for name in ("ours", "theirs")]
    assert tuple(found) == left_out
