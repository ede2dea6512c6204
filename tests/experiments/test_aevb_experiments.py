"""Figures of the AEVB paper: resumable curves, claims, and figures of shared runs."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments are not installed with the package

from experiments import curves  # noqa: E402
from experiments import table as tables  # noqa: E402
from experiments.cells import Cell  # noqa: E402
from experiments.curves import Curve, EvaluationSchedule  # noqa: E402
from experiments.gallery import latent_grid  # noqa: E402
from experiments.papers import (  # noqa: E402
    aevb_figure2,
    aevb_figure3,
    aevb_figure4,
    aevb_figure5,
)
from experiments.papers.aevb_pilot import TABLE as PILOT  # noqa: E402

SCRIPTS = {
    script.TABLE.name: script for script in (aevb_figure2, aevb_figure3, aevb_figure4, aevb_figure5)
}
TABLES = {name: script.TABLE for name, script in SCRIPTS.items()} | {PILOT.name: PILOT}
RESULTS = ROOT / "experiments" / "results"
DIGITS = "MNIST, N_z = 3: AEVB"


def make_args(folder: Path, *args: str) -> list[str]:
    folders = ["--folder", str(folder / "runs"), "--results", str(folder)]
    return ["--preset", "smoke", "--device", "cpu", *folders, *args]


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}-smoke.json").read_text(encoding="utf-8"))


def modification_times(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def results_folder(tmp_path_factory) -> Path:
    """Results of all four figures, run in order with one folder of runs."""
    if not (Path(os.environ.get("PYRO_VAE_DATA", "")) / "frey").is_dir():
        pytest.skip("PYRO_VAE_DATA names no folder with Frey Face")
    folder = tmp_path_factory.mktemp("aevb")
    for script in SCRIPTS.values():
        assert script.main(make_args(folder)) == 0
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_row_runs_and_is_drawn(name, results_folder):
    results = read(results_folder, name)
    assert [*results["rows"]] == TABLES[name].rows("smoke")
    assert results["missing"] == {}
    assert "seconds" not in json.dumps(results)
    assert (results_folder / f"{name}-smoke.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", [aevb_figure2, aevb_figure3])
def test_curves_have_the_scheduled_examples_and_epochs(script, results_folder):
    table, name = script.TABLE, script.TABLE.name
    for row, entry in read(results_folder, name)["rows"].items():
        (record,) = entry["runs"]
        cell = table.cell("smoke", row, 0, results_folder / "runs")
        _, data, model = cell.run.open()
        schedule, curve = table.schedules["smoke"], record["curve"]
        epochs = schedule.epochs(record["epochs"])
        assert curve["samples"] == [epoch * len(data.train) for epoch in epochs]
        assert record["budget"]["fraction"] == curve["samples"][-1] / table.paper_samples
        assert record["budget"]["samples_seen"] == curve["samples"][-1]
        # the last point is an evaluation of the final weights
        for split, part in (("train", data.train), ("test", data.test)):
            part = part.head(schedule.num_data)
            for estimator, values in schedule.estimators(model, part).items():
                value = curve[split][estimator]["value"]
                assert value[-1] == pytest.approx(values.mean(), rel=1e-5)
                assert len(value) == len(epochs)
            assert curve[split]["num_data"] == len(part)


@pytest.mark.parametrize("name", SCRIPTS)
def test_second_call_measures_nothing(name, results_folder, capsys):
    before = modification_times(results_folder)
    assert SCRIPTS[name].main(make_args(results_folder)) == 0
    assert modification_times(results_folder) == before
    printed = capsys.readouterr().out
    assert printed.count("already finished") == len(TABLES[name].rows("smoke"))
    assert SCRIPTS[name].main(make_args(results_folder, "--table")) == 0
    assert capsys.readouterr().out.strip() in printed
    assert modification_times(results_folder) == before


def test_claims_are_computed_from_the_runs(results_folder):
    claims = read(results_folder, "aevb_figure2")["claims"]
    runs = results_folder / "runs" / "aevb_figure2-smoke"
    aevb, wake_sleep = (
        Curve.read(runs / f"mnist-n-z-3-{method}-0" / "curve.npz")
        for method in ("aevb", "wake-sleep")
    )
    claim = claims["MNIST, N_z = 3: faster and better, seed 0"]
    difference = aevb.values("elbo")[-1] - wake_sleep.values("elbo")[-1]
    assert claim["value"] == pytest.approx(difference.mean())
    assert claim["se"] == pytest.approx(difference.std(ddof=1) / math.sqrt(50))
    panels = {"MNIST, N_z = 3", "MNIST, N_z = 20", "Frey Face, N_z = 2", "Frey Face, N_z = 20"}
    assert {n.partition(": faster")[0] for n in claims if "faster" in n} == panels
    assert sum("no overfitting" in name for name in claims) == 2
    claims = read(results_folder, "aevb_figure3")["claims"]
    assert sum("estimator" in name for name in claims) == 2 * len(aevb_figure3.ROWS)
    assert sum("better than" in name for name in claims) == 3


def test_figures_reuse_existing_runs(results_folder):
    folders = {
        name: {f.name for f in (results_folder / "runs" / f"{name}-smoke").iterdir() if f.is_dir()}
        for name in ("aevb_figure4", "aevb_figure5")
    }
    assert folders["aevb_figure4"] == {"mnist-n-z-2-aevb-0"}
    assert folders["aevb_figure5"] == {"mnist-n-z-5-aevb-0", "mnist-n-z-10-aevb-0"}
    shared = aevb_figure5.TABLE.cell("smoke", "MNIST, N_z = 20: AEVB", 0, results_folder / "runs")
    assert shared.folder == results_folder / "runs" / "aevb_figure2-smoke" / "mnist-n-z-20-aevb-0"


def test_runs_with_other_arguments_are_not_shared(results_folder, monkeypatch):
    cells = {**aevb_figure2.TABLE.cells}
    cells["MNIST, N_z = 20: AEVB"] += " --fit.optimizer.lr 0.5"
    table = aevb_figure5.TABLE
    source = replace(aevb_figure2.TABLE, cells=cells)
    cell = replace(table, sources=[source]).cell(
        "smoke", "MNIST, N_z = 20: AEVB", 0, results_folder / "runs"
    )
    assert cell.folder.parent.name == "aevb_figure5-smoke"


def test_evaluation_does_not_change_training(tmp_path):
    """Weights are bit-for-bit equal to those of a run without evaluations."""
    assert aevb_figure2.main(make_args(tmp_path, "--only", DIGITS)) == 0
    evaluated = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "runs")
    plain = Cell(aevb_figure2.TABLE, "smoke", DIGITS, runs=tmp_path / "plain")
    plain.run.fit(plain.experiment("cpu"))
    assert plain.run.weights.read_bytes() == evaluated.run.weights.read_bytes()


def test_run_killed_before_its_evaluation_resumes(tmp_path, monkeypatch):
    assert aevb_figure2.main(make_args(tmp_path / "expected", "--only", DIGITS)) == 0
    write, written = Curve.write, []

    def write_once(curve, file):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(file)
        write(curve, file)

    monkeypatch.setattr(Curve, "write", write_once)
    assert aevb_figure2.main(make_args(tmp_path / "killed", "--only", DIGITS)) == 130
    monkeypatch.undo()
    cell = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "killed" / "runs")
    assert len(cell.curve.samples) == 1
    assert cell.incomplete_reason() == "training not finished"
    assert aevb_figure2.main(make_args(tmp_path / "killed", "--only", DIGITS)) == 0
    expected = read(tmp_path / "expected", "aevb_figure2")
    assert read(tmp_path / "killed", "aevb_figure2") == expected


def test_run_without_curve_is_refused(tmp_path, capsys):
    cell = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "runs")
    cell.run.fit(cell.experiment("cpu"))
    assert aevb_figure2.main(make_args(tmp_path, "--only", DIGITS)) == 1
    assert capsys.readouterr().err == (
        f"{DIGITS}, seed 0: expected {cell.folder} to be evaluated during training; epochs 1, 2 "
        f"are missing: remove it to rerun the cell\n"
    )


def test_damaged_curve_is_a_one_line_error(tmp_path, capsys):
    assert aevb_figure2.main(make_args(tmp_path, "--only", DIGITS)) == 0
    cell = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "runs")
    for content in (b"PK but no more", b"nothing"):
        cell.file.write_bytes(content)
        message = f"{cell.file} is damaged: remove its folder to rerun the cell"
        assert cell.incomplete_reason() == message
        assert aevb_figure2.main(make_args(tmp_path, "--only", DIGITS)) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "MNIST"], "expected --only to name rows"),
        (["--slurm", "mem_gb=1"], "expected --jobs with --slurm"),
        (["--table"], "expected results in"),
    ],
)
def test_invalid_options_are_one_line_errors(args, message, tmp_path, capsys):
    assert aevb_figure2.main(make_args(tmp_path, *args)) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"aevb_figure2: {message}") and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def make_curve(
    levels: list[float], overfit: float = 0.0, estimator: str = "elbo", seed: int = 0
) -> Curve:
    """A curve with the given test means; training means are higher by ``overfit``."""
    noise = np.random.default_rng(seed).normal(size=400)
    noise -= noise.mean()
    samples = 1000 * 10 ** np.arange(len(levels))
    test = np.array(levels)[:, None] + noise
    columns = {f"train/{estimator}": test + overfit, f"test/{estimator}": test}
    return Curve({"samples": samples, **columns})


def test_verdicts_of_figure_2():
    curve_of = {
        ("MNIST", 3, "AEVB"): make_curve([-200, -150, -130], overfit=1.0, seed=1),
        ("MNIST", 3, "wake-sleep"): make_curve([-220, -180, -140], seed=2),
        ("MNIST", 20, "AEVB"): make_curve([-200, -150, -141], overfit=3.0, seed=3),
        ("MNIST", 20, "wake-sleep"): make_curve([-220, -160, -140], seed=4),
    }
    claims = aevb_figure2.evaluate_claims(curve_of)
    better = claims["MNIST, N_z = 3: faster and better"]
    assert better["value"] == pytest.approx(10) and better["verdict"] == "holds"
    # the difference of two independent noises of unit variance
    assert better["se"] == pytest.approx(math.sqrt(2 / 400), rel=0.15)
    # −140 is half-way between −150 at 10⁴ and −130 at 10⁵, on the logarithmic scale
    assert better["samples_needed"] == pytest.approx(10**4.5)
    assert "31.6% of the examples" in better["sentence"]
    worse = claims["MNIST, N_z = 20: faster and better"]
    assert (worse["verdict"], worse["samples_needed"]) == ("reversed", None)
    assert "never reaches" in worse["sentence"]
    overfitting = claims["MNIST: no overfitting"]
    assert overfitting["value"] == pytest.approx(2) and overfitting["verdict"] == "reversed"
    assert overfitting["gaps"][3]["value"] == pytest.approx(1)
    assert overfitting["gaps"][20]["value"] == pytest.approx(3)
    cost = claims["MNIST: superfluous latents cost nothing"]
    assert cost["value"] == pytest.approx(-11) and cost["verdict"] == "reversed"
    assert "suspected_cause" not in cost  # only Frey Face has one, its split
    faces = aevb_figure2.compare_latents(
        "Frey Face", {3: make_curve([0, 1]), 5: make_curve([0, 1])}
    )
    assert "film" in faces["Frey Face: no overfitting"]["suspected_cause"]
    curve_of["MNIST", 20, "AEVB"] = make_curve([-200, -150, -129], overfit=1.0, seed=3)
    claims = aevb_figure2.evaluate_claims(curve_of)
    assert {claim["verdict"] for claim in claims.values()} == {"holds"}


def test_verdicts_of_figure_3():
    def curve(ais: float, difference: float) -> Curve:
        curves = [
            make_curve([-180, level], estimator=estimator)
            for estimator, level in (("AIS", ais), ("appendix D", ais + difference))
        ]
        return Curve(curves[0].columns | curves[1].columns)

    curve_of = {
        (1000, "AEVB"): curve(-150, 0.3),
        (1000, "MCEM"): curve(-155, -0.6),
        (50000, "AEVB"): curve(-140, 0.1),
        (50000, "wake-sleep"): curve(-139, 2.0),
    }
    verdicts = {
        name: claim["verdict"] for name, claim in aevb_figure3.evaluate_claims(curve_of).items()
    }
    holding = {name for name, verdict in verdicts.items() if verdict == "holds"}
    assert holding == {
        *(f"N_train = 1000, AEVB, {split}: estimator" for split in curves.SPLITS),
        *(f"N_train = 50000, AEVB, {split}: estimator" for split in curves.SPLITS),
        "N_train = 1000: better than MCEM",
    }
    assert verdicts["N_train = 50000: better than wake-sleep"] == "reversed"
    claim = aevb_figure3.evaluate_claims(curve_of)["N_train = 50000, wake-sleep, test: estimator"]
    assert claim["value"] == pytest.approx(2)
    assert claim["worst"] == {"value": pytest.approx(2), "samples": 10000}


@pytest.mark.parametrize(
    ("difference", "error", "verdict"),
    [
        (0.3, 0.05, "holds"),
        (-0.3, 0.2, "undecided"),
        (0.9, 0.3, "undecided"),
        (-0.9, 0.1, "reversed"),
    ],
)
def test_estimator_verdict_depends_on_its_error(difference, error, verdict):
    noise = np.random.default_rng(0).normal(size=400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    annealed = make_curve([-180, -150], estimator="AIS").columns
    fitted = {
        name.replace("AIS", "appendix D"): rows + difference + 20 * error * noise
        for name, rows in annealed.items()
        if name != "samples"
    }
    claims = aevb_figure3.evaluate_claims({(1000, "AEVB"): Curve(annealed | fitted)})
    for split in curves.SPLITS:
        claim = claims[f"N_train = 1000, AEVB, {split}: estimator"]
        assert (claim["value"], claim["se"]) == (pytest.approx(difference), pytest.approx(error))
        assert claim["verdict"] == verdict


def test_level_is_interpolated_between_two_points():
    samples, curve = np.array([10, 100, 1000]), np.array([0.0, 1.0, 3.0])
    assert curves.samples_to_reach(samples, curve, -1) == 10
    assert curves.samples_to_reach(samples, curve, 2) == pytest.approx(10**2.5)
    assert curves.samples_to_reach(samples, curve, 3) == pytest.approx(1000)
    assert curves.samples_to_reach(samples, curve, 3.1) is None


def test_schedule_of_a_longer_run_includes_that_of_a_shorter():
    schedule = EvaluationSchedule(lambda model, data: {}, num_data=1)
    assert schedule.epochs(1) == [1]
    assert schedule.epochs(10) == [1, 2, 3, 4, 6, 10]
    short, long = schedule.epochs(100), schedule.epochs(25000)
    assert set(short) <= set(long) and long[-1] == 25000
    assert len([e for e in long if 1000 < e <= 10000]) == 5


def test_points_are_inserted_in_order():
    curve = Curve({"samples": np.empty(0, dtype=int)})
    for samples in (10, 1000, 100):
        curve = curve.insert(samples, {"test/elbo": np.full(3, float(samples))})
    assert curve.samples.tolist() == [10, 100, 1000]
    assert curve.mean("elbo").tolist() == [10.0, 100.0, 1000.0]


def test_latent_grid_is_uniform_in_probability():
    z = latent_grid(5).reshape(5, 5, 2).double()
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    assert norm.cdf(z[0, :, 0]) == pytest.approx(levels, abs=1e-6)
    assert norm.cdf(z[:, 0, 1]) == pytest.approx(levels[::-1], abs=1e-6)
    assert (z[..., 0] == z[:1, :, 0]).all() and (z[..., 1] == z[:, :1, 1]).all()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_arguments_of_every_preset_follow_the_paper(name, preset):
    table = TABLES[name]
    for row in table.rows(preset):
        cell = Cell(table, preset, row, runs=Path("nowhere"))
        cell.check()
        experiment = cell.experiment()
        fit, model = experiment.settings.fit, experiment.settings.model
        assert fit.batch_size == 100
        arguments = experiment.fit_arguments["optimizer"]([torch.nn.Parameter(torch.ones(1))])
        assert isinstance(arguments, torch.optim.Adagrad)
        assert arguments.defaults["lr"] in (0.01, 0.02, 0.1)
        hidden = 100 if name == "aevb_figure3" else 200 if row.startswith("Frey") else 500
        for network in (model.encoder, model.decoder):
            assert list(network.init_args.hidden) == [hidden]
            assert (
                network.init_args.init == 0.01
            )  # the standard deviation in the first author's code
            assert network.init_args.activation.class_path == "torch.nn.Tanh"
        assert getattr(experiment.objective, "map_weights", False) == ("AEVB" in row)


@pytest.mark.parametrize(("script", "small"), [(aevb_figure2, 1 / 10), (aevb_figure3, 1 / 12)])
def test_paper_preset_sees_as_many_examples_as_the_paper(script, small):
    table, shares = script.TABLE, {"paper": 1.0, "small": small}
    for preset, share in shares.items():
        for row in table.rows(preset):
            settings = Cell(table, preset, row).experiment().settings
            seen = settings.fit.epochs * settings.data.train
            assert seen == pytest.approx(share * table.paper_samples)


def test_every_table_has_committed_results():
    assert {*TABLES} == {name for name in TABLES if (RESULTS / f"{name}-small.json").is_file()}


COMMITTED = sorted(file for name in TABLES for file in RESULTS.glob(f"{name}-*.json"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_results_have_the_current_titles_and_commands(file):
    results = json.loads(file.read_text(encoding="utf-8"))
    table, preset = TABLES[results["name"]], results["preset"]
    assert {*results["rows"]} <= {*table.rows(preset)} and results["title"] == table.title
    for row, entry in results["rows"].items():
        for record in entry["runs"]:
            commands = Cell(table, preset, row, record["seed"]).commands
            assert {key: record[key] for key in commands} == commands


def test_step_sizes_are_the_best_of_the_pilot():
    file = RESULTS / f"{PILOT.name}-small.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    for data, method in aevb_figure2.STEP_SIZES:
        bounds = {
            float(row.rpartition(": ")[2]): entry["runs"][0]["measures"]["training bound"]["value"]
            for row, entry in rows.items()
            if row.startswith(f"{data}, {method}: ")
        }
        assert aevb_figure2.STEP_SIZES[data, method] == max(bounds, key=bounds.__getitem__)


def test_pilot_runs(tmp_path):
    only = [f"MNIST, AEVB: {step_size}" for step_size in (0.01, 0.1)]
    assert tables.main(PILOT, make_args(tmp_path, "--only", *only)) == 0
    rows = read(tmp_path, PILOT.name)["rows"]
    values = [rows[row]["runs"][0]["measures"]["training bound"]["value"] for row in only]
    assert values[0] != values[1]
    assert importlib.import_module(PILOT.module).TABLE is PILOT
