"""The HTML report, the comparison table and the plots."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
import shutil

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.data import Split
from pyro_vae.evaluation import Bounds
from pyro_vae.report import pictures, plots, write_comparison
from pyro_vae.report.headline import Headline, summarize_bounds
from pyro_vae.runs.comparison import paired_difference
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
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "://" not in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Bounds on log p(x): 180 test examples × 200 samples",
        *("Training", "Samples and reconstructions", "Latent variables", "Configuration"),
    ]
    assert re.findall(r"<h3>(.*?)</h3>", page) == [
        *("Convergence of L_k", "k̂ per example"),
        "Log weights of the examples with the best and the worst k̂",
        *("Learning curves", "Samples", "Reconstructions"),
        *("Latent space, decoded grid", "Latent space, encoded examples"),
    ]
    bounds = run.read_bounds()
    for row in bounds.estimates.values():
        assert f"<td>{row.value:.3f}</td><td>{row.se_data:.3f}</td>" in page
    assert "model.latent_dim" in page and run.read_result()["data"]["checksum"] in page
    inline = [base64.b64decode(b) for b in re.findall(r"base64,([^\"]+)", page)]
    bitmaps = ("samples", "reconstructions", "manifold")
    assert inline == [(run.figures / f"{name}.png").read_bytes() for name in bitmaps]
    drawn = set(re.findall(r'<svg.*? id="(\w+)-figure_1"', page))
    assert drawn | {*bitmaps} == {file.stem for file in run.figures.iterdir()}


def test_page_names_what_was_trained_and_what_the_estimate_is_worth(runs):
    page = (runs / "deep" / "report.html").read_text(encoding="utf-8")
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts["Model"] == "VAE, 5 latent variables" and facts["Prior"] == "StandardNormal"
    assert facts["Likelihood"] == "Bernoulli" and facts["Posterior"] == "DiagonalNormal"
    assert facts["Networks"].startswith("encoder MLP 8; decoder MLP 8; ")
    assert facts["Training"].startswith("ELBO, 2 epochs, Adam with learning rate 0.001; seed 0")
    bounds = Run(runs / "deep").read_bounds()
    evidence = bounds.estimates["log_evidence"]
    assert f'"value">{evidence.value:.3f} '.replace("-", "−") in page
    errors = f"± {evidence.se_data:.3f} (test set) ± {evidence.se_monte_carlo:.3f} (Monte Carlo)"
    assert errors in page
    # once, not below the figure too
    assert page.count("too heavy-tailed") == (bounds.warning is not None)


def reading(shift: float, num_samples: int = 2000) -> tuple[Bounds, Headline]:
    program = LinearGaussian(2, shift=shift, inflate=1.1)
    bounds = pv.evaluate(program, program.sample(20), num_samples=num_samples, ks=(1, 10))
    return bounds, summarize_bounds(bounds)


def test_verdict_is_about_the_flagged_examples_and_the_gap():
    bounds, headline = reading(0.3)
    gap = bounds.estimates["gap"]
    assert headline.is_reliable and not len(bounds.unreliable)
    assert headline.verdict == (
        f"log p̂ is a good estimate for all 20 examples; the ELBO is {gap.value:.3f} ± "
        f"{gap.se_monte_carlo:.3f} nats below it (Monte Carlo)."
    )
    bounds, headline = reading(6.0)
    assert not headline.is_reliable and (bad := len(bounds.unreliable))
    assert (
        f" is not reliable for {'all' if bad == 20 else f'{bad} of'} 20 examp" in headline.verdict
    )
    tightest = max(bounds.iwae.values())
    assert f"L_2000 gives log p(x) ≥ −{-tightest:.3f} in expectation." in headline.verdict
    # few samples: k̂ is unknown
    assert not reading(0.3, num_samples=10)[1].is_reliable


def test_estimate_with_fewer_flagged_examples_is_the_headline():
    program = LinearGaussian(2, shift=6.0, inflate=1.1)
    x = program.sample(10)
    bounds = pv.evaluate(program, x, num_samples=500, estimators=[pv.Laplace(num_samples=500)])
    assert len(bounds.unreliable) and not bounds.flagged("laplace").any()
    headline = summarize_bounds(bounds)
    value = float(headline.value.replace("−", "-"))
    assert headline.label.startswith("Laplace") and headline.is_reliable
    assert value == pytest.approx(float(program.log_evidence(x).mean()), abs=0.05)


def test_page_has_no_script_and_a_strict_policy(runs):
    page = (runs / "flat" / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Security-Policy" content="(.*?)"', page)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(html.unescape(style).encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and "<script" not in page
    # it would be ignored: attributes need unsafe-inline
    assert page.count("<style") == 1 and " style=" not in page


def test_figures_have_descriptions_and_the_colour_of_the_page(runs):
    page = (runs / "flat" / "report.html").read_text(encoding="utf-8")
    assert len(re.findall("<figure>", page)) == 8
    svgs = re.findall(r'<svg [^>]*role="img" aria-label="([^"]{30,})"', page)
    images = re.findall(r'<img alt="([^"]{30,})"', page)
    assert len(svgs) == 5 and len(images) == 3
    bounds = Run(runs / "flat").read_bounds()
    assert (
        f"from {bounds.iwae[1]:.2f} nats at k = 1 to {bounds.iwae[200]:.2f} at k = 200" in svgs[0]
    )
    assert "#000000" not in page and "#ffffff" not in page and "currentColor" in page
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len({*identifiers})
    assert {*re.findall(r'(?:href="#|url\(#)([^")]+)', page)} <= {*identifiers}


def test_settings_are_collapsed(runs):
    page = (runs / "flat" / "report.html").read_text(encoding="utf-8")
    assert page.count("<details>") == 2 and "<details open" not in page
    assert page.index("<details>") < page.index("model.latent_dim")


def test_latent_space_is_shown_only_for_two_latents(runs):
    page = (runs / "deep" / "report.html").read_text(encoding="utf-8")
    assert "Samples" in page and "Latent space" not in page


def test_comparison_page(runs, tmp_path, capsys):
    folders = [str(runs / "flat"), str(runs / "deep")]
    assert main(["report", *folders, "--output", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    difference, error = paired_difference(Run(folders[1]), Run(folders[0]))
    assert abs(difference) > 2 * error
    word = "higher" if difference > 0 else "lower"
    assert (
        f"log p̂ of deep is {abs(difference):.3f} ± {error:.3f} nats {word} than that of flat"
        in page
    )
    row = f"{difference:+.3f} ± {error:.3f}".replace("-", "−")
    assert f"<td>log p̂ − that of flat, ± paired</td><td>–</td><td>{row}</td>" in page
    assert "<td>VAE, 2 latent variables</td><td>VAE, 5 latent variables</td>" in page
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert [f"{run}: Samples" in titles for run in ("flat", "deep")] == [True, True]
    changed = re.findall(r'class="differs"><td>(.*?)</td>', page)
    assert changed == ["model.latent_dim"]
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len({*identifiers})
    assert main(["report", folders[0], folders[0], "--output", str(tmp_path / "x.html")]) == 1
    assert "expected two or more different runs to compare; got" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_runs_that_cannot_be_told_apart(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "flat", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs / "flat"), "copy"]) == 0
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "log p̂ of copy and flat cannot be told apart: they differ by +0.000 ± 0.000" in page


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
    table = pv.compare(runs / "flat", other)
    row = table.splitlines()[2]
    assert row.endswith("K differs") and row.split()[1] == "100"
    with pytest.raises(ValueError, match=r"log p̂ of other cannot be compared .* K = 100") as info:
        write_comparison([Run(runs / "flat"), Run(other)], tmp_path / "page.html")
    assert str(info.value) in table


def test_run_without_bounds_has_no_report(tmp_path):
    main(["fit", *SMALL, "--model.latent_dim", "2", "--run", str(tmp_path / "new")])
    with pytest.raises(RunError, match="has no bounds yet: run `pyro-vae evaluate"):
        pv.compare(tmp_path / "new")
    assert main(["report", str(tmp_path / "new")]) == 1


def test_report_without_images(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    run = tmp_path / "run"
    args = ["--data.name", "array", "--data.path", str(tmp_path / "x.npy")]
    args += ["--data.binarize", "none", "--model.likelihood", "Gaussian", "--fit.epochs", "1"]
    assert main(["fit", *args, "--model.latent_dim", "2", "--run", str(run)]) == 0
    assert main(["evaluate", str(run), "--num-samples", "100"]) == 0
    assert main(["report", str(run)]) == 0
    figures = {"learning", "bounds", "khat", "weights", "latents"}
    assert {f.stem for f in (run / "figures").iterdir()} == figures
    page = tmp_path / "elsewhere.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    assert page.read_bytes() == (run / "report.html").read_bytes()
    assert main(["report", str(run), "--output", str(tmp_path)]) == 1
    assert "expected --output to be a file; got the folder" in capsys.readouterr().err
    config = (run / "config.yaml").read_bytes()
    assert main(["report", str(run), "--output", str(run / "config.yaml")]) == 1
    assert "expected --output outside the folder of the run" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == config
    assert main(["report"]) == 1
    assert "expected the folder of a run; got none" in capsys.readouterr().err


def test_bound_against_k_marks_the_plateau():
    program = LinearGaussian(2, shift=0.3, inflate=1.1)
    bounds = pv.evaluate(program, program.sample(20), num_samples=5000, ks=(1, 5, 50, 500))
    figure = Figure()
    axes = bounds.plot(ax=figure.subplots())
    assert axes.figure is figure and not plt.get_fignums()
    (curve,) = (line for line in axes.lines if len(line.get_xdata()) == 5)
    np.testing.assert_allclose(curve.get_ydata(), list(bounds.iwae.values()))
    markers = [line for line in axes.lines if "within 2 SE" in str(line.get_label())]
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


@pytest.mark.parametrize(("examples", "rows", "columns"), [(39, 3, 12), (7, 1, 7), (60, 4, 12)])
def test_reconstructions_fill_rows(examples, rows, columns):
    vae = pv.VAE((1, 4, 5), 2)
    picture = pictures.reconstruction_picture(vae, Split(torch.rand(examples, 1, 4, 5).round()), 0)
    height, width = picture.figure.axes[0].images[0].get_array().shape
    # one white pixel between images, and gaps between pairs
    assert (width + 1) / 6 == columns
    assert height == 2 * rows * 5 + 6 * rows
