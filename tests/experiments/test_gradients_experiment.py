"""The experiment on gradients runs and reports its measurements."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scripts import RESULTS, read_json

from experiments.studies import gradients


def test_experiment_runs_and_is_deterministic(tmp_path, capsys):
    for folder in ("a", "b"):
        args = ["--preset", "smoke", "--results", str(tmp_path / folder)]
        assert gradients.main(args) == 0
    first, second = (tmp_path / f / "gradients-smoke.json" for f in ("a", "b"))
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")
    assert (tmp_path / "a" / "gradients-smoke.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads(first.read_text(encoding="utf-8"))
    assert results["rows"].keys() == gradients.ESTIMATORS.keys() == gradients.THEORY.keys()
    noise = {
        name: {row["k"]: row["variance"] for row in results["rows"][f"IWAE {name}"]["encoder"]}
        for name in ("standard", "stl", "dreg")
    }
    # with ten gradients of 420 parameters, errors are a few per cent and ratios above ten
    for k in (10, 50, 100):
        assert 5 * noise["dreg"][k] < noise["stl"][k] < noise["standard"][k] / 5
    printed = capsys.readouterr().out
    assert "snr ~ k^(" in printed and str(first) in printed


def test_statistics_of_known_gradients():
    """Gradients N(0.2, 0.5²) of 300 parameters: values are within five standard errors."""
    torch.manual_seed(0)
    rows = 0.2 + 0.5 * torch.randn(200, 300, dtype=torch.float64)
    result = gradients.gradient_statistics(rows)
    assert abs(result["mean"] - 0.2) < 5 * result["se_mean"]
    assert abs(result["variance"] - 0.25) < 5 * result["se_variance"]
    assert abs(math.log(result["snr"] / 0.4)) < 5 * result["se_log_snr"]
    # exact standard errors: 0.5/√60,000 and √2 · 0.25/√60,000
    assert result["se_mean"] == pytest.approx(0.00204, rel=0.25)
    assert result["se_variance"] == pytest.approx(0.00144, rel=0.25)


def test_signal_below_the_noise_is_none():
    torch.manual_seed(1)
    rows = torch.randn(10, 4, dtype=torch.float64)
    rows -= rows.mean(0)
    result = gradients.gradient_statistics(rows)
    assert result["snr"] is None and result["mean"] is None and result["variance"] > 0


def test_slope_of_a_power_law():
    rows = [{"k": k, "snr": 3 * k**-0.5, "se_log_snr": 0.1} for k in (1, 50, 500, 5000)]
    rows[0]["snr"] = 50.0  # small k are excluded
    result = gradients.fit_slope(rows)
    assert result["slope"] == pytest.approx(-0.5)
    # 0.1 divided by the root of Σ (log k − mean)²
    assert result["se"] == pytest.approx(0.1 / (2 * math.log(10) ** 2) ** 0.5)
    assert gradients.fit_slope(rows[:2]) is None


def test_invalid_seed_is_a_one_line_error(capsys, tmp_path):
    assert gradients.main(["--seed", "-1", "--results", str(tmp_path)]) == 1
    assert "expected seed to be an integer ≥ 0; got -1" in capsys.readouterr().err


def test_committed_results_agree_with_theory():
    """Fitted powers of k are within five standard errors plus 0.2 of the theory."""
    file = RESULTS / "gradients-small.json"
    results = read_json(file)
    assert file.with_suffix(".png").is_file()
    for name in ("IWAE standard", "IWAE dreg"):
        for entry in results["slopes"][name].values():
            error = entry["fitted"]["slope"] - entry["theory"]
            assert abs(error) < 0.2 + 5 * entry["fitted"]["se"]
