"""``pyro-vae evaluate`` with estimators other than importance sampling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import TINY, snapshot

from pyro_vae.cli import app
from pyro_vae.evaluation import Bounds
from pyro_vae.runs.run import Run

FIT = ["fit", "--config", "tiny.yaml", "--run", "run"]
EVALUATE = ["evaluate", "run", "--num-data", "6", "--num-samples", "40", "--ks", "[5]"]
SHORT = ["--annealing.num_temperatures", "20", "--annealing.num_steps", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    args = ["--config", str(folder / "tiny.yaml"), "--run", str(folder / "run")]
    assert app.main(["fit", *args]) == 0
    return folder


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch) -> Path:
    """The current folder, with ``tiny.yaml`` and a trained ``run``."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_estimators_are_printed_and_stored(workdir, capsys):
    args = ["--corrected", "--defensive", "0.2", "--tolerance", "0.5", "--ais", "--escalate"]
    assert app.main([*EVALUATE, *args, *SHORT]) == 0
    printed = capsys.readouterr().out
    bounds = Bounds.from_netcdf("run/bounds.nc")
    assert printed.startswith(bounds.table([5]))
    for label in ("log p̂ PSIS", "log p̂ JVI", "log p̂ defensive", "AIS ", "log p̂ or AIS"):
        assert f"\n{label}" in printed
    assert "20.0% of samples from the prior" in printed
    assert "AIS used for 6 of 6 examples, 8 chains each" in printed
    result = json.loads(Path("run/result.json").read_text())["bounds"]
    names = {"psis", "jackknife", "defensive", "ais", "escalated", "ais_gap"}
    assert names <= result["estimates"].keys() == bounds.estimates.keys()
    assert result["estimates"]["ais"]["value"] == bounds.estimates["ais"].value
    assert result["settings"]["annealing"]["num_temperatures"] == 20
    assert result["settings"]["annealing"]["num_steps"] == 2
    assert result["settings"]["tolerance"] == 0.5 and result["settings"]["defensive"] == 0.2
    assert not Path("run/bounds.npz").exists()


def test_default_evaluation_has_no_further_estimators(workdir):
    assert app.main(EVALUATE) == 0
    result = json.loads(Path("run/result.json").read_text())["bounds"]
    assert "settings" not in result
    assert list(result["estimates"])[-2:] == ["log_evidence", "gap"]
    assert Bounds.from_netcdf("run/bounds.nc").settings == {}


def interrupt_ais(monkeypatch, after: int) -> list[slice]:
    """Run AIS in blocks of two examples and interrupt it after ``after`` blocks."""
    from pyro_vae.evaluation.annealing import sampler

    forward, blocks = sampler.run_forward_chains, []

    def run_or_interrupt(path, plan, rows, advance, **settings):
        if len(blocks) == after:
            raise KeyboardInterrupt
        blocks.append(rows)
        return forward(path, plan, rows, advance, **settings)

    monkeypatch.setattr(sampler, "max_chain_pairs", lambda x: 2 * 8)
    monkeypatch.setattr(sampler, "run_forward_chains", run_or_interrupt)
    return blocks


@pytest.mark.parametrize("option", ["--ais", "--escalate"])
def test_interrupted_ais_resumes(workdir, option, monkeypatch, capsys):
    # k̂ needs more than 24 samples: all examples are escalated
    args = ["24" if arg == "40" else arg for arg in [*EVALUATE, option, *SHORT]]
    with monkeypatch.context() as patch:
        blocks = interrupt_ais(patch, after=100)
        assert app.main(args) == 0
    whole = Bounds.from_netcdf("run/bounds.nc")
    pilots = 1 if option == "--escalate" else 0
    assert len(blocks) == 3 + pilots
    with monkeypatch.context() as patch:
        blocks = interrupt_ais(patch, after=2 + pilots)
        capsys.readouterr()
        assert app.main(args) == 130
        assert capsys.readouterr().err.endswith("interrupted; repeat the command to resume\n")
        assert [b.start for b in blocks[pilots:]] == [0, 2]
    assert Path("run/bounds.npz").exists()
    with monkeypatch.context() as patch:
        blocks = interrupt_ais(patch, after=100)
        assert app.main(args) == 0
        assert [b.start for b in blocks[pilots:]] == [4]
    again = Bounds.from_netcdf("run/bounds.nc")
    assert str(again) == str(whole)
    np.testing.assert_array_equal(again.per_datum["ais"], whole.per_datum["ais"])
    assert not Path("run/bounds.npz").exists()


def test_checkpoint_of_other_settings_is_rejected(workdir, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_ais(patch, after=1)
        assert app.main([*EVALUATE, "--ais", *SHORT]) == 130
        capsys.readouterr()
        before = snapshot(workdir)
        assert app.main([*EVALUATE, "--ais", *SHORT, "--seed", "5"]) == 1
    assert "run/bounds.npz to be a checkpoint of this computation" in capsys.readouterr().err
    assert snapshot(workdir) == before
    # an evaluation without AIS ignores the checkpoint
    assert app.main(EVALUATE) == 0
    assert Path("run/bounds.npz").exists()


def test_overwriting_a_run_removes_the_checkpoint_of_ais(workdir, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_ais(patch, after=1)
        assert app.main([*EVALUATE, "--ais", *SHORT]) == 130
    Path("run/.bounds-abc.npz").write_bytes(b"half")
    assert Run("run").checkpoint_file("bounds").exists()
    assert app.main([*FIT, "--overwrite"]) == 0
    assert not list(Path("run").glob("*bounds*")) and not list(Path("run").glob(".bounds*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--defensive", "1.5"],
            "expected defensive, the prior's share of samples, between 0 and 1",
        ),
        (["--defensive", "some"], "expected defensive to be a number or null; got 'some'"),
        (["--tolerance", "0"], "expected tolerance > 0, in nats; got 0.0"),
        (
            ["--tolerance", "0.1", "--keep-log-weights"],
            "expected keep_log_weights or tolerance; got both",
        ),
        (SHORT, "expected --ais or --escalate with annealing settings; got neither: add one"),
        (
            ["--ais", "--ais.num_steps", "3"],
            "unknown option --ais.num_steps; did you mean --annealing.num_steps?",
        ),
        (
            ["--ais", "--annealing.num_temperatures", "0"],
            "expected num_temperatures to be a positive integer; got 0",
        ),
        (
            ["--ais", "--annealing.schedule", "steep"],
            "expected annealing.schedule to be sigmoidal, linear or adaptive; got 'steep'",
        ),
        (
            ["--ais", "--annealing.num_temperature", "10"],
            "unknown option --annealing.num_temperature; did you mean --annealing.num_temp",
        ),
        (["--ais", "7"], "expected only options and their values; got unexpected '7'"),
    ],
)
def test_bad_input_gets_one_sentence(workdir, args, message, capsys):
    before = snapshot(workdir)
    capsys.readouterr()
    assert app.main([*EVALUATE, *args]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"pyro-vae: {message}") and err.count("\n") == 1
    assert snapshot(workdir) == before


def test_help_lists_all_estimators(capsys):
    with pytest.raises(SystemExit):
        app.main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--corrected", "--defensive", "--tolerance", "--ais", "--escalate"):
        assert option in text
    assert "--annealing.num_temperatures" in text and "(default: 500)" in text
