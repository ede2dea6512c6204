"""The regimes of the coverage study have the truth that they state."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import read_json

import pyro_vae as pv
from experiments.command import write_results
from experiments.studies import coverage


@pytest.mark.parametrize("label", coverage.REGIMES)
def test_divergence_of_each_regime(label):
    """The ELBO is log p(x) − KL(q ‖ p(z|x)), within 4.5 standard errors of each example."""
    problem = coverage.REGIMES[label].make(20)
    bounds = pv.evaluate(
        problem.program, problem.x, *problem.args, num_samples=1000, ks=(), compile=False
    )
    data = bounds.per_datum
    error = np.abs(data["elbo"] - (problem.log_evidence - problem.divergence))
    # a class with a probability of 1e-5 is not drawn, and missing from the ELBO
    assert (error < 4.5 * np.sqrt(data["elbo_variance"]) + 2e-4).all()


def test_smoke_run(tmp_path, capsys):
    args = ["--preset", "smoke", "--results", str(tmp_path)]
    only = ["exact q", "rare class, 10⁻⁵"]
    assert coverage.STUDY.main([*args, "--only", *only]) == 0
    assert "no results written: --only" in capsys.readouterr().out
    results = coverage.STUDY.results("smoke", 0, only)
    assert [*results["rows"]] == only
    exact, rare = results["rows"].values()
    assert exact["log_evidence"]["flagged"] == 0 and exact["log_evidence"]["coverage"] == 1
    assert rare["log_evidence"]["flagged"] == 1 and rare["log_evidence"]["coverage"] is None
    assert "laplace" in exact and "laplace" not in rare
    write_results(tmp_path / "coverage-smoke.json", results)
    assert read_json(tmp_path / "coverage-smoke.json") == results
    capsys.readouterr()
    assert coverage.STUDY.main([*args, "--table"]) == 0
    assert "| exact q | 100% / 0% / 100% |" in capsys.readouterr().out
