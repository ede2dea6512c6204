"""A few kills and damaged inputs; the scripts run many more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")


def run_script(name: str, *args: str) -> dict:
    """Run a script of this folder and return its figures."""
    done = subprocess.run(
        [sys.executable, str(HERE / name), *args], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(900)
def test_killed_commands_finish_with_the_same_numbers():
    figures = run_script("soak.py", "--kills", "4", "--seed", "2")
    assert figures["kills"] == 4 and figures["resumed"] == figures["cycles"] > 1
    assert figures["refused"] == figures["mismatches"] == figures["leftovers"] == []


@pytest.mark.timeout(900)
def test_damaged_inputs_end_in_one_sentence():
    figures = run_script("fuzz.py", "--inputs", "24", "--seed", "2")
    outcomes = figures["outcomes"]
    assert figures["failures"] == []
    assert outcomes["refused in one sentence"] > 5 and outcomes["no difference"] > 5


@pytest.mark.parametrize("name", ["soak", "fuzz"])
def test_committed_figures_are_without_failures(name):
    figures = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    failures = ("refused", "mismatches", "leftovers", "failures")
    assert all(figures.get(key, []) == [] for key in failures)
    assert figures.get("kills", 200) == 200 and figures.get("inputs", 500) == 500
