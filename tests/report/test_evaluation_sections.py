"""Report sections of the diagnostics, and their plots."""

from __future__ import annotations

import html
import math
import re

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest

from pyro_vae.cli.app import main
from pyro_vae.evaluation import EVALUATIONS, Bounds, RateDistortion
from pyro_vae.evaluation.annealing.rate_distortion_curve import plot_rate_distortion
from pyro_vae.evaluation.bounds_plots import plot_bounds
from pyro_vae.evaluation.calibration_checks.rank_plots import plot_ranks
from pyro_vae.evaluation.calibration_checks.uniformity import make_band
from pyro_vae.evaluation.estimates import Estimate
from pyro_vae.evaluation.inference_gaps.result import plot_gap_parts
from pyro_vae.evaluation.latent_diagnostics.summary import plot_latent_units
from pyro_vae.runs.run import Run

SHORT = "--annealing.num_chains 2 --annealing.num_temperatures 8 --annealing.num_steps 2"
SHORT_AIS = SHORT.replace("--annealing", "--estimators.Annealing")
TITLES = [e.title for e in EVALUATIONS.values() if e.name != "bounds"]


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
    run_command(f"evaluate RUN --num-samples 50 --num-data 20 --reliable {SHORT_AIS}", run)
    run_command(f"bdmc RUN --num-data 6 --num-samples 50 {SHORT}", run)
    run_command(f"gaps RUN --num-data 5 --num-samples 50 --num-steps 5 --train {SHORT}", run)
    run_command("latents RUN --num-data 30 --num-samples 4 --num-draws 50", run)
    run_command(f"rate-distortion RUN --num-data 4 --betas [0.5,1] {SHORT}", run)
    run_command(
        "calibrate RUN --num-data 20 --num-simulated 20 --num-samples 30 --num-replicates 10 "
        "--false-alarm-rate 0.5",
        run,
    )
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
    line = next(line for line in page.splitlines() if line.startswith('<p class="muted">Not'))
    commands = ("bdmc", "gaps", "latents", "rate-distortion", "calibrate")
    assert re.findall(r"<code>(.*?)</code>", line) == [
        f"pyro-vae {command} {evaluated.folder}" for command in commands
    ]
    assert not any(f"<h2>{title}</h2>" in page for title in TITLES)


def test_all_results_are_on_the_page(evaluated):
    page = evaluated.report.read_text(encoding="utf-8")
    assert "Not evaluated yet" not in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert {*titles} > {*TITLES}
    first = ["Latent variables", "Calibration"]
    shown = [title for title in titles if title in TITLES]
    assert shown == first + [title for title in TITLES if title not in first]
    result = evaluated.read_result()
    counts = ", ".join(f"{n} {count}" for n, count in result["bounds"]["proposals"].items())
    assert f"log p̂ from: {counts}." in text(page) and " AIS " in counts
    simulated = Bounds.from_netcdf(evaluated.evaluation_file("bdmc"))
    for name, (label, role) in simulated.labels.items():
        numbers = [f"{value:.3f}" for value in simulated.estimates[name]]
        assert [*numbers, role] in cells(page, label)
    gap_rows = result["gaps"]["gaps"]
    for name, label in {"amortisation": "amortisation gap", "total": "log p̂ − ELBO"}.items():
        numbers = [f"{value:.3f}" for value in gap_rows[name].values()]
        assert numbers in [row[:3] for row in cells(page, label)]
    assert result["gaps"]["reading"] in text(page)
    parts = result["latents"]["estimates"], result["latents"]["surgery"]["estimates"]
    for row in (parts[0]["rate"], parts[1]["mutual_information"]):
        numbers = [f"{v:.3f}" for v in row.values()]
        assert numbers in [c[:3] for label in ("rate R", "= I_q(x; z)") for c in cells(page, label)]
    active = result["latents"]["sites"]["z"]["active"]
    assert f"{active} of 3 units are active." in text(page)
    curve = result["rate_distortion"]
    for i, beta in enumerate(("0.5", "1")):
        both = [*curve["rate"][i].values(), *curve["distortion"][i].values()]
        (row,) = cells(page, beta)
        assert row == [*(f"{value:.3f}" for value in both), f"ESS {curve['ess'][i]:.2f}"]
    (own,) = cells(page, "q itself")
    assert own[0] == f"{curve['own']['rate']['value']:.3f}"
    verdicts = result["calibration"]["posteriors"]
    latent = [verdicts[name]["quantities"]["z[0]"]["verdict"] for name in verdicts]
    assert latent in cells(page, "z[0]")
    statistics = result["calibration"]["predictive"]
    assert [statistics[n]["sd"]["verdict"] for n in ("loo", "posterior")] in cells(page, "sd")
    assert "6 simulated examples." in page and "5 test examples." in page


def test_pictures_are_in_the_page_and_in_the_folder(evaluated):
    page = evaluated.report.read_text(encoding="utf-8")
    names = {file.stem for file in evaluated.figures.iterdir()}
    assert {*re.findall(r'<svg.*? id="([\w-]+)-figure_1"', page)} < names
    assert {"ladder", "bdmc", "gaps", "units-z", "rate-distortion"} <= names
    ranks = {"ranks-guide", "ranks-resampled", "ranks-laplace"}
    assert ranks | {"predictive-loo", "predictive-posterior"} <= names


def test_bdmc_gap_is_in_the_caption(evaluated):
    simulated = evaluated.read_evaluation("bdmc")
    (picture,) = EVALUATIONS["bdmc"].make_section(simulated).pictures
    gap = simulated.estimates["bdmc_gap"]
    assert f"gap of {gap.value:.2f} ± {gap.se_monte_carlo:.2f} nats" in picture.caption
    chains = "On 6 examples simulated by the model, 2 chains with 8 temperatures × 2 steps"
    assert chains in picture.caption


def bounds(**columns: float) -> Bounds:
    """Return bounds of two examples, half a nat apart, with Monte Carlo variance 0.02 each."""
    per_datum = {}
    for name, value in columns.items():
        per_datum[name] = np.array([value - 0.25, value + 0.25])
        per_datum[f"{name}_variance"] = np.full(2, 0.02)
    ks = {k: np.full(2, -90.0 + np.log10(k)) for k in (1, 5, 7, 50)}
    return Bounds(50, per_datum, ks, {k: np.full(2, 0.02) for k in ks})


def test_bounds_plot_shows_rows_in_order():
    def ticks(shown):
        axes = plot_bounds(shown)
        return axes, [t.get_text() for t in axes.get_xticklabels()]

    axes, labels = ticks(bounds(elbo=-90.0))
    assert labels == ["ELBO", "L_5", "L_50"] and not axes.patches
    axes, labels = ticks(bounds(elbo=-90.0, log_evidence=-88.3, ais=-87.0, upper=-86.5))
    assert labels == ["ELBO", "L_5", "log p̂\n= L_50", "AIS", "BDMC"]
    path = axes.lines[0].get_ydata()
    np.testing.assert_allclose(path, [-90.0, -90 + np.log10(5), -88.3, -87.0, -86.5])
    # ± 2 √(2 · 0.02) / 2
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(4 * 0.1)
    bands = [p for p in axes.patches if p.get_label() == "range of log p(x)"]
    box = bands[0].get_extents().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((-87.0, -86.5))


def test_gap_parts_are_stacked():
    def row(value):
        return Estimate(value, 0.1, 0.05)

    parts = {"amortisation": row(2.0), "closed": row(-0.1), "remaining": row(1.5)}
    axes = plot_gap_parts({"test": parts, "train": {"amortisation": row(1.0)}}, "Richer")
    bars = [(b.get_x(), b.get_width()) for b in axes.patches]
    assert bars == [(0.0, 2.0), (2.0, 0.0), (2.0, 1.5), (0.0, 1.0)]
    texts = [t.get_text() for t in axes.texts]
    assert texts == ["2.00\n± 0.10", "-0.10\n± 0.10", "1.50\n± 0.10", "1.00\n± 0.10"]
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend[1] == "approximation, closed by Richer"


def test_ranks_that_deviate_most_are_named_beside_their_band():
    random = np.random.default_rng(0)
    columns = {f"z[{i}]": (np.arange(50) + random.uniform(size=50)) / 50 for i in range(12)}
    columns |= {f"narrow[{i}]": columns[f"z[{i}]"] / (3 + i) for i in range(10)}
    band = make_band(50, 0.05)
    axes = plot_ranks(columns, band)
    named = [t.get_text() for t in axes.get_legend().get_texts()]
    assert named == ["band of uniform ranks", *(f"narrow[{i}]" for i in range(3, 10))]
    path = axes.collections[0].get_paths()[0].vertices
    assert path[:, 1].max() == pytest.approx((band.upper - band.points).max())
    assert len(axes.lines) == 23
    (line,) = (line for line in axes.lines if line.get_label() == "narrow[3]")
    # all 50 ranks are below 1/6
    assert np.interp(1 / 6, *line.get_data()) == pytest.approx(5 / 6, abs=0.02)
    assert not plt.get_fignums()


def test_units_are_sorted_by_their_kl_and_coloured_by_activity():
    kl, spread = np.array([0.5, 2.0, 0.0]), np.array([0.9, 0.2, -0.001])
    cost, variance = plot_latent_units(kl, spread, 0.3, "z").axes
    assert all(float(t).is_integer() for t in cost.get_xticks())
    assert [b.get_height() for b in cost.patches] == [2.0, 0.5, 0.0]
    assert [b.get_height() for b in variance.patches] == [0.2, 0.9, 1e-5]
    active = matplotlib.colors.to_rgba("C0")
    assert [b.get_facecolor() == active for b in cost.patches] == [False, True, False]
    assert variance.lines[0].get_ydata()[0] == 0.3
    (only,) = plot_latent_units(None, spread, 0.3, "z").axes
    assert [b.get_height() for b in only.patches] == [0.9, 0.2, 1e-5]


def test_rate_distortion_curve_passes_through_its_points():
    def column(*values):
        return np.array([values, values], float)

    columns = {"rate": column(1.0, 4.0), "distortion": column(12.0, 7.0)}
    columns |= {f"{n}_variance": column(0.5, math.nan) for n in ("rate", "distortion")}
    columns |= {"log_normalizer": column(0, 0), "log_normalizer_variance": column(0, 0)}
    own = {"rate": np.array([3.0, 3.0]), "distortion": np.array([9.0, 9.0])}
    own |= {f"{name}_variance": np.zeros(2) for name in own}
    curve = RateDistortion(np.array([0.5, 1.0]), columns, np.ones(2), own=own)
    axes = plot_rate_distortion(curve)
    drawn, star, line = axes.lines[0], axes.lines[-2], axes.lines[-1]
    np.testing.assert_allclose(drawn.get_xydata(), [[1.0, 12.0], [4.0, 7.0]])
    np.testing.assert_allclose(star.get_xydata(), [[3.0, 9.0]])
    np.testing.assert_allclose(line.get_xydata().sum(1), 12.0)
    assert [t.get_text() for t in axes.texts] == ["β = 0.5", "β = 1"]
