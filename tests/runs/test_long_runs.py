"""Many short epochs: checkpoints now and then, and somebody who looks on."""

from __future__ import annotations

import pytest
import torch

import pyro_vae as pv
from pyro_vae.config.experiment import Experiment, explained, parser
from pyro_vae.learning import checkpoint
from pyro_vae.runs.run import Run

WORDS = [
    *("--data.name", "digits", "--data.binarize", "static", "--data.valid", "0"),
    *("--data.train", "100", "--model.latent_dim", "2", "--fit.batch_size", "50"),
    *("--fit.epochs", "7", "--fit.device", "cpu"),
]


SELDOM = ("--fit.checkpoint_every", "1000")


def experiment(*words: str) -> Experiment:
    given = [*WORDS, *words]
    made = parser(given)
    return Experiment(made, explained(made, given))


@pytest.fixture
def saved(monkeypatch) -> list[int]:
    """After which epochs a state was written."""
    save, epochs = checkpoint.save, []

    def noted(path, state):
        epochs.append(len(state["history"]))
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", noted)
    return epochs


def test_a_state_is_written_now_and_then_and_at_the_end(tmp_path, saved):
    Run(tmp_path / "often").fit(experiment())
    assert saved == [1, 2, 3, 4, 5, 6, 7]
    saved.clear()
    Run(tmp_path / "seldom").fit(experiment("--fit.checkpoint_every", "3"))
    assert saved == [3, 6, 7]
    weights = [Run(tmp_path / name).weights.read_bytes() for name in ("often", "seldom")]
    assert weights[0] == weights[1]
    assert len(Run(tmp_path / "seldom").read_metrics()) == 7


def test_a_run_that_stops_early_is_written(tmp_path, saved):
    words = ["--data.valid", "100", "--fit.patience", "1", "--fit.optimizer.lr", "0.1"]
    history = Run(tmp_path / "run").fit(
        experiment("--fit.optimizer", "Adam", *words, *SELDOM, "--fit.epochs", "300")
    )
    assert len(history) < 300
    assert saved == [len(history)]


def test_killed_between_two_states_ends_as_if_never_interrupted(tmp_path):
    words = ["--fit.checkpoint_every", "3"]
    Run(tmp_path / "whole").fit(experiment(*words))

    def killed(model, data, history):
        if len(history) == 5:
            raise KeyboardInterrupt

    run = Run(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        run.fit(experiment(*words), on_epoch=killed)
    assert len(run.read_metrics()) == 3
    seen = []
    run.fit(experiment(*words), resume=True, on_epoch=lambda m, d, h: seen.append(len(h)))
    assert seen == [4, 5, 6, 7]
    assert run.weights.read_bytes() == Run(tmp_path / "whole").weights.read_bytes()


def test_how_often_may_change_when_a_run_goes_on(tmp_path):
    run = Run(tmp_path / "run")
    run.fit(experiment("--fit.epochs", "2"))
    run.fit(experiment("--fit.checkpoint_every", "5"), resume=True)
    assert len(run.read_metrics()) == 7


def test_who_looks_on_sees_the_model_and_the_data(tmp_path):
    seen = []

    def look(model, data, history):
        bound = pv.evaluate(model, data.test, num_samples=5).elbo
        seen.append((len(history), len(data.train), bound))
        torch.rand(3)  # draws of others are none of the run's

    run = Run(tmp_path / "run")
    run.fit(experiment(), on_epoch=look)
    assert [(epoch, size) for epoch, size, _ in seen] == [(e, 100) for e in range(1, 8)]
    _, data, model = run.open()
    assert seen[-1][2] == pv.evaluate(model, data.test, num_samples=5).elbo
    Run(tmp_path / "alone").fit(experiment())
    assert run.weights.read_bytes() == Run(tmp_path / "alone").weights.read_bytes()


@pytest.mark.parametrize("number", ["0", "-1"])
def test_states_are_written_after_one_epoch_or_more(number, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every"):
        Run(tmp_path / "run").fit(experiment("--fit.checkpoint_every", number))


def test_fewer_training_data_are_among_more():
    few, more, whole = (
        pv.data.load("digits", binarize="none", train=train).train.values
        for train in (100, 300, None)
    )
    assert len(few) == 100 and len(more) == 300
    assert (more[:100] == few).all() and (whole[:300] == more).all()


@pytest.mark.parametrize("train", [0, -3])
def test_the_number_of_training_data_is_positive(train):
    with pytest.raises(ValueError, match=r"data\.train"):
        pv.data.load("digits", binarize="none", train=train)


def test_there_are_no_more_training_data_than_are_left():
    with pytest.raises(ValueError) as caught:
        pv.data.load("digits", binarize="none", train=1456)
    assert str(caught.value) == (
        "expected data.train to be at most 1455, the data that are left to train on; got 1456: "
        "hold out less for validation or testing"
    )
    assert len(pv.data.load("digits", binarize="none", train=1455).train) == 1455
