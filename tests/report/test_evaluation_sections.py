"""What the report says of the slower rulers, and the functions that draw it."""

from __future__ import annotations

import base64
import html
import re

import matplotlib.colors
import numpy as np
import pytest

from pyro_vae.cli.app import main
from pyro_vae.evaluation import Bounds
from pyro_vae.report import plots
from pyro_vae.report.evaluation_sections import sections
from pyro_vae.runs.run import Run

SHORT = "--annealing.num_chains 2 --annealing.num_temperatures 8 --annealing.num_steps 2"
TITLES = (
    *("Between two bounds", "Where the ELBO is lost"),
    *("What the latents carry", "Rate and distortion"),
)


def said(words: str, run: Run) -> None:
    assert main(words.replace(" RUN", f" {run.folder}").split()) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    made = Run(tmp_path_factory.mktemp("report") / "run")
    said(
        "fit --data.name digits --data.binarize dynamic --fit.epochs 1 --model.latent_dim 3 "
        f"--model.encoder.hidden [8] --model.decoder.hidden [8] --run {made.folder}",
        made,
    )
    said("evaluate RUN --num-samples 50 --num-data 20", made)
    said("report RUN", made)
    return made


@pytest.fixture(scope="module")
def measured(run) -> Run:
    """The run, once all rulers have been asked; what the page said before is kept beside it."""
    (run.folder / "before.html").write_bytes(run.report.read_bytes())
    said(f"evaluate RUN --num-samples 50 --num-data 20 --ais {SHORT}", run)
    said(f"bdmc RUN --num-data 6 --num-samples 50 {SHORT}", run)
    said(f"gaps RUN --num-data 5 --num-samples 50 --num-steps 5 --train {SHORT}", run)
    said("latents RUN --num-data 30 --num-samples 4 --num-draws 50", run)
    said(f"rate-distortion RUN --num-data 4 --betas [0.5,1] {SHORT}", run)
    said("report RUN", run)
    return run


def text(page: str) -> str:
    return html.unescape(re.sub(r"base64,[^\"]+", "", page))


def cells(page: str, name: str) -> list[list[str]]:
    """The rows of that name in all tables of a page."""
    rows = re.findall(r"<tr.*?>(.*?)</tr>", text(page))
    found = [re.findall(r"<td.*?>(.*?)</td>", row) for row in rows]
    return [row[1:] for row in found if row and row[0] == name]


def test_what_was_not_measured_is_named_with_its_command(measured):
    page = text((measured.folder / "before.html").read_text(encoding="utf-8"))
    line = next(line for line in page.splitlines() if line.startswith('<p class="lead">Not'))
    commands = ("bdmc", "gaps", "latents", "rate-distortion")
    assert re.findall(r"<code>(.*?)</code>", line) == [
        f"pyro-vae {command} {measured.folder}" for command in commands
    ]
    assert not any(f"<h2>{title}</h2>" in page for title in TITLES)


def test_all_that_was_measured_is_on_the_page(measured):
    page = measured.report.read_text(encoding="utf-8")
    assert "Not measured yet" not in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert [title for title in titles if title in TITLES] == [*TITLES]
    result = measured.read_result()
    simulated = Bounds.from_netcdf(measured.ruler("bdmc"))
    for name, row in simulated.estimates.items():
        label, role = simulated.labels[name]
        numbers = [f"{value:.3f}" for value in row]
        assert [*numbers, role] in cells(page, label)
    told = result["gaps"]["gaps"]
    for name, label in {"amortisation": "amortisation gap", "total": "log p̂ − ELBO"}.items():
        numbers = [f"{value:.3f}" for value in told[name].values()]
        assert numbers in cells(page, label)
    assert result["gaps"]["reading"] in text(page)
    rate = result["latents"]["estimates"]["rate"]
    assert [f"{v:.3f}" for v in rate.values()] in cells(page, "rate, E KL(q(z|x) ‖ p(z))")
    active = result["latents"]["sites"]["z"]["active"]
    assert f"{active} of 3 units are active." in text(page)
    curve = result["rate_distortion"]
    for i, beta in enumerate(("0.5", "1")):
        both = [*curve["rate"][i].values(), *curve["distortion"][i].values()]
        assert cells(page, beta) == [[f"{value:.3f}" for value in both]]
    (own,) = cells(page, "q itself")
    assert own[0] == f"{curve['own']['rate']['value']:.3f}"


def test_the_pictures_are_in_the_page_and_in_the_folder(measured):
    page = measured.report.read_text(encoding="utf-8")
    inline = [base64.b64decode(b) for b in re.findall(r"base64,([^\"]+)", page)]
    assert sorted(inline) == sorted(f.read_bytes() for f in measured.figures.iterdir())
    names = {file.stem for file in measured.figures.iterdir()}
    assert {"ladder", "gaps", "units-z", "rate-distortion"} <= names


def test_the_certificate_is_in_the_caption(measured):
    (ladder, *_) = sections(measured, measured.read_bounds())
    caption = ladder.pictures[0].caption
    gap = Bounds.from_netcdf(measured.ruler("bdmc")).estimates["bdmc_gap"]
    assert f"to {gap.value:.2f} ± {gap.se_monte_carlo:.2f} nats" in caption
    assert "On 6 data that the model made, 2 chains of 8 temperatures × 2 steps" in caption
    assert "--ais" not in caption
    panels = [axes.get_title() for axes in ladder.pictures[0].figure.axes]
    assert panels == ["held-out data", "data simulated by the model"]


def bounds(**columns: float) -> Bounds:
    """Bounds of two data, half a nat apart, with Monte Carlo variance 0.02 each."""
    per_datum = {}
    for name, value in columns.items():
        per_datum[name] = np.array([value - 0.25, value + 0.25])
        per_datum[f"{name}_variance"] = np.full(2, 0.02)
    ks = {k: np.full(2, -90.0 + np.log10(k)) for k in (1, 5, 7, 50)}
    return Bounds(50, per_datum, ks, {k: np.full(2, 0.02) for k in ks})


def test_the_ladder_has_its_rungs_in_order():
    simulated = bounds(elbo=-90.0, log_evidence=-88.3, ais=-87.0, upper=-86.5)
    axes = plots.ladder({"some": bounds(elbo=-90.0), "simulated": simulated}).axes
    assert [a.get_title() for a in axes] == ["some", "simulated"]
    ticks = [[t.get_text() for t in a.get_xticklabels()] for a in axes]
    assert ticks == [
        ["ELBO", "$L_{5}$", "$L_{50}$"],
        ["ELBO", "$L_{5}$", "$L_{50}$", "AIS", "BDMC"],
    ]
    path = axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(path, [-90.0, -90 + np.log10(5), -90 + np.log10(50), -87.0, -86.5])
    # ± 2 √(2 · 0.02) / 2
    low, high = axes[1].containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(4 * 0.1)
    within = [p for p in axes[1].patches if p.get_label() == "log p(x) is in here"]
    box = within[0].get_extents().transformed(axes[1].transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((-87.0, -86.5))
    assert not axes[0].patches


def test_the_parts_of_the_gap_stand_on_one_another():
    def row(value):
        return {"value": value, "se_data": 0.1}

    parts = {"amortisation": row(2.0), "closed": row(-0.1), "remaining": row(1.5)}
    figure = plots.gap_parts({"test": parts, "train": {"amortisation": row(1.0)}}, "Richer")
    bars = [(b.get_x(), b.get_width()) for b in figure.axes[0].patches]
    assert bars == [(0.0, 2.0), (2.0, 0.0), (2.0, 1.5), (0.0, 1.0)]
    told = [t.get_text() for t in figure.axes[0].texts]
    assert told == ["2.00\n± 0.10", "-0.10\n± 0.10", "1.50\n± 0.10", "1.00\n± 0.10"]
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend[1] == "approximation, closed by Richer"


def test_units_are_sorted_by_their_kl_and_coloured_by_activity():
    site = {"dimensions": [0.5, 2.0, 0.0], "variance": [0.9, 0.2, -0.001]}
    cost, variance = plots.latent_units(site, 0.3, "z").axes
    assert [b.get_height() for b in cost.patches] == [2.0, 0.5, 0.0]
    assert [b.get_height() for b in variance.patches] == [0.2, 0.9, 1e-5]
    alive = matplotlib.colors.to_rgba("C0")
    assert [b.get_facecolor() == alive for b in cost.patches] == [False, True, False]
    assert variance.lines[0].get_ydata()[0] == 0.3
    (only,) = plots.latent_units({**site, "dimensions": None}, 0.3, "z").axes
    assert [b.get_height() for b in only.patches] == [0.9, 0.2, 1e-5]


def test_the_curve_goes_through_its_points():
    def rows(*values):
        return [{"value": v, "se_monte_carlo": e} for v, e in zip(values, (0.5, None), strict=True)]

    own = {"rate": {"value": 3.0}, "distortion": {"value": 9.0}}
    figure = plots.rate_distortion([0.5, 1.0], rows(1.0, 4.0), rows(12.0, 7.0), own)
    axes = figure.axes[0]
    curve, star, line = axes.lines[0], axes.lines[-2], axes.lines[-1]
    np.testing.assert_allclose(curve.get_xydata(), [[1.0, 12.0], [4.0, 7.0]])
    np.testing.assert_allclose(star.get_xydata(), [[3.0, 9.0]])
    np.testing.assert_allclose(line.get_xydata().sum(1), 12.0)
    assert [t.get_text() for t in axes.texts] == ["β = 0.5", "β = 1"]
