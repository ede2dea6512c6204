"""Tables of ``experiments``: cells run, resume, are skipped, and are reported correctly."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pyro_vae.cli.app import main as pyro_vae
from pyro_vae.learning import checkpoint
from pyro_vae.runs.run import Run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments are not installed with the package

from experiments import collect  # noqa: E402
from experiments.attempts import exclusive_lock  # noqa: E402
from experiments.table import Cell, Preset, Table, group_rows, main, slug  # noqa: E402

NAMES = (
    *("baselines", "collapse", "conditional", "counts", "flows", "hierarchical", "inference_gaps"),
    *("inpainting", "iwae", "iwae_table1", "iwae_table2", "iwae_table3", "likelihoods", "networks"),
    *("posteriors", "priors", "rate_distortion", "semi_supervised", "vampprior"),
)
#: Scripts with separate tests, like those of the AEVB figures.
OTHERS = ("bad_proposal", "gradients")
#: Tables with Frey Face, which is not available as a package.
REAL = ("inpainting", "likelihoods")
SCRIPTS = {
    file.stem: importlib.import_module(f"experiments.{folder}.{file.stem}")
    for folder in ("papers", "studies")
    for file in sorted((ROOT / "experiments" / folder).glob("[!_]*.py"))
}
MODULES = {name: SCRIPTS[name] for name in NAMES}
TABLES = {name: module.TABLE for name, module in MODULES.items()}
#: All tables of each script.
VARIANTS = {name: getattr(m, "TABLES", [m.TABLE]) for name, m in MODULES.items()}
TOY = Table(
    name="toy",
    title="Priors of two latents",
    base="--data.name digits --data.binarize threshold --data.test 1600 --model.latent_dim 2",
    cells={
        "StandardNormal": "--model.prior StandardNormal",
        "Mixture": "--model.prior MixtureOfNormals --model.prior.components {components}",
    },
    presets={
        "smoke": Preset("--fit.epochs 2", 30, 20, {"components": 3}),
        "paper": Preset("--fit.epochs 9", values={"components": 30}, exclude=["Mixture"]),
    },
)


@pytest.fixture
def toy(tmp_path):
    """Function that runs the toy table in a temporary folder, with further arguments."""

    def run(*args: str, table: Table = TOY) -> int:
        folders = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
        return main(table, ["--preset", "smoke", *folders, *args])

    return run


def read(folder: Path, name: str = "toy") -> dict:
    return json.loads((folder / f"{name}-smoke.json").read_text(encoding="utf-8"))


def modification_times(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name, tmp_path, request):
    table = TABLES[name]
    rows = table.rows("smoke")
    if name in REAL:
        request.getfixturevalue("real_data")
    args = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path), "--device", "cpu"]
    assert main(table, ["--preset", "smoke", *args]) == 0
    results = read(tmp_path, name)
    assert list(results["rows"]) == rows
    assert results["missing"] == {}
    for row, entry in results["rows"].items():
        (record,) = entry["runs"]
        run = Cell(table, "smoke", row, runs=tmp_path / "runs").run
        bounds = run.read_bounds()
        estimates = record["bounds"]["estimates"]
        assert estimates["elbo"]["value"] == bounds.elbo
        assert estimates["log_evidence"]["value"] == bounds.log_evidence
        assert math.isfinite(bounds.log_evidence)
        assert record["bounds"]["unreliable"] == len(bounds.unreliable)
        first = Cell(table, "smoke", entry["first"], runs=tmp_path / "runs").run
        base_measures = {r.read_result()["bounds"]["measure"] for r in (run, first)}
        paired = row != entry["first"] and (table.bits or len(base_measures) == 1)
        assert (record["difference"] is not None) == paired
    text = collect.format_results(results)
    assert all(row in text for row in rows)
    assert "seconds" not in json.dumps(results)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_arguments_of_every_preset_are_valid(name, preset):
    table = TABLES[name]
    for row in table.rows(preset):
        Cell(table, preset, row, runs=Path("nowhere")).check()


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_networks_have_nearly_equal_numbers_of_parameters(preset):
    table = TABLES["networks"]
    sizes = []
    for row in table.rows(preset):
        model = (
            Cell(table, preset, row).experiment().build_model(SimpleNamespace(event_shape=(28, 28)))
        )
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert max(sizes) <= 1.03 * min(sizes)


def test_every_script_is_tested():
    assert sorted(name for name in SCRIPTS if "aevb" not in name) == sorted([*NAMES, *OTHERS])


@pytest.mark.parametrize("name", NAMES)
def test_every_table_has_complete_committed_results(name):
    file = ROOT / "experiments" / "results" / f"{name}-small.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    assert [*results["rows"]] == TABLES[name].rows("small")
    assert results["missing"] == {}


#: Results of the tables; those of other scripts have separate tests.
COMMITTED = sorted(
    file for name in NAMES for file in (ROOT / "experiments" / "results").glob(f"{name}-*.json")
)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_results_have_the_current_titles_and_commands(file):
    results = json.loads(file.read_text(encoding="utf-8"))
    variants, preset = VARIANTS[results["name"]], results["preset"]
    table = next(t for t in variants if dict(t.variant) == results.get("variant", {}))
    assert file.name == f"{table.stem(preset)}.json"
    assert results["title"] == table.title
    assert {*results["rows"]} <= {*table.rows(preset)}
    for row, entry in results["rows"].items():
        for record in entry["runs"]:
            commands = Cell(table, preset, row, record["seed"]).commands
            assert {key: record[key] for key in commands} == commands


def test_tables_in_docs_match_the_results_files():
    files = [json.loads(file.read_text(encoding="utf-8")) for file in COMMITTED]
    lines = {line for results in files for line in collect.format_results(results).splitlines()}
    pages = [ROOT / "docs" / f"{name}.md" for name in ("reproductions", "studies")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    tables = [block for block in blocks if re.search(r"^row ", block, re.MULTILINE)]
    assert len(tables) > 10
    assert not [line for block in tables for line in block.splitlines() if line not in lines]


def test_difference_is_paired(toy, tmp_path):
    assert toy() == 0
    first, second = (Run(tmp_path / "runs" / "toy-smoke" / f"{n}-0") for n in FOLDERS)
    second_values, first_values = (
        run.read_bounds().per_datum["log_evidence"] for run in (second, first)
    )
    record = read(tmp_path)["rows"]["Mixture"]["runs"][0]["difference"]
    differences = second_values - first_values
    assert record["value"] == pytest.approx(sum(differences) / 20)
    variance = sum((differences - differences.mean()) ** 2) / 19
    assert record["se_paired"] == pytest.approx(math.sqrt(variance / 20))


FOLDERS = ("standardnormal", "mixture")


def test_bits_are_compared_across_dequantisation(toy, tmp_path):
    cells = {
        "levels": "--model.likelihood Binomial --model.likelihood.levels 16 --data.values integer",
        "densities": "--model.likelihood Gaussian --data.values dequantized",
    }
    base = "--data.name digits --data.binarize none --data.test 1600 --model.latent_dim 2"
    table = Table("toy", "Bits", base, cells, TOY.presets, bits=True)
    assert toy(table=table) == 0
    rows = read(tmp_path)["rows"]
    runs = [Cell(table, "smoke", row, runs=tmp_path / "runs").run for row in cells]
    nats, densities = (run.read_bounds().per_datum["log_evidence"] for run in runs)
    # 64 pixels with 17 levels: a density on (0, 1) is divided by 17⁶⁴ to be a probability
    difference = (nats - (densities - 64 * np.log(17))) / (64 * np.log(2))
    record = rows["densities"]["runs"][0]["difference"]
    assert record["value"] == pytest.approx(difference.mean())
    assert record["se_paired"] == pytest.approx(difference.std(ddof=1) / math.sqrt(20), rel=1e-5)
    assert f"{record['value']:.4f}" in collect.format_results(read(tmp_path))


def test_bits_are_averaged_over_seeds(toy, tmp_path):
    table = Table("toy", "Bits", TOY.base, TOY.cells, TOY.presets, bits=True)
    assert toy("--seeds", "0", "1", table=table) == 0
    results = read(tmp_path)
    row = results["rows"]["Mixture"]
    for name in ("elbo", "log_evidence"):
        bits = [r["bounds"]["bits_per_dim"][name]["value"] for r in row["runs"]]
        assert row["over_seeds"][name]["mean"] == pytest.approx(np.mean(bits))
        assert row["over_seeds"][name]["spread"] == pytest.approx(np.std(bits, ddof=1))
    assert "gap" not in row["over_seeds"]
    gains = [r["difference"]["value"] for r in row["runs"]]
    assert row["over_seeds"]["difference"]["mean"] == pytest.approx(np.mean(gains))
    (line,) = (x for x in collect.format_results(results).splitlines() if x.startswith("Mixture"))
    assert f"{row['over_seeds']['log_evidence']['spread']:.4f}" in line.split()


@pytest.mark.parametrize("bits", [True, False])
def test_nonfinite_results_are_null(bits, toy, tmp_path, monkeypatch):
    table = Table("toy", "Bits", TOY.base, TOY.cells, TOY.presets, bits=bits)
    assert toy("--seeds", "0", "1", table=table) == 0
    # as if one example had probability zero
    cells = [Cell(table, "smoke", "Mixture", s, tmp_path / "runs") for s in (0, 1)]
    result = json.loads(cells[1].run.result.read_text(encoding="utf-8"))
    for kind in ("estimates", "bits_per_dim"):
        for name in ("elbo", "log_evidence"):
            result["bounds"][kind][name] = dict.fromkeys(result["bounds"][kind][name])
    cells[1].run.result.write_text(json.dumps(result), encoding="utf-8")
    read_bounds = Run.read_bounds

    def with_impossible_example(run):
        bounds = read_bounds(run)
        if run.folder == cells[1].folder:
            bounds.per_datum["log_evidence"][3] = -math.inf
        return bounds

    monkeypatch.setattr(Run, "read_bounds", with_impossible_example)
    assert toy("--seeds", "0", "1", table=table) == 0
    results = read(tmp_path)
    json.dumps(results, allow_nan=False)
    finite, nonfinite = results["rows"]["Mixture"]["runs"]
    assert nonfinite["difference"] == {"value": None, "se_paired": None}
    assert math.isfinite(finite["difference"]["value"] + finite["difference"]["se_paired"])
    null = {"mean": None, "spread": None}
    assert results["rows"]["Mixture"]["over_seeds"]["log_evidence"] == null
    (line,) = (x for x in collect.format_results(results).splitlines() if x.startswith("Mixture"))
    assert line.count("nan") == 6


def test_difference_of_one_example_has_no_error(toy, tmp_path):
    presets = {"smoke": Preset("--fit.epochs 1", 30, 1, {"components": 3})}
    table = Table("toy", "Bits", TOY.base, TOY.cells, presets, bits=True)
    assert toy(table=table) == 0
    (record,) = read(tmp_path)["rows"]["Mixture"]["runs"]
    assert record["difference"]["value"] is not None
    assert record["difference"]["se_paired"] is None


def test_second_call_changes_nothing(toy, tmp_path, capsys):
    assert toy() == 0
    before = modification_times(tmp_path)
    capsys.readouterr()
    assert toy() == 0
    assert modification_times(tmp_path) == before
    assert capsys.readouterr().out.count("already finished") == 2


def test_only_runs_one_row_and_reports_the_others_as_missing(toy, tmp_path, capsys):
    assert toy("--only", "Mixture") == 0
    results = read(tmp_path)
    assert list(results["rows"]) == ["Mixture"]
    assert results["missing"] == {"StandardNormal, seed 0": "not started"}
    assert results["rows"]["Mixture"]["runs"][0]["difference"] is None
    assert "missing: StandardNormal, seed 0: not started" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "toy-smoke" / "standardnormal-0").exists()


def test_seeds_are_averaged_and_paired_with_the_same_seed(toy, tmp_path):
    assert toy("--seeds", "0", "1") == 0
    row = read(tmp_path)["rows"]["Mixture"]
    values = [r["bounds"]["estimates"]["elbo"]["value"] for r in row["runs"]]
    assert [r["seed"] for r in row["runs"]] == [0, 1]
    assert values[0] != values[1]
    assert row["over_seeds"]["elbo"]["mean"] == pytest.approx(sum(values) / 2)
    assert row["over_seeds"]["elbo"]["spread"] == pytest.approx(np.std(values, ddof=1))
    gains = [r["difference"]["value"] for r in row["runs"]]
    assert row["over_seeds"]["difference"]["mean"] == pytest.approx(sum(gains) / 2)
    assert "± seeds" in collect.format_results(read(tmp_path))


def test_killed_cell_resumes(toy, tmp_path, monkeypatch):
    assert toy("--only", "Mixture") == 0
    expected = read(tmp_path)
    other = tmp_path / "other"
    save, saved = checkpoint.save_checkpoint, []

    def save_and_interrupt(*args):
        save(*args)
        saved.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_and_interrupt)
    folders = ["--folder", str(other), "--results", str(other)]
    assert main(TOY, ["--preset", "smoke", "--only", "Mixture", *folders]) == 130
    monkeypatch.undo()
    assert len(saved) == 1
    cell = Cell(TOY, "smoke", "Mixture", runs=other)
    assert cell.incomplete_reason() == "training not finished"
    assert main(TOY, ["--preset", "smoke", "--only", "Mixture", *folders]) == 0
    assert read(other) == expected


def test_trained_cell_without_evaluation_is_evaluated(toy, tmp_path):
    assert toy("--only", "Mixture") == 0
    cell = Cell(TOY, "smoke", "Mixture", runs=tmp_path / "runs")
    before, weights = read(tmp_path), cell.run.weights.stat().st_mtime_ns
    assert pyro_vae(["evaluate", str(cell.folder), "--num-samples", "40"]) == 0
    assert cell.incomplete_reason() == "not evaluated"
    assert toy("--only", "Mixture") == 0
    assert read(tmp_path) == before
    assert cell.run.weights.stat().st_mtime_ns == weights


def test_recorded_commands_repeat_the_cell(toy, tmp_path, monkeypatch):
    assert toy("--only", "Mixture") == 0
    (record,) = read(tmp_path)["rows"]["Mixture"]["runs"]
    monkeypatch.chdir(tmp_path)
    Path("runs").rename("other_runs")
    for key in ("fit", "evaluate"):
        program, *args = record[key].split()
        assert program == "pyro-vae"
        assert pyro_vae(args) == 0
    estimates = Run("runs/toy-smoke/mixture-0").read_result()["bounds"]["estimates"]
    assert {key: estimates[key] for key in record["bounds"]["estimates"]} == (
        record["bounds"]["estimates"]
    )


def test_run_with_other_arguments_is_refused(toy, tmp_path, capsys):
    assert toy("--only", "Mixture") == 0
    cells = {**TOY.cells, "Mixture": f"{TOY.cells['Mixture']} --model.latent_dim 3"}
    other = Table(TOY.name, TOY.title, TOY.base, cells, TOY.presets)
    before = modification_times(tmp_path / "runs")
    assert toy("--only", "Mixture", table=other) == 1
    folder = tmp_path / "runs" / "toy-smoke" / "mixture-0"
    assert capsys.readouterr().err == (
        f"toy: Mixture, seed 0: expected {folder} to have the configuration of the script; got "
        f"other values of model.latent_dim: remove the folder to rerun the cell, or choose another "
        f"--folder\n"
    )
    assert modification_times(tmp_path / "runs") == before
    assert toy("--only", "StandardNormal", table=other) == 0
    assert "to have the configuration of the script" in read(tmp_path)["missing"]["Mixture, seed 0"]


def test_fewer_epochs_are_refused_and_more_resume(toy, tmp_path, capsys):
    assert toy("--only", "Mixture") == 0
    for epochs, status in ((1, 1), (3, 0)):
        presets = {"smoke": Preset(f"--fit.epochs {epochs}", 30, 20, {"components": 3})}
        other = Table(TOY.name, TOY.title, TOY.base, TOY.cells, presets)
        assert toy("--only", "Mixture", table=other) == status
    assert read(tmp_path)["rows"]["Mixture"]["runs"][0]["epochs"] == 3
    assert "other values of fit.epochs: " in capsys.readouterr().err


def test_failing_cell_does_not_stop_the_others(toy, tmp_path, capsys):
    cells = {"Poisson": "--model.likelihood Categorical --model.likelihood.levels 0", **TOY.cells}
    broken = Table(TOY.name, TOY.title, TOY.base, cells, TOY.presets)
    assert toy(table=broken) == 1
    assert capsys.readouterr().err.startswith("Poisson, seed 0: expected levels")
    assert list(read(tmp_path)["rows"]) == list(TOY.cells)


def test_cell_running_in_another_process_is_skipped(toy, tmp_path, capsys):
    with exclusive_lock(tmp_path / "runs" / "toy-smoke" / "mixture-0"):
        assert toy() == 0
    assert "Mixture, seed 0: running in another process" in capsys.readouterr().out
    assert list(read(tmp_path)["rows"]) == ["StandardNormal"]


def test_measures_are_computed_once_stored_and_printed(toy, tmp_path, capsys):
    calls = []

    def size(model, data):
        calls.append("size")
        assert not model.training
        return {"value": float(len(data.test)), "se": 0.5}

    def layers(model, data):
        calls.append("layers")
        return {"value": 3, "text": "2+1"}

    def table(**measures):
        published = {"Mixture": "−84.78 / 25"}
        return Table(
            *("toy", "Priors", TOY.base, TOY.cells, TOY.presets),
            measures=measures,
            published=published,
        )

    both = table(size=size, layers=layers)
    assert toy(table=TOY) == 0
    cells = [Cell(both, "smoke", row, runs=tmp_path / "runs") for row in TOY.cells]
    assert [cell.incomplete_reason() for cell in cells] == ["not measured: size, layers"] * 2
    assert toy(table=table(size=size)) == 0
    assert [cell.incomplete_reason() for cell in cells] == ["not measured: layers"] * 2
    assert toy(table=both) == toy(table=both) == 0
    assert calls == ["size", "size", "layers", "layers"]
    rows = read(tmp_path)["rows"]
    expected = {"size": {"value": 1600.0, "se": 0.5}, "layers": {"value": 3, "text": "2+1"}}
    assert [rows[row]["runs"][0]["measures"] for row in TOY.cells] == [expected, expected]
    assert ["published" in rows[row] for row in TOY.cells] == [False, True]
    text = collect.format_results(read(tmp_path)).splitlines()
    (head,) = (line for line in text if line.startswith("row"))
    assert head.split()[-3:] == ["size", "layers", "published"]
    plain, mixed = (next(x for x in text if x.startswith(row)) for row in TOY.cells)
    assert plain.endswith("1600 ± 0.5               2+1")
    assert mixed.endswith("1600 ± 0.5               2+1   −84.78 / 25")
    # several seeds print the mean; the text is that of a single run
    assert toy("--seeds", "0", "1", table=both) == 0
    mixed = next(
        x for x in collect.format_results(read(tmp_path)).splitlines() if x.startswith("Mixture")
    )
    assert mixed.endswith("1600 ± 0.5                 3   −84.78 / 25")
    # measures are computed again after further training
    calls.clear()
    presets = {"smoke": Preset("--fit.epochs 3", 30, 20, {"components": 3})}
    longer = Table("toy", "Priors", TOY.base, TOY.cells, presets, measures={"size": size})
    assert toy("--only", "Mixture", table=longer) == 0
    assert calls == ["size"]


def test_failing_measure_keeps_the_others(toy, tmp_path, capsys):
    def fine(model, data):
        return {"value": 1.0}

    def wrong(model, data):
        raise ValueError(f"expected a prior of one part; got {type(model.prior).__name__}")

    measures = {"fine": fine, "wrong": wrong}
    table = Table("toy", "Priors", TOY.base, TOY.cells, TOY.presets, measures=measures)
    assert toy(table=table) == 1
    err = capsys.readouterr().err.splitlines()
    assert err == [
        f"{row}, seed 0: expected a prior of one part; got {prior}"
        for row, prior in (("StandardNormal", "StandardNormal"), ("Mixture", "MixtureOfNormals"))
    ]
    results = read(tmp_path)
    assert results["rows"] == {}
    assert results["missing"] == {f"{row}, seed 0": "not measured: wrong" for row in TOY.cells}
    cells = [Cell(table, "smoke", row, runs=tmp_path / "runs") for row in TOY.cells]
    assert [cell.read_measures() for cell in cells] == [{"fine": {"value": 1.0}}] * 2
    before = {cell: cell.run.weights.stat().st_mtime_ns for cell in cells}
    fixed = Table("toy", "Priors", TOY.base, TOY.cells, TOY.presets, measures={"fine": fine})
    assert toy(table=fixed) == 0
    assert list(read(tmp_path)["rows"]) == list(TOY.cells)
    assert before == {cell: cell.run.weights.stat().st_mtime_ns for cell in cells}


def test_damaged_measures_are_a_one_line_error(toy, tmp_path, capsys):
    table = Table(
        *("toy", "Priors", TOY.base, TOY.cells, TOY.presets),
        measures={"fine": lambda model, data: {"value": 1.0}},
    )
    assert toy(table=table) == 0
    file = Cell(table, "smoke", "Mixture", runs=tmp_path / "runs").folder / "measures.json"
    file.write_text("{", encoding="utf-8")
    capsys.readouterr()
    assert toy(table=table) == 1
    assert f"Mixture, seed 0: {file} is damaged: remove it" in capsys.readouterr().err
    file.unlink()
    assert toy(table=table) == 0


def test_unknown_row_is_a_one_line_error(toy, capsys):
    assert toy("--only", "Mixtur") == 1
    assert capsys.readouterr().err == (
        "toy: expected --only to name rows (StandardNormal, Mixture); got 'Mixtur'; did you mean "
        "Mixture?\n"
    )


def test_invalid_arguments_are_refused_before_running(toy, tmp_path, capsys):
    cells = {**TOY.cells, "Mixture": "--model.prior MixtureOfNormal"}
    assert toy(table=Table(TOY.name, TOY.title, TOY.base, cells, TOY.presets)) == 1
    assert "did you mean MixtureOfNormals?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_table_option_runs_nothing(toy, tmp_path, capsys):
    assert toy("--table") == 1
    assert "`python -m experiments.studies.toy --preset smoke`" in capsys.readouterr().err
    assert toy() == 0
    printed = capsys.readouterr().out
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert toy("--table") == 0
    assert capsys.readouterr().out.strip() in printed


def test_presets_exclude_rows_and_groups_have_their_own_first_row():
    assert TOY.rows("paper") == ["StandardNormal"]
    cells = {
        **group_rows("A", "--a", {"x": "1", "y": "2"}),
        **group_rows("B", "--b", {"x": "1", "y": "2"}),
    }
    table = Table("t", "T", "", cells, {"small": Preset("", exclude=["B: x"])})
    assert table.first_row("A: y", "small") == "A: x"
    assert table.first_row("B: y", "small") == "B: y"
    assert cells["B: x"] == "--b 1"


def test_rows_with_the_same_folder_are_refused():
    assert slug("Frey Face: Student-t") == "frey-face-student-t"
    with pytest.raises(ValueError, match="expected rows that differ in letters or digits"):
        Table("t", "T", "", {"a b": "", "a-b": ""}, {})


def test_diverged_row_is_reported_in_the_results(toy, tmp_path):
    """Divergence is reproducible and therefore a result; the other rows still run."""
    cells = {"StandardNormal": TOY.cells["StandardNormal"], "far": "--fit.optimizer.lr 1e30"}
    base = f"{TOY.base} --fit.optimizer SGD --fit.optimizer.lr 1e-6"
    table = Table("toy", "Steps", base, cells, {"smoke": TOY.presets["smoke"]})
    assert toy(table=table) == 1
    results = read(tmp_path)
    assert [*results["rows"]] == ["StandardNormal"]
    assert re.match(r"failed: the .* in epoch 1, step \d", results["missing"]["far, seed 0"])
    # the row is run again, and the failure is removed when it succeeds
    fixed = replace(table, cells={**cells, "far": "--fit.optimizer.lr 1e-6"})
    assert toy(table=fixed) == 0
    results = read(tmp_path)
    assert not results["missing"] and [*results["rows"]] == [*cells]
