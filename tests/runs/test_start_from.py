"""Runs that start from the weights of another run: ``pyro-vae fit --start_from FOLDER``."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch
import torch
from run_folders import TINY

from pyro_vae.cli import app
from pyro_vae.config import experiment
from pyro_vae.learning import trainer
from pyro_vae.runs.run import Run


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """The current folder, with a finished run ``first``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert fit("first") == 0
    return tmp_path


def fit(run: str, *args: str) -> int:
    return app.main(["fit", "--config", "tiny.yaml", "--run", run, *args])


def weights(run: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(f"{run}/weights.safetensors")


#: A step size so small that the weights do not change.
NO_TRAINING = ["--fit.optimizer", "SGD", "--fit.optimizer.lr", "1e-30"]


def test_run_starts_from_the_weights_of_the_other_run(workdir):
    assert fit("second", "--start_from", "first", *NO_TRAINING, "--fit.seed", "5") == 0
    first, second = weights("first"), weights("second")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = Run("second").read_result()["start"]
    stored = (workdir / "first" / "weights.safetensors").read_bytes()
    assert start == {"run": "first", "weights": hashlib.sha256(stored).hexdigest()}
    again = experiment.load_experiment(workdir / "second" / "config.yaml")
    assert again.start_from == workdir / "first"
    # other runs do not store the option
    assert "start_from" not in (workdir / "first" / "config.yaml").read_text()
    assert "start" not in Run("first").read_result()


def test_without_the_option_the_weights_differ(workdir):
    assert fit("second", *NO_TRAINING, "--fit.seed", "5") == 0
    first, second = weights("first"), weights("second")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_data_dependent_initialisation_is_skipped(workdir):
    biased = ["--model.decoder", "MLP", "--model.decoder.output_bias", "data"]
    assert fit("biased", *biased) == 0
    assert fit("second", *biased, "--start_from", "biased", *NO_TRAINING) == 0
    first, second = weights("biased"), weights("second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_interrupted_run_resumes_bit_for_bit(workdir, monkeypatch):
    args = ["--start_from", "first", "--fit.epochs", "3"]
    assert fit("whole", *args) == 0
    save = trainer.save_checkpoint

    def save_and_interrupt(*state):
        save(*state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "save_checkpoint", save_and_interrupt)
        assert fit("part", *args) == 130
    assert app.main(["fit", "--run", "part", "--resume"]) == 0
    whole, part = weights("whole"), weights("part")
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert Run("part").read_result()["start"] == Run("whole").read_result()["start"]


def test_resume_is_rejected_if_the_initial_weights_changed(workdir, capsys):
    assert fit("second", "--start_from", "first", "--fit.epochs", "1") == 0
    assert fit("first", "--overwrite", "--fit.seed", "7") == 0
    capsys.readouterr()
    args = ["fit", "--run", "second", "--resume", "--fit.epochs", "2"]
    assert app.main(args) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        f"pyro-vae: the weights of {workdir / 'first'} have changed since second was"
    )
    assert err.count("\n") == 1


def test_start_run_may_be_moved(workdir):
    assert fit("second", "--start_from", "first", "--fit.epochs", "1") == 0
    (workdir / "first").rename(workdir / "moved")
    args = ["fit", "--run", "second", "--resume", "--fit.epochs", "2", "--start_from", "moved"]
    assert app.main(args) == 0
    assert len(Run("second").read_metrics()) == 2


def test_invalid_start_runs(workdir, capsys):
    (workdir / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        message = f"expected {workdir / folder} to be the folder of a run; it has no config.yaml"
        assert fit("second", "--start_from", folder) == 1
        assert capsys.readouterr().err == f"pyro-vae: {message}\n"
    assert fit("second", "--start_from", "first", "--model.latent_dim", "7") == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "pyro-vae: expected start_from to be a run of the same model; cannot load "
    )
    assert err.count("\n") == 1
    (workdir / "first" / "weights.safetensors").unlink()
    assert fit("second", "--start_from", "first") == 1
    assert "is incomplete, its training has not finished" in capsys.readouterr().err
    assert not (workdir / "second").exists()
