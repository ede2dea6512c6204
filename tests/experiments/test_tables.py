"""Tables of ``experiments``: cells run, resume, are skipped, and are reported correctly."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import make_args, modification_times, read_json

from experiments import reporting
from experiments.cells import Cell, lock
from experiments.command import main
from experiments.tables import (
    Claim,
    Preset,
    Published,
    Table,
    claim_verdict,
    combine_errors,
    group_rows,
    ordering,
    slug,
)
from pyro_vae.cli.app import main as pyro_vae
from pyro_vae.runs.run import Run

BUDGET = Preset("--fit.epochs 2", 30, 20, {"components": 3})
TOY = Table(
    name="toy",
    title="Priors of two latents",
    base="--data.name digits --data.binarize threshold --data.test 1600 --model.latent_dim 2",
    cells={
        "StandardNormal": "--model.prior StandardNormal",
        "Mixture": "--model.prior MixtureOfNormals --model.prior.components {components}",
    },
    presets={
        "smoke": BUDGET,
        "small": BUDGET,
        "paper": Preset("--fit.epochs 8", values={"components": 3}, exclude=["Mixture"]),
    },
    measures={"size": lambda model, data: {"value": model.prior.latent_dim, "se": 0.25}},
    published={"StandardNormal": Published(-40.0, "a paper", (2,)), "Mixture": "a lot more"},
    claims={
        "one": ordering("the mixture is better", "Mixture", "StandardNormal"),
        "weights": Claim("weights matter", {"Mixture": 2.0, "StandardNormal": -0.5}),
        "size": ordering("it is larger", "Mixture", "StandardNormal", "size"),
    },
    causes={"": "another seed"},
    train_size=197,
)
FOLDERS = {"StandardNormal": "standardnormal", "Mixture": "mixture"}
LEVELS = Table(
    name="levels",
    title="Bits",
    base="--data.name digits --data.binarize none --data.test 1600 --model.latent_dim 2",
    cells={
        "levels": "--model.likelihood Binomial --model.likelihood.levels 16 --data.values integer",
        "densities": "--model.likelihood Gaussian --data.values dequantized",
    },
    presets={"small": BUDGET},
    bits=True,
)

Runner = Callable[..., int]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Folder of both toy tables, run with two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    for table in (TOY, LEVELS):
        assert main(table, make_args(folder, "--seeds", "0", "1", preset="small")) == 0
    return folder


@pytest.fixture
def toy(tmp_path, finished) -> Runner:
    """Function that runs a table in a copy of the finished folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)

    def run(*args: str, table: Table = TOY, preset: str = "small", **options: Any) -> int:
        return main(table, make_args(tmp_path, *args, preset=preset), **options)

    return run


def read(folder: Path, name: str = "toy") -> dict[str, Any]:
    return read_json(folder / f"{name}-small.json")


def remove(folder: Path, *rows: str) -> None:
    """Remove the runs of rows, and all results."""
    for row in rows:
        for run in (folder / "runs" / "toy-small").glob(f"{FOLDERS[row]}-*"):
            shutil.rmtree(run)
    (folder / "toy-small.json").unlink()


def bounds_of(folder: Path, table: Table, row: str, seed: int) -> Any:
    return Cell(table, "small", row, seed, folder / "runs").run.read_bounds()


def line_of(results: dict[str, Any], row: str) -> str:
    lines = reporting.format_results(results).splitlines()
    return next(line for line in lines if line.startswith(row))


class TestRecords:
    """Results files of finished runs."""

    def test_records_are_those_of_the_runs(self, finished):
        results = read(finished)
        assert results["missing"] == {}
        assert results["command"] == "python -m experiments.studies.toy --preset small"
        for row in TOY.cells:
            for seed, record in enumerate(results["rows"][row]["runs"]):
                bounds, estimates = (
                    bounds_of(finished, TOY, row, seed),
                    record["bounds"]["estimates"],
                )
                assert record["seed"] == seed
                assert estimates["elbo"]["value"] == bounds.elbo
                assert estimates["log_evidence"]["value"] == bounds.log_evidence
                assert record["bounds"]["unreliable"] == len(bounds.unreliable)
                assert record["data"]["checksum"] and record["versions"]["torch"]
                assert record["device"].startswith("cpu")
        assert "seconds" not in json.dumps(results)

    def test_differences_are_paired_with_the_same_seed(self, finished):
        for seed in (0, 1):
            second, first = (
                bounds_of(finished, TOY, row, seed).per_datum["log_evidence"]
                for row in ("Mixture", "StandardNormal")
            )
            record = read(finished)["rows"]["Mixture"]["runs"][seed]["difference"]
            assert record["value"] == pytest.approx((second - first).mean())
            assert record["se_paired"] == pytest.approx((second - first).std(ddof=1) / 20**0.5)

    def test_seeds_are_averaged(self, finished):
        row = read(finished)["rows"]["Mixture"]
        values = [r["bounds"]["estimates"]["elbo"]["value"] for r in row["runs"]]
        assert values[0] != values[1]
        assert row["over_seeds"]["elbo"]["mean"] == pytest.approx(np.mean(values))
        assert row["over_seeds"]["elbo"]["spread"] == pytest.approx(np.std(values, ddof=1))
        gains = [r["difference"]["value"] for r in row["runs"]]
        assert row["over_seeds"]["difference"]["mean"] == pytest.approx(np.mean(gains))
        results = read(finished)
        assert "± seeds" in reporting.format_results(results)
        del results["rows"]["Mixture"]["over_seeds"]  # as with one seed, beside others with two
        assert "nan" not in line_of(results, "Mixture")

    def test_bits_are_compared_across_dequantisation(self, finished):
        levels, densities = (
            bounds_of(finished, LEVELS, row, 0).per_datum["log_evidence"] for row in LEVELS.cells
        )
        # 64 pixels with 17 levels: a density on (0, 1) is divided by 17⁶⁴ to be a probability
        difference = (levels - (densities - 64 * np.log(17))) / (64 * np.log(2))
        record = read(finished, "levels")["rows"]["densities"]["runs"][0]["difference"]
        assert record["value"] == pytest.approx(difference.mean())
        error = difference.std(ddof=1) / math.sqrt(20)
        assert record["se_paired"] == pytest.approx(error, rel=1e-5)

    def test_bits_are_averaged_over_seeds(self, finished):
        results = read(finished, "levels")
        row = results["rows"]["densities"]
        for name in ("elbo", "log_evidence"):
            bits = [r["bounds"]["bits_per_dim"][name]["value"] for r in row["runs"]]
            assert row["over_seeds"][name]["mean"] == pytest.approx(np.mean(bits))
            assert row["over_seeds"][name]["spread"] == pytest.approx(np.std(bits, ddof=1))
        assert "gap" not in row["over_seeds"]  # only available in nats
        gain = row["over_seeds"]["difference"]["mean"]
        columns = line_of(results, "densities").split()
        assert f"{row['over_seeds']['log_evidence']['spread']:.4f}" in columns
        assert f"{gain:.4f}" in columns

    @pytest.mark.parametrize(("table", "row"), [(TOY, "Mixture"), (LEVELS, "densities")])
    def test_nonfinite_results_are_null(self, table, row, toy, tmp_path, monkeypatch):
        # as if one example had probability zero
        cell = Cell(table, "small", row, 1, tmp_path / "runs")
        result = read_json(cell.run.result)
        for kind in {"estimates", "bits_per_dim"} & result["bounds"].keys():
            for name in ("elbo", "log_evidence"):
                result["bounds"][kind][name] = dict.fromkeys(result["bounds"][kind][name])
        del result["checksum"], result["fit"]["weights"]  # as older versions wrote it
        cell.run.result.write_text(json.dumps(result), encoding="utf-8")
        read_bounds = Run.read_bounds

        def with_impossible_example(run):
            bounds = read_bounds(run)
            if run.folder == cell.folder:
                bounds.per_datum["log_evidence"][3] = -math.inf
            return bounds

        monkeypatch.setattr(Run, "read_bounds", with_impossible_example)
        assert toy(table=table) == 0
        results = read(tmp_path, table.name)
        json.dumps(results, allow_nan=False)
        finite, nonfinite = results["rows"][row]["runs"]
        assert nonfinite["difference"] == {"value": None, "se_paired": None}
        assert math.isfinite(finite["difference"]["value"] + finite["difference"]["se_paired"])
        null = {"mean": None, "spread": None}
        assert results["rows"][row]["over_seeds"]["log_evidence"] == null
        assert line_of(results, row).split().count("nan") == 6

    def test_difference_of_one_example_has_no_error(self, toy, tmp_path):
        one = replace(BUDGET, num_data=1)
        assert toy(table=replace(TOY, presets={"small": one})) == 0
        record = read(tmp_path)["rows"]["Mixture"]["runs"][0]
        assert record["difference"]["value"] is not None
        assert record["difference"]["se_paired"] is None

    def test_published_results_and_measures_are_printed(self, finished):
        results = read(finished)
        row = results["rows"]["StandardNormal"]
        assert row["published"] == "−40.00 / 2"
        assert row["paper"] == {
            "value": -40.0,
            "source": "a paper",
            "confirmed": True,
            "units": [2],
        }
        assert row["suspected_cause"] == "another seed"
        assert "paper" not in results["rows"]["Mixture"]  # text is printed, not compared
        assert line_of(results, "row").split()[-2:] == ["size", "published"]
        assert line_of(results, "StandardNormal").endswith("2 ± 0.25   −40.00 / 2")
        assert line_of(results, "Mixture").endswith("2 ± 0.25   a lot more")

    def test_parts_of_a_measure_are_averaged_over_seeds(self):
        measures = [{"value": 3, "text": "2+1"}, {"value": 5, "text": "3+2"}]
        runs = [{"measures": {"layers": measure}} for measure in measures]
        assert reporting.format_measure(runs[:1], "layers") == "2+1"
        assert reporting.format_measure(runs, "layers") == "2.5+1.5"
        assert reporting.format_measure([{}], "layers") == ""

    def test_share_of_the_papers_training_is_recorded(self, finished):
        results = read(finished)
        record = results["rows"]["StandardNormal"]["runs"][0]
        train = record["data"]["sizes"]["train"]
        assert record["budget"] == {
            "epochs": 2,
            "samples_seen": 2 * train,
            "ended_by_itself": False,
            "paper_samples": 8 * 197,
            "fraction": 2 * train / (8 * 197),
        }
        # the paper's preset does not run this row
        assert "fraction" not in results["rows"]["Mixture"]["runs"][0]["budget"]
        share = f"{100 * record['budget']['fraction']:.3g} %"
        text = reporting.format_results(results)
        assert f"training examples seen, relative to the paper: {share}" in text

    def test_early_stopping_is_recorded(self, tmp_path):
        fit = "--fit.epochs 9 --fit.patience 1 --fit.optimizer SGD --fit.optimizer.lr 1e-30"
        table = replace(TOY, presets={**TOY.presets, "small": replace(BUDGET, fit=fit)}, claims={})
        assert main(table, make_args(tmp_path, "--only", "StandardNormal", preset="small")) == 0
        (record,) = read(tmp_path)["rows"]["StandardNormal"]["runs"]
        assert record["budget"]["epochs"] == 2
        assert record["budget"]["ended_by_itself"]


class TestClaims:
    def test_claims_are_paired_sums_with_errors(self, finished):
        results = read(finished)

        def log_p(row: str) -> np.ndarray:
            seeds = [bounds_of(finished, TOY, row, s).per_datum["log_evidence"] for s in (0, 1)]
            return np.array(seeds)

        mixture, normal = log_p("Mixture"), log_p("StandardNormal")
        for name, total in (("one", mixture - normal), ("weights", 2 * mixture - 0.5 * normal)):
            claim = results["claims"][name]
            assert claim["value"] == pytest.approx(total.mean())
            assert claim["by_seed"] == pytest.approx(total.mean(1))
            se_data = total.mean(0).std(ddof=1) / math.sqrt(20)
            se_seeds = total.mean(1).std(ddof=1) / math.sqrt(2)
            assert (claim["se_data"], claim["se_seeds"]) == pytest.approx((se_data, se_seeds))
            assert claim["se"] == pytest.approx(math.hypot(se_data, se_seeds))
            assert claim["seeds"] == [0, 1]
            assert claim["paired"]
            error = combine_errors(claim["by_seed"], claim["se_data"])
            assert claim["verdict"] == claim_verdict(claim["value"], claim["se"], error.dof)
        size = results["claims"]["size"]
        # two models with two seeds each: 4 · 0.25² / 2²
        assert (size["value"], size["se"]) == (0.0, pytest.approx(0.25))
        assert (size["paired"], size["verdict"]) == (False, "undecided")
        text = reporting.format_results(results)
        assert "undecided: it is larger: +0.000 ± 0.250 (not paired, 2 seeds)" in text

    def test_smoke_run_states_no_verdict(self, toy, tmp_path, capsys):
        (tmp_path / "runs" / "toy-small").rename(tmp_path / "runs" / "toy-smoke")
        assert toy(preset="smoke") == 0
        out = capsys.readouterr().out
        assert "smoke budget: 3 claims evaluated, no verdict" in out
        assert not re.search("holds|reversed|undecided", out)
        claims = read_json(tmp_path / "toy-smoke.json")["claims"]
        assert [*claims] == [*TOY.claims]
        assert not any("verdict" in claim for claim in claims.values())

    @pytest.mark.parametrize(
        ("value", "error", "verdict"),
        [
            (1.0, 0.4, "holds"),
            (1.0, 0.6, "undecided"),
            (-1.0, 0.4, "reversed"),
            (0.0, 0.0, "undecided"),
            (math.nan, 0.1, "undecided"),
            (math.inf, 0.1, "undecided"),
            (1.0, math.nan, "undecided"),
        ],
    )
    def test_two_standard_errors_decide(self, value, error, verdict):
        assert claim_verdict(value, error) == verdict

    def test_errors_over_seeds_and_examples_are_combined(self):
        # standard deviation 1, so 1/√3 over seeds
        error = combine_errors([1.0, 2.0, 3.0], 0.5)
        assert error.se_seeds == pytest.approx(1 / math.sqrt(3))
        assert error.se == pytest.approx(math.sqrt(1 / 3 + 1 / 4))
        # Welch–Satterthwaite: (1/3 + 1/4)² / ((1/3)² / 2)
        assert error.dof == pytest.approx((7 / 12) ** 2 * 18)
        # quantiles of t with 2 degrees of freedom: t = (2p − 1) / √(2 p (1 − p)), p = Φ(2)
        p = 0.977249868
        margin = (2 * p - 1) / math.sqrt(2 * p * (1 - p)) / math.sqrt(3)
        assert combine_errors([1.0, 2.0, 3.0], 0.0).margin == pytest.approx(margin, rel=1e-6)
        assert combine_errors([2.0, 2.0], 0.5).margin == pytest.approx(2 * 0.5)

    def test_seeds_decide_where_the_examples_alone_would_have(self):
        """A gain of 2 ± 0.1 nats over paired examples, which seeds do not confirm."""
        gains, data_error = [2.0, 5.5, 0.5], 0.1
        value = sum(gains) / 3
        assert claim_verdict(value, data_error) == "holds"
        error = combine_errors(gains, data_error)
        assert claim_verdict(value, error.se, error.dof) == "undecided"
        agreed = combine_errors([2.0, 2.3, 1.8], data_error)
        assert claim_verdict(2.03, agreed.se, agreed.dof) == "holds"
        one = combine_errors([2.0], data_error)
        assert (one.se, math.isnan(one.se_seeds)) == (data_error, True)
        assert claim_verdict(2.0, one.se, one.dof) == "one seed: not judged"
        # an unknown error is not small
        assert claim_verdict(9.0, *combine_errors([8.0, math.nan], 0.1)[::2]) == "undecided"


class TestRunning:
    """Cells are skipped, resumed and refused."""

    def test_second_call_changes_nothing(self, toy, tmp_path, capsys):
        before = modification_times(tmp_path)
        assert toy() == 0
        assert modification_times(tmp_path) == before
        assert capsys.readouterr().out.count("already finished") == 2

    def test_only_runs_one_row_and_reports_the_others_as_missing(self, toy, tmp_path, capsys):
        remove(tmp_path, "StandardNormal")
        assert toy("--only", "Mixture") == 0
        results = read(tmp_path)
        assert list(results["rows"]) == ["Mixture"]
        assert results["missing"] == {"StandardNormal, seed 0": "not started"}
        assert results["rows"]["Mixture"]["runs"][0]["difference"] is None
        assert results["claims"] == {}
        assert "missing: StandardNormal, seed 0: not started" in capsys.readouterr().out
        assert not (tmp_path / "runs" / "toy-small" / "standardnormal-0").exists()

    def test_killed_cell_resumes(self, finished, tmp_path):
        class Interrupted(Cell):
            def fit(self, experiment, progress):
                def interrupt(*args):
                    raise KeyboardInterrupt

                self.run.fit(experiment, resume=True, on_epoch=interrupt)

        args = make_args(tmp_path, "--only", "Mixture", preset="small")
        assert main(TOY, args, cell=Interrupted) == 130
        cell = Cell(TOY, "small", "Mixture", runs=tmp_path / "runs")
        assert cell.incomplete_reason() == "training not finished"
        assert main(TOY, args) == 0
        (record,) = read(tmp_path)["rows"]["Mixture"]["runs"]
        assert record == read(finished)["rows"]["Mixture"]["runs"][0] | {"difference": None}

    def test_trained_cell_without_evaluation_is_evaluated(self, toy, tmp_path):
        cell = Cell(TOY, "small", "Mixture", runs=tmp_path / "runs")
        before, weights = read(tmp_path), cell.run.weights.stat().st_mtime_ns
        cell.run.evaluate(num_samples=40)
        assert cell.incomplete_reason() == "not evaluated"
        assert toy() == 0
        assert read(tmp_path) == before
        assert cell.run.weights.stat().st_mtime_ns == weights

    def test_bounds_written_before_a_kill_are_replaced(self, toy, tmp_path):
        cell, before = Cell(TOY, "small", "Mixture", runs=tmp_path / "runs"), read(tmp_path)
        result = cell.run.result.read_bytes()
        cell.run.evaluate(num_samples=40)
        cell.run.result.write_bytes(result)  # killed between the two files
        assert cell.incomplete_reason() == "not evaluated"
        assert toy() == 0
        assert read(tmp_path) == before

    def test_recorded_commands_repeat_the_cell(self, finished, tmp_path, monkeypatch):
        record = read(finished)["rows"]["Mixture"]["runs"][0]
        monkeypatch.chdir(tmp_path)
        for command in ("fit", "evaluate"):
            program, *args = shlex.split(record[command])
            assert program == "pyro-vae"
            assert pyro_vae(args) == 0
        estimates = Run("runs/toy-small/mixture-0").read_result()["bounds"]["estimates"]
        kept = record["bounds"]["estimates"]
        assert {key: estimates[key] for key in kept} == kept

    def test_run_with_other_arguments_is_refused(self, toy, tmp_path, capsys):
        cells = {**TOY.cells, "Mixture": f"{TOY.cells['Mixture']} --model.latent_dim 3"}
        other = replace(TOY, cells=cells)
        before = modification_times(tmp_path / "runs")
        assert toy("--only", "Mixture", table=other) == 1
        folder = tmp_path / "runs" / "toy-small" / "mixture-0"
        assert capsys.readouterr().err == (
            f"toy: Mixture, seed 0: expected {folder} to have the configuration of the script; got "
            f"other values of model.latent_dim: remove the folder to rerun the cell, or choose "
            f"another --folder\n"
        )
        assert modification_times(tmp_path / "runs") == before
        assert toy("--only", "StandardNormal", table=other) == 0
        missing = read(tmp_path)["missing"]["Mixture, seed 0"]
        assert "to have the configuration of the script" in missing

    def test_fewer_epochs_are_refused_and_more_resume(self, toy, tmp_path, capsys):
        for epochs, status in ((1, 1), (3, 0)):
            budget = replace(BUDGET, fit=f"--fit.epochs {epochs}")
            other = replace(TOY, presets={**TOY.presets, "small": budget})
            assert toy("--only", "Mixture", table=other) == status
        assert read(tmp_path)["rows"]["Mixture"]["runs"][0]["epochs"] == 3
        assert "other values of fit.epochs: " in capsys.readouterr().err

    def test_failing_cell_does_not_stop_the_others(self, toy, tmp_path, capsys):
        cells = {
            "Poisson": "--model.likelihood Categorical --model.likelihood.levels 0",
            **TOY.cells,
        }
        assert toy(table=replace(TOY, cells=cells)) == 1
        out, err = capsys.readouterr()
        assert err.startswith("Poisson, seed 0: expected levels")
        assert out.count("already finished") == 2

    def test_diverged_row_is_reported_in_the_results(self, toy, tmp_path):
        """Divergence is reproducible and therefore a result; the other rows still run."""
        cells = {**TOY.cells, "far": "--fit.optimizer SGD --fit.optimizer.lr 1e30"}
        assert toy(table=replace(TOY, cells=cells)) == 1
        results = read(tmp_path)
        assert [*results["rows"]] == [*TOY.cells]
        assert re.match(r"failed: the .* in epoch 1, step \d", results["missing"]["far, seed 0"])
        # the row is run again, and the failure is removed when it succeeds
        fixed = {**cells, "far": "--fit.optimizer SGD --fit.optimizer.lr 1e-6"}
        assert toy("--only", "far", table=replace(TOY, cells=fixed)) == 0
        results = read(tmp_path)
        assert not results["missing"] and [*results["rows"]] == [*cells]

    def test_cell_running_in_another_process_is_skipped(self, toy, tmp_path, capsys):
        remove(tmp_path, "Mixture")
        with lock(tmp_path / "runs" / "toy-small" / "mixture-0"):
            assert toy() == 0
        assert "Mixture, seed 0: running in another process" in capsys.readouterr().out
        assert list(read(tmp_path)["rows"]) == ["StandardNormal"]

    def test_table_option_runs_nothing(self, toy, tmp_path, capsys):
        assert toy() == 0
        printed = capsys.readouterr().out
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        assert toy("--table") == 0
        assert capsys.readouterr().out.strip() in printed
        (tmp_path / "toy-small.json").unlink()
        assert toy("--table") == 1
        assert "`python -m experiments.studies.toy --preset small`" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (
                ["--only", "Mixtur"],
                "expected --only to name rows (StandardNormal, Mixture); got 'Mixtur'; did you "
                "mean Mixture?",
            ),
            (["--slurm", "mem_gb=1"], "expected --jobs with --slurm; got none: give the number"),
            (["--jobs", "0"], "expected --jobs of at least 1; got 0"),
        ],
    )
    def test_invalid_options_are_one_line_errors(self, args, message, tmp_path, capsys):
        assert main(TOY, make_args(tmp_path, *args)) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"toy: {message}") and err.count("\n") == 1
        assert not (tmp_path / "runs").exists()

    def test_invalid_arguments_are_refused_before_running(self, tmp_path, capsys):
        cells = {**TOY.cells, "Mixture": "--model.prior MixtureOfNormal"}
        assert main(replace(TOY, cells=cells), make_args(tmp_path)) == 1
        assert "did you mean MixtureOfNormals?" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()


class TestMeasures:
    def test_measures_are_computed_once_and_again_after_further_training(self, toy, tmp_path):
        calls = []

        def depth(model, data):
            calls.append("depth")
            assert not model.training
            return {"value": float(len(data.test)), "se": 0.5}

        both = replace(TOY, measures={**TOY.measures, "depth": depth})
        cells = [Cell(both, "small", row, runs=tmp_path / "runs") for row in TOY.cells]
        assert [cell.incomplete_reason() for cell in cells] == ["not measured: depth"] * 2
        assert toy(table=both) == toy(table=both) == 0
        assert calls == ["depth"] * 2
        for row in TOY.cells:
            measures = read(tmp_path)["rows"][row]["runs"][0]["measures"]
            assert measures == {
                "size": {"value": 2, "se": 0.25},
                "depth": {"value": 1600, "se": 0.5},
            }
        longer = replace(both, presets={"small": replace(BUDGET, fit="--fit.epochs 3")})
        assert toy("--only", "Mixture", table=longer) == 0
        assert calls == ["depth"] * 3

    def test_preset_replaces_measures(self):
        budget = replace(BUDGET, measures={"size": len, "more": len})
        cell = Cell(replace(TOY, presets={"small": budget}), "small", "Mixture")
        assert cell.measures == {"size": len, "more": len}

    def test_failing_measure_keeps_the_others(self, toy, tmp_path, capsys):
        def wrong(model, data):
            raise ValueError(f"expected a prior of one part; got {type(model.prior).__name__}")

        table = replace(TOY, measures={**TOY.measures, "wrong": wrong})
        weights = [Cell(TOY, "small", row, 0, tmp_path / "runs").run.weights for row in TOY.cells]
        before = [file.stat().st_mtime_ns for file in weights]
        (tmp_path / "toy-small.json").unlink()
        assert toy(table=table) == 1
        assert capsys.readouterr().err.splitlines() == [
            f"{row}, seed 0: expected a prior of one part; got {prior}"
            for row, prior in (
                ("StandardNormal", "StandardNormal"),
                ("Mixture", "MixtureOfNormals"),
            )
        ]
        results = read(tmp_path)
        assert results["rows"] == {}
        assert {*results["missing"].values()} == {"not measured: wrong"}
        assert toy() == 0
        assert [*read(tmp_path)["rows"]] == [*TOY.cells]
        assert before == [file.stat().st_mtime_ns for file in weights]

    def test_damaged_measures_are_a_one_line_error(self, toy, tmp_path, capsys):
        file = Cell(TOY, "small", "Mixture", runs=tmp_path / "runs").folder / "measures.json"
        file.write_text("{", encoding="utf-8")
        assert toy() == 1
        assert f"Mixture, seed 0: {file} is damaged: remove it" in capsys.readouterr().err
        file.unlink()
        assert toy() == 0


class TestStarts:
    """A row that starts from the weights of a row of another table."""

    TABLE = replace(
        TOY,
        name="further",
        cells={"longer": "--model.prior StandardNormal --fit.optimizer.lr 0.01"},
        presets={"small": BUDGET, "paper": Preset("--fit.epochs 8")},
        starts={"longer": (TOY, "StandardNormal")},
        claims={"gain": ordering("it improves", "longer", "before: longer")},
        published={},
    )

    def test_row_continues_that_of_another_table(self, toy, tmp_path, capsys):
        assert toy(table=self.TABLE) == 0
        cell = Cell(self.TABLE, "small", "longer", runs=tmp_path / "runs")
        assert cell.start is not None
        assert cell.start.folder == tmp_path / "runs" / "toy-small" / "standardnormal-0"
        results = read(tmp_path, "further")
        (record,) = results["rows"]["longer"]["runs"]
        assert record["start"] == cell.run.read_result()["start"]
        after, before = (c.run.read_bounds().per_datum["log_evidence"] for c in (cell, cell.start))
        assert results["claims"]["gain"]["value"] == pytest.approx((after - before).mean())
        seen = 4 * record["data"]["sizes"]["train"]  # two epochs each
        assert record["budget"]["samples_seen"] == seen
        assert record["budget"]["fraction"] == seen / (2 * 8 * 197)
        # the command works in the root of the repository
        assert "--start_from runs/toy-small/standardnormal-0 " in record["fit"]

        # refused if the first run has changed
        weights = cell.start.run.weights
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        assert toy(table=self.TABLE) == 1
        assert "which has changed since" in capsys.readouterr().err

    def test_does_not_start_while_another_process_runs_the_first_cell(self, tmp_path, capsys):
        cell = Cell(self.TABLE, "small", "longer", runs=tmp_path / "runs")
        assert cell.start is not None
        with lock(cell.start.folder):
            assert main(self.TABLE, make_args(tmp_path, preset="small")) == 1
        assert capsys.readouterr().err == (
            "longer, seed 0: starts from StandardNormal, seed 0, which is running in another "
            "process: repeat the command when it is finished\n"
        )
        assert not cell.folder.exists()

    def test_runs_with_the_same_arguments_are_shared(self, toy, tmp_path, capsys):
        shared = replace(TOY, name="shared", claims={}, shares=[TOY])
        assert toy(table=shared) == 0
        assert capsys.readouterr().out.count("already finished") == 2
        assert not [*(tmp_path / "runs" / "shared-small").glob("[!.]*")]
        (record, *_) = read(tmp_path, "shared")["rows"]["Mixture"]["runs"]
        assert "runs/shared-small/mixture-0" in record["fit"]
        other = replace(shared, cells={**TOY.cells, "Mixture": TOY.cells["Mixture"] + " --seed 1"})
        folder = Cell(other, "small", "Mixture", runs=tmp_path / "runs").folder
        assert folder.parent.name == "shared-small"


class TestPlan:
    def test_hours_of_finished_and_of_new_cells(self, toy, tmp_path, capsys):
        cells = {**TOY.cells, "new": "--model.prior Laplace"}
        table = replace(TOY, cells=cells)
        before = modification_times(tmp_path)
        assert toy("--plan", table=table) == 0
        assert modification_times(tmp_path) == before
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("toy, preset small: 3 cells; hours on this machine (cpu, ")
        normal, new = (line for line in lines if line.startswith(("StandardNormal", "new")))
        result = Cell(TOY, "small", "StandardNormal", runs=tmp_path / "runs").run.read_result()
        hours = result["fit"]["seconds"] / 3600, result["bounds"]["seconds"] / 3600
        assert normal.split()[3:5] == [f"{x:.3g}" for x in hours]
        assert normal.endswith("its finished run        finished")
        # two batches of 197 examples
        assert re.search("  2 steps, 10 examples +not started$", new)
        assert all(float(x) > 0 for x in new.split()[3:5])
        assert lines[-1] == (
            "python -m experiments.studies.toy --preset paper --jobs 2 --slurm timeout_min=1440 "
            "mem_gb=8 cpus_per_task=1"
        )

    def test_cell_without_data_is_planned_without_hours(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
        table = replace(TOY, base=TOY.base.replace("digits", "omniglot"))
        assert main(table, make_args(tmp_path, "--plan", "--only", "Mixture", preset="small")) == 0
        out = capsys.readouterr().out
        assert re.search("Mixture, seed 0 +– +–   expected the OMNIGLOT file", out)
        assert "--only Mixture --jobs 1 " in out


class TestDeclarations:
    def test_presets_exclude_rows_and_groups_have_their_own_first_row(self):
        assert TOY.rows("paper") == ["StandardNormal"]
        cells = {
            **group_rows("A", "--a", {"x": "1", "y": "2"}),
            **group_rows("B", "--b", {"x": "1", "y": "2"}),
        }
        table = Table("t", "T", "", cells, {"small": Preset("", exclude=["B: x"])})
        assert table.first_row("A: y", "small") == "A: x"
        assert table.first_row("B: y", "small") == "B: y"
        assert cells["B: x"] == "--b 1"

    def test_rows_with_the_same_folder_are_refused(self):
        assert slug("Frey Face: Student-t") == "frey-face-student-t"
        with pytest.raises(ValueError, match="expected rows that differ in letters or digits"):
            Table("t", "T", "", {"a b": "", "a-b": ""}, {})
