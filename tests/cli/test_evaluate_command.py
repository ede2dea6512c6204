"""``pyro-vae evaluate`` with estimators other than importance sampling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import TINY, snapshot

from pyro_vae.cli import app
from pyro_vae.evaluation import Bounds, Laplace

FIT = ["fit", "--config", "tiny.yaml", "--run", "run"]
EVALUATE = ["evaluate", "run", "--num-data", "6", "--num-samples", "40", "--ks", "[5]"]
SHORT = [
    *("--estimators.Annealing.num_temperatures", "20"),
    *("--estimators.Annealing.num_steps", "2"),
]


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
    args = ["--estimators", "[Corrected]", "--estimators.Defensive.share", "0.2"]
    args += ["--estimators.AdaptiveSamples.tolerance", "0.5", "--reliable"]
    assert app.main([*EVALUATE, *args, *SHORT]) == 0
    printed = capsys.readouterr().out
    bounds = Bounds.from_netcdf("run/bounds.nc")
    assert printed.startswith(bounds.table([5]))
    for label in ("log p̂ PSIS", "log p̂ JVI", "log p̂ defensive", "AIS ", "log p̂ from: "):
        assert f"\n{label}" in printed
    assert "20.0% of samples from the prior" in printed
    assert "AIS, 8 chains each" in printed
    result = json.loads(Path("run/result.json").read_text())["bounds"]
    names = {"psis", "jackknife", "defensive", "ais", "ais_gap"}
    assert names <= result["estimates"].keys() == bounds.estimates.keys()
    assert result["estimates"]["ais"]["value"] == bounds.estimates["ais"].value
    assert result["settings"]["annealing"]["num_temperatures"] == 20
    assert result["settings"]["annealing"]["num_steps"] == 2
    assert result["settings"]["tolerance"] == 0.5 and result["settings"]["defensive"] == 0.2
    assert sum(result["proposals"].values()) == 6
    assert not list(Path("run").glob("bounds.npz*"))


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


#: A ladder whose second rung never has a good k̂, so that all examples reach AIS.
LADDER = [
    *("--estimators.Ladder.laplace.num_samples", "20"),
    *("--estimators.Ladder.laplace.num_rounds", "0"),
    *("--estimators.Ladder.max_error", "1e-6"),
    *("--estimators.Ladder.annealing.num_chains", "8"),
    *("--estimators.Ladder.annealing.num_temperatures", "20"),
    *("--estimators.Ladder.annealing.num_steps", "2"),
]


@pytest.mark.parametrize(("args", "column"), [(SHORT, "ais"), (LADDER, "log_evidence")])
def test_interrupted_ais_resumes(workdir, args, column, monkeypatch, capsys):
    args, file = [*EVALUATE, *args], f"run/bounds.npz.{'ais' if args is SHORT else 'ladder_ais'}"
    with monkeypatch.context() as patch:
        blocks = interrupt_ais(patch, after=100)
        assert app.main(args) == 0
    whole = Bounds.from_netcdf("run/bounds.nc")
    trials = len(blocks) - 3  # on two examples, before q is sampled
    assert trials == int(column == "ais")
    with monkeypatch.context() as patch:
        blocks = interrupt_ais(patch, after=2 + trials)
        capsys.readouterr()
        assert app.main(args) == 130
        assert capsys.readouterr().err.endswith("interrupted; repeat the command to resume\n")
        assert [b.start for b in blocks[trials:]] == [0, 2]
    assert Path(file).exists()
    with monkeypatch.context() as patch:
        blocks = interrupt_ais(patch, after=100)
        assert app.main(args) == 0
        assert [b.start for b in blocks[trials:]] == [4]
    again = Bounds.from_netcdf("run/bounds.nc")
    assert str(again) == str(whole)
    np.testing.assert_array_equal(again.per_datum[column], whole.per_datum[column])
    assert not list(Path("run").glob("bounds.npz*"))


def test_checkpoint_of_other_settings_is_rejected(workdir, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_ais(patch, after=2)
        assert app.main([*EVALUATE, *SHORT]) == 130
    capsys.readouterr()
    before = snapshot(workdir)
    assert app.main([*EVALUATE, *SHORT, "--seed", "5"]) == 1
    assert "run/bounds.npz.ais to be a checkpoint of this computation" in capsys.readouterr().err
    assert snapshot(workdir) == before
    # an evaluation without AIS ignores the checkpoint
    assert app.main(EVALUATE) == 0
    assert Path("run/bounds.npz.ais").exists()


def test_overwriting_a_run_removes_the_checkpoint_of_ais(workdir, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_ais(patch, after=2)
        assert app.main([*EVALUATE, *SHORT]) == 130
    Path("run/.bounds-abc.npz").write_bytes(b"half")
    assert Path("run/bounds.npz.ais").exists()
    assert app.main([*FIT, "--overwrite"]) == 0
    assert not list(Path("run").glob("*bounds*")) and not list(Path("run").glob(".bounds*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--estimators.Defensive.share", "1.5"],
            "expected share, the prior's share of the samples, between 0 and 1; got 1.5",
        ),
        (
            ["--estimators.Defensive.share", "some"],
            "expected estimators.Defensive.share to be a number; got 'some'",
        ),
        (
            ["--estimators.AdaptiveSamples.tolerance", "0"],
            "expected tolerance > 0, in nats; got 0.0",
        ),
        (
            ["--estimators.AdaptiveSamples.tolerance", "0.1", "--keep-log-weights"],
            "expected keep_log_weights or AdaptiveSamples; got both",
        ),
        (["--estimators", "AdaptiveSamples"], "expected estimators.AdaptiveSamples.tolerance"),
        (
            ["--estimators", "Anealing"],
            "expected estimators to be one of AdaptiveSamples, Annealing, Corrected, Defensive, "
            "Ladder, Laplace, or a class of a --plugin as module.Class; got 'Anealing'; did you "
            "mean Annealing?",
        ),
        (["--estimators", "7"], "expected estimators to be one of AdaptiveSamples, "),
        (["--estimators"], "expected a value after --estimators; got nothing"),
        (
            ["--estimators", "[Corrected, Corrected]"],
            "expected one estimator of each class; got 2 of Corrected: keep one",
        ),
        (
            ["--estimators.Annealing.num_temperatures", "0"],
            "expected num_temperatures to be a positive integer; got 0",
        ),
        (
            ["--estimators.Annealing.schedule", "steep"],
            "expected estimators.Annealing.schedule to be sigmoidal, linear or adaptive; got 'st",
        ),
        (
            ["--estimators.Annealing.num_temperature", "10"],
            "unknown option --estimators.Annealing.num_temperature; did you mean --estimators.Ann",
        ),
        (["--reliable", "7"], "expected only options and their values; got unexpected '7'"),
        (["--ais"], "evaluate has no option --ais: use --estimators Annealing"),
        (["--escalate"], "evaluate has no option --escalate: use --reliable"),
        (["--corrected"], "evaluate has no option --corrected: use --estimators Corrected"),
        (
            ["--annealing.num_chains", "3"],
            "evaluate has no option --annealing: use --estimators.Annealing or --estimators.Ladder",
        ),
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
    assert "--reliable" in text
    names = "AdaptiveSamples, Annealing, Corrected, Defensive, Ladder, Laplace"
    assert f"--estimators CLASS further estimators of log p(x). (one of {names})" in text


def test_help_of_an_estimator(capsys):
    with pytest.raises(SystemExit):
        app.main(["evaluate", "--estimators.help", "Annealing"])
    text = capsys.readouterr().out
    assert "num_temperatures" in text and "default: 500" in text


def test_reliable_evaluation(workdir, capsys):
    assert app.main(EVALUATE) == 0
    plain = Bounds.from_netcdf("run/bounds.nc")
    capsys.readouterr()
    assert app.main([*EVALUATE, "--reliable"]) == 0
    printed = capsys.readouterr().out
    bounds = Bounds.from_netcdf("run/bounds.nc")
    assert printed.startswith(bounds.table([5])) and "\nlog p̂ from: " in printed
    assert bounds.iwae == plain.iwae and bounds.elbo == plain.elbo
    assert bounds.log_evidence != plain.log_evidence
    result = json.loads(Path("run/result.json").read_text())["bounds"]
    assert result["proposals"] == bounds.proposals and sum(bounds.proposals.values()) == 6
    assert result["settings"]["ladder"]["laplace"]["num_samples"] == Laplace().num_samples
    assert app.main([*EVALUATE, "--estimators", "Ladder"]) == 0
    again = Bounds.from_netcdf("run/bounds.nc")
    np.testing.assert_array_equal(again.per_datum["log_evidence"], bounds.per_datum["log_evidence"])


def test_estimators_are_yaml(workdir):
    text = "[Corrected, {class_path: Laplace, num_samples: 30}]"
    assert app.main([*EVALUATE, "--estimators", text, "--estimators.Laplace.num_rounds", "1"]) == 0
    bounds = Bounds.from_netcdf("run/bounds.nc")
    assert {"psis", "jackknife", "laplace"} <= bounds.estimates.keys()
    settings = bounds.settings["laplace"]
    assert (settings["num_samples"], settings["num_rounds"]) == (30, 1)


def test_estimator_of_a_plugin(workdir):
    Path("mine.py").write_text(
        """
from dataclasses import dataclass
import numpy as np
from pyro_vae.evaluation import Bounds, Estimator

@dataclass(frozen=True)
class Constant(Estimator):
    value: float = 1.0

    def estimate(self, task, bounds):
        column = np.full(len(task), self.value)
        return bounds.merge(Bounds(1, {"constant": column}))
"""
    )
    args = ["--plugin", "mine.py", "--estimators", "mine.Constant"]
    assert app.main([*EVALUATE, *args]) == 0
    assert Bounds.from_netcdf("run/bounds.nc").per_datum["constant"].tolist() == [1.0] * 6
