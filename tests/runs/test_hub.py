"""Runs on the hub: the real client against a local stand-in of its HTTP API."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import serve
from run_folders import TINY, assert_error

from pyro_vae.cli import app
from pyro_vae.runs import RunError, load
from pyro_vae.runs.publishing import push

pytest.importorskip("huggingface_hub")

#: The client reads the server's address when it is imported.
OTHER_PROCESS = """
import sys
import torch
import pyro_vae as pv
run = pv.load("hf://user/digits")
torch.save(run.program.state_dict(), sys.argv[1])
print(run.read_bounds().elbo)
try:
    pv.load("hf://user/nothing")
except Exception as error:
    print(error)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    values = np.random.default_rng(0).integers(0, 2, (300, 8, 8)).astype(np.uint8)
    for name, count in (("x.npy", 300), ("new.npy", 4)):
        np.save(folder / name, values[:count])
    data = f"{{name: array, path: {folder}/x.npy, binarize: none}}"
    config = TINY.replace("{name: digits, binarize: dynamic}", data)
    (folder / "config.yaml").write_text(config)
    argv = ["fit", "--config", str(folder / "config.yaml"), "--run", str(folder / "run")]
    assert app.main(argv) == 0
    argv = ["evaluate", str(folder / "run"), "--num-samples", "20", "--num-data", "30"]
    assert app.main(argv) == 0
    # files with paths of this machine, and a result on new data
    new = ["--data.path", str(folder / "new.npy")]
    assert app.main([*argv[:2], "--num-samples", "20", *new]) == 0
    assert app.main(["report", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, for this process and for others."""
    import huggingface_hub.constants as constants
    from huggingface_hub import hf_api

    with serve() as (hub, address):
        for name, value in {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(hf_api.api, "endpoint", address)
        yield hub


def test_pushed_run_is_loaded_elsewhere(run, hub, tmp_path, capfd):
    assert app.main(["push", str(run), "user/digits"]) == 0
    assert re.search(r"http://127.0.0.1:\d+/user/digits/commit/", capfd.readouterr().out)
    stored = hub.repositories["user/digits"]
    assert {"config.yaml", "weights.safetensors", "result.json", "bounds.nc"} <= {*stored}
    # neither pickles nor names of folders of this machine
    assert not {"state.pt", "config.yaml.lock"} & {*stored}
    for name, content in stored.items():
        assert str(run.parent).encode() not in content, name
    kinds = {name.rpartition(".")[2] for name in stored}
    assert kinds == {"yaml", "jsonl", "json", "safetensors", "nc", "md"}
    assert [name for name in stored if name.endswith(".nc")] == ["bounds.nc"]
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "weights.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    elbo, error = done.stdout.splitlines()
    assert float(elbo) == load(run).read_bounds().elbo
    assert error.startswith("expected a repository of the hub that exists and that you may read")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, tensor in load(run).program.state_dict().items():
        assert torch.equal(weights[name], tensor)


def test_card_claims_what_was_measured_and_no_more(run, hub):
    push(run, "user/digits")
    card = hub.repositories["user/digits"]["README.md"].decode()
    table = str(load(run).read_bounds())
    assert f"```\n{table}\n```" in card
    assert "On 30 examples of the test split:" in card
    assert "- Not measured: " in card
    (missing,) = re.findall("Not measured: (.*)[.]", card)
    assert "calibration" in missing and "bounds" not in missing
    assert "StandardNormal" in card and "seed 0" in card


def test_a_run_that_was_not_evaluated_says_so(hub, tmp_path):
    (tmp_path / "config.yaml").write_text(TINY)
    argv = ["fit", "--config", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "new")]
    assert app.main(argv) == 0
    push(tmp_path / "new", "user/new")
    card = hub.repositories["user/new"]["README.md"].decode()
    assert "This model has not been evaluated" in card
    # a second push replaces the first, and removes results that are no longer there
    hub.repositories["user/new"]["gaps.nc"] = b"old"
    push(tmp_path / "new", "user/new")
    assert "gaps.nc" not in hub.repositories["user/new"]


def test_errors(run, hub, tmp_path, capsys):
    with pytest.raises(ValueError, match="expected a repository USER/NAME; got 'digits'"):
        push(run, "digits")
    with pytest.raises(RunError, match=r"folder of a run; it has no config[.]yaml"):
        push(tmp_path, "user/digits")
    assert not hub.repositories
    assert_error(
        capsys, ["push", str(run), "a/b/c"], "expected a repository USER/NAME; got 'a/b/c'", run
    )
