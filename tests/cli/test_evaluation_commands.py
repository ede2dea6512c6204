"""The verbs of the slower rulers: what they print and keep, how they go on, what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import TINY, refused

from pyro_vae import evaluation
from pyro_vae.cli import app
from pyro_vae.evaluation import Annealing, Bounds
from pyro_vae.evaluation.annealing import bidirectional
from pyro_vae.evaluation.annealing.rate_distortion_curve import RateDistortion, rate_distortion
from pyro_vae.evaluation.inference_gaps import estimator
from pyro_vae.evaluation.inference_gaps.estimator import Gaps, gaps
from pyro_vae.evaluation.latent_diagnostics.kl import divergences
from pyro_vae.evaluation.latent_diagnostics.summary import latents
from pyro_vae.runs import evaluations
from pyro_vae.runs.run import Run

SHORT = "--annealing.num_chains 2 --annealing.num_temperatures 8 --annealing.num_steps 2"
WALK = Annealing(num_chains=2, num_temperatures=8, num_steps=2)
VERBS = {
    "bdmc": f"bdmc run --num-data 5 --num-samples 30 --seed 3 {SHORT}",
    "gaps": f"gaps run --num-data 4 --num-samples 30 --num-steps 5 --train --seed 3 {SHORT}",
    "latents": "latents run --num-data 20 --num-samples 4 --num-draws 50 --seed 3",
    "rate_distortion": f"rate-distortion run --num-data 3 --betas [0.5,1] --seed 3 {SHORT}",
}
#: The words for a run of a model that is given labels.
GIVEN = """
    --model ConditionalVAE --model.latent_dim 2 --model.encoder.hidden [8]
    --model.decoder.hidden [8] --data.name digits --data.binarize dynamic --fit.epochs 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    fit = ["fit", "--config", str(folder / "tiny.yaml")]
    assert app.main([*fit, "--run", str(folder / "run")]) == 0
    assert app.main(["fit", *GIVEN.split(), "--run", str(folder / "given")]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """The current folder, with a trained ``run`` and another that is ``given`` labels."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, verb: str) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert app.main(VERBS[verb].split()) == 0
    return capsys.readouterr().out


def test_bdmc(here, capsys):
    out = said(capsys, "bdmc")
    _, _, vae = Run("run").open()
    bounds = evaluation.bdmc(vae, 5, num_samples=30, seed=3, annealing=WALK)
    assert out.startswith(
        f"{bounds.table([5])}\nper datum: run/bdmc.nc   next: pyro-vae report run"
    )
    stored = Bounds.from_netcdf("run/bdmc.nc")
    np.testing.assert_array_equal(stored.per_datum["upper"], bounds.per_datum["upper"])
    assert Run("run").read_result()["bdmc"]["estimates"] == bounds.summary()["estimates"]


def test_gaps(here, capsys):
    out = said(capsys, "gaps")
    _, data, vae = Run("run").open()
    found = gaps(
        *(vae, data.test.head(4)),
        train=data.train.head(4),
        num_samples=30,
        num_steps=5,
        seed=3,
        annealing=WALK,
    )
    assert out.startswith(f"{found}\nper datum: run/gaps.nc")
    stored = Gaps.from_netcdf("run/gaps.nc")
    assert stored.estimates == found.estimates and stored.train is not None
    told = Run("run").read_result()["gaps"]
    assert told["split"] == "test" and told["reading"] == found.reading


def test_gaps_of_a_family_that_is_named(here, capsys):
    words = ["--family", "LowRankNormal", "--richer", "null", "--no-ais"]
    assert app.main([*VERBS["gaps"].split(), *words]) == 0
    assert "refitted LowRankNormal" in capsys.readouterr().out
    told = Run("run").read_result()["gaps"]
    assert told["family"] == "LowRankNormal" and told["richer"] is None
    assert "ais" not in told["estimates"]


def test_latents(here, capsys):
    out = said(capsys, "latents")
    _, data, vae = Run("run").open()
    found = latents(vae, data.test.head(20), num_samples=4, num_draws=50, seed=3)
    assert out.startswith(f"{found}\nper datum: run/latents.nc")
    told = Run("run").read_result()["latents"]
    assert told["sites"]["z"]["variance"] == found.active.variance["z"].tolist()
    assert Path("run/latents.nc").is_file()


def test_rate_distortion(here, capsys):
    out = said(capsys, "rate_distortion")
    _, data, vae = Run("run").open()
    part = data.test.head(3)
    walk = Annealing(2, 8, 2, "prior", "adaptive")
    curve = rate_distortion(vae, part, betas=[0.5, 1.0], annealing=walk, seed=3)
    assert out.startswith(str(curve))
    own = divergences(vae, part, seed=3)
    assert f"\nq itself: rate {own.rate:.3f}, distortion {own.distortion:.3f}, " in out
    assert RateDistortion.from_netcdf("run/rate_distortion.nc").betas.tolist() == [0.5, 1.0]
    told = Run("run").read_result()["rate_distortion"]
    assert told["own"]["rate"]["value"] == own.rate
    assert [row["value"] for row in told["rate"]] == curve.rate.tolist()


def test_entries_stand_beside_one_another(here, capsys):
    for verb in VERBS:
        said(capsys, verb)
    result = json.loads(Path("run/result.json").read_text())
    assert {*VERBS, "fit"} <= result.keys()
    for verb in VERBS:
        assert result[verb]["seconds"] > 0 and "threads" in result[verb]["device"]
        assert result[verb]["measure"] == "probability"
    assert not [*Path("run").glob("*.npz*")]


def test_bdmc_that_was_killed_goes_on(here, capsys, monkeypatch):
    expected = said(capsys, "bdmc")
    for path in Path("run").glob("bdmc*"):
        path.unlink()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bidirectional, "evaluate", killed)
        assert app.main(VERBS["bdmc"].split()) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert Path("run/bdmc.npz").is_file() and not Path("run/bdmc.nc").exists()
    # the annealing is done: it would be an error to begin it again
    monkeypatch.setattr(bidirectional, "forward", killed)
    assert said(capsys, "bdmc") == expected
    assert not Path("run/bdmc.npz").exists()


def test_gaps_that_were_killed_go_on(here, capsys, monkeypatch):
    expected = said(capsys, "gaps")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(estimator, "ais", killed)
        assert app.main(VERBS["gaps"].split()) == 130
    assert Path("run/gaps.npz").is_file()
    refits = []
    refit = estimator.refit

    def counted(*args):
        refits.append(args)
        return refit(*args)

    monkeypatch.setattr(estimator, "refit", counted)
    assert said(capsys, "gaps") == expected
    assert len(refits) == 1  # of the training data; those of the test data were there
    assert not [*Path("run").glob("*.npz*")]


def test_other_settings_are_no_continuation(here, capsys, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bidirectional, "evaluate", killed)
        assert app.main(VERBS["bdmc"].split()) == 130
    message = "expected run/bdmc.npz to be a checkpoint of this computation; .*: remove it, or .*"
    refused(capsys, [*VERBS["bdmc"].split(), "--seed", "4"], message, here)


def test_learning_anew_sets_what_was_measured_aside(here, capsys):
    for verb in VERBS:
        said(capsys, verb)
    for name in ("gaps.npz", "gaps.npz.train", "bdmc.npz"):
        Path("run", name).write_bytes(b"unfinished")
    Path("run/notes.npz").write_bytes(b"the user's")
    fit = ["fit", "--config", "tiny.yaml", "--run", "run", "--overwrite"]
    # training that does not begin brings all of it back
    refused(capsys, [*fit, "--fit.optimizer.lr", "-1"], "the optimizer refuses .*", here)
    assert app.main(fit) == 0
    left = {path.name for path in Path("run").iterdir()}
    assert left == {
        *("config.yaml", "metrics.jsonl", "result.json", "state.pt", "weights.safetensors"),
        "notes.npz",
    }
    assert not VERBS.keys() & Run("run").read_result().keys()


def test_simulated_data_have_the_labels_of_test_data(here, capsys, monkeypatch):
    asked = []
    enclose = evaluation.bdmc

    def watched(program, data, **options):
        asked.append(data)
        return enclose(program, data, **options)

    monkeypatch.setattr(evaluations.evaluation, "bdmc", watched)
    assert app.main(VERBS["bdmc"].replace(" run ", " given ").split()) == 0
    _, data, _ = Run("given").open()
    assert torch.equal(asked[0].labels, data.test.labels[:5])
    assert Run("given").read_result()["bdmc"]["measure"] == "probability given labels"


BAD = {
    "no run": ("bdmc nowhere", "expected nowhere to be the folder of a run; it has no .*"),
    "no data": ("bdmc run --num-data 0", "expected num_data to be a positive integer; got 0"),
    "labels": (
        "bdmc given --num-data 500",
        "expected num_data of at most 180, for each has the label of one of the test data; got 500",
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
        "there is no option --annealing.num_chian; did you mean --annealing.num_chains\\?",
    ),
    "initial": (
        "bdmc run --annealing.initial prio",
        "expected annealing.initial to be guide or prior; got 'prio'; did you mean prior\\?",
    ),
    "split of bdmc": ("bdmc run --split test", "there is no option --split"),
    "samples": ("bdmc run --num-samples -1", "expected num_samples to be an integer ≥ 1; .*"),
    "family": (
        "gaps run --family DiagonalNormall",
        "expected family to be one of DiagonalNormal, .*; got 'DiagonalNormall'; did you mean "
        "DiagonalNormal\\?",
    ),
    "richer": ("gaps run --richer SplineFlo", "expected richer to be .* mean SplineFlow\\?"),
    "sphere": (
        "gaps run --family PowerSpherical --num-data 3",
        "expected a family on ℝ\\^D; got PowerSpherical, on the unit sphere: name another",
    ),
    "steps": ("gaps run --num-steps 0", "expected num_steps to be a positive integer; got 0"),
    "step": ("gaps run --step-size 0", "expected step_size > 0 and finite; got 0.0"),
    "train": (
        "gaps run --split train --train",
        "expected other data than those for training to compare with them; got split 'train': .*",
    ),
    "split": ("gaps run --split tset", "expected split to be test, valid or train; .* test\\?"),
    "empty": ("latents empty --split valid", "expected valid data; the run has none: set --split"),
    "one datum": ("latents run --num-data 1", "expected 2 or more .*"),
    "draws": ("latents run --num-samples 1", "expected 2 or more draws .*"),
    "betas": ("rate-distortion run --betas [0]", "expected one or more β > 0 and finite; got .*"),
    "no betas": ("rate-distortion run --betas []", "expected one or more β > 0 and finite; got .*"),
    "from the guide": (
        "rate-distortion run --annealing.initial guide",
        "expected annealing from the prior with the adaptive schedule, .*",
    ),
    "data": ("rate-distortion run --num-data 0", "expected num_data to be a positive integer; .*"),
    "seed": ("latents run --seed -1", "expected seed to be an integer ≥ 0; got -1"),
    "cmd": ("rate_distortion run", "expected a command, .*; got 'rate_distortion'; did you .*"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, here, capsys):
    argv, message = BAD[case]
    if case == "empty":
        words = ["fit", "--config", "tiny.yaml", "--run", "empty", "--data.valid", "0"]
        assert app.main(words) == 0
    refused(capsys, argv.split(), message, here)


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_is_not_finished_is_not_measured(verb, here, capsys):
    Path("run/weights.safetensors").unlink()
    message = "the run in run is incomplete, .*: go on with `pyro-vae fit --run run --resume`"
    refused(capsys, VERBS[verb].split(), message, here)


def test_a_damaged_file_is_one_sentence(here, capsys):
    assert app.main(["evaluate", "run", "--num-samples", "30", "--num-data", "5"]) == 0
    Path("run/bdmc.nc").write_bytes(b"damaged")
    message = "run/bdmc.nc is damaged or foreign: `pyro-vae bdmc run` writes it anew"
    capsys.readouterr()
    assert app.main(["report", "run"]) == 1
    assert re.search(message, capsys.readouterr().err)
