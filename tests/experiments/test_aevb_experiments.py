"""AEVB's figures: curves that resume, claims that can fail, pictures of runs that are shared."""

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
sys.path.insert(0, str(ROOT))  # the experiments are no part of the installed package

from experiments import aevb_figure2, aevb_figure3, aevb_figure4, aevb_figure5, curves  # noqa: E402
from experiments import table as tables  # noqa: E402
from experiments.aevb_pilot import TABLE as PILOT  # noqa: E402
from experiments.cells import Cell  # noqa: E402
from experiments.curves import Curve, Watch  # noqa: E402
from experiments.gallery import manifold  # noqa: E402

SCRIPTS = {
    script.TABLE.name: script for script in (aevb_figure2, aevb_figure3, aevb_figure4, aevb_figure5)
}
TABLES = {name: script.TABLE for name, script in SCRIPTS.items()} | {PILOT.name: PILOT}
RESULTS = ROOT / "experiments" / "results"
DIGITS = "MNIST, N_z = 3: AEVB"


def words(folder: Path, *more: str) -> list[str]:
    places = ["--folder", str(folder / "runs"), "--results", str(folder)]
    return ["--preset", "smoke", "--device", "cpu", *places, *more]


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}-smoke.json").read_text(encoding="utf-8"))


def stamps(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """All four figures, one after the other, with one folder of runs."""
    if not (Path(os.environ.get("PYRO_VAE_DATA", "")) / "frey").is_dir():
        pytest.skip("PYRO_VAE_DATA names no folder with Frey Face")
    folder = tmp_path_factory.mktemp("done")
    for script in SCRIPTS.values():
        assert script.main(words(folder)) == 0
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_row_runs_and_is_drawn(name, done):
    results = read(done, name)
    assert [*results["rows"]] == TABLES[name].rows("smoke")
    assert results["missing"] == {}
    assert "seconds" not in json.dumps(results)
    assert (done / f"{name}-smoke.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", [aevb_figure2, aevb_figure3])
def test_curves_are_of_the_data_and_the_epochs_that_they_say(script, done):
    table, name = script.TABLE, script.TABLE.name
    for row, told in read(done, name)["rows"].items():
        (record,) = told["runs"]
        cell = table.cell("smoke", row, 0, done / "runs")
        _, data, model = cell.run.open()
        watch, curve = table.watch["smoke"], record["curve"]
        epochs = watch.epochs(record["epochs"])
        assert curve["samples"] == [epoch * len(data.train) for epoch in epochs]
        assert record["budget"]["fraction"] == curve["samples"][-1] / table.paper_samples
        assert record["budget"]["samples_seen"] == curve["samples"][-1]
        # the last point is what the weights that were kept are worth
        for split, part in (("train", data.train), ("test", data.test)):
            part = part.head(watch.num_data)
            for ruler, figures in watch.ruler(model, part).items():
                value = curve[split][ruler]["value"]
                assert value[-1] == pytest.approx(figures.mean(), rel=1e-5)
                assert len(value) == len(epochs)
            assert curve[split]["num_data"] == len(part)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_second_call_measures_nothing(name, done, capsys):
    before = stamps(done)
    assert SCRIPTS[name].main(words(done)) == 0
    assert stamps(done) == before
    told = capsys.readouterr().out
    assert told.count("finished, left as it is") == len(TABLES[name].rows("smoke"))
    assert SCRIPTS[name].main(words(done, "--table")) == 0
    assert capsys.readouterr().out.strip() in told
    assert stamps(done) == before


def test_the_claims_are_of_the_runs(done):
    claims = read(done, "aevb_figure2")["claims"]
    runs = done / "runs" / "aevb_figure2-smoke"
    ours, theirs = (
        Curve.read(runs / f"mnist-n-z-3-{method}-0" / "curve.npz")
        for method in ("aevb", "wake-sleep")
    )
    found = claims["MNIST, N_z = 3: faster and better, seed 0"]
    apart = ours.of("elbo")[-1] - theirs.of("elbo")[-1]
    assert found["value"] == pytest.approx(apart.mean())
    assert found["se"] == pytest.approx(apart.std(ddof=1) / math.sqrt(50))
    rows = {"MNIST, N_z = 3", "MNIST, N_z = 20", "Frey Face, N_z = 2", "Frey Face, N_z = 20"}
    assert {n.partition(": faster")[0] for n in claims if "faster" in n} == rows
    assert sum("no overfitting" in name for name in claims) == 2
    claims = read(done, "aevb_figure3")["claims"]
    assert sum("estimator" in name for name in claims) == 2 * len(aevb_figure3.ROWS)
    assert sum("better than" in name for name in claims) == 3


def test_pictures_are_of_runs_that_are_there_already(done):
    folders = {
        name: {f.name for f in (done / "runs" / f"{name}-smoke").iterdir() if f.is_dir()}
        for name in ("aevb_figure4", "aevb_figure5")
    }
    assert folders["aevb_figure4"] == {"mnist-n-z-2-aevb-0"}
    assert folders["aevb_figure5"] == {"mnist-n-z-5-aevb-0", "mnist-n-z-10-aevb-0"}
    lent = aevb_figure5.TABLE.cell("smoke", "MNIST, N_z = 20: AEVB", 0, done / "runs")
    assert lent.folder == done / "runs" / "aevb_figure2-smoke" / "mnist-n-z-20-aevb-0"


def test_whoever_was_trained_with_other_words_lends_nothing(done, monkeypatch):
    other = {**aevb_figure2.TABLE.cells}
    other["MNIST, N_z = 20: AEVB"] += " --fit.optimizer.lr 0.5"
    table = aevb_figure5.TABLE
    lender = replace(aevb_figure2.TABLE, cells=other)
    cell = replace(table, lenders=[lender]).cell("smoke", "MNIST, N_z = 20: AEVB", 0, done / "runs")
    assert cell.folder.parent.name == "aevb_figure5-smoke"


def test_to_be_judged_changes_nothing(tmp_path):
    """The same weights bit for bit as of a run that nobody looked at."""
    assert aevb_figure2.main(words(tmp_path, "--only", DIGITS)) == 0
    judged = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "runs")
    plain = Cell(aevb_figure2.TABLE, "smoke", DIGITS, runs=tmp_path / "others")
    plain.run.fit(plain.experiment("cpu"))
    assert plain.run.weights.read_bytes() == judged.run.weights.read_bytes()


def test_a_run_that_was_killed_before_it_was_judged_is_judged(tmp_path, monkeypatch):
    assert aevb_figure2.main(words(tmp_path / "whole", "--only", DIGITS)) == 0
    write, written = Curve.write, []

    def killed(curve, file):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(file)
        write(curve, file)

    monkeypatch.setattr(Curve, "write", killed)
    assert aevb_figure2.main(words(tmp_path / "killed", "--only", DIGITS)) == 130
    monkeypatch.undo()
    cell = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "killed" / "runs")
    assert len(cell.curve.samples) == 1
    assert cell.missing() == "training has not ended"
    assert aevb_figure2.main(words(tmp_path / "killed", "--only", DIGITS)) == 0
    assert read(tmp_path / "killed", "aevb_figure2") == read(tmp_path / "whole", "aevb_figure2")


def test_a_run_that_nobody_looked_at_is_refused(tmp_path, capsys):
    cell = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "runs")
    cell.run.fit(cell.experiment("cpu"))
    assert aevb_figure2.main(words(tmp_path, "--only", DIGITS)) == 1
    assert capsys.readouterr().err == (
        f"{DIGITS}, seed 0: {cell.folder} was trained without being judged after epochs 1, 2: "
        f"remove it to run the cell anew\n"
    )


def test_a_damaged_curve_is_said_to_be(tmp_path, capsys):
    assert aevb_figure2.main(words(tmp_path, "--only", DIGITS)) == 0
    cell = aevb_figure2.TABLE.cell("smoke", DIGITS, 0, tmp_path / "runs")
    for content in (b"PK but no more", b"nothing"):
        cell.file.write_bytes(content)
        message = f"{cell.file} is damaged: remove its folder to run the cell anew"
        assert cell.missing() == message
        assert aevb_figure2.main(words(tmp_path, "--only", DIGITS)) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "MNIST"], "expected --only to name rows"),
        (["--slurm", "mem_gb=1"], "expected --jobs beside --slurm"),
        (["--table"], "expected results in"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_one_sentence(more, message, tmp_path, capsys):
    assert aevb_figure2.main(words(tmp_path, *more)) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"aevb_figure2: {message}") and told.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def made_up(levels: list[float], overfit: float = 0.0, ruler: str = "elbo", noise: int = 0):
    """A curve with these test means; training means are higher by ``overfit``."""
    spread = np.random.default_rng(noise).normal(size=400)
    spread -= spread.mean()
    samples = 1000 * 10 ** np.arange(len(levels))
    test = np.array(levels)[:, None] + spread
    return Curve({"samples": samples, f"train/{ruler}": test + overfit, f"test/{ruler}": test})


def test_the_claims_of_figure_2_hold_or_not_as_they_should():
    found = {
        ("MNIST", 3, "AEVB"): made_up([-200, -150, -130], overfit=1.0, noise=1),
        ("MNIST", 3, "wake-sleep"): made_up([-220, -180, -140], noise=2),
        ("MNIST", 20, "AEVB"): made_up([-200, -150, -141], overfit=3.0, noise=3),
        ("MNIST", 20, "wake-sleep"): made_up([-220, -160, -140], noise=4),
    }
    told = aevb_figure2.claims(found)
    good = told["MNIST, N_z = 3: faster and better"]
    assert good["value"] == pytest.approx(10) and good["verdict"] == "holds"
    # two noises of unit variance that have nothing to do with each other
    assert good["se"] == pytest.approx(math.sqrt(2 / 400), rel=0.15)
    # −140 lies half-way from −150 to −130, between 10⁴ and 10⁵ in the logarithm
    assert good["samples_needed"] == pytest.approx(10**4.5)
    assert "31.6% of the data" in good["sentence"]
    bad = told["MNIST, N_z = 20: faster and better"]
    assert (bad["verdict"], bad["samples_needed"]) == ("reversed", None)
    assert "never reached" in bad["sentence"]
    fit = told["MNIST: no overfitting"]
    assert fit["value"] == pytest.approx(2) and fit["verdict"] == "reversed"
    assert fit["gaps"][3]["value"] == pytest.approx(1)
    assert fit["gaps"][20]["value"] == pytest.approx(3)
    cost = told["MNIST: superfluous latents cost nothing"]
    assert cost["value"] == pytest.approx(-11) and cost["verdict"] == "reversed"
    assert "suspected_cause" not in cost  # of digits; the faces' split is one
    faces = aevb_figure2.overfitting("Frey Face", {3: made_up([0, 1]), 5: made_up([0, 1])})
    assert "film" in faces["Frey Face: no overfitting"]["suspected_cause"]
    found["MNIST", 20, "AEVB"] = made_up([-200, -150, -129], overfit=1.0, noise=3)
    told = aevb_figure2.claims(found)
    assert {claim["verdict"] for claim in told.values()} == {"holds"}


def test_the_claims_of_figure_3_hold_or_not_as_they_should():
    def curve(ais: float, apart: float) -> Curve:
        both = [
            made_up([-180, level], ruler=ruler)
            for ruler, level in (("AIS", ais), ("appendix D", ais + apart))
        ]
        return Curve(both[0].columns | both[1].columns)

    found = {
        (1000, "AEVB"): curve(-150, 0.3),
        (1000, "MCEM"): curve(-155, -0.6),
        (50000, "AEVB"): curve(-140, 0.1),
        (50000, "wake-sleep"): curve(-139, 2.0),
    }
    verdicts = {name: claim["verdict"] for name, claim in aevb_figure3.claims(found).items()}
    right = {name for name, verdict in verdicts.items() if verdict == "holds"}
    assert right == {
        *(f"N_train = 1000, AEVB, {split}: estimator" for split in curves.SPLITS),
        *(f"N_train = 50000, AEVB, {split}: estimator" for split in curves.SPLITS),
        "N_train = 1000: better than MCEM",
    }
    assert verdicts["N_train = 50000: better than wake-sleep"] == "reversed"
    told = aevb_figure3.claims(found)["N_train = 50000, wake-sleep, test: estimator"]
    assert told["value"] == pytest.approx(2)
    assert told["worst"] == {"value": pytest.approx(2), "samples": 10000}


@pytest.mark.parametrize(
    ("apart", "error", "verdict"),
    [
        (0.3, 0.05, "holds"),
        (-0.3, 0.2, "undecided"),
        (0.9, 0.3, "undecided"),
        (-0.9, 0.1, "reversed"),
    ],
)
def test_an_estimator_is_right_or_wrong_only_where_its_error_allows(apart, error, verdict):
    spread = np.random.default_rng(0).normal(size=400)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    annealed = made_up([-180, -150], ruler="AIS").columns
    fitted = {
        name.replace("AIS", "appendix D"): rows + apart + 20 * error * spread
        for name, rows in annealed.items()
        if name != "samples"
    }
    told = aevb_figure3.claims({(1000, "AEVB"): Curve(annealed | fitted)})
    for split in curves.SPLITS:
        found = told[f"N_train = 1000, AEVB, {split}: estimator"]
        assert (found["value"], found["se"]) == (pytest.approx(apart), pytest.approx(error))
        assert found["verdict"] == verdict


def test_a_level_is_reached_between_two_points():
    samples, curve = np.array([10, 100, 1000]), np.array([0.0, 1.0, 3.0])
    assert curves.reached(samples, curve, -1) == 10
    assert curves.reached(samples, curve, 2) == pytest.approx(10**2.5)
    assert curves.reached(samples, curve, 3) == pytest.approx(1000)
    assert curves.reached(samples, curve, 3.1) is None


def test_a_longer_run_is_judged_where_a_shorter_one_was():
    watch = Watch(lambda model, data: {}, num_data=1)
    assert watch.epochs(1) == [1]
    assert watch.epochs(10) == [1, 2, 3, 4, 6, 10]
    short, long = watch.epochs(100), watch.epochs(25000)
    assert set(short) <= set(long) and long[-1] == 25000
    assert len([e for e in long if 1000 < e <= 10000]) == 5


def test_a_point_is_put_where_it_belongs():
    curve = Curve({"samples": np.empty(0, dtype=int)})
    for samples in (10, 1000, 100):
        curve = curve.joined(samples, {"test/elbo": np.full(3, float(samples))})
    assert curve.samples.tolist() == [10, 100, 1000]
    assert curve.mean("elbo").tolist() == [10.0, 100.0, 1000.0]


def test_the_manifold_goes_through_the_inverse_distribution_function():
    z = manifold(5).reshape(5, 5, 2).double()
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    assert norm.cdf(z[0, :, 0]) == pytest.approx(levels, abs=1e-6)
    assert norm.cdf(z[:, 0, 1]) == pytest.approx(levels[::-1], abs=1e-6)
    assert (z[..., 0] == z[:1, :, 0]).all() and (z[..., 1] == z[:, :1, 1]).all()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_the_words_of_every_preset_are_the_paper_s(name, preset):
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
            assert network.init_args.init == 0.01  # a deviation in the first author's code
            assert network.init_args.activation.class_path == "torch.nn.Tanh"
        assert getattr(experiment.objective, "map_weights", False) == ("AEVB" in row)


@pytest.mark.parametrize(("script", "small"), [(aevb_figure2, 1 / 10), (aevb_figure3, 1 / 12)])
def test_the_paper_s_preset_sees_as_many_data_as_the_paper(script, small):
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
def test_committed_results_were_made_by_the_words_of_today(file):
    results = json.loads(file.read_text(encoding="utf-8"))
    table, preset = TABLES[results["name"]], results["preset"]
    assert {*results["rows"]} <= {*table.rows(preset)} and results["title"] == table.title
    for row, told in results["rows"].items():
        for record in told["runs"]:
            commands = Cell(table, preset, row, record["seed"]).commands
            assert {key: record[key] for key in commands} == commands


def test_the_step_sizes_are_those_that_the_pilot_chose():
    file = RESULTS / f"{PILOT.name}-small.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    for data, method in aevb_figure2.STEP_SIZES:
        bounds = {
            float(row.rpartition(": ")[2]): told["runs"][0]["measures"]["training bound"]["value"]
            for row, told in rows.items()
            if row.startswith(f"{data}, {method}: ")
        }
        assert aevb_figure2.STEP_SIZES[data, method] == max(bounds, key=bounds.__getitem__)


def test_the_pilot_runs(tmp_path):
    only = [f"MNIST, AEVB: {step_size}" for step_size in (0.01, 0.1)]
    assert tables.main(PILOT, words(tmp_path, "--only", *only)) == 0
    rows = read(tmp_path, PILOT.name)["rows"]
    values = [rows[row]["runs"][0]["measures"]["training bound"]["value"] for row in only]
    assert values[0] != values[1]
    assert importlib.import_module(f"experiments.{PILOT.name}").TABLE is PILOT
