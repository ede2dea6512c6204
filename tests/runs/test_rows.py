"""Every result keeps the rows of the file that its examples come from."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import xarray

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.evaluation import Bounds
from pyro_vae.runs.run import Run

OPTIONS = [
    *("--data.name", "array", "--data.binarize", "none", "--model.likelihood", "Gaussian"),
    *("--model.latent_dim", "1", "--model.encoder.hidden", "[4]", "--model.decoder.hidden", "[4]"),
    *("--fit.epochs", "1", "--fit.device", "cpu"),
]
#: Row i of the file is i in every column.
ROWS = np.repeat(np.arange(60, dtype=np.float32)[:, None], 3, 1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS)
    assert main(["fit", *OPTIONS, "--data.path", "rows.npy", "--run", "run"]) == 0
    return Run("run")


def test_splits_know_their_rows(tmp_path):
    np.savez(tmp_path / "x.npz", x=ROWS, y=np.arange(60) % 3)
    data = pv.data.load(
        "array",
        binarize="none",
        path=str(tmp_path / "x.npz"),
        key="x",
        labels_key="y",
        train=20,
        without_class=2,
    )
    for split in (data.train, data.valid, data.test):
        assert torch.equal(split.rows, split.values[:, 0].long())
    assert len(data.train) == 20
    everything = data.take("all")
    assert torch.equal(everything.rows, everything.values[:, 0].long())
    assert torch.equal(everything.labels, everything.rows % 3)
    # those left out of the splits are left out here, too; all others are in the order of the file
    assert len(everything) == 20 + len(data.valid) + len(data.test)
    assert bool((everything.rows.diff() > 0).all())
    assert torch.equal(data.take("test", 4).rows, data.test.rows[:4])
    with pytest.raises(ValueError, match=r"expected split to be one of train, .*; did you mean te"):
        data.take("tset")


def test_own_test_set_counts_its_own_rows():
    raw = pv.data.sources.RawData(
        torch.zeros(6, 2), None, None, test=pv.data.sources.RawData(torch.ones(3, 2), None, None)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pv.data.sources.SOURCES, "digits", lambda options: raw)
        data = pv.data.load("digits", binarize="none", valid=2)
    assert data.test.rows.tolist() == [0, 1, 2]
    assert data.take("all").values[:, 0].tolist() == [0.0] * 6 + [1.0] * 3


def test_results_of_a_run_keep_the_rows(run):
    for command in (
        ["evaluate", "--num-samples", "20", "--num-data", "5"],
        ["latents", "--num-samples", "4", "--num-draws", "20"],
        ["gaps", "--num-samples", "20", "--num-steps", "2", "--no-ais", "--train", "--num-data=4"],
        ["calibrate", "--split", "all", "--num-simulated", "0", "--num-replicates", "4"],
    ):
        assert main([command[0], "run", *command[1:]]) == 0
    rows = run.data.test.rows.numpy()
    assert not (np.diff(rows) > 0).all()
    for name, group, expected in (
        ("bounds", "bounds", rows[:5]),
        ("latents", "divergences", rows),
        ("gaps", "bounds", rows[:4]),
        ("gaps", "train/bounds", run.data.train.rows[:4].numpy()),
        ("calibration", "observed_data", np.arange(60)),
    ):
        with xarray.open_datatree(run.folder / f"{name}.nc") as tree:
            assert tree[group]["row"].dims == ("datum",)
            np.testing.assert_array_equal(tree[group]["row"], expected)
    assert (run.read_bounds().rows == rows[:5]).all()
    # statistics of a row are those of the row's values
    with xarray.open_datatree(run.folder / "calibration.nc") as tree:
        np.testing.assert_allclose(tree["observed_data"]["mean"], ROWS.mean(1), atol=1e-5)


def test_all_rows_are_encoded_in_the_order_of_the_file(run):
    assert main(["encode", "run", "--split", "all", "--output", "codes.npz"]) == 0
    with np.load("codes.npz") as file:
        codes = dict(file)
    np.testing.assert_array_equal(codes["row"], np.arange(60))
    expected = pv.queries.encode(run.program, torch.from_numpy(ROWS))
    np.testing.assert_array_equal(codes["z.mean"], expected["z.mean"])
    assert main(["encode", "run", "--split", "train", "--output", "train.npz"]) == 0
    with np.load("train.npz") as file:
        codes = dict(file)
    np.testing.assert_array_equal(codes["z.mean"], expected["z.mean"][codes["row"]])


def test_bounds_of_a_split_keep_its_rows(tmp_path):
    vae = pv.VAE((3,), 1, likelihood=pv.likelihoods.Gaussian)
    split = pv.data.Split(torch.zeros(6, 3)).at(torch.tensor([4, 1]))
    bounds = pv.evaluate(vae, split, num_samples=5)
    bounds.to_netcdf(tmp_path / "b.nc")
    assert Bounds.from_netcdf(tmp_path / "b.nc").rows.tolist() == [4, 1]
    pv.evaluate(vae, split.values, num_samples=5).to_netcdf(tmp_path / "c.nc")
    assert Bounds.from_netcdf(tmp_path / "c.nc").rows is None


@pytest.mark.parametrize(
    "use",
    [
        lambda vae, x: pv.evaluation.ais(
            vae, x, annealing=pv.evaluation.Annealing(2, num_temperatures=2, num_steps=1)
        ),
        lambda vae, x: pv.evaluation.gaps(vae, x, annealing=None, num_steps=1, num_samples=5),
        lambda vae, x: pv.evaluation.latents(vae, x, num_samples=2, num_draws=9),
        lambda vae, x: pv.queries.reconstruct(vae, x),
        lambda vae, x: pv.queries.impute(vae, x, num_samples=20, refit_steps=0),
        lambda vae, x: pv.queries.score_missing(
            vae, x, observed=torch.ones(3) > 0, num_samples=20, refit_steps=0
        ),
    ],
)
def test_results_in_python_keep_the_rows_of_a_split(use):
    split = pv.data.Split(torch.arange(18.0).reshape(6, 3)).at(torch.tensor([4, 1, 5]))
    small = partial(pv.networks.MLP, hidden=(4,))
    options = {"likelihood": pv.likelihoods.Gaussian, "encoder": small, "decoder": small}
    result = use(pv.VAE((3,), 1, **options), split)
    assert result.rows.tolist() == [4, 1, 5]
