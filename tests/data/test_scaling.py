"""Scaling by the training data, and its inverse in samples."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.data.scaling import Scale
from pyro_vae.report import pictures, plots
from pyro_vae.runs.run import Run

RNG = np.random.default_rng(0)
#: Columns of 10⁶ with small differences, a constant one, and one with missing values.
X = np.stack([1e6 + RNG.normal(size=50), np.full(50, 7.0), RNG.normal(5, 30, 50)], 1)
X[::5, 2] = np.nan
load = partial(pv.data.load, "array", binarize="none", test=10, valid=0)


def _read(name):
    with np.load(name) as arrays:
        return dict(arrays)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    return "x.npy"


def test_columns_have_the_statistics_of_the_training_data(file):
    data = load(path=file, scale="standard")
    train = X[data.train.rows]
    mean, std = np.nanmean(train, 0), np.nanstd(train, 0)
    std[1] = 1
    np.testing.assert_allclose(data.test.draw(), (X[data.test.rows] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(np.nanmean(data.train.draw(), 0), 0, atol=1e-6)
    back = data.scale.undo(data.test.draw(dtype=torch.float64))
    np.testing.assert_allclose(back, X[data.test.rows], rtol=1e-12)
    copy = Scale.from_dict(json.loads(json.dumps(data.scale.to_dict())))
    np.testing.assert_array_equal(copy.apply(data.test.values), data.scale.apply(data.test.values))
    unit = load(path=file, scale="unit")
    low, high = np.nanmin(train, 0), np.nanmax(train, 0)
    assert unit.train.draw().nan_to_num(0.5).min() == 0
    expected = (X[data.test.rows] - low) / np.where(high > low, high - low, 1)
    np.testing.assert_allclose(unit.test.draw(), expected, atol=1e-6)
    assert torch.equal(data.take("all").draw().isnan(), torch.from_numpy(np.isnan(X)))


def test_images_are_scaled_by_channel(tmp_path):
    x = RNG.normal(size=(9, 3, 4, 5)) * np.array([1, 10, 100])[:, None, None]
    np.save(tmp_path / "x.npy", x)
    data = load(path=str(tmp_path / "x.npy"), test=0, scale="standard")
    assert data.scale.factor.shape == (3, 1, 1)
    np.testing.assert_allclose(data.scale.factor.flatten(), x.std((0, 2, 3)), rtol=1e-12)
    for options in ({"values": "integer"}, {"binarize": "dynamic"}):
        with pytest.raises(ValueError, match=r"expected data\.scale to be none for data\.binarize"):
            pv.data.load("digits", **{"binarize": "none", "scale": "unit", **options})


def test_samples_of_a_run_have_the_units_of_the_data(file):
    argv = ["--data.name", "array", "--data.path", file, "--data.binarize", "none", "--run", "run"]
    argv += ["--data.scale", "standard", "--model.likelihood", "Gaussian", "--model.latent_dim=1"]
    np.save("x.npy", X[:, :2])
    assert main(["fit", *argv, "--fit.epochs", "1", "--fit.device", "cpu"]) == 0
    assert main(["sample", "run", "--output", "new.npz", "--num-samples", "20"]) == 0
    new, run = _read("new.npz"), Run("run")
    generated = pv.queries.sample(run.program, 20)
    np.testing.assert_allclose(new["x"], run.data.scale.undo(generated.x), rtol=1e-6)
    assert np.abs(new["x"][:, 0] - 1e6).max() < 20
    # new data are scaled like the training data, and a single row has no statistics of its own
    np.save("new.npy", X[3:4, :2])
    scaled = run.data.scale.apply(torch.from_numpy(X[3:4, :2])).float()
    new_run = pv.load("run", data={"path": "new.npy"})
    assert torch.equal(new_run.data.test.draw(), scaled)
    assert main(["reconstruct", "run", "--output", "again.npz", "--data.path", "new.npy"]) == 0
    again = _read("again.npz")
    expected = pv.queries.reconstruct(run.program, scaled)
    np.testing.assert_allclose(again["mean"], run.data.scale.undo(expected.mean), rtol=1e-6)
    assert again["row"].tolist() == [0]


def test_pictures_and_errors_have_the_units_of_the_data(tmp_path, monkeypatch, capsys):
    """Channels with separate scales would have other colours."""
    monkeypatch.chdir(tmp_path)
    x = RNG.uniform(size=(24, 3, 4, 5)) * np.array([255, 40, 100])[:, None, None]
    np.save("x.npy", x)
    argv = ["--data.name", "array", "--data.path", "x.npy", "--data.binarize", "none"]
    argv += ["--data.scale", "standard", "--model.likelihood", "Gaussian", "--model.latent_dim=1"]
    argv += ["--data.test", "12", "--data.valid", "0", "--fit.epochs", "1", "--fit.device", "cpu"]
    assert main(["fit", *argv, "--run", "run"]) == 0
    run, drawn = Run("run"), []
    plot = plots.plot_image_grid

    def record(images, *args, **options):
        drawn.append(images)
        return plot(images, *args, **options)

    monkeypatch.setattr(plots, "plot_image_grid", record)
    data = run.data.test.materialize(0)
    again = pv.queries.reconstruct(run.program, data)
    capsys.readouterr()
    assert main(["reconstruct", "run"]) == 0
    both = torch.cat([data, again.mean])
    expected = pictures.to_pixels(run.scale.undo(both))
    np.testing.assert_allclose(drawn[-1], expected, atol=1e-6)
    errors = (run.scale.undo(again.mean) - run.scale.undo(data)).square().flatten(1).mean(1)
    out = capsys.readouterr().out
    printed = re.search(r"p\(x\|z\): ([\d.]+) ± .* per dimension, in the units of the data", out)
    assert float(printed[1]) == pytest.approx(float(errors.mean()), rel=1e-5)
    assert main(["sample", "run"]) == 0
    new = pv.queries.sample(run.program, 96).mean
    np.testing.assert_allclose(drawn[-1], pictures.to_pixels(run.scale.undo(new)), atol=1e-6)
