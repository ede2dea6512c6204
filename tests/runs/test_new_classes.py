"""New data with classes that the training data do not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_folders import assert_error

import pyro_vae as pv
from pyro_vae.cli.app import main

Image = pytest.importorskip("PIL.Image")
PICTURES = np.random.default_rng(0).integers(0, 256, (9, 4, 4)).astype(np.uint8)
FIT = [
    *("fit", "--data.name", "images", "--data.path", "old", "--data.binarize", "none"),
    *("--data.valid", "0", "--data.test", "0", "--fit.epochs", "1", "--fit.device", "cpu"),
    *("--model.likelihood", "ContinuousBernoulli", "--model.latent_dim", "2"),
    *("--model.encoder.hidden", "[4]", "--model.decoder.hidden", "[4]", "--run", "run"),
]


@pytest.fixture(autouse=True)
def _pictures(tmp_path, monkeypatch):
    """Folders of cats and dogs, and new ones of ants and dogs."""
    monkeypatch.chdir(tmp_path)
    for i, picture in enumerate(PICTURES):
        name = ("old/cat", "old/dog", "new/ant", "new/dog")[i % 4]
        Path(name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(f"{name}/{i}.png")


def test_a_class_that_is_new_is_unknown(caplog):
    assert main(FIT) == 0
    data = pv.load("run", data={"path": "new"}).data
    assert data.classes == ("cat", "dog")
    # the pictures in the order of their paths
    assert data.test.labels.tolist() == [-1, -1, 1, 1]
    message = "classes that the training data do not have: ant; the labels of their 2 examples"
    assert message in caplog.text
    assert main(["encode", "run", "--data.path", "new", "--output", "c.npz"]) == 0
    assert np.load("c.npz")["labels"].tolist() == [-1, -1, 1, 1]


def test_a_program_that_conditions_on_labels_refuses_it(capsys, tmp_path, caplog):
    assert main([*FIT, "--model", "ConditionalVAE"]) == 0
    evaluate = ["evaluate", "run", "--data.path", "new", "--num-samples", "5"]
    message = r"expected a label for every example, as ConditionalVAE .*; got 2 of 4 without.*"
    assert_error(capsys, evaluate, message, tmp_path)
    assert "do not have: ant" in caplog.text
