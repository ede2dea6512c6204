"""A torch ``Dataset`` class of a plugin as the data of a run."""

from __future__ import annotations

import torch
from run_folders import assert_error

import pyro_vae as pv
from pyro_vae.cli.app import main

PLUGIN = """\
import torch

class Squares(torch.utils.data.Dataset):
    def __init__(self, factor="1"):
        self.factor = float(factor)

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return torch.full((3,), self.factor * (index - 15.0) ** 2), index % 3
"""
FIT = [
    *("fit", "--data.name", "squares.Squares", "--data.binarize", "none", "--run", "run"),
    *("--model.likelihood", "Gaussian", "--model.latent_dim", "1", "--fit.epochs", "1"),
    *("--model.encoder.hidden", "[4]", "--model.decoder.hidden", "[4]", "--fit.device", "cpu"),
]


def test_dataset_of_a_plugin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squares.py").write_text(PLUGIN)
    assert_error(capsys, FIT, r"expected data\.name to be a class of .* a --plugin.*", tmp_path)
    assert main([*FIT, "--plugin", "squares.py"]) == 0
    run = pv.load("run", "squares.py")
    data = run.data
    rows = data.train.rows
    assert torch.equal(data.train.draw()[:, 0], (rows - 15.0) ** 2)
    assert torch.equal(data.train.labels, rows % 3)
    assert (
        main(["encode", "run", "--plugin", "squares.py", "--split", "all", "--output=c.npz"]) == 0
    )
