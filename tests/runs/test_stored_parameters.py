"""Runs of programs with parameters that only Pyro's parameter store has."""

from __future__ import annotations

from pathlib import Path

import pyro

from pyro_vae.cli.app import main

PLUGIN = """
import pyro, torch, pyro_vae as pv

class Shifted(pv.VAE):
    def guide(self, x):
        pyro.param("shift", torch.zeros(3))
        return super().guide(x)
"""


def test_parameters_that_would_not_be_saved_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("shifted.py").write_text(PLUGIN)
    fit = [
        *("fit", "--plugin", "shifted.py", "--model", "shifted.Shifted", "--run", "run"),
        *(
            "--data.name",
            "digits",
            "--data.binarize",
            "threshold",
            "--fit.epochs",
            "1",
            "--fit.device",
            "cpu",
        ),
        *("--model.latent_dim", "2", "--model.encoder.hidden", "[4]"),
        *("--model.decoder.hidden", "[4]"),
    ]
    assert main(fit) == 1
    error = capsys.readouterr().err
    message = (
        "pyro-vae: expected a program that owns its parameters, which are saved with the run; "
    )
    assert message + "got 'shift', which only Pyro's parameter store has" in error
    assert not Path("run/weights.safetensors").exists()
    pyro.clear_param_store()
