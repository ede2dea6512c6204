"""The verdicts on reported numbers."""

from __future__ import annotations

import pytest
from scripts import read_json

from experiments.command import write_results
from experiments.studies import judge

ROW = {
    "bound": {"name": "the ELBO", "value": -100.0},
    "log_evidence": -95.0,
    "constant": 0.0,
    "se": {"bound": 0.03, "log_evidence": 0.04},
}


@pytest.mark.parametrize(
    ("claimed", "row", "expected"),
    [
        (-100.1, {}, "the ELBO"),
        (-100.1, {"constant": 720.45}, "the ELBO, without a constant of 720.5 nats"),
        (-94.0, {}, "no bound: 1.00 nats above log p̂"),
        (-94.9, {}, "5.10 nats above the ELBO, -0.10 below log p̂"),
        (-97.0, {}, "3.00 nats above the ELBO, 2.00 below log p̂"),
        (-120.0, {}, "20.00 nats below the ELBO"),
        (
            -96.0,
            {"bound": {"name": "L_10", "value": -97.0}},
            "1.00 nats above L_10, 1.00 below log p̂",
        ),
    ],
)
def test_verdicts(claimed, row, expected):
    assert judge.judge(claimed, 0.03, ROW | row) == expected


def test_smoke_run(tmp_path, capsys):
    pytest.importorskip("pythae")
    args = ["--preset", "smoke", "--results", str(tmp_path)]
    only = ["pythae VAE, squared error, grey", "torch, mean squared error, grey"]
    results = judge.STUDY.results("smoke", 0, only)
    theirs, ours = results["rows"].values()
    # 64 pixels: ½ · 64 log 2π
    assert theirs["verdict"] == "the ELBO, without a constant of 58.8 nats"
    assert theirs["estimate"] == pytest.approx(theirs["log_evidence"], abs=0.5)
    assert ours["verdict"].startswith("no bound: ")
    write_results(tmp_path / "judge-smoke.json", results)
    assert read_json(tmp_path / "judge-smoke.json") == results
    capsys.readouterr()
    assert judge.STUDY.main([*args, "--table"]) == 0
    assert f"| {only[0]} | {theirs['reported']:.2f} |" in capsys.readouterr().out
