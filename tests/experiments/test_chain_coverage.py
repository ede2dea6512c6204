"""The study of the coverage of AIS and of inference gaps: its truths and its counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scripts import read_json

import pyro_vae as pv
from experiments.studies import chain_coverage
from pyro_vae.evaluation.estimates import Estimate


def test_gaps_of_correlated_posteriors():
    torch.manual_seed(0)
    program, weights, truths = chain_coverage.correlated(2, 0.3, 1.3)
    x = torch.randn(20, 2, dtype=torch.float64) @ weights.T
    gap = pv.evaluate(program, x, num_samples=4000, compile=False).estimates["gap"]
    assert abs(gap.value - truths["total"]) < 4 * gap.se_monte_carlo + 1e-3
    assert truths["amortisation"] + truths["approximation"] == pytest.approx(truths["total"])


def test_counts_of_examples_and_rows():
    count = chain_coverage.Count()
    low, high = np.array([-1.0, -1.0, 0.5, -1.0]), np.array([1.0, -0.5, 1.0, 1.0])
    flagged = np.array([False, False, False, True])
    count.add((low, high), Estimate(0.1, 1.0, 0.1), np.zeros(4), flagged)
    count.add((low, high), Estimate(0.3, 1.0, 0.1), np.zeros(4), ~flagged)
    assert count.summary() == {
        "coverage": 2 / 4,
        "coverage_all": 4 / 8,
        "flagged": 4 / 8,
        "row_coverage": 1.0,
        "rows": 1,
    }


def test_smoke_run(tmp_path, capsys, monkeypatch):
    regimes = {"2 latents, shifted q": chain_coverage.REGIMES["2 latents, shifted q"]}
    monkeypatch.setattr(chain_coverage, "REGIMES", regimes)
    monkeypatch.setattr(chain_coverage, "GAPS", {"tiny": (2, 0.3, 1.3, 10)})
    study = replace(chain_coverage.STUDY, labels=[*regimes, "tiny"])
    assert study.main(["--preset", "smoke", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2 latents, shifted q: 4 chains × 20" in printed and "tiny: amortisation" in printed
    rows = read_json(tmp_path / "chain_coverage-smoke.json")["rows"]
    assert len(rows) == 1 + 4 and all(0 <= row["flagged"] <= 1 for row in rows.values())
    assert study.main(["--preset", "smoke", "--only", "tiny"]) == 0
    assert "no results written" in capsys.readouterr().out
