"""A run that begins with the weights of another: ``pyro-vae fit --start_from FOLDER``."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch
import torch
from run_folders import TINY

from pyro_vae.cli import app
from pyro_vae.config import experiment
from pyro_vae.learning import checkpoint
from pyro_vae.runs.run import Run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a finished run ``first``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert fit("first") == 0
    return tmp_path


def fit(run: str, *words: str) -> int:
    return app.main(["fit", "--config", "tiny.yaml", "--run", run, *words])


def weights(run: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(f"{run}/weights.safetensors")


# nothing is learned at this step size, but for what rounding loses
STILL = ["--fit.optimizer", "SGD", "--fit.optimizer.lr", "1e-30"]


def test_the_weights_are_those_of_the_other_run(here):
    assert fit("second", "--start_from", "first", *STILL, "--fit.seed", "5") == 0
    first, second = weights("first"), weights("second")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    told = Run("second").read_result()["start"]
    stored = (here / "first" / "weights.safetensors").read_bytes()
    assert told == {"run": "first", "weights": hashlib.sha256(stored).hexdigest()}
    again = experiment.parse(here / "second" / "config.yaml")
    assert again.start_from == here / "first"
    # a run that begins by itself says nothing of it, as before there was such an option
    assert "start_from" not in (here / "first" / "config.yaml").read_text()
    assert "start" not in Run("first").read_result()


def test_without_it_the_weights_are_others(here):
    assert fit("second", *STILL, "--fit.seed", "5") == 0
    first, second = weights("first"), weights("second")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_what_starts_from_data_is_not_started_again(here):
    biased = ["--model.decoder", "MLP", "--model.decoder.output_bias", "data"]
    assert fit("biased", *biased) == 0
    assert fit("second", *biased, "--start_from", "biased", *STILL) == 0
    first, second = weights("biased"), weights("second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_run_goes_on_bit_for_bit(here, monkeypatch):
    words = ["--start_from", "first", "--fit.epochs", "3"]
    assert fit("whole", *words) == 0
    save = checkpoint.save

    def killed(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", killed)
        assert fit("part", *words) == 130
    assert app.main(["fit", "--run", "part", "--resume"]) == 0
    whole, part = weights("whole"), weights("part")
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert Run("part").read_result()["start"] == Run("whole").read_result()["start"]


def test_other_weights_are_not_gone_on_from(here, capsys):
    assert fit("second", "--start_from", "first", "--fit.epochs", "1") == 0
    assert fit("first", "--overwrite", "--fit.seed", "7") == 0
    capsys.readouterr()
    words = ["fit", "--run", "second", "--resume", "--fit.epochs", "2"]
    assert app.main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"pyro-vae: {here / 'first'} no longer has the weights that second began")
    assert err.count("\n") == 1


def test_a_run_that_moved_is_known_by_its_weights(here):
    assert fit("second", "--start_from", "first", "--fit.epochs", "1") == 0
    (here / "first").rename(here / "moved")
    words = ["fit", "--run", "second", "--resume", "--fit.epochs", "2", "--start_from", "moved"]
    assert app.main(words) == 0
    assert len(Run("second").read_metrics()) == 2


def test_refusals(here, capsys):
    (here / "empty").mkdir()
    cases = {
        "nowhere": f"expected {here / 'nowhere'} to be the folder of a run; it has no config.yaml",
        "empty": f"expected {here / 'empty'} to be the folder of a run; it has no config.yaml",
    }
    for folder, sentence in cases.items():
        assert fit("second", "--start_from", folder) == 1
        assert capsys.readouterr().err == f"pyro-vae: {sentence}\n"
    assert fit("second", "--start_from", "first", "--model.latent_dim", "7") == 1
    err = capsys.readouterr().err
    assert err.startswith("pyro-vae: expected start_from to name a run of the same model; the weig")
    assert err.count("\n") == 1
    (here / "first" / "weights.safetensors").unlink()
    assert fit("second", "--start_from", "first") == 1
    assert "is incomplete, its training has not ended" in capsys.readouterr().err
    assert not (here / "second").exists()
