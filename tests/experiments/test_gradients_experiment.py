"""The experiment on gradients runs, and says what it measured."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the installed package

from experiments import gradients  # noqa: E402


def test_it_runs_and_repeats_itself(tmp_path, capsys):
    for folder in ("a", "b"):
        words = ["--preset", "smoke", "--results", str(tmp_path / folder)]
        assert gradients.main(words) == 0
    first, second = (tmp_path / f / "gradients-smoke.json" for f in ("a", "b"))
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")
    assert (tmp_path / "a" / "gradients-smoke.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads(first.read_text(encoding="utf-8"))
    assert results["rows"].keys() == gradients.ESTIMATORS.keys() == gradients.THEORY.keys()
    noise = {
        name: {row["k"]: row["variance"] for row in results["rows"][f"IWAE {name}"]["encoder"]}
        for name in ("standard", "stl", "dreg")
    }
    # ten gradients of 420 parameters: the errors are a few per cent, the ratios above ten
    for k in (10, 50, 100):
        assert 5 * noise["dreg"][k] < noise["stl"][k] < noise["standard"][k] / 5
    printed = capsys.readouterr().out
    assert "snr ~ k^(" in printed and str(first) in printed


def test_statistics_are_those_of_known_gradients():
    """Gradients N(m, s²) of 300 parameters, m = 0.2: values within five of their own errors."""
    torch.manual_seed(0)
    rows = 0.2 + 0.5 * torch.randn(200, 300, dtype=torch.float64)
    found = gradients.statistics(rows)
    assert abs(found["mean"] - 0.2) < 5 * found["se_mean"]
    assert abs(found["variance"] - 0.25) < 5 * found["se_variance"]
    assert abs(math.log(found["snr"] / 0.4)) < 5 * found["se_log_snr"]
    # the errors themselves: 0.5/√60,000, and √2 · 0.25/√60,000
    assert found["se_mean"] == pytest.approx(0.00204, rel=0.25)
    assert found["se_variance"] == pytest.approx(0.00144, rel=0.25)


def test_a_drowned_signal_is_no_number():
    torch.manual_seed(1)
    rows = torch.randn(10, 4, dtype=torch.float64)
    rows -= rows.mean(0)
    found = gradients.statistics(rows)
    assert found["snr"] is None and found["mean"] is None and found["variance"] > 0


def test_the_slope_of_a_power():
    rows = [{"k": k, "snr": 3 * k**-0.5, "se_log_snr": 0.1} for k in (1, 50, 500, 5000)]
    rows[0]["snr"] = 50.0  # few draws do not count
    found = gradients.slope(rows)
    assert found["slope"] == pytest.approx(-0.5)
    # 0.1 over the root of Σ (log k − mean)²
    assert found["se"] == pytest.approx(0.1 / (2 * math.log(10) ** 2) ** 0.5)
    assert gradients.slope(rows[:2]) is None


def test_bad_words(capsys, tmp_path):
    assert gradients.main(["--seed", "-1", "--results", str(tmp_path)]) == 1
    assert "expected seed to be an integer ≥ 0; got -1" in capsys.readouterr().err


def test_the_committed_results_are_the_theory_s():
    """The powers of k of the committed run: within five standard errors and a fifth of theirs."""
    file = ROOT / "experiments" / "results" / "gradients-small.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    assert file.with_suffix(".png").is_file()
    for name in ("IWAE standard", "IWAE dreg"):
        for told in results["slopes"][name].values():
            error = told["fitted"]["slope"] - told["theory"]
            assert abs(error) < 0.2 + 5 * told["fitted"]["se"]
