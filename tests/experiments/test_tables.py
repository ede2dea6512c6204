"""The tables of ``experiments``: every cell runs, resumes, is skipped, and is told truly."""

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
from pyro_vae.cli.experiments import _scripts as scripts
from pyro_vae.learning import checkpoint
from pyro_vae.runs.run import Run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the installed package

from experiments import collect  # noqa: E402
from experiments.attempts import alone  # noqa: E402
from experiments.table import Cell, Preset, Table, group, main, slug  # noqa: E402

NAMES = (
    *("baselines", "collapse", "conditional", "counts", "flows", "hierarchical", "inference_gaps"),
    *("inpainting", "iwae", "iwae_table1", "iwae_table2", "iwae_table3", "likelihoods", "networks"),
    *("posteriors", "priors", "rate_distortion", "semi_supervised", "vampprior"),
)
#: Scripts that have tests of their own, as have those of the AEVB paper's figures.
OTHERS = ("bad_proposal", "gradients", "verdicts")
#: Tables of the Frey faces, which no package carries.
REAL = ("inpainting", "likelihoods")
MODULES = {name: importlib.import_module(f"experiments.{name}") for name in NAMES}
TABLES = {name: module.TABLE for name, module in MODULES.items()}
#: Of a script with several tables, all of them.
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
        "paper": Preset("--fit.epochs 9", values={"components": 30}, without=["Mixture"]),
    },
)


@pytest.fixture
def toy(tmp_path):
    """Runs the toy table with further words, in a folder of its own."""

    def run(*words: str, table: Table = TOY) -> int:
        places = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
        return main(table, ["--preset", "smoke", *places, *words])

    return run


def read(folder: Path, name: str = "toy") -> dict:
    return json.loads((folder / f"{name}-smoke.json").read_text(encoding="utf-8"))


def stamps(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name, tmp_path, request):
    table = TABLES[name]
    rows = table.rows("smoke")
    if name in REAL:
        request.getfixturevalue("real_data")
    words = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path), "--device", "cpu"]
    assert main(table, ["--preset", "smoke", *words]) == 0
    results = read(tmp_path, name)
    assert list(results["rows"]) == rows
    assert results["missing"] == {}
    for row, told in results["rows"].items():
        (record,) = told["runs"]
        run = Cell(table, "smoke", row, runs=tmp_path / "runs").run
        bounds = run.read_bounds()
        estimates = record["bounds"]["estimates"]
        assert estimates["elbo"]["value"] == bounds.elbo
        assert estimates["log_evidence"]["value"] == bounds.log_evidence
        assert math.isfinite(bounds.log_evidence)
        assert record["bounds"]["unreliable"] == len(bounds.unreliable)
        first = Cell(table, "smoke", told["first"], runs=tmp_path / "runs").run
        both = {r.read_result()["bounds"]["measure"] for r in (run, first)}
        paired = row != told["first"] and (table.bits or len(both) == 1)
        assert (record["difference"] is not None) == paired
    text = collect.text(results)
    assert all(row in text for row in rows)
    assert "seconds" not in json.dumps(results)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_the_words_of_every_preset_mean_something(name, preset):
    table = TABLES[name]
    for row in table.rows(preset):
        Cell(table, preset, row, runs=Path("nowhere")).check()


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_networks_have_as_many_parameters(preset):
    table = TABLES["networks"]
    sizes = []
    for row in table.rows(preset):
        model = (
            Cell(table, preset, row).experiment().build_model(SimpleNamespace(event_shape=(28, 28)))
        )
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert max(sizes) <= 1.03 * min(sizes)


def test_every_script_is_tested():
    found = [name for name in scripts(ROOT / "experiments") if not name.startswith("aevb_")]
    assert found == sorted([*NAMES, *OTHERS])


@pytest.mark.parametrize("name", NAMES)
def test_every_table_has_committed_results_of_all_its_rows(name):
    file = ROOT / "experiments" / "results" / f"{name}-small.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    assert [*results["rows"]] == TABLES[name].rows("small")
    assert results["missing"] == {}


#: Results of the tables; those of other scripts have tests of their own.
COMMITTED = sorted(
    file for name in NAMES for file in (ROOT / "experiments" / "results").glob(f"{name}-*.json")
)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_results_were_made_by_the_words_of_today(file):
    results = json.loads(file.read_text(encoding="utf-8"))
    variants, preset = VARIANTS[results["name"]], results["preset"]
    table = next(t for t in variants if dict(t.variant) == results.get("variant", {}))
    assert file.name == f"{table.stem(preset)}.json"
    assert results["title"] == table.title
    assert {*results["rows"]} <= {*table.rows(preset)}
    for row, told in results["rows"].items():
        for record in told["runs"]:
            commands = Cell(table, preset, row, record["seed"]).commands
            assert {key: record[key] for key in commands} == commands


def test_the_page_has_the_tables_of_the_files():
    files = [json.loads(file.read_text(encoding="utf-8")) for file in COMMITTED]
    there = {line for results in files for line in collect.text(results).splitlines()}
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", page, re.DOTALL)
    tables = [block for block in blocks if block.startswith("row ")]
    assert len(tables) > 10
    assert not [line for block in tables for line in block.splitlines() if line not in there]


def test_the_difference_is_paired(toy, tmp_path):
    assert toy() == 0
    first, second = (Run(tmp_path / "runs" / "toy-smoke" / f"{n}-0") for n in FOLDERS)
    ours, theirs = (r.read_bounds().per_datum["log_evidence"] for r in (second, first))
    told = read(tmp_path)["rows"]["Mixture"]["runs"][0]["difference"]
    differences = ours - theirs
    assert told["value"] == pytest.approx(sum(differences) / 20)
    variance = sum((differences - differences.mean()) ** 2) / 19
    assert told["se_paired"] == pytest.approx(math.sqrt(variance / 20))


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
    # 64 pixels of 17 levels: a density in (0, 1) is 17⁻⁶⁴ of itself as a probability
    difference = (nats - (densities - 64 * np.log(17))) / (64 * np.log(2))
    told = rows["densities"]["runs"][0]["difference"]
    assert told["value"] == pytest.approx(difference.mean())
    assert told["se_paired"] == pytest.approx(difference.std(ddof=1) / math.sqrt(20), rel=1e-5)
    assert f"{told['value']:.4f}" in collect.text(read(tmp_path))


def test_a_table_of_bits_is_in_bits_over_seeds_too(toy, tmp_path):
    table = Table("toy", "Bits", TOY.base, TOY.cells, TOY.presets, bits=True)
    assert toy("--seeds", "0", "1", table=table) == 0
    results = read(tmp_path)
    told = results["rows"]["Mixture"]
    for name in ("elbo", "log_evidence"):
        bits = [r["bounds"]["bits_per_dim"][name]["value"] for r in told["runs"]]
        assert told["over_seeds"][name]["mean"] == pytest.approx(np.mean(bits))
        assert told["over_seeds"][name]["spread"] == pytest.approx(np.std(bits, ddof=1))
    assert "gap" not in told["over_seeds"]
    gains = [r["difference"]["value"] for r in told["runs"]]
    assert told["over_seeds"]["difference"]["mean"] == pytest.approx(np.mean(gains))
    (line,) = (x for x in collect.text(results).splitlines() if x.startswith("Mixture"))
    assert f"{told['over_seeds']['log_evidence']['spread']:.4f}" in line.split()


@pytest.mark.parametrize("bits", [True, False])
def test_what_is_not_finite_is_told_as_such(bits, toy, tmp_path, monkeypatch):
    table = Table("toy", "Bits", TOY.base, TOY.cells, TOY.presets, bits=bits)
    assert toy("--seeds", "0", "1", table=table) == 0
    # as of data of which one is impossible
    cells = [Cell(table, "smoke", "Mixture", s, tmp_path / "runs") for s in (0, 1)]
    result = json.loads(cells[1].run.result.read_text(encoding="utf-8"))
    for kind in ("estimates", "bits_per_dim"):
        for name in ("elbo", "log_evidence"):
            result["bounds"][kind][name] = dict.fromkeys(result["bounds"][kind][name])
    cells[1].run.result.write_text(json.dumps(result), encoding="utf-8")
    seen = Run.read_bounds

    def impossible(run):
        bounds = seen(run)
        if run.folder == cells[1].folder:
            bounds.per_datum["log_evidence"][3] = -math.inf
        return bounds

    monkeypatch.setattr(Run, "read_bounds", impossible)
    assert toy("--seeds", "0", "1", table=table) == 0
    results = read(tmp_path)
    json.dumps(results, allow_nan=False)
    good, bad = results["rows"]["Mixture"]["runs"]
    assert bad["difference"] == {"value": None, "se_paired": None}
    assert math.isfinite(good["difference"]["value"] + good["difference"]["se_paired"])
    nothing = {"mean": None, "spread": None}
    assert results["rows"]["Mixture"]["over_seeds"]["log_evidence"] == nothing
    (line,) = (x for x in collect.text(results).splitlines() if x.startswith("Mixture"))
    assert line.count("nan") == 6


def test_one_datum_has_a_difference_without_an_error(toy, tmp_path):
    presets = {"smoke": Preset("--fit.epochs 1", 30, 1, {"components": 3})}
    table = Table("toy", "Bits", TOY.base, TOY.cells, presets, bits=True)
    assert toy(table=table) == 0
    (record,) = read(tmp_path)["rows"]["Mixture"]["runs"]
    assert record["difference"]["value"] is not None
    assert record["difference"]["se_paired"] is None


def test_a_second_call_leaves_everything_as_it_is(toy, tmp_path, capsys):
    assert toy() == 0
    before = stamps(tmp_path)
    capsys.readouterr()
    assert toy() == 0
    assert stamps(tmp_path) == before
    assert capsys.readouterr().out.count("finished, left as it is") == 2


def test_only_runs_one_row_and_lists_the_others_as_missing(toy, tmp_path, capsys):
    assert toy("--only", "Mixture") == 0
    results = read(tmp_path)
    assert list(results["rows"]) == ["Mixture"]
    assert results["missing"] == {"StandardNormal, seed 0": "not started"}
    assert results["rows"]["Mixture"]["runs"][0]["difference"] is None
    assert "missing: StandardNormal, seed 0: not started" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "toy-smoke" / "standardnormal-0").exists()


def test_seeds_are_averaged_and_paired_with_their_own(toy, tmp_path):
    assert toy("--seeds", "0", "1") == 0
    told = read(tmp_path)["rows"]["Mixture"]
    values = [r["bounds"]["estimates"]["elbo"]["value"] for r in told["runs"]]
    assert [r["seed"] for r in told["runs"]] == [0, 1]
    assert values[0] != values[1]
    assert told["over_seeds"]["elbo"]["mean"] == pytest.approx(sum(values) / 2)
    assert told["over_seeds"]["elbo"]["spread"] == pytest.approx(np.std(values, ddof=1))
    gains = [r["difference"]["value"] for r in told["runs"]]
    assert told["over_seeds"]["difference"]["mean"] == pytest.approx(sum(gains) / 2)
    assert "± seeds" in collect.text(read(tmp_path))


def test_a_killed_cell_goes_on(toy, tmp_path, monkeypatch):
    assert toy("--only", "Mixture") == 0
    whole = read(tmp_path)
    other = tmp_path / "other"
    save, saved = checkpoint.save, []

    def killed(*args):
        save(*args)
        saved.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    places = ["--folder", str(other), "--results", str(other)]
    assert main(TOY, ["--preset", "smoke", "--only", "Mixture", *places]) == 130
    monkeypatch.undo()
    assert len(saved) == 1
    cell = Cell(TOY, "smoke", "Mixture", runs=other)
    assert cell.missing() == "training has not ended"
    assert main(TOY, ["--preset", "smoke", "--only", "Mixture", *places]) == 0
    assert read(other) == whole


def test_a_cell_that_was_trained_but_not_judged_is_judged(toy, tmp_path):
    assert toy("--only", "Mixture") == 0
    cell = Cell(TOY, "smoke", "Mixture", runs=tmp_path / "runs")
    before, weights = read(tmp_path), cell.run.weights.stat().st_mtime_ns
    assert pyro_vae(["evaluate", str(cell.folder), "--num-samples", "40"]) == 0
    assert cell.missing() == "not evaluated"
    assert toy("--only", "Mixture") == 0
    assert read(tmp_path) == before
    assert cell.run.weights.stat().st_mtime_ns == weights


def test_the_commands_repeat_the_cell(toy, tmp_path, monkeypatch):
    assert toy("--only", "Mixture") == 0
    (record,) = read(tmp_path)["rows"]["Mixture"]["runs"]
    monkeypatch.chdir(tmp_path)
    Path("runs").rename("those")
    for key in ("fit", "evaluate"):
        program, *words = record[key].split()
        assert program == "pyro-vae"
        assert pyro_vae(words) == 0
    estimates = Run("runs/toy-smoke/mixture-0").read_result()["bounds"]["estimates"]
    assert {key: estimates[key] for key in record["bounds"]["estimates"]} == (
        record["bounds"]["estimates"]
    )


def test_other_words_are_refused(toy, tmp_path, capsys):
    assert toy("--only", "Mixture") == 0
    cells = {**TOY.cells, "Mixture": f"{TOY.cells['Mixture']} --model.latent_dim 3"}
    other = Table(TOY.name, TOY.title, TOY.base, cells, TOY.presets)
    before = stamps(tmp_path / "runs")
    assert toy("--only", "Mixture", table=other) == 1
    folder = tmp_path / "runs" / "toy-smoke" / "mixture-0"
    assert capsys.readouterr().err == (
        f"toy: Mixture, seed 0: {folder} was made with another configuration than the script's of "
        f"today (model.latent_dim differ): remove it to run the cell anew, or choose another "
        f"--folder\n"
    )
    assert stamps(tmp_path / "runs") == before
    assert toy("--only", "StandardNormal", table=other) == 0
    assert "another configuration" in read(tmp_path)["missing"]["Mixture, seed 0"]


def test_fewer_epochs_are_refused_and_more_go_on(toy, tmp_path, capsys):
    assert toy("--only", "Mixture") == 0
    for epochs, status in ((1, 1), (3, 0)):
        presets = {"smoke": Preset(f"--fit.epochs {epochs}", 30, 20, {"components": 3})}
        other = Table(TOY.name, TOY.title, TOY.base, TOY.cells, presets)
        assert toy("--only", "Mixture", table=other) == status
    assert read(tmp_path)["rows"]["Mixture"]["runs"][0]["epochs"] == 3
    assert "(fit.epochs differ)" in capsys.readouterr().err


def test_a_cell_that_fails_does_not_stop_the_others(toy, tmp_path, capsys):
    cells = {"Poisson": "--model.likelihood Categorical --model.likelihood.levels 0", **TOY.cells}
    broken = Table(TOY.name, TOY.title, TOY.base, cells, TOY.presets)
    assert toy(table=broken) == 1
    assert capsys.readouterr().err.startswith("Poisson, seed 0: expected levels")
    assert list(read(tmp_path)["rows"]) == list(TOY.cells)


def test_a_cell_that_another_process_runs_is_left_to_it(toy, tmp_path, capsys):
    with alone(tmp_path / "runs" / "toy-smoke" / "mixture-0"):
        assert toy() == 0
    assert "Mixture, seed 0: another process is at it" in capsys.readouterr().out
    assert list(read(tmp_path)["rows"]) == ["StandardNormal"]


def test_measures_are_taken_once_kept_and_printed(toy, tmp_path, capsys):
    taken = []

    def size(model, data):
        taken.append("size")
        assert not model.training
        return {"value": float(len(data.test)), "se": 0.5}

    def told(model, data):
        taken.append("told")
        return {"value": 3, "text": "2+1"}

    def table(**measures):
        published = {"Mixture": "−84.78 / 25"}
        return Table(
            *("toy", "Priors", TOY.base, TOY.cells, TOY.presets),
            measures=measures,
            published=published,
        )

    both = table(size=size, told=told)
    assert toy(table=TOY) == 0
    cells = [Cell(both, "smoke", row, runs=tmp_path / "runs") for row in TOY.cells]
    assert [cell.missing() for cell in cells] == ["not measured: size, told"] * 2
    assert toy(table=table(size=size)) == 0
    assert [cell.missing() for cell in cells] == ["not measured: told"] * 2
    assert toy(table=both) == toy(table=both) == 0
    assert taken == ["size", "size", "told", "told"]
    rows = read(tmp_path)["rows"]
    figures = {"size": {"value": 1600.0, "se": 0.5}, "told": {"value": 3, "text": "2+1"}}
    assert [rows[row]["runs"][0]["measures"] for row in TOY.cells] == [figures, figures]
    assert ["published" in rows[row] for row in TOY.cells] == [False, True]
    text = collect.text(read(tmp_path)).splitlines()
    (head,) = (line for line in text if line.startswith("row"))
    assert head.split()[-3:] == ["size", "told", "published"]
    plain, mixed = (next(x for x in text if x.startswith(row)) for row in TOY.cells)
    assert plain.endswith("1600 ± 0.5               2+1")
    assert mixed.endswith("1600 ± 0.5               2+1   −84.78 / 25")
    # over seeds a figure is a mean, its text that of one run alone
    assert toy("--seeds", "0", "1", table=both) == 0
    mixed = next(x for x in collect.text(read(tmp_path)).splitlines() if x.startswith("Mixture"))
    assert mixed.endswith("1600 ± 0.5                 3   −84.78 / 25")
    # what goes on learning is measured anew
    taken.clear()
    presets = {"smoke": Preset("--fit.epochs 3", 30, 20, {"components": 3})}
    longer = Table("toy", "Priors", TOY.base, TOY.cells, presets, measures={"size": size})
    assert toy("--only", "Mixture", table=longer) == 0
    assert taken == ["size"]


def test_a_measure_that_fails_loses_nothing_else(toy, tmp_path, capsys):
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
    assert [cell.measured() for cell in cells] == [{"fine": {"value": 1.0}}] * 2
    before = {cell: cell.run.weights.stat().st_mtime_ns for cell in cells}
    mended = Table("toy", "Priors", TOY.base, TOY.cells, TOY.presets, measures={"fine": fine})
    assert toy(table=mended) == 0
    assert list(read(tmp_path)["rows"]) == list(TOY.cells)
    assert before == {cell: cell.run.weights.stat().st_mtime_ns for cell in cells}


def test_measures_that_are_damaged_are_one_sentence(toy, tmp_path, capsys):
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


def test_an_unknown_row_is_one_sentence(toy, capsys):
    assert toy("--only", "Mixtur") == 1
    assert capsys.readouterr().err == (
        "toy: expected --only to name rows (StandardNormal, Mixture); got 'Mixtur'; did you mean "
        "Mixture?\n"
    )


def test_words_that_mean_nothing_are_refused_before_any_work(toy, tmp_path, capsys):
    cells = {**TOY.cells, "Mixture": "--model.prior MixtureOfNormal"}
    assert toy(table=Table(TOY.name, TOY.title, TOY.base, cells, TOY.presets)) == 1
    assert "did you mean MixtureOfNormals?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_table_is_printed_without_running_anything(toy, tmp_path, capsys):
    assert toy("--table") == 1
    assert "`python -m experiments.toy --preset smoke`" in capsys.readouterr().err
    assert toy() == 0
    shown = capsys.readouterr().out
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert toy("--table") == 0
    assert capsys.readouterr().out.strip() in shown


def test_presets_leave_rows_out_and_groups_have_their_own_first_row():
    assert TOY.rows("paper") == ["StandardNormal"]
    cells = {**group("A", "--a", {"x": "1", "y": "2"}), **group("B", "--b", {"x": "1", "y": "2"})}
    table = Table("t", "T", "", cells, {"small": Preset("", without=["B: x"])})
    assert table.first("A: y", "small") == "A: x"
    assert table.first("B: y", "small") == "B: y"
    assert cells["B: x"] == "--b 1"


def test_rows_that_would_share_a_folder_are_refused():
    assert slug("Frey Face: Student-t") == "frey-face-student-t"
    with pytest.raises(ValueError, match="expected rows that differ in letters or digits"):
        Table("t", "T", "", {"a b": "", "a-b": ""}, {})


def test_a_row_whose_training_broke_off_says_so_in_the_results(toy, tmp_path):
    """It would again, which is a result, too; the others are not held up."""
    far = {"StandardNormal": TOY.cells["StandardNormal"], "far": "--fit.optimizer.lr 1e30"}
    base = f"{TOY.base} --fit.optimizer SGD --fit.optimizer.lr 1e-6"
    table = Table("toy", "Steps", base, far, {"smoke": TOY.presets["smoke"]})
    assert toy(table=table) == 1
    found = read(tmp_path)
    assert [*found["rows"]] == ["StandardNormal"]
    assert re.match(r"failed: the .* in epoch 1, step \d", found["missing"]["far, seed 0"])
    # tried again, and forgotten once it is well
    well = replace(table, cells={**far, "far": "--fit.optimizer.lr 1e-6"})
    assert toy(table=well) == 0
    found = read(tmp_path)
    assert not found["missing"] and [*found["rows"]] == [*far]
