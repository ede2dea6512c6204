"""Opening and comparing runs in Python: ``pv.load`` and ``pv.compare``."""

from __future__ import annotations

import pytest
import torch
from run_folders import TINY
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.runs import RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished and evaluated run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = folder.with_suffix(".yaml")
    config.write_text(TINY, encoding="utf-8")
    assert main(["fit", "--config", str(config), "--run", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--num-samples", "30"]) == 0
    return folder


def test_load_gives_the_trained_program_and_its_data(folder):
    run = pv.load(folder)
    assert isinstance(run, pv.Run)
    stored = load_file(folder / "weights.safetensors")
    for name, value in run.program.state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)
    assert run.program is run.program and run.data is run.data
    # the evaluation of the command line, repeated in Python
    bounds = pv.evaluate(run.program, run.data.test, num_samples=30)
    assert bounds.elbo == pytest.approx(run.read_bounds().elbo, rel=1e-6)


def test_load_rejects_other_folders(tmp_path):
    with pytest.raises(RunError, match="run"):
        pv.load(tmp_path / "nothing")


def test_compare_takes_runs_and_folders(folder):
    table = pv.compare(pv.load(folder), str(folder))
    first, second = table.splitlines()[1:3]
    assert first.split()[0] == second.split()[0] == "tiny"
    # the same run: the paired difference is exactly zero
    assert second.split()[-2:] == ["0.000", "0.000"]
    with pytest.raises(ValueError, match="expected at least one run to compare; got none"):
        pv.compare()
