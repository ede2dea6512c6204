"""``pyro-vae evaluate`` with other rulers beside importance sampling."""

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
    words = ["--config", str(folder / "tiny.yaml"), "--run", str(folder / "run")]
    assert app.main(["fit", *words]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """The current folder, with ``tiny.yaml`` and a trained ``run`` in it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_at_once_is_printed_and_stored(here, capsys):
    words = ["--corrected", "--defensive", "0.2", "--tolerance", "0.5", "--ais", "--escalate"]
    assert app.main([*EVALUATE, *words, *SHORT]) == 0
    printed = capsys.readouterr().out
    bounds = Bounds.from_netcdf("run/bounds.nc")
    assert printed.startswith(bounds.table([5]))
    for label in ("log p̂ PSIS", "log p̂ JVI", "log p̂ defensive", "AIS ", "log p̂ or AIS"):
        assert f"\n{label}" in printed
    assert "20.0% of draws from the prior" in printed
    assert "AIS took 6 of 6 data, 8 chains each" in printed
    told = json.loads(Path("run/result.json").read_text())["bounds"]
    names = {"psis", "jackknife", "defensive", "ais", "escalated", "ais_gap"}
    assert names <= told["estimates"].keys() == bounds.estimates.keys()
    assert told["estimates"]["ais"]["value"] == bounds.estimates["ais"].value
    assert told["settings"]["annealing"]["num_temperatures"] == 20
    assert told["settings"]["annealing"]["num_steps"] == 2
    assert told["settings"]["tolerance"] == 0.5 and told["settings"]["defensive"] == 0.2
    assert not Path("run/annealing.npz").exists()


@pytest.mark.parametrize("ruler", ["ais", "escalate"])
def test_settings_may_be_called_after_the_option(here, ruler, capsys):
    assert app.main([*EVALUATE, f"--{ruler}", *SHORT]) == 0
    first, _ = capsys.readouterr()
    own = [f"--{ruler}.num_temperatures=20", f"--{ruler}.num_steps", "2"]
    assert app.main([*EVALUATE, f"--{ruler}", *own]) == 0
    assert capsys.readouterr().out == first


def test_without_options_nothing_is_added(here):
    assert app.main(EVALUATE) == 0
    told = json.loads(Path("run/result.json").read_text())["bounds"]
    assert "settings" not in told
    assert list(told["estimates"])[-2:] == ["log_evidence", "gap"]
    assert Bounds.from_netcdf("run/bounds.nc").settings == {}


def interrupted(monkeypatch, after: int) -> list[slice]:
    """AIS in blocks of two data, interrupted in the block after so many."""
    from pyro_vae.evaluation.annealing import sampler

    forward, blocks = sampler.forward, []

    def walk(path, plan, rows, advance, **settings):
        if len(blocks) == after:
            raise KeyboardInterrupt
        blocks.append(rows)
        return forward(path, plan, rows, advance, **settings)

    monkeypatch.setattr(sampler, "max_pairs", lambda x: 2 * 8)
    monkeypatch.setattr(sampler, "forward", walk)
    return blocks


@pytest.mark.parametrize("ruler", ["--ais", "--escalate"])
def test_ais_that_was_killed_goes_on(here, ruler, monkeypatch, capsys):
    # 24 draws know no k̂: all data are escalated
    words = [*EVALUATE, ruler, *SHORT, "--num-samples", "24"]
    with monkeypatch.context() as patch:
        blocks = interrupted(patch, after=100)
        assert app.main(words) == 0
    whole = Bounds.from_netcdf("run/bounds.nc")
    tried = 1 if ruler == "--escalate" else 0
    assert len(blocks) == 3 + tried
    with monkeypatch.context() as patch:
        blocks = interrupted(patch, after=2 + tried)
        capsys.readouterr()
        assert app.main(words) == 130
        assert capsys.readouterr().err.endswith("interrupted; the same command goes on\n")
        assert [b.start for b in blocks[tried:]] == [0, 2]
    assert Path("run/annealing.npz").exists()
    with monkeypatch.context() as patch:
        blocks = interrupted(patch, after=100)
        assert app.main(words) == 0
        assert [b.start for b in blocks[tried:]] == [4]
    again = Bounds.from_netcdf("run/bounds.nc")
    assert str(again) == str(whole)
    np.testing.assert_array_equal(again.per_datum["ais"], whole.per_datum["ais"])
    assert not Path("run/annealing.npz").exists()


def test_other_settings_do_not_go_on_with_it(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupted(patch, after=1)
        assert app.main([*EVALUATE, "--ais", *SHORT]) == 130
        capsys.readouterr()
        before = snapshot(here)
        assert app.main([*EVALUATE, "--ais", *SHORT, "--seed", "5"]) == 1
    assert "run/annealing.npz to be a checkpoint of this computation" in capsys.readouterr().err
    assert snapshot(here) == before
    # what needs no annealing does not look at it, and leaves it
    assert app.main(EVALUATE) == 0
    assert Path("run/annealing.npz").exists()


def test_what_ais_left_is_gone_when_the_run_is_replaced(here, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, after=1)
        assert app.main([*EVALUATE, "--ais", *SHORT]) == 130
    Path("run/.annealing-abc.npz").write_bytes(b"half")
    assert Run("run").annealing.exists()
    assert app.main([*FIT, "--overwrite"]) == 0
    assert not list(Path("run").glob("*annealing*"))
    assert not list(Path("run").glob(".annealing*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--defensive", "1.5"], "expected defensive, the prior's share of draws, between 0 and 1"),
        (["--defensive", "some"], "expected defensive to be a number or null; got 'some'"),
        (["--tolerance", "0"], "expected tolerance > 0, in nats; got 0.0"),
        (
            ["--tolerance", "0.1", "--keep-log-weights"],
            "expected keep_log_weights or tolerance; got both",
        ),
        (SHORT, "expected --ais or --escalate beside --annealing.num_temperatures; got neither"),
        (["--ais.num_steps", "3"], "expected --ais or --escalate beside --ais.num_steps; got"),
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
            "there is no option --annealing.num_temperature; did you mean --annealing.num_temp",
        ),
        (["--ais", "7"], "expected options and their values; got '7' besides"),
    ],
)
def test_bad_input_gets_one_sentence(here, words, message, capsys):
    before = snapshot(here)
    capsys.readouterr()
    assert app.main([*EVALUATE, *words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"pyro-vae: {message}") and err.count("\n") == 1
    assert snapshot(here) == before


def test_help_names_every_ruler(capsys):
    with pytest.raises(SystemExit):
        app.main(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for option in ("--corrected", "--defensive", "--tolerance", "--ais", "--escalate"):
        assert option in told
    assert "--annealing.num_temperatures" in told and "(default: 500)" in told
