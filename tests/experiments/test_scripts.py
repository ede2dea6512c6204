"""Declarations of all scripts: every row takes a step; the committed results belong to them."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from scripts import RESULTS, ROOT, SCRIPTS, TABLES, read_json

import pyro_vae as pv
from experiments.cells import Cell
from experiments.papers.pilot import PilotTable
from experiments.reporting import format_results
from experiments.tables import Table
from pyro_vae.config import experiment
from pyro_vae.data.sources import SOURCES, RawData

ALL_TABLES = [table for tables in TABLES.values() for table in tables]
#: Variants of a script's first table differ from it in data and optimizer only.
VARIANTS = [table for tables in TABLES.values() for table in tables[1:]]
#: Instead of the data's sizes in the arguments of a row.
FEW = ["--data.train=20", "--data.valid=0", "--data.test=10", "--fit.epochs=1"]
FEW += ["--fit.compile=false"]


def checked_rows(table: Table, preset: str) -> list[str]:
    rows = table.rows(preset)
    return [rows[0], rows[-1]] if table in VARIANTS else rows


def cells(preset: str) -> list[Cell]:
    tables = [table for table in ALL_TABLES if preset in table.presets]
    return [Cell(table, preset, row) for table in tables for row in checked_rows(table, preset)]


def name_of(cell: Cell) -> str:
    return f"{cell.table.stem(cell.preset)}: {cell.row}"


@pytest.fixture
def random_data(monkeypatch):
    """Replace images by random ones of the same shape, type and number of classes."""
    generator = torch.Generator().manual_seed(0)

    def images(*shape: int, count: int = 100) -> torch.Tensor:
        return torch.randint(256, (count, 1, *shape), generator=generator, dtype=torch.uint8)

    labels = torch.arange(100) % 10
    digits = RawData(images(28, 28), labels, peak=255)
    faces = RawData(images(28, 20), None, peak=255, block=10)
    letters = RawData(images(28, 28) / 255, None, peak=1)
    binary = RawData((images(28, 28) > 127).float(), None, peak=1)
    fakes = {"mnist": digits, "mnist5k": digits, "frey": faces, "omniglot": letters}
    for name, data in {**fakes, "binarized_mnist": binary}.items():
        monkeypatch.setitem(SOURCES, name, lambda options, data=data: data)


def open_few(cell: Cell) -> tuple[experiment.Experiment, pv.data.Dataset]:
    few_labels = ["--data.labelled=10", "--data.train=80"]
    labelled = few_labels if "--data.labelled" in cell.args else []
    args = [*cell.args, *FEW, *labelled]
    if cell.start is not None:
        del args[args.index("--start_from") : args.index("--start_from") + 2]
    opened = experiment.parse(args)
    return opened, opened.load_data()


@pytest.mark.parametrize("cell", cells("small"), ids=name_of)
def test_every_row_takes_a_step_and_is_evaluated(cell, random_data):
    """Arguments are valid, components fit the data, and the optimizer and its schedule run."""
    opened, data = open_few(cell)
    model = opened.build_model(data)
    before = [p.clone() for p in model.parameters()]
    history = pv.fit(model, data.train, **{**opened.fit_arguments, "patience": None})
    assert math.isfinite(history["elbo"][-1])
    assert any((p != q).any() for p, q in zip(model.parameters(), before, strict=True))
    bounds = pv.evaluate(model, data.test.head(2), num_samples=3)
    assert math.isfinite(bounds.log_evidence)


@pytest.mark.parametrize("cell", cells("paper"), ids=name_of)
def test_arguments_of_the_papers_budget_are_valid(cell):
    cell.check()


@pytest.mark.parametrize(
    "cell",
    [Cell(t, "smoke", t.rows("smoke")[0]) for t in ALL_TABLES if t.measures and t not in VARIANTS],
    ids=name_of,
)
def test_every_measure_is_a_number(cell, random_data):
    opened, data = open_few(cell)
    model = opened.build_model(data).eval()
    for measure in cell.measures.values():
        record = json.loads(json.dumps(measure(model, data)))
        assert math.isfinite(record["value"])
        assert record.get("se", 0.0) >= 0


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_networks_have_nearly_equal_numbers_of_parameters(preset):
    (table,) = TABLES["networks"]
    sizes = []
    for row in table.rows(preset):
        opened = Cell(table, preset, row).expected
        model = opened.build_model(SimpleNamespace(event_shape=(28, 28)))
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert max(sizes) <= 1.03 * min(sizes)


def test_rows_of_the_sweep_are_trained_at_their_beta():
    script = SCRIPTS["rate_distortion"]
    for row, beta in script.ROWS.items():
        assert Cell(script.TABLE, "small", row).experiment().objective.beta == float(beta)


#: The files of tables; that of ``gradients`` has another form and a test of its own.
COMMITTED = sorted(f for f in RESULTS.glob("*.json") if f.stem.partition("-")[0] in TABLES)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_results_have_the_current_titles_and_commands(file):
    results = read_json(file)
    tables, preset = TABLES[results["name"]], results["preset"]
    table = next(t for t in tables if dict(t.variant) == results.get("variant", {}))
    assert file.name == f"{table.stem(preset)}.json"
    assert (results["title"], results["command"]) == (table.title, table.command(preset))
    rows = results["models" if table.name == "bad_proposal" else "rows"]
    assert {*rows} <= {*table.rows(preset)}
    for row, entry in rows.items():
        for record in entry.get("runs", [entry]):
            commands = Cell(table, preset, row, record.get("seed", 0)).commands
            if isinstance(table, PilotTable):  # which ends with the step size that it has chosen
                commands["fit"] += f" --fit.optimizer.lr {record['pilot']['step_size']}"
            assert {key: record[key] for key in commands} == commands


#: Tables of several hours, of which a part is committed. The page lists what is missing.
PARTLY_RUN = {*(f"iwae_table{n}" for n in (1, 2, 3)), *(f"aevb_figure{n}" for n in (2, 3, 4, 5))}


@pytest.mark.parametrize("name", sorted(PARTLY_RUN))
def test_missing_rows_of_long_tables_are_listed(name):
    file = RESULTS / f"{name}-small.json"
    if file.is_file():
        results = read_json(file)
        missing = [entry.partition(", seed")[0] for entry in results["missing"]]
        assert {*results["rows"], *missing} == {*TABLES[name][0].rows("small")}
        return
    page = (ROOT / "docs" / "explanation" / "reproductions.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    assert line.endswith("| – | not run with this recipe |")


@pytest.mark.parametrize("name", sorted({*TABLES} - PARTLY_RUN))
def test_every_table_has_complete_committed_results(name):
    results = read_json(RESULTS / f"{name}-small.json")
    rows = results["models" if name == "bad_proposal" else "rows"]
    failed = [entry.partition(", seed")[0] for entry in results.get("missing", {})]
    assert sorted([*rows, *failed]) == sorted(TABLES[name][0].rows("small"))
    assert all(reason.startswith("failed: ") for reason in results.get("missing", {}).values())


def test_tables_in_docs_match_the_results_files():
    files = [read_json(file) for file in COMMITTED if file.stem != "bad_proposal-small"]
    lines = {line for results in files for line in format_results(results).splitlines()}
    lines |= {
        *SCRIPTS["bad_proposal"]
        .format_results(read_json(RESULTS / "bad_proposal-small.json"))
        .splitlines()
    }
    pages = [ROOT / "docs" / "explanation" / f"{name}.md" for name in ("reproductions", "studies")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    tables = [block for block in blocks if re.search(r"^(row|q\(z\|x\)) ", block, re.MULTILINE)]
    assert len(tables) > 10
    assert not [line for block in tables for line in block.splitlines() if line not in lines]


def test_commands_in_docs_name_scripts():
    pages = [ROOT / "README.md", ROOT / "experiments" / "README.md", *(ROOT / "docs").rglob("*.md")]
    modules = {module.__name__ for module in SCRIPTS.values()} | {"experiments.papers"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        named = {*re.findall(r"python -m (experiments\.[\w.]*\w)", text)} - {"experiments"}
        assert named <= modules, page
