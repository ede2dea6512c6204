"""Runs: files of the folder, resuming, replacing, and runs with labels."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import arviz
import numpy as np
import pytest
import streams
import torch
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.config.experiment import load_experiment
from pyro_vae.runs.run import Run

YAML = """\
data: {name: digits, binarize: dynamic}
model:
  latent_dim: 2
  prior: {class_path: VampPrior, init_args: {components: 5}}
  encoder: {class_path: MLP, init_args: {hidden: [8]}}
  decoder: {class_path: MLP, init_args: {hidden: [8]}}
fit:
  epochs: 3
  batch_size: 200
  device: cpu
  schedule: {class_path: StepLR, init_args: {step_size: 2}}
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A run of three uninterrupted epochs."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "x.yaml").write_text(YAML)
    assert app.main(["fit", "--config", str(folder / "x.yaml"), "--run", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def workdir(three, tmp_path, monkeypatch) -> Path:
    shutil.copytree(three, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(run: str | Path) -> list[dict]:
    return [{**r, "seconds": None} for r in Run(run).read_metrics().epochs]


def assert_same_run(first: str | Path, other: str | Path) -> None:
    """Check that two runs have bitwise equal weights and the same metrics."""
    assert Path(first, "weights.safetensors").read_bytes() == (
        Path(other, "weights.safetensors").read_bytes()
    )
    assert metrics(first) == metrics(other)


def test_run_stores_its_provenance_and_can_be_repeated(workdir):
    assert app.main(["evaluate", "run", "--num-samples", "10", "--num-data", "30"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    run = Run("run")
    experiment, data, model = run.open()
    assert result["config"] == experiment.settings_dict()
    assert result["seed"] == 0
    assert result["data"]["checksum"] == data.checksum
    assert result["data"]["sizes"] == {"train": 1455, "valid": 162, "test": 180}
    assert result["versions"]["torch"] == torch.__version__
    assert result["fit"]["epochs"] == 3
    assert result["fit"]["steps"] == 3 * 8
    assert result["fit"]["device"].startswith("cpu")
    assert result["fit"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert result["fit"]["seconds"] == pytest.approx(sum(run.read_metrics()["seconds"]))
    assert result["started"].endswith("+00:00")
    assert result["bounds"]["split"] == "test"
    assert result["bounds"]["seconds"] > 0
    # the stored configuration is enough to repeat the run
    assert app.main(["fit", "--config", "run/config.yaml", "--run", "again"]) == 0
    assert_same_run("run", "again")


def test_arviz_opens_the_bounds(workdir):
    argv = ["evaluate", "run", "--num-samples", "10", "--num-data", "30", "--keep-log-weights"]
    assert app.main(argv) == 0
    tree = arviz.from_netcdf("run/bounds.nc")
    elbo = tree["bounds"]["elbo"]
    assert elbo.shape == (30,)
    assert float(elbo.mean()) == pytest.approx(Run("run").read_bounds().elbo, rel=1e-6)


def test_comparison_is_paired(workdir, capsys):
    shutil.copytree("run", "twin")
    for run in ("run", "twin"):
        assert app.main(["evaluate", run, "--num-samples", "10"]) == 0
    capsys.readouterr()
    assert app.main(["compare", "run", "twin"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("twin"))
    # the same weights and seed: the difference is exactly zero
    assert row.split()[-2:] == ["0.000", "0.000"]


def test_killed_run_resumes_bit_for_bit(workdir):
    start = ["fit", "--run", "killed", "--config", "x.yaml", "--fit.epochs", "400"]
    # eager: whether steps are compiled depends on the number of epochs, which differs here
    options = ["--fit.batch_size", "50", "--fit.compile", "false"]
    start = streams.pyro_vae(*start, *options)
    process = subprocess.Popen(start, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (Path("killed/metrics.jsonl").is_file() and len(Run("killed").read_metrics()) >= 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(Run("killed").read_metrics())
    assert not Path("killed/weights.safetensors").exists()
    # a partial file, as if killed while writing
    Path("killed/.state-abc123.pt").write_bytes(b"half")

    total = str(done + 2)
    resume = ["fit", "--run", "killed", "--resume", "--fit.epochs", total]
    assert app.main(resume) == 0
    whole = ["fit", "--config", "x.yaml", "--run", "whole", "--fit.epochs", total]
    assert app.main([*whole, *options]) == 0
    assert_same_run("killed", "whole")
    assert [m["epoch"] for m in metrics("killed")] == list(range(1, done + 3))
    assert {p.name for p in Path("killed").iterdir()} == {p.name for p in Path("whole").iterdir()}


def test_resume_after_a_kill_between_checkpoint_and_metrics(workdir):
    shutil.copytree("run", "killed")
    lines = Path("killed/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("killed/metrics.jsonl").write_text("".join(lines[:-1]))
    Path("killed/weights.safetensors").unlink()
    assert app.main(["fit", "--run", "killed", "--resume"]) == 0
    assert_same_run("killed", "run")


def test_resume_with_more_epochs_removes_outdated_results(workdir):
    assert app.main(["evaluate", "run", "--num-samples", "5"]) == 0
    assert app.main(["fit", "--run", "run", "--resume", "--fit.epochs", "5"]) == 0
    assert app.main(["fit", "--config", "x.yaml", "--run", "five", "--fit.epochs", "5"]) == 0
    assert_same_run("run", "five")
    assert not Path("run/bounds.nc").exists()
    assert "bounds" not in Run("run").read_result()
    assert load_experiment(Path("run/config.yaml")).settings.fit.epochs == 5


@pytest.mark.parametrize("more", [[], ["--fit.epochs", "2"], ["--config", "x.yaml"]])
def test_resuming_a_finished_run_changes_nothing(more, workdir, capsys):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in Path("run").iterdir()}
    capsys.readouterr()
    assert app.main(["fit", "--run", "run", "--resume", *more]) == 0
    assert "run is already finished; raise --fit.epochs to continue" in capsys.readouterr().out
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in Path("run").iterdir()} == before


def test_resume_in_an_empty_folder_starts_a_run(workdir):
    # so that a scheduler can restart a job with the same command
    Path("new").mkdir()
    assert app.main(["fit", "--config", "x.yaml", "--run", "new", "--resume"]) == 0
    assert_same_run("new", "run")


def test_overwrite_replaces_the_run_and_keeps_other_files(workdir):
    assert app.main(["evaluate", "run", "--num-samples", "5"]) == 0
    Path("run/notes.txt").write_text("mine")
    before = load_file("run/weights.safetensors")
    argv = ["fit", "--config", "x.yaml", "--run", "run", "--overwrite", "--fit.seed", "1"]
    assert app.main([*argv, "--fit.epochs", "1"]) == 0
    after = load_file("run/weights.safetensors")
    assert any(not torch.equal(before[n], after[n]) for n in before)
    assert len(metrics("run")) == 1
    assert {p.name for p in Path("run").iterdir()} == {
        *("config.yaml", "metrics.jsonl", "notes.txt"),
        *("result.json", "state.pt", "weights.safetensors"),
    }
    assert set(Run("run").read_result()) == {
        *("config", "data", "fit", "seed", "started", "versions")
    }


SMALL = ["--model.encoder", "MLP", "--model.encoder.hidden", "[8]"]
SMALL += ["--model.decoder", "MLP", "--model.decoder.hidden", "[8]", "--model.latent_dim", "2"]
DIGITS = ["--data.name", "digits", "--data.binarize", "threshold", "--fit.device", "cpu"]
M2 = [*DIGITS, "--model", "SemiSupervisedVAE", *SMALL, "--data.labelled", "50"]
M2 += ["--model.classifier", "MLP", "--model.classifier.hidden", "[8]"]
M2 += ["--fit.labelled_every", "2", "--fit.batch_size", "200"]


def test_semi_supervised_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.main(["fit", *M2, "--fit.epochs", "2", "--run", "whole"]) == 0
    assert app.main(["fit", *M2, "--fit.epochs", "1", "--run", "part"]) == 0
    assert app.main(["fit", "--run", "part", "--resume", "--fit.epochs", "2"]) == 0
    assert_same_run("part", "whole")
    assert app.main(["evaluate", "whole", "--num-samples", "5", "--num-data", "20"]) == 0
    run = Run("whole")
    result = run.read_result()
    assert result["data"]["labelled"] == 50 and result["bounds"]["measure"] == "probability"
    # 1405 unlabelled examples in batches of 200, and a labelled batch after every second one
    assert result["fit"]["steps"] == 2 * (8 + 4)
    _, data, model = run.open()
    assert type(model) is pv.models.SemiSupervisedVAE and model.num_classes == 10
    assert data.train.has_label.sum() == 50


def test_changed_labels_are_detected_if_the_program_uses_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = np.eye(30, dtype=np.uint8), np.arange(30) % 3
    np.savez("x.npz", x=x, y=y)
    args = ["--data.name", "array", "--data.path", "x.npz", "--data.binarize", "none"]
    args += ["--data.key", "x", "--data.labels_key", "y", *SMALL, "--fit.device", "cpu"]
    args += ["--fit.epochs", "1"]
    assert app.main(["fit", *args, "--run", "plain"]) == 0
    assert app.main(["fit", *args, "--model", "ConditionalVAE", "--run", "conditional"]) == 0
    for name in ("plain", "conditional"):
        assert app.main(["evaluate", name, "--num-samples", "5"]) == 0
    assert "labels" not in Run("plain").read_result()["data"]
    assert Run("conditional").read_result()["bounds"]["measure"] == "probability given labels"
    capsys.readouterr()
    assert app.main(["compare", "plain", "conditional"]) == 0
    row = next(r for r in capsys.readouterr().out.splitlines() if r.startswith("conditional"))
    assert row.endswith("other measure")
    np.savez("x.npz", x=x, y=y[::-1])
    assert app.main(["evaluate", "plain", "--num-samples", "5"]) == 0
    assert app.main(["evaluate", "conditional", "--num-samples", "5"]) == 1
    message = "has changed since conditional was trained (checksum of the labels "
    assert message in capsys.readouterr().err


def test_conditional_program_needs_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.eye(30, dtype=np.uint8))
    args = ["--data.name", "array", "--data.path", "x.npy", "--data.binarize", "none", *SMALL]
    assert app.main(["fit", *args, "--model", "ConditionalVAE", "--run", "conditional"]) == 1
    assert "expected data set 'array' to have class labels" in capsys.readouterr().err
    assert not Path("conditional").exists()
