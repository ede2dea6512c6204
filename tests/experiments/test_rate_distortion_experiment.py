"""The sweep over β: besides its table, a curve by annealing and a picture of both."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments import rate_distortion as experiment
from experiments.table import Cell
from pyro_vae.evaluation.annealing.rate_distortion_curve import BETAS, RateDistortion


@pytest.fixture
def run(tmp_path):
    def call(*words):
        places = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
        return experiment.main(["--preset", "smoke", *places, *words])

    return call


def test_the_curve_is_of_the_first_row_and_made_once(run, tmp_path, capsys):
    assert run("--only", "beta 1", "beta 10") == 0
    assert (tmp_path / "rate_distortion-smoke.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "rate_distortion_curve-smoke.json").read_text(encoding="utf-8"))
    assert told["betas"] == list(BETAS) and told["num_data"] == 4 and told["row"] == "beta 1"
    file = tmp_path / "runs" / "rate_distortion-smoke" / "beta-1-0" / "curve.nc"
    found, stamp = RateDistortion.from_netcdf(file), file.stat().st_mtime_ns
    assert str(found) in capsys.readouterr().out
    assert [row["value"] for row in told["rate"]] == pytest.approx(found.rate)
    rows = json.loads((tmp_path / "rate_distortion-smoke.json").read_text(encoding="utf-8"))["rows"]
    for told in rows.values():
        (record,) = told["runs"]
        measures = record["measures"]
        elbo = -measures["rate"]["value"] - measures["distortion"]["value"]
        # of 4850 test data, and bounds of the first 20 of them
        assert elbo == pytest.approx(record["bounds"]["estimates"]["elbo"]["value"], rel=0.1)
        assert (
            0 <= measures["mutual information"]["value"] <= measures["mutual information"]["limit"]
        )
        assert sum(measures["rate"]["dimensions"]["z"]) == pytest.approx(
            measures["rate"]["value"], rel=1e-3
        )
    assert run("--only", "beta 1") == 0
    assert file.stat().st_mtime_ns == stamp
    assert run("--table") == 0


def test_rows_are_trained_at_their_beta():
    for row, beta in experiment.ROWS.items():
        assert Cell(experiment.TABLE, "small", row).experiment().objective.beta == float(beta)


def test_without_the_first_row_there_is_no_curve(run, tmp_path):
    assert run("--only", "beta 10") == 0
    assert not list(tmp_path.glob("*curve*")) and not list(tmp_path.glob("*.png"))


def test_what_goes_wrong_is_said_in_one_sentence(run, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise ValueError("expected something else")

    monkeypatch.setattr(experiment, "rate_distortion", broken)
    assert run("--only", "beta 1") == 1
    assert capsys.readouterr().err.endswith("rate_distortion: expected something else\n")
