"""The sweep over β: its table, the annealed curve and the figure of both."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.studies import rate_distortion as experiment
from experiments.table import Cell
from pyro_vae.evaluation.annealing.rate_distortion_curve import DEFAULT_BETAS, RateDistortion


@pytest.fixture
def run(tmp_path):
    def call(*args):
        folders = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
        return experiment.main(["--preset", "smoke", *folders, *args])

    return call


def test_curve_of_the_first_row_is_computed_once(run, tmp_path, capsys):
    assert run("--only", "beta 1", "beta 10") == 0
    assert (tmp_path / "rate_distortion-smoke.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "rate_distortion_curve-smoke.json").read_text(encoding="utf-8")
    summary = json.loads(text)
    assert summary["betas"] == list(DEFAULT_BETAS)
    assert summary["num_data"] == 4 and summary["row"] == "beta 1"
    file = tmp_path / "runs" / "rate_distortion-smoke" / "beta-1-0" / "curve.nc"
    curve, modified = RateDistortion.from_netcdf(file), file.stat().st_mtime_ns
    assert str(curve) in capsys.readouterr().out
    assert [row["value"] for row in summary["rate"]] == pytest.approx(curve.rate)
    rows = json.loads((tmp_path / "rate_distortion-smoke.json").read_text(encoding="utf-8"))["rows"]
    for row in rows.values():
        (record,) = row["runs"]
        measures = record["measures"]
        elbo = -measures["rate"]["value"] - measures["distortion"]["value"]
        # measures use 4850 test examples, bounds the first 20
        assert elbo == pytest.approx(record["bounds"]["estimates"]["elbo"]["value"], rel=0.1)
        assert (
            0 <= measures["mutual information"]["value"] <= measures["mutual information"]["limit"]
        )
        assert sum(measures["rate"]["dimensions"]["z"]) == pytest.approx(
            measures["rate"]["value"], rel=1e-3
        )
    assert run("--only", "beta 1") == 0
    assert file.stat().st_mtime_ns == modified
    assert run("--table") == 0


def test_rows_are_trained_at_their_beta():
    for row, beta in experiment.ROWS.items():
        assert Cell(experiment.TABLE, "small", row).experiment().objective.beta == float(beta)


def test_no_curve_without_the_first_row(run, tmp_path):
    assert run("--only", "beta 10") == 0
    assert not list(tmp_path.glob("*curve*")) and not list(tmp_path.glob("*.png"))


def test_failure_is_a_one_line_error(run, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise ValueError("expected something else")

    monkeypatch.setattr(experiment, "rate_distortion", fail)
    assert run("--only", "beta 1") == 1
    assert capsys.readouterr().err.endswith("rate_distortion: expected something else\n")
