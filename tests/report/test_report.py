"""The HTML report, the comparison table and the plots."""

from __future__ import annotations

import base64
import math
import re
import shutil

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.evaluation.bounds_section import plot_bound_against_k
from pyro_vae.report import pictures, plots
from pyro_vae.runs.run import Run, RunError

SMALL = [
    *("--data.name", "digits", "--data.binarize", "dynamic", "--fit.epochs", "2"),
    *("--model.encoder.hidden", "[8]", "--model.decoder.hidden", "[8]"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, dim in (("flat", "2"), ("deep", "5")):
        assert main(["fit", *SMALL, "--model.latent_dim", dim, "--run", str(folder / name)]) == 0
        assert main(["evaluate", str(folder / name), "--num-samples", "200"]) == 0
        assert main(["report", str(folder / name)]) == 0
    return folder


def test_page_is_self_contained_and_complete(runs):
    run = Run(runs / "flat")
    page = run.report.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "://" not in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles[1:-1] == [
        *("Learning curves", "Convergence of L_k", "k̂ per example"),
        *("Log weights of the examples with the best and the worst k̂", "Samples"),
        *("Reconstructions", "Latent space, decoded grid", "Latent space, encoded examples"),
    ]
    bounds = run.read_bounds()
    for row in bounds.estimates.values():
        assert f"<td>{row.value:.3f}</td><td>{row.se_data:.3f}</td>" in page
    assert "model.latent_dim" in page and run.read_result()["data"]["checksum"] in page
    inline = [base64.b64decode(b) for b in re.findall(r"base64,([^\"]+)", page)]
    assert sorted(inline) == sorted(f.read_bytes() for f in run.figures.iterdir())
    assert all(png.startswith(b"\x89PNG") for png in inline)


def test_latent_space_is_shown_only_for_two_latents(runs):
    page = (runs / "deep" / "report.html").read_text(encoding="utf-8")
    assert "Samples" in page and "Latent space" not in page


def test_page_contains_the_warning(runs):
    run = Run(runs / "deep")
    bounds = run.read_bounds()
    page = run.report.read_text(encoding="utf-8")
    assert ("too heavy-tailed" in page) == (bounds.warning is not None)


def test_comparison_is_paired(runs):
    first, second = Run(runs / "flat"), Run(runs / "deep")
    table = pv.compare(first, second)
    ours, theirs = (r.read_bounds().per_datum["log_evidence"] for r in (second, first))
    difference = ours - theirs
    error = difference.std(ddof=1) / len(difference) ** 0.5
    row = table.splitlines()[2].split()
    assert row[0] == "deep" and row[1:3] == ["200", "180"]
    assert float(row[-2]) == pytest.approx(difference.mean(), abs=6e-4)
    assert float(row[-1]) == pytest.approx(error, abs=6e-4)


def test_runs_on_different_data_are_not_compared(runs, tmp_path):
    other = tmp_path / "other"
    main(["fit", *SMALL, "--model.latent_dim", "2", "--data.seed", "1", "--run", str(other)])
    main(["evaluate", str(other), "--num-samples", "50"])
    assert "other data" in pv.compare(runs / "flat", Run(other))


def test_runs_with_different_numbers_of_samples_are_not_compared(runs, tmp_path):
    other = shutil.copytree(runs / "flat", tmp_path / "other")
    main(["evaluate", str(other), "--num-samples", "100"])
    row = pv.compare(runs / "flat", other).splitlines()[2]
    assert row.endswith("K differs") and row.split()[1] == "100"


def test_run_without_bounds_has_no_report(tmp_path):
    main(["fit", *SMALL, "--model.latent_dim", "2", "--run", str(tmp_path / "new")])
    with pytest.raises(RunError, match="has no bounds yet: run `pyro-vae evaluate"):
        pv.compare(tmp_path / "new")
    assert main(["report", str(tmp_path / "new")]) == 1


def test_report_without_images(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    run = tmp_path / "run"
    args = ["--data.name", "array", "--data.path", str(tmp_path / "x.npy")]
    args += ["--data.binarize", "none", "--model.likelihood", "Gaussian", "--fit.epochs", "1"]
    assert main(["fit", *args, "--model.latent_dim", "2", "--run", str(run)]) == 0
    assert main(["evaluate", str(run), "--num-samples", "100"]) == 0
    assert main(["report", str(run)]) == 0
    assert {f.stem for f in (run / "figures").iterdir()} == {
        "learning",
        "bounds",
        "khat",
        "weights",
    }


def test_bound_against_k_marks_the_plateau():
    program = LinearGaussian(2, shift=0.3, inflate=1.1)
    bounds = pv.evaluate(program, program.sample(20), num_samples=5000, ks=(1, 5, 50, 500))
    axes = plot_bound_against_k(bounds).axes[0]
    (curve,) = (line for line in axes.lines if len(line.get_xdata()) == 5)
    np.testing.assert_allclose(curve.get_ydata(), list(bounds.iwae.values()))
    markers = [line for line in axes.lines if "converged" in str(line.get_label())]
    assert markers[0].get_xdata()[0] == bounds.plateau


def test_image_grid_layout():
    images = torch.arange(6).reshape(6, 1, 1).expand(6, 4, 3).double().numpy() / 5
    canvas = plots.plot_image_grid(images, columns=3).axes[0].images[0].get_array()
    # each image has 4 × 3 pixels, separated by one white pixel
    assert canvas.shape == (10, 11)
    for i in range(6):
        top, left = 5 * (i // 3), 4 * (i % 3)
        assert (canvas[top : top + 4, left : left + 3] == i / 5).all()


def test_unobserved_pixels_are_grey():
    images = torch.tensor([[0.0, math.nan], [2.0, 4.0]]).reshape(1, 1, 2, 2)
    assert pictures.to_pixels(images).tolist() == [[[0.0, 0.5], [0.5, 1.0]]]


def test_colour_images_keep_their_channels():
    # one red, one green and one blue image, 2 × 3 pixels, levels 0 … 200
    images = 200 * torch.eye(3)[:, :, None, None].expand(3, 3, 2, 3)
    pixels = pictures.to_pixels(images)
    canvas = plots.plot_image_grid(pixels, columns=2).axes[0].images[0].get_array()
    assert canvas.shape == (6, 7, 3)
    for i, (top, left) in enumerate([(0, 0), (0, 4), (3, 0)]):
        assert (canvas[top : top + 2, left : left + 3] == np.eye(3)[i]).all()
    assert (canvas[3:, 4:] == 1).all()
    # rescaled alike: the ratio of the channels is the hue
    pixels = pictures.to_pixels(torch.tensor([-1.0, 1.0, 3.0]).reshape(1, 3, 1, 1))
    np.testing.assert_allclose(pixels[0, 0, 0], [0, 0.5, 1])
    shapes = [(4, 5), (1, 4, 5), (3, 4, 5), (4, 5, 3), (2, 4, 5), (3,), (1, 3, 4, 5)]
    assert [pictures.is_image(shape) for shape in shapes] == [True] * 3 + [False] * 4
