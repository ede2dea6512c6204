"""Report sections of the diagnostics, and their plots."""

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
from pyro_vae.report.evaluation_sections import make_sections
from pyro_vae.runs.run import Run

SHORT = "--annealing.num_chains 2 --annealing.num_temperatures 8 --annealing.num_steps 2"
TITLES = (
    *("Bounds on log p(x)", "Inference gaps"),
    *("Latent variables", "Rate and distortion"),
)


def run_command(command: str, run: Run) -> None:
    assert main(command.replace(" RUN", f" {run.folder}").split()) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("report") / "run")
    run_command(
        "fit --data.name digits --data.binarize dynamic --fit.epochs 1 --model.latent_dim 3 "
        f"--model.encoder.hidden [8] --model.decoder.hidden [8] --run {run.folder}",
        run,
    )
    run_command("evaluate RUN --num-samples 50 --num-data 20", run)
    run_command("report RUN", run)
    return run


@pytest.fixture(scope="module")
def evaluated(run) -> Run:
    """The run with all diagnostics; the report without them is kept as ``before.html``."""
    (run.folder / "before.html").write_bytes(run.report.read_bytes())
    run_command(f"evaluate RUN --num-samples 50 --num-data 20 --ais {SHORT}", run)
    run_command(f"bdmc RUN --num-data 6 --num-samples 50 {SHORT}", run)
    run_command(f"gaps RUN --num-data 5 --num-samples 50 --num-steps 5 --train {SHORT}", run)
    run_command("latents RUN --num-data 30 --num-samples 4 --num-draws 50", run)
    run_command(f"rate-distortion RUN --num-data 4 --betas [0.5,1] {SHORT}", run)
    run_command("report RUN", run)
    return run


def text(page: str) -> str:
    return html.unescape(re.sub(r"base64,[^\"]+", "", page))


def cells(page: str, name: str) -> list[list[str]]:
    """Return the rows with this name in all tables of a page, without the name."""
    rows = re.findall(r"<tr.*?>(.*?)</tr>", text(page))
    all_cells = [re.findall(r"<td.*?>(.*?)</td>", row) for row in rows]
    return [row[1:] for row in all_cells if row and row[0] == name]


def test_missing_diagnostics_are_listed_with_their_commands(evaluated):
    page = text((evaluated.folder / "before.html").read_text(encoding="utf-8"))
    line = next(line for line in page.splitlines() if line.startswith('<p class="lead">Not'))
    commands = ("bdmc", "gaps", "latents", "rate-distortion")
    assert re.findall(r"<code>(.*?)</code>", line) == [
        f"pyro-vae {command} {evaluated.folder}" for command in commands
    ]
    assert not any(f"<h2>{title}</h2>" in page for title in TITLES)


def test_all_results_are_on_the_page(evaluated):
    page = evaluated.report.read_text(encoding="utf-8")
    assert "Not evaluated yet" not in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert [title for title in titles if title in TITLES] == [*TITLES]
    result = evaluated.read_result()
    simulated = Bounds.from_netcdf(evaluated.evaluation_file("bdmc"))
    for name, row in simulated.estimates.items():
        label, role = simulated.labels[name]
        numbers = [f"{value:.3f}" for value in row]
        assert [*numbers, role] in cells(page, label)
    gap_rows = result["gaps"]["gaps"]
    for name, label in {"amortisation": "amortisation gap", "total": "log p̂ − ELBO"}.items():
        numbers = [f"{value:.3f}" for value in gap_rows[name].values()]
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


def test_pictures_are_in_the_page_and_in_the_folder(evaluated):
    page = evaluated.report.read_text(encoding="utf-8")
    inline = [base64.b64decode(b) for b in re.findall(r"base64,([^\"]+)", page)]
    assert sorted(inline) == sorted(f.read_bytes() for f in evaluated.figures.iterdir())
    names = {file.stem for file in evaluated.figures.iterdir()}
    assert {"ladder", "gaps", "units-z", "rate-distortion"} <= names


def test_bdmc_gap_is_in_the_caption(evaluated):
    (section, *_) = make_sections(evaluated, evaluated.read_bounds())
    caption = section.pictures[0].caption
    gap = Bounds.from_netcdf(evaluated.evaluation_file("bdmc")).estimates["bdmc_gap"]
    assert f"gap of {gap.value:.2f} ± {gap.se_monte_carlo:.2f} nats" in caption
    assert "On 6 examples simulated by the model, 2 chains with 8 temperatures × 2 steps" in caption
    assert "--ais" not in caption
    panels = [axes.get_title() for axes in section.pictures[0].figure.axes]
    assert panels == ["held-out data", "simulated data"]


def bounds(**columns: float) -> Bounds:
    """Return bounds of two examples, half a nat apart, with Monte Carlo variance 0.02 each."""
    per_datum = {}
    for name, value in columns.items():
        per_datum[name] = np.array([value - 0.25, value + 0.25])
        per_datum[f"{name}_variance"] = np.full(2, 0.02)
    ks = {k: np.full(2, -90.0 + np.log10(k)) for k in (1, 5, 7, 50)}
    return Bounds(50, per_datum, ks, {k: np.full(2, 0.02) for k in ks})


def test_bounds_plot_shows_rows_in_order():
    simulated = bounds(elbo=-90.0, log_evidence=-88.3, ais=-87.0, upper=-86.5)
    axes = plots.plot_bounds({"first": bounds(elbo=-90.0), "simulated": simulated}).axes
    assert [a.get_title() for a in axes] == ["first", "simulated"]
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
    bands = [p for p in axes[1].patches if p.get_label() == "range of log p(x)"]
    box = bands[0].get_extents().transformed(axes[1].transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((-87.0, -86.5))
    assert not axes[0].patches


def test_gap_parts_are_stacked():
    def row(value):
        return {"value": value, "se_data": 0.1}

    parts = {"amortisation": row(2.0), "closed": row(-0.1), "remaining": row(1.5)}
    figure = plots.plot_gap_parts({"test": parts, "train": {"amortisation": row(1.0)}}, "Richer")
    bars = [(b.get_x(), b.get_width()) for b in figure.axes[0].patches]
    assert bars == [(0.0, 2.0), (2.0, 0.0), (2.0, 1.5), (0.0, 1.0)]
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts == ["2.00\n± 0.10", "-0.10\n± 0.10", "1.50\n± 0.10", "1.00\n± 0.10"]
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend[1] == "approximation, closed by Richer"


def test_units_are_sorted_by_their_kl_and_coloured_by_activity():
    site = {"dimensions": [0.5, 2.0, 0.0], "variance": [0.9, 0.2, -0.001]}
    cost, variance = plots.plot_latent_units(site, 0.3, "z").axes
    assert [b.get_height() for b in cost.patches] == [2.0, 0.5, 0.0]
    assert [b.get_height() for b in variance.patches] == [0.2, 0.9, 1e-5]
    active = matplotlib.colors.to_rgba("C0")
    assert [b.get_facecolor() == active for b in cost.patches] == [False, True, False]
    assert variance.lines[0].get_ydata()[0] == 0.3
    (only,) = plots.plot_latent_units({**site, "dimensions": None}, 0.3, "z").axes
    assert [b.get_height() for b in only.patches] == [0.9, 0.2, 1e-5]


def test_rate_distortion_curve_passes_through_its_points():
    def rows(*values):
        return [{"value": v, "se_monte_carlo": e} for v, e in zip(values, (0.5, None), strict=True)]

    own = {"rate": {"value": 3.0}, "distortion": {"value": 9.0}}
    figure = plots.plot_rate_distortion([0.5, 1.0], rows(1.0, 4.0), rows(12.0, 7.0), own)
    axes = figure.axes[0]
    curve, star, line = axes.lines[0], axes.lines[-2], axes.lines[-1]
    np.testing.assert_allclose(curve.get_xydata(), [[1.0, 12.0], [4.0, 7.0]])
    np.testing.assert_allclose(star.get_xydata(), [[3.0, 9.0]])
    np.testing.assert_allclose(line.get_xydata().sum(1), 12.0)
    assert [t.get_text() for t in axes.texts] == ["β = 0.5", "β = 1"]
