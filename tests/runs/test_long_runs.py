"""Runs with many short epochs: checkpoint intervals, callbacks and numbers of examples."""

from __future__ import annotations

import pytest
import torch

import pyro_vae as pv
from pyro_vae.config.experiment import Experiment, parse
from pyro_vae.learning import trainer
from pyro_vae.runs.run import Run

ARGS = [
    *("--data.name", "digits", "--data.binarize", "static", "--data.valid", "0"),
    *("--data.train", "100", "--model.latent_dim", "2", "--fit.batch_size", "50"),
    *("--fit.epochs", "7", "--fit.device", "cpu"),
]

RARE_CHECKPOINTS = ("--fit.checkpoint_every", "1000")


def make_experiment(*args: str) -> Experiment:
    return parse([*ARGS, *args])


@pytest.fixture
def saved_epochs(monkeypatch) -> list[int]:
    """The numbers of epochs in the saved checkpoints."""
    save, epochs = trainer.save_checkpoint, []

    def save_and_record(path, state):
        epochs.append(len(state["history"]))
        save(path, state)

    monkeypatch.setattr(trainer, "save_checkpoint", save_and_record)
    return epochs


def test_checkpoints_are_saved_at_intervals_and_at_the_end(tmp_path, saved_epochs):
    Run(tmp_path / "every-epoch").fit(make_experiment())
    assert saved_epochs == [1, 2, 3, 4, 5, 6, 7]
    saved_epochs.clear()
    Run(tmp_path / "every-third").fit(make_experiment("--fit.checkpoint_every", "3"))
    assert saved_epochs == [3, 6, 7]
    weights = [Run(tmp_path / name).weights.read_bytes() for name in ("every-epoch", "every-third")]
    assert weights[0] == weights[1]
    assert len(Run(tmp_path / "every-third").read_metrics()) == 7


def test_early_stopping_saves_a_checkpoint(tmp_path, saved_epochs):
    args = ["--data.valid", "100", "--fit.patience", "1", "--fit.optimizer.lr", "0.1"]
    history = Run(tmp_path / "run").fit(
        make_experiment("--fit.optimizer", "Adam", *args, *RARE_CHECKPOINTS, "--fit.epochs", "300")
    )
    assert len(history) < 300
    assert saved_epochs == [len(history)]


def test_resuming_between_checkpoints_gives_the_same_weights(tmp_path):
    args = ["--fit.checkpoint_every", "3"]
    Run(tmp_path / "whole").fit(make_experiment(*args))

    def interrupt(model, data, history):
        if len(history) == 5:
            raise KeyboardInterrupt

    run = Run(tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        run.fit(make_experiment(*args), on_epoch=interrupt)
    assert len(run.read_metrics()) == 3
    seen = []
    run.fit(make_experiment(*args), resume=True, on_epoch=lambda m, d, h: seen.append(len(h)))
    assert seen == [4, 5, 6, 7]
    assert run.weights.read_bytes() == Run(tmp_path / "whole").weights.read_bytes()


def test_checkpoint_interval_may_change_on_resume(tmp_path):
    run = Run(tmp_path / "run")
    run.fit(make_experiment("--fit.epochs", "2"))
    run.fit(make_experiment("--fit.checkpoint_every", "5"), resume=True)
    assert len(run.read_metrics()) == 7


def test_callback_gets_model_and_data_and_does_not_affect_training(tmp_path):
    seen = []

    def evaluate(model, data, history):
        bound = pv.evaluate(model, data.test, num_samples=5).elbo
        seen.append((len(history), len(data.train), bound))
        torch.rand(3)  # random numbers of the callback must not affect the run

    run = Run(tmp_path / "run")
    run.fit(make_experiment(), on_epoch=evaluate)
    assert [(epoch, size) for epoch, size, _ in seen] == [(e, 100) for e in range(1, 8)]
    _, data, model = run.open()
    assert seen[-1][2] == pv.evaluate(model, data.test, num_samples=5).elbo
    Run(tmp_path / "without-callback").fit(make_experiment())
    assert run.weights.read_bytes() == Run(tmp_path / "without-callback").weights.read_bytes()


@pytest.mark.parametrize("number", ["0", "-1"])
def test_checkpoint_interval_is_positive(number, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every"):
        Run(tmp_path / "run").fit(make_experiment("--fit.checkpoint_every", number))


def test_smaller_training_sets_are_subsets():
    few, more, whole = (
        pv.data.load("digits", binarize="none", train=train).train.values
        for train in (100, 300, None)
    )
    assert len(few) == 100 and len(more) == 300
    assert (more[:100] == few).all() and (whole[:300] == more).all()


@pytest.mark.parametrize("train", [0, -3])
def test_number_of_training_examples_is_positive(train):
    with pytest.raises(ValueError, match=r"data\.train"):
        pv.data.load("digits", binarize="none", train=train)


def test_number_of_training_examples_is_limited():
    with pytest.raises(ValueError) as caught:
        pv.data.load("digits", binarize="none", train=1456)
    assert str(caught.value) == (
        "expected data.train to be at most 1455, the number of examples not held out; got 1456: "
        "reduce data.train, or hold out fewer examples"
    )
    assert len(pv.data.load("digits", binarize="none", train=1455).train) == 1455
