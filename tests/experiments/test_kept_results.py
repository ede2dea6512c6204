"""Results files keep rows that were run on another machine or whose folder was removed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from scripts import make_args, read_json

from experiments.cells import Cell
from experiments.command import main
from experiments.tables import Claim, Preset, Table, ordering
from pyro_vae.learning.diagnostics import NonFiniteLossError

TABLE = Table(
    name="kept",
    title="Two sizes",
    base="--data.name digits --data.binarize threshold --data.test 1600",
    cells={"A": "--model.latent_dim 2", "B": "--model.latent_dim 3", "C": "--model.latent_dim 4"},
    presets={"smoke": Preset("--fit.epochs 1", 10, 20)},
    claims={
        "two": ordering("B is better than A", "B", "A"),
        "three": Claim("C gains more", {"A": 1.0, "B": -2.0, "C": 1.0}),
    },
)


def draw(results, cells):
    from matplotlib.figure import Figure

    return Figure()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of the runs of all rows with two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(TABLE, make_args(folder, "--seeds", "0", "1")) == 0
    return folder / "runs"


@pytest.fixture
def run_rows(tmp_path, finished):
    """Function that runs rows as on a machine with no other runs, and reads the results file.

    Runs are copied from those of the same rows, which would be equal: training is reproducible.
    """

    def run(*args: str, table: Table = TABLE, failing: bool = False, **options) -> dict:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        rows = [row for row in table.cells if "--only" not in args or row in args]
        for row in [] if failing else rows:
            name = f"kept-smoke/{row.lower()}-{1 if '--seeds' in args else 0}"
            if table.cells[row] == TABLE.cells[row]:
                shutil.copytree(finished / name, tmp_path / "runs" / name)
        assert main(table, make_args(tmp_path, *args), **options) == int(failing)
        return read_json(tmp_path / "kept-smoke.json")

    return run


def test_rows_and_claims_of_another_machine_are_kept(run_rows):
    before = run_rows("--only", "A", "B")
    after = run_rows("--only", "C")
    assert [*after["rows"]] == ["A", "B", "C"]
    for row in ("A", "B"):
        assert after["rows"][row] == before["rows"][row]
    assert after["rows"]["C"]["runs"][0]["difference"] is None
    assert after["missing"] == {}
    # the three runs are never on one machine, so they cannot be paired
    assert after["claims"] == {"two": before["claims"]["two"]}


def test_row_run_again_is_replaced_and_differences_to_it_are_dropped(run_rows):
    before = run_rows("--only", "A", "B")
    assert before["rows"]["B"]["runs"][0]["difference"] is not None
    after = run_rows("--only", "A")
    assert after["rows"]["A"] == before["rows"]["A"]  # the same run, repeated
    (earlier,), (kept,) = before["rows"]["B"]["runs"], after["rows"]["B"]["runs"]
    assert kept == earlier | {"difference": None}
    assert after["claims"] == {}


def test_seeds_of_two_machines_are_combined(run_rows):
    first = run_rows("--only", "A", "B")
    both = run_rows("--only", "A", "B", "--seeds", "1")
    runs = both["rows"]["B"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[0] == first["rows"]["B"]["runs"][0]
    assert both["rows"]["B"]["over_seeds"]["log_evidence"]["mean"] == pytest.approx(
        sum(run["bounds"]["estimates"]["log_evidence"]["value"] for run in runs) / 2
    )


def test_rows_with_outdated_commands_are_dropped(run_rows):
    run_rows()
    other = replace(TABLE, cells={**TABLE.cells, "B": "--model.latent_dim 5"})
    after = run_rows("--only", "C", table=other)
    assert [*after["rows"]] == ["A", "C"]
    assert after["missing"] == {"B, seed 0": "not started"}
    more_samples = replace(TABLE, presets={"smoke": Preset("--fit.epochs 1", 20, 20)})
    assert [*run_rows("--only", "C", table=more_samples)["rows"]] == ["C"]


def test_failing_row_is_not_kept(run_rows, monkeypatch):
    run_rows("--only", "A")

    def fail(cell: Cell, device: str) -> None:
        raise NonFiniteLossError("the loss", "z", "NaN")

    monkeypatch.setattr(Cell, "execute", fail)
    results = run_rows("--only", "A", failing=True)
    assert results["rows"] == {}
    assert results["missing"]["A, seed 0"].startswith("failed: ")


def test_figure_uses_local_runs_only(run_rows):
    run_rows("--only", "A")
    assert [*run_rows("--only", "B", draw=draw)["rows"]] == ["B"]


def test_damaged_file_is_reported_and_written_again(run_rows, tmp_path, capsys):
    run_rows("--only", "A")
    (tmp_path / "kept-smoke.json").write_text("{", encoding="utf-8")
    assert [*run_rows("--only", "B")["rows"]] == ["B"]
    assert "kept-smoke.json is damaged" in capsys.readouterr().err
