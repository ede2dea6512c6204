"""Figures of the AEVB paper: resumable curves, claims, and figures of shared runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scripts import RESULTS, ROOT, TABLES, make_args, modification_times, read_json

import pyro_vae as pv
from experiments.cells import Cell
from experiments.papers import aevb_figure2, aevb_figure3, aevb_figure4, aevb_figure5, curves, pilot
from experiments.papers.aevb_figure4 import latent_grid
from experiments.papers.curves import Curve, CurveCell, CurveClaim, EvaluationSchedule
from experiments.papers.pilot import PilotCell
from experiments.tables import slug
from pyro_vae.config import experiment
from pyro_vae.learning.diagnostics import NonFiniteLossError

DIGITS = "MNIST, N_z = 3: AEVB"
#: Rows that are run, of every script.
RUN = {
    aevb_figure2: [DIGITS, "MNIST, N_z = 3: wake-sleep", "MNIST, N_z = 20: AEVB"],
    aevb_figure3: ["N_train = 1000: AEVB"],
    aevb_figure4: ["MNIST, N_z = 2: AEVB"],
    aevb_figure5: ["MNIST, N_z = 2: AEVB", "MNIST, N_z = 20: AEVB"],
}


def read(folder: Path, script: Any) -> dict[str, Any]:
    return read_json(folder / f"{script.TABLE.name}-smoke.json")


def curve_cell(folder: Path, script: Any = aevb_figure2, row: str = DIGITS) -> CurveCell:
    return CurveCell(script.TABLE, "smoke", row, 0, folder / "runs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Results of some rows of all figures, run in order with one folder of runs."""
    folder = tmp_path_factory.mktemp("aevb")
    for script, rows in RUN.items():
        assert script.main(make_args(folder, "--only", *rows)) == 0
    return folder


@pytest.mark.parametrize("script", RUN, ids=lambda script: script.TABLE.name)
def test_rows_run_once_and_are_drawn(script, finished, capsys):
    results = read(finished, script)
    assert [*results["rows"]] == RUN[script]
    assert "seconds" not in json.dumps(results)
    picture = finished / f"{script.TABLE.name}-smoke.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = modification_times(finished)
    assert script.main(make_args(finished, "--only", *RUN[script])) == 0
    assert modification_times(finished) == before
    printed = capsys.readouterr().out
    assert printed.count("already finished") == len(RUN[script])
    assert script.main(make_args(finished, "--table")) == 0
    assert capsys.readouterr().out.strip() in printed
    assert modification_times(finished) == before


@pytest.mark.parametrize("script", [aevb_figure2, aevb_figure3], ids=lambda s: s.TABLE.name)
def test_curves_have_the_scheduled_examples_and_epochs(script, finished):
    table = script.TABLE
    row = RUN[script][0]
    (record,) = read(finished, script)["rows"][row]["runs"]
    _, data, model = curve_cell(finished, script, row).run.open()
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


def test_claims_are_computed_from_the_runs(finished):
    claims = read(finished, aevb_figure2)["claims"]
    aevb, wake_sleep = (curve_cell(finished, row=row).curve for row in RUN[aevb_figure2][:2])
    claim = claims["MNIST, N_z = 3: faster and better"]
    difference = aevb.values("elbo")[-1] - wake_sleep.values("elbo")[-1]
    assert claim["value"] == pytest.approx(difference.mean())
    assert claim["se"] == pytest.approx(difference.std(ddof=1) / math.sqrt(50))
    assert claim["seeds"] == [0] and claim["by_seed"] == [claim["value"]]
    assert "MNIST: no overfitting, 3 to 20" in claims
    assert not any("verdict" in claim for claim in claims.values())  # a smoke run states none
    claims = read(finished, aevb_figure3)["claims"]
    assert sum("estimator" in name for name in claims) == 2


def test_figures_reuse_existing_runs(finished):
    folders = {
        name: {f.name for f in (finished / "runs" / f"{name}-smoke").glob("[!.]*") if f.is_dir()}
        for name in ("aevb_figure4", "aevb_figure5")
    }
    assert folders == {"aevb_figure4": {"mnist-n-z-2-aevb-0"}, "aevb_figure5": set()}


def test_figures_reuse_existing_pilots(finished):
    """Figures 2 and 5 have the model with 20 latents in common, and figures 4 and 5 that with 2."""
    names = [file.name.rpartition("-")[0] for file in (finished / "runs/pilots").glob("*.json")]
    rows = {row for rows in RUN.values() for row in rows}
    assert sorted(names) == sorted(f"{slug(row)}-0" for row in rows)
    (record,) = read(finished, aevb_figure5)["rows"]["MNIST, N_z = 20: AEVB"]["runs"]
    assert record["pilot"] == curve_cell(finished, row="MNIST, N_z = 20: AEVB").read_pilot()


def test_step_size_is_that_of_the_pilot(finished, monkeypatch):
    (record,) = read(finished, aevb_figure2)["rows"][DIGITS]["runs"]
    results = record["pilot"]
    training = {float(s): entry["value"] for s, entry in results["training"].items() if entry}
    assert results["training"].keys() == {"0.01", "0.02", "0.1"}
    assert results["step_size"] == max(training, key=training.__getitem__)
    assert record["fit"].endswith(f" --fit.optimizer.lr {results['step_size']}")
    _, stored, _ = curve_cell(finished).run.open()
    config = curve_cell(finished).run.read_result()["config"]
    assert config["fit"]["optimizer"]["init_args"]["lr"] == results["step_size"]
    # the recorded bound is that of the model itself, trained with another step size
    step_size = min(set(training) - {results["step_size"]})
    trial = curve_cell(finished).experiment("cpu")
    args = [*curve_cell(finished).args[:-1], str(step_size), "--fit.device", "cpu"]
    trial = experiment.parse(args)
    model = trial.build_model(stored)
    pv.fit(model, stored.train, **trial.fit_arguments)  # the smoke budget is below the pilot's
    bound = pv.evaluate(model, stored.train, num_samples=10).estimates["elbo"].value
    assert training[step_size] == pytest.approx(bound, rel=1e-6)


def test_best_finite_step_size_is_chosen(tmp_path, monkeypatch):
    cell = curve_cell(tmp_path)
    assert cell.args[-2:] == ["--fit.optimizer.lr", "0.01"]  # before the pilot
    values = {0.01: -150.0, 0.02: -140.0}

    def fit(model, data, *, optimizer, **options):
        lr = optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["lr"]
        if lr not in values:
            raise NonFiniteLossError("the loss", "z", "NaN")
        model.lr = lr
        assert options["epochs"] == 3 and len(data) == 200

    def evaluate(model, data, num_samples):
        row = SimpleNamespace(value=values[model.lr], se_data=1.0)
        return SimpleNamespace(estimates={"elbo": row})

    monkeypatch.setattr(pilot.pv, "fit", fit)
    monkeypatch.setattr(pilot.pv, "evaluate", evaluate)
    results = cell.run_pilot("cpu")
    assert results["step_size"] == 0.02 and results["examples"] == 600
    assert results["training"]["0.1"] is None
    values[0.02] = math.nan
    assert cell.run_pilot("cpu")["step_size"] == 0.01
    values.clear()
    with pytest.raises(ValueError, match=r"diverge, among 0\.01, 0\.02, 0\.1; got none"):
        cell.run_pilot("cpu")
    cell.pilot_file.parent.mkdir(parents=True)
    cell.pilot_file.write_text("{")
    with pytest.raises(ValueError, match=r"pilots/.*json is damaged: remove it to repeat"):
        _ = cell.args
    cell.pilot_file.write_text(json.dumps(results))
    assert cell.args[-2:] == ["--fit.optimizer.lr", "0.02"]


def test_pilots_of_large_data_see_their_first_examples():
    settings = {}
    for row in ("MNIST, N_z = 3: AEVB", "Frey Face, N_z = 2: AEVB"):
        cell = PilotCell(aevb_figure2.TABLE, "small", row)
        settings[row] = cell._pilot_epochs
    assert [*settings.values()] == [1, 12]  # 20,000 of 50,000 digits, 12 times 1600 faces


def test_evaluation_does_not_change_training(finished, tmp_path):
    """Weights are bit-for-bit equal to those of a run without evaluations, which is refused."""
    evaluated, cell = curve_cell(finished), curve_cell(tmp_path)
    copytree(finished / "runs/pilots", tmp_path / "runs/pilots")
    cell.run.fit(cell.experiment("cpu"))
    assert cell.run.weights.read_bytes() == evaluated.run.weights.read_bytes()
    with pytest.raises(ValueError, match="to be evaluated during training; epochs 1, 2 are miss"):
        cell.execute("cpu")


def test_run_killed_before_its_evaluation_resumes(finished, tmp_path):
    evaluated = []

    def evaluate_once(model, data):
        if len(evaluated) == 2:  # the training and the test examples of one epoch
            raise KeyboardInterrupt
        evaluated.append(data)
        return aevb_figure2.estimate_elbo(model, data)

    schedule = aevb_figure2.TABLE.schedules["smoke"]
    schedules = {"smoke": replace(schedule, estimators=evaluate_once)}
    copytree(finished / "runs/pilots", tmp_path / "runs/pilots")
    interrupted = CurveCell(
        replace(aevb_figure2.TABLE, schedules=schedules), "smoke", DIGITS, 0, tmp_path / "runs"
    )
    with pytest.raises(KeyboardInterrupt):
        interrupted.execute("cpu")
    cell = curve_cell(tmp_path)
    assert len(cell.curve.samples) == 1
    assert cell.incomplete_reason() == "training not finished"
    cell.execute("cpu")
    assert cell.incomplete_reason() is None
    assert cell.curve.summary() == curve_cell(finished).curve.summary()


def test_damaged_curve_is_a_one_line_error(tmp_path):
    cell = curve_cell(tmp_path)
    cell.folder.mkdir(parents=True)
    file = cell.folder / "curve-000001.npz"
    for content in (b"PK but no more", b"nothing"):
        file.write_bytes(content)
        with pytest.raises(ValueError) as raised:
            _ = cell.curve
        assert str(raised.value) == f"{file} is damaged: remove {cell.folder} to rerun the cell"


def make_curve(
    levels: list[float], overfit: float = 0.0, estimator: str = "elbo", seed: int = 0
) -> Curve:
    """A curve with the given test means; training means are higher by ``overfit``."""
    noise = np.random.default_rng(seed).normal(size=400)
    noise -= noise.mean()
    samples = 1000 * 10 ** np.arange(len(levels))
    test = np.array(levels)[:, None] + noise
    columns = {f"train/{estimator}": test + overfit, f"test/{estimator}": test}
    return Curve(samples, columns)


def evaluate(script: Any, curve_of: dict) -> dict[str, dict[str, Any]]:
    """Evaluated claims of three seeds with equal curves, so that only the examples differ."""
    claims = script.evaluate_claims(curve_of)
    return {n: curves.combine_seeds(dict.fromkeys(range(3), claim)) for n, claim in claims.items()}


def test_claims_include_the_variation_between_seeds():
    values = {0: 0.0, 1: 5.0, 2: 10.0}
    claims = {
        s: CurveClaim("more is better", "a paper", v, 0.3, extra={"x": s})
        for s, v in values.items()
    }
    record = curves.combine_seeds(claims)
    error = 5 / math.sqrt(3)
    assert (record["value"], record["se_data"], record["x"]) == (5, pytest.approx(0.3), [0, 1, 2])
    assert record["se_seeds"] == pytest.approx(error)
    assert record["se"] == pytest.approx(math.hypot(0.3, error))
    assert (record["seeds"], record["by_seed"]) == ([0, 1, 2], [0, 5, 10])
    assert record["verdict"] == "undecided"
    equal = curves.combine_seeds(dict.fromkeys(range(3), claims[2]))
    assert (equal["verdict"], equal["se"]) == ("holds", pytest.approx(0.3))
    rules = (aevb_figure2._is_not_higher, aevb_figure3._tolerance_verdict)
    for verdict in (claims[0].verdict, *rules):
        single = curves.combine_seeds({0: replace(claims[0], verdict=verdict)})
        assert (single["verdict"], single["se_seeds"]) == ("one seed: not judged", None)


def test_verdicts_of_figure_2():
    curve_of = {
        ("MNIST", 3, "AEVB"): make_curve([-200, -150, -130], overfit=1.0, seed=1),
        ("MNIST", 3, "wake-sleep"): make_curve([-220, -180, -140], seed=2),
        ("MNIST", 20, "AEVB"): make_curve([-200, -150, -141], overfit=3.0, seed=3),
        ("MNIST", 20, "wake-sleep"): make_curve([-220, -160, -140], seed=4),
    }
    claims = evaluate(aevb_figure2, curve_of)
    better = claims["MNIST, N_z = 3: faster and better"]
    assert better["value"] == pytest.approx(10) and better["verdict"] == "holds"
    # the difference of two independent noises of unit variance
    assert better["se"] == pytest.approx(math.sqrt(2 / 400), rel=0.15)
    # −140 is half-way between −150 at 10⁴ and −130 at 10⁵, on the logarithmic scale
    assert better["samples_needed"] == pytest.approx([10**4.5] * 3)
    worse = claims["MNIST, N_z = 20: faster and better"]
    assert (worse["verdict"], worse["samples_needed"]) == ("reversed", [None] * 3)
    overfitting = claims["MNIST: no overfitting, 3 to 20"]
    assert overfitting["value"] == pytest.approx(2) and overfitting["verdict"] == "reversed"
    assert overfitting["gaps"][0] == {3: pytest.approx(1), 20: pytest.approx(3)}
    cost = claims["MNIST: superfluous latents cost nothing, 3 to 20"]
    assert cost["value"] == pytest.approx(-11) and cost["verdict"] == "reversed"
    curve_of["MNIST", 20, "AEVB"] = make_curve([-200, -150, -129], overfit=1.0, seed=3)
    claims = evaluate(aevb_figure2, curve_of)
    assert {claim["verdict"] for claim in claims.values()} == {"holds"}


def test_most_latents_are_compared_with_the_next_and_the_fewest():
    levels = {3: -130, 5: -110, 10: -100, 20: -104}
    by_latents = {n: make_curve([-200, levels[n]], overfit=n) for n in (20, 5, 3, 10)}
    claims = aevb_figure2.compare_latents("MNIST", by_latents)
    cost = claims["MNIST: superfluous latents cost nothing, 10 to 20"]
    overfitting = claims["MNIST: no overfitting, 3 to 20"]
    assert cost.value == pytest.approx(-4) and "N_z = 10 " in cost.sentence
    assert overfitting.value == pytest.approx(20 - 3) and "N_z = 3 " in overfitting.sentence
    # a seed without 20 latents makes another comparison, which must not be averaged with this one
    del by_latents[20]
    assert not claims.keys() & aevb_figure2.compare_latents("MNIST", by_latents).keys()


def test_verdicts_of_figure_3():
    def curve(ais: float, difference: float) -> Curve:
        curves = [
            make_curve([-180, level], estimator=estimator)
            for estimator, level in (("AIS", ais), ("appendix D", ais + difference))
        ]
        return Curve(curves[0].samples, {**curves[0].columns, **curves[1].columns})

    curve_of = {
        (1000, "AEVB"): curve(-150, 0.3),
        (1000, "MCEM"): curve(-155, -0.6),
        (50000, "AEVB"): curve(-140, 0.1),
        (50000, "wake-sleep"): curve(-139, 2.0),
    }
    verdicts = {name: claim["verdict"] for name, claim in evaluate(aevb_figure3, curve_of).items()}
    holding = {name for name, verdict in verdicts.items() if verdict == "holds"}
    assert holding == {
        *(f"N_train = 1000, AEVB, {split}: estimator" for split in curves.SPLITS),
        *(f"N_train = 50000, AEVB, {split}: estimator" for split in curves.SPLITS),
        "N_train = 1000: better than MCEM",
    }
    assert verdicts["N_train = 50000: better than wake-sleep"] == "reversed"
    claim = evaluate(aevb_figure3, curve_of)["N_train = 50000, wake-sleep, test: estimator"]
    assert claim["value"] == pytest.approx(2)
    assert claim["worst"] == [{"value": pytest.approx(2), "samples": 10000}] * 3


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
    curve = make_curve([-180, -150], estimator="AIS")
    annealed = dict(curve.columns)
    fitted = {
        name.replace("AIS", "appendix D"): rows + difference + 20 * error * noise
        for name, rows in annealed.items()
    }
    claims = evaluate(aevb_figure3, {(1000, "AEVB"): Curve(curve.samples, annealed | fitted)})
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


def test_points_are_read_in_order(tmp_path):
    for epoch, samples in ((1, 10), (20, 1000), (3, 100)):
        columns = {"samples": samples, "test/elbo": np.full(3, float(samples))}
        np.savez(tmp_path / f"curve-{epoch:06}.npz", **columns)
    curve = Curve.read(tmp_path)
    assert curve.samples.tolist() == [10, 100, 1000]
    assert curve.mean("elbo").tolist() == [10.0, 100.0, 1000.0]


def test_latent_grid_is_uniform_in_probability():
    z = latent_grid(5).reshape(5, 5, 2).double()
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    assert norm.cdf(z[0, :, 0]) == pytest.approx(levels, abs=1e-6)
    assert norm.cdf(z[:, 0, 1]) == pytest.approx(levels[::-1], abs=1e-6)
    assert (z[..., 0] == z[:1, :, 0]).all() and (z[..., 1] == z[:, :1, 1]).all()


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("aevb")])
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_arguments_of_every_preset_follow_the_paper(name, preset):
    table = TABLES[name][0]
    for row in table.rows(preset):
        cell = Cell(table, preset, row)
        experiment = cell.expected
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
        # the prior N(0, I) on all weights, as every optimizer's step is that of a minibatch's sum
        size = 1000 if "1000" in row else 1600 if row.startswith("Frey") else 50000
        assert experiment.settings.data.train == size
        assert arguments.defaults["weight_decay"] == 100 / size
        assert model.posterior.init_args.log_variance is True
        if row.startswith("Frey"):
            likelihood = model.likelihood.init_args
            assert (likelihood.scale, likelihood.mean) == ("decoded_variance", "sigmoid")
            assert experiment.settings.data.keep_blocks is False
        if row.endswith("MCEM"):  # appendix E
            objective = experiment.objective
            numbers = (objective.num_steps, objective.target, objective.updates)
            assert numbers == (10, 0.9, 5)


def test_weight_decay_is_the_prior_of_all_weights():
    """Weight decay adds the gradient of log N(θ; 0, I) at the scale of ELBO(map_weights=True)."""
    settings = Cell(aevb_figure2.TABLE, "smoke", DIGITS).expected
    data = settings.load_data()
    part = data.train.head(100)
    decay, lr, weights = 100 / len(part), 1e-3, {}
    for name, objective, weight_decay in (
        ("no prior", pv.objectives.ELBO(), 0.0),
        ("model's weights", pv.objectives.ELBO(map_weights=True), 0.0),
        ("weight decay", pv.objectives.ELBO(), decay),
        ("no prior, wake-sleep", pv.objectives.WakeSleep(), 0.0),
        ("weight decay, wake-sleep", pv.objectives.WakeSleep(), decay),
    ):
        model = settings.build_model(data).double()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        sgd = partial(torch.optim.SGD, lr=lr, weight_decay=weight_decay)
        pv.fit(model, part, epochs=1, batch_size=100, optimizer=sgd, objective=objective)
        weights[name] = {n: p.detach() for n, p in model.named_parameters()}
    for n, start in before.items():
        for suffix in ("", ", wake-sleep"):
            change = weights[f"weight decay{suffix}"][n] - weights[f"no prior{suffix}"][n]
            torch.testing.assert_close(change, -lr * decay * start, atol=1e-12, rtol=1e-6)
        if n.startswith("likelihood"):
            torch.testing.assert_close(weights["weight decay"][n], weights["model's weights"][n])
    assert any(n.startswith("posterior") for n in before)


def test_faces_are_split_by_frames_or_by_blocks():
    frames, blocks = (Cell(t, "small", t.rows("small")[-1]) for t in aevb_figure2.TABLES)
    assert blocks.expected.settings.data.keep_blocks is True
    assert frames.row == blocks.row
    changed = frames.expected.differences(blocks.expected)
    assert {*changed} == {"data.keep_blocks"}
    assert blocks.table.command("small").endswith("--preset small --faces blocks")
    assert blocks.table.stem("small") == "aevb_figure2-small-blocks"
    assert not any("MNIST" in row for row in blocks.table.cells)


@pytest.mark.parametrize(("script", "small"), [(aevb_figure2, 1 / 200), (aevb_figure3, 1 / 120)])
def test_paper_preset_sees_as_many_examples_as_the_paper(script, small):
    table, shares = script.TABLE, {"paper": 1.0, "small": small}
    for preset, share in shares.items():
        for row in table.rows(preset):
            settings = Cell(table, preset, row).expected.settings
            seen = settings.fit.epochs * settings.data.train
            # 312 epochs of 1600 faces are nearly as many as 10 of 50,000 digits
            assert seen == pytest.approx(share * table.paper_samples, rel=2e-3)


COMMITTED = sorted(RESULTS.glob("aevb_*.json"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_step_sizes_are_the_best_of_the_pilots(file):
    for row in read_json(file)["rows"].values():
        for run in row["runs"]:
            training = run["pilot"]["training"]
            values = {float(s): entry["value"] for s, entry in training.items() if entry}
            assert run["pilot"]["step_size"] == max(values, key=values.__getitem__)


def test_page_shows_the_results():
    text = (ROOT / "docs" / "explanation" / "reproductions.md").read_text(encoding="utf-8")
    for script in (aevb_figure2, aevb_figure3):
        for table in script.TABLES if script is aevb_figure2 else [script.TABLE]:
            file = RESULTS / f"{table.stem('small')}.json"
            if file.is_file():
                for part in script.format_table(read_json(file)).split("\n\n"):
                    assert part in text
