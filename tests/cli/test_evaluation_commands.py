"""The diagnostic commands: output, files, resuming and invalid input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import TINY, assert_error

from pyro_vae import evaluation
from pyro_vae.cli import app
from pyro_vae.evaluation import Annealing, Bounds, Calibration, calibration
from pyro_vae.evaluation.annealing import bidirectional
from pyro_vae.evaluation.annealing.rate_distortion_curve import RateDistortion, rate_distortion
from pyro_vae.evaluation.inference_gaps import estimator
from pyro_vae.evaluation.inference_gaps.estimator import Gaps, gaps
from pyro_vae.evaluation.latent_diagnostics.kl import divergences
from pyro_vae.evaluation.latent_diagnostics.summary import Latents, latents
from pyro_vae.runs.run import Run

SHORT = "--annealing.num_chains 2 --annealing.num_temperatures 8 --annealing.num_steps 2"
ANNEALING = Annealing(num_chains=2, num_temperatures=8, num_steps=2)
COMMANDS = {
    "bdmc": f"bdmc run --num-data 5 --num-samples 30 --seed 3 {SHORT}",
    "gaps": f"gaps run --num-data 4 --num-samples 30 --num-steps 5 --train --seed 3 {SHORT}",
    "latents": "latents run --num-data 20 --num-samples 4 --num-draws 50 --seed 3",
    "calibration": "calibrate run --num-data 20 --num-simulated 20 --num-samples 30 "
    "--num-replicates 10 --posteriors [guide,laplace] --false-alarm-rate 0.5 --seed 3",
    "rate_distortion": f"rate-distortion run --num-data 3 --betas [0.5,1] --seed 3 {SHORT}",
}
#: Options of a run of a conditional model.
CONDITIONAL = """
    --model ConditionalVAE --model.latent_dim 2 --model.encoder.hidden [8]
    --model.decoder.hidden [8] --data.name digits --data.binarize dynamic --fit.epochs 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    fit = ["fit", "--config", str(folder / "tiny.yaml")]
    assert app.main([*fit, "--run", str(folder / "run")]) == 0
    assert app.main(["fit", *CONDITIONAL.split(), "--run", str(folder / "conditional")]) == 0
    return folder


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch) -> Path:
    """The current folder, with a trained ``run`` and a ``conditional`` run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(capsys, name: str) -> str:
    """Run a command and return its output."""
    capsys.readouterr()
    assert app.main(COMMANDS[name].split()) == 0
    return capsys.readouterr().out


def test_bdmc(workdir, capsys):
    out = run_command(capsys, "bdmc")
    _, _, vae = Run("run").open()
    bounds = evaluation.bdmc(vae, 5, num_samples=30, seed=3, annealing=ANNEALING)
    assert out.startswith(
        f"{bounds.table([5])}\nper-example results: run/bdmc.nc   next: pyro-vae report run"
    )
    stored = Bounds.from_netcdf("run/bdmc.nc")
    np.testing.assert_array_equal(stored.per_datum["upper"], bounds.per_datum["upper"])
    assert Run("run").read_result()["bdmc"]["estimates"] == bounds.summary()["estimates"]


def test_gaps(workdir, capsys):
    out = run_command(capsys, "gaps")
    _, data, vae = Run("run").open()
    expected = gaps(
        *(vae, data.test.head(4)),
        train=data.train.head(4),
        num_samples=30,
        num_steps=5,
        seed=3,
        annealing=ANNEALING,
    )
    assert out.startswith(f"{expected}\nper-example results: run/gaps.nc")
    stored = Gaps.from_netcdf("run/gaps.nc")
    assert stored.estimates == expected.estimates and stored.train is not None
    result = Run("run").read_result()["gaps"]
    assert result["split"] == "test" and result["reading"] == expected.reading


def test_gaps_with_a_given_family(workdir, capsys):
    args = ["--family", "LowRankNormal", "--richer", "null", "--no-ais"]
    assert app.main([*COMMANDS["gaps"].split(), *args]) == 0
    assert "refitted LowRankNormal" in capsys.readouterr().out
    result = Run("run").read_result()["gaps"]
    assert result["family"] == "LowRankNormal" and result["richer"] is None
    assert "ais" not in result["estimates"]


def test_latents(workdir, capsys):
    out = run_command(capsys, "latents")
    _, data, vae = Run("run").open()
    expected = latents(vae, data.test.head(20), num_samples=4, num_draws=50, seed=3)
    assert out.startswith(f"{expected}\nper-example results: run/latents.nc")
    result = Run("run").read_result()["latents"]
    assert result["sites"]["z"]["variance"] == expected.active.variance["z"].tolist()
    assert str(Latents.from_netcdf("run/latents.nc")) == str(expected)


def test_rate_distortion(workdir, capsys):
    out = run_command(capsys, "rate_distortion")
    _, data, vae = Run("run").open()
    part = data.test.head(3)
    annealing = Annealing(2, 8, 2, "prior", "adaptive")
    curve = rate_distortion(vae, part, betas=[0.5, 1.0], annealing=annealing, seed=3)
    own = divergences(vae, part, seed=3)
    rate, distortion = own.estimates["rate"], own.estimates["distortion"]
    (line,) = [line for line in out.splitlines() if line.startswith("q itself")]
    assert line.split()[2:8] == [f"{value:.3f}" for value in (*rate, *distortion)]
    assert out.startswith(str(curve).splitlines()[0])
    stored = RateDistortion.from_netcdf("run/rate_distortion.nc")
    assert stored.betas.tolist() == [0.5, 1.0] and out.startswith(str(stored))
    result = Run("run").read_result()["rate_distortion"]
    assert result["own"]["rate"]["value"] == own.rate
    assert [row["value"] for row in result["rate"]] == curve.rate.tolist()


def test_calibrate(workdir, capsys):
    out = run_command(capsys, "calibration")
    _, data, vae = Run("run").open()
    expected = calibration(
        *(vae, data.test.head(20)),
        num_simulated=20,
        num_samples=30,
        num_replicates=10,
        posteriors=("guide", "laplace"),
        false_alarm_rate=0.5,
        seed=3,
    )
    assert out.startswith(f"{expected}\nper-example results: run/calibration.nc")
    result = Run("run").read_result()["calibration"]
    assert result["split"] == "test" and result["num_data"] == 20 == result["num_simulated"]
    verdicts = result["posteriors"]["laplace"]["quantities"]
    assert {n: v["verdict"] for n, v in verdicts.items()} == expected.verdicts["laplace"]
    assert str(Calibration.from_netcdf("run/calibration.nc")) == str(expected)


def test_results_of_all_commands_are_kept(workdir, capsys):
    for name in COMMANDS:
        run_command(capsys, name)
    result = json.loads(Path("run/result.json").read_text())
    assert {*COMMANDS, "fit"} <= result.keys()
    for name in COMMANDS:
        assert result[name]["seconds"] > 0 and "threads" in result[name]["device"]
        assert result[name]["measure"] == "probability"
    assert not [*Path("run").glob("*.npz*")]


def test_interrupted_bdmc_resumes(workdir, capsys, monkeypatch):
    expected = run_command(capsys, "bdmc")
    for path in Path("run").glob("bdmc*"):
        path.unlink()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bidirectional, "evaluate", interrupt)
        assert app.main(COMMANDS["bdmc"].split()) == 130
    assert "interrupted; repeat the command to resume" in capsys.readouterr().err
    assert Path("run/bdmc.npz").is_file() and not Path("run/bdmc.nc").exists()
    # the annealing is done and must not start again
    monkeypatch.setattr(bidirectional, "run_forward_chains", interrupt)
    assert run_command(capsys, "bdmc") == expected
    assert not Path("run/bdmc.npz").exists()


def test_interrupted_gaps_resume(workdir, capsys, monkeypatch):
    expected = run_command(capsys, "gaps")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(estimator, "ais", interrupt)
        assert app.main(COMMANDS["gaps"].split()) == 130
    assert Path("run/gaps.npz").is_file()
    refits = []
    refit = estimator.refit

    def count_refits(*args):
        refits.append(args)
        return refit(*args)

    monkeypatch.setattr(estimator, "refit", count_refits)
    assert run_command(capsys, "gaps") == expected
    assert len(refits) == 1  # of the training data; that of the test data was finished
    assert not [*Path("run").glob("*.npz*")]


def test_checkpoint_of_other_settings_is_rejected(workdir, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bidirectional, "evaluate", interrupt)
        assert app.main(COMMANDS["bdmc"].split()) == 130
    message = "expected run/bdmc.npz to be a checkpoint of this computation; .*: delete it, or .*"
    argv = COMMANDS["bdmc"].replace("--seed 3", "--seed 4").split()
    assert_error(capsys, argv, message, workdir)


def test_overwriting_a_run_removes_its_diagnostics(workdir, capsys):
    for name in COMMANDS:
        run_command(capsys, name)
    for name in ("gaps.npz", "gaps.npz.train", "bdmc.npz"):
        Path("run", name).write_bytes(b"unfinished")
    Path("run/notes.npz").write_bytes(b"the user's")
    fit = ["fit", "--config", "tiny.yaml", "--run", "run", "--overwrite"]
    # all files are restored if training does not start
    assert_error(
        capsys,
        [*fit, "--fit.optimizer.lr", "-1"],
        "invalid arguments of the optimizer: .*",
        workdir,
    )
    assert app.main(fit) == 0
    left = {path.name for path in Path("run").iterdir()}
    assert left == {
        *("config.yaml", "metrics.jsonl", "result.json", "state.pt", "weights.safetensors"),
        "notes.npz",
    }
    assert not COMMANDS.keys() & Run("run").read_result().keys()


def test_bdmc_simulates_with_the_labels_of_the_test_data(workdir, capsys, monkeypatch):
    calls = []
    bdmc = evaluation.bdmc

    def record_call(program, data, **options):
        calls.append(data)
        return bdmc(program, data, **options)

    monkeypatch.setattr(bidirectional, "bdmc", record_call)
    assert app.main(COMMANDS["bdmc"].replace(" run ", " conditional ").split()) == 0
    _, data, _ = Run("conditional").open()
    assert torch.equal(calls[0].labels, data.test.labels[:5])
    assert Run("conditional").read_result()["bdmc"]["measure"] == "probability given labels"


BAD = {
    "no run": ("bdmc nowhere", "expected nowhere to be the folder of a run; it has no .*"),
    "no data": ("bdmc run --num-data 0", "expected num_data to be a positive integer; got 0"),
    "labels": (
        "bdmc conditional --num-data 500",
        "expected num_data of at most 180, the number of test examples whose labels .*; got 500",
    ),
    "chains": (
        "bdmc run --annealing.num_chains 0",
        "expected num_chains to be a positive integer; got 0",
    ),
    "chain's type": (
        "bdmc run --annealing.num_chains few",
        "expected annealing.num_chains to be an integer; got 'few'",
    ),
    "annealing": (
        "bdmc run --annealing.num_chian 3",
        "unknown option --annealing.num_chian; did you mean --annealing.num_chains\\?",
    ),
    "initial": (
        "bdmc run --annealing.initial prio",
        "expected annealing.initial to be guide or prior; got 'prio'; did you mean prior\\?",
    ),
    "split of bdmc": ("bdmc run --split test", "unknown option --split"),
    "samples": ("bdmc run --num-samples -1", "expected num_samples to be an integer ≥ 1; .*"),
    "family": (
        "gaps run --family DiagonalNormall",
        "expected family to be one of DiagonalNormal, .*; got 'DiagonalNormall'; did you mean "
        "DiagonalNormal\\?",
    ),
    "richer": ("gaps run --richer SplineFlo", "expected richer to be .* mean SplineFlow\\?"),
    "sphere": (
        "gaps run --family PowerSpherical --num-data 3",
        "expected a family on ℝ\\^D; got PowerSpherical, on the unit sphere: choose another .*",
    ),
    "steps": ("gaps run --num-steps 0", "expected num_steps to be a positive integer; got 0"),
    "step": ("gaps run --step-size 0", "expected step_size > 0 and finite; got 0.0"),
    "train": (
        "gaps run --split train --train",
        "expected a split without training examples to compare .*; got split 'train': .*",
    ),
    "split": ("gaps run --split tset", "expected split to be test, valid, train .*; .* test\\?"),
    "empty": ("latents empty --split valid", "expected valid data; the run has none: set --split"),
    "one datum": ("latents run --num-data 1", "expected at least 2 .*; got 64 of 1"),
    "draws": ("latents run --num-samples 1", "expected at least 2 samples .*; got 1 of 180"),
    "simulated": (
        "calibrate run --num-simulated 3",
        "expected at least 20 simulated examples, whose ranks .*; got 3",
    ),
    "statistics": (
        "calibrate run --statistics [mean,variance]",
        "expected statistics to be a list .*",
    ),
    "posteriors": ("calibrate run --posteriors [guides]", "expected posteriors to be .*"),
    "betas": ("rate-distortion run --betas [0]", "expected one or more β > 0 and finite; got .*"),
    "no betas": ("rate-distortion run --betas []", "expected one or more β > 0 and finite; got .*"),
    "from the guide": (
        "rate-distortion run --annealing.initial guide",
        "expected annealing from the prior with the adaptive schedule for .*",
    ),
    "data": ("rate-distortion run --num-data 0", "expected num_data to be a positive integer; .*"),
    "seed": ("latents run --seed -1", "expected seed to be an integer ≥ 0; got -1"),
    "command": ("rate_distortion run", "expected a command, .*; got 'rate_distortion'; did you .*"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, workdir, capsys):
    argv, message = BAD[case]
    if case == "empty":
        fit = ["fit", "--config", "tiny.yaml", "--run", "empty", "--data.valid", "0"]
        assert app.main(fit) == 0
    assert_error(capsys, argv.split(), message, workdir)


@pytest.mark.parametrize("name", COMMANDS)
def test_unfinished_run_is_rejected(name, workdir, capsys):
    Path("run/weights.safetensors").unlink()
    message = "the run in run is incomplete, .*: resume with `pyro-vae fit --run run --resume`"
    assert_error(capsys, COMMANDS[name].split(), message, workdir)


def test_damaged_file_gives_one_sentence(workdir, capsys):
    assert app.main(["evaluate", "run", "--num-samples", "30", "--num-data", "5"]) == 0
    Path("run/bdmc.nc").write_bytes(b"damaged")
    message = "run/bdmc.nc is damaged or from another version: replace it with `pyro-vae bdmc run`"
    capsys.readouterr()
    assert app.main(["report", "run"]) == 1
    assert re.search(message, capsys.readouterr().err)
