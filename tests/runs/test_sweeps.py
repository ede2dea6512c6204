"""Sweeps: trials, early stopping, interruption, and the ranking by log p̂."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from run_folders import TINY, assert_error

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.runs import load, sweeps
from pyro_vae.runs.run import Run
from pyro_vae.runs.sweeps import SweepError, read_space, sweep

optuna = pytest.importorskip("optuna")

SPACE = """\
fit.optimizer: [Adam]
fit.optimizer.lr: {low: 0.0001, high: 0.02, log: true}
model.latent_dim: [2, 3]
"""


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, Path]:
    config, space = tmp_path / "config.yaml", tmp_path / "space.yaml"
    config.write_text(TINY.replace("epochs: 1", "epochs: 2"))
    space.write_text(SPACE)
    return config, space, tmp_path / "sweep"


def test_sweep_ranks_runs_by_their_own_estimates(files, capsys):
    config, space, folder = files
    argv = ["sweep", str(config), "--space", str(space), "--folder", str(folder)]
    argv += ["--trials", "3", "--finalists", "2", "--num-data", "4"]
    assert app.main(argv) == 0
    table = (folder / "ranking.txt").read_text()
    assert capsys.readouterr().out == table
    result = json.loads((folder / "sweep.json").read_text())
    assert [trial["trial"] for trial in result["trials"]] == [0, 1, 2]
    first, second = result["ranking"]
    # reliable estimates of validation data, the higher one first, with the paired difference
    log_p = {}
    for number in (first, second):
        run = load(folder / "trials" / f"{number:04}")
        bounds = pv.evaluate(run.program, run.data.valid.head(4), reliable=True)
        log_p[number] = bounds.per_datum["log_evidence"]
    difference = log_p[second] - log_p[first]
    assert difference.mean() < 0
    error = difference.std(ddof=1) / 2
    assert f"{difference.mean():16.3f}{error:10.3f}" in table
    assert not run.bounds.is_file()  # free for the test data
    # the best by validation ELBO are those that are ranked
    values = {t["trial"]: t["valid_elbo"] for t in result["trials"]}
    assert {first, second} == {*sorted(values, key=lambda n: -values[n])[:2]}
    for trial in result["trials"]:
        run = folder / "trials" / f"{trial['trial']:04}"
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert settings["model"]["latent_dim"] == trial["settings"]["model.latent_dim"]
        lr = settings["fit"]["optimizer"]["init_args"]["lr"]
        assert lr == pytest.approx(trial["settings"]["fit.optimizer.lr"])
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert trial["valid_elbo"] == max(record["valid_elbo"] for record in metrics)
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")

    # again: nothing is trained, the same table
    before = (folder / "trials" / "0000" / "weights.safetensors").stat().st_mtime_ns
    assert sweep(config, space, folder, trials=3, finalists=2, num_data=4) + "\n" == table
    assert (folder / "trials" / "0000" / "weights.safetensors").stat().st_mtime_ns == before
    space.write_text("model.latent_dim: [4]\n")
    assert_error(
        capsys,
        argv,
        f"{re.escape(str(folder))} belongs to a sweep of another space or configuration: choose "
        "another folder",
        folder / "trials",
    )


def test_killed_sweep_resumes_its_trial(files, monkeypatch):
    config, space, folder = files

    class Killed(BaseException):
        pass

    fit = Run.fit

    def kill(self, experiment, resume=False, on_epoch=None, **options):
        def stop(model, data, history):
            on_epoch(model, data, history)
            raise Killed

        return fit(self, experiment, resume, on_epoch=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "fit", kill)
        with pytest.raises(Killed):
            sweep(config, space, folder, trials=1)
    resumed = []

    def record(self, experiment, resume=False, **options):
        resumed.append((self.name, resume))
        return fit(self, experiment, resume, **options)

    monkeypatch.setattr(Run, "fit", record)
    sweep(config, space, folder, trials=1, num_data=3)
    assert resumed == [("0000", True)]
    (trial,) = json.loads((folder / "sweep.json").read_text())["trials"]
    assert (trial["state"], trial["epochs"]) == ("complete", 2)


def test_bad_trials_are_stopped_early(files, monkeypatch):
    config, space, folder = files
    config.write_text(TINY.replace("epochs: 1", "epochs: 4"))
    space.write_text("fit.optimizer: [Adam]\nfit.optimizer.lr: [0.00000001, 0.02]\n")
    # the median rule starts after five trials
    pruner = optuna.pruners.MedianPruner
    monkeypatch.setattr(
        optuna.pruners, "MedianPruner", lambda **_: pruner(n_startup_trials=1, n_warmup_steps=1)
    )
    folder.mkdir()
    work = sweeps._Sweep(config, space, folder, 0, [])
    study = work._open_study()
    for rate in ("0.02", "1e-08"):  # a user's own guesses come first
        study.enqueue_trial({"fit.optimizer": '"Adam"', "fit.optimizer.lr": rate})
    work.run(2)
    good, bad = study.trials
    assert (good.state.name, bad.state.name) == ("COMPLETE", "PRUNED")
    assert len(bad.intermediate_values) < len(good.intermediate_values) == 4


def test_errors(files):
    config, space, folder = files
    config.write_text(TINY.replace("dynamic}", "dynamic, valid: 0}"))
    with pytest.raises(SweepError, match="expected validation data, by which trials are judged"):
        sweep(config, space, folder)
    config.write_text(TINY)
    space.write_text("model.latent_dim: 3\n")
    with pytest.raises(ValueError, match=r"expected model.latent_dim in .* to be a list of values"):
        sweep(config, space, folder)
    space.write_text("model.latent_din: [3]\n")
    with pytest.raises(ValueError, match=r"did you mean --model[.]latent_dim"):
        sweep(config, space, folder)
    space.write_text("model.latent_dim: {low: 5, high: 2}\n")
    with pytest.raises(ValueError, match="expected low < high"):
        read_space(space)
    assert not folder.exists()
    space.write_text("data.binarize: [static, dynamic]\n")
    with pytest.raises(ValueError, match=r"got data\.binarize: log p\(x\) of other data cannot"):
        sweep(config, space, folder)
    space.write_text("model.likelihood: [Bernoulli, Gaussian]\n")
    with pytest.raises(SweepError, match="expected trials whose log p"):
        # the first trials may agree
        sweep(config, space, folder.with_name("measures"), trials=8)
    config.write_text(TINY)
    # settings that cannot be trained, or diverge, are trials without a result
    space.write_text("fit.optimizer: [SGD]\nfit.optimizer.lr: [1.0e+30]\n")
    with pytest.raises(SweepError, match=r"expected at least one finished trial .* got none of 1"):
        sweep(config, space, folder.with_name("diverging"), trials=1)
    space.write_text("fit.batch_size: [0]\n")
    with pytest.raises((SweepError, ValueError), match="batch_size"):
        sweep(config, space, folder, trials=1)
