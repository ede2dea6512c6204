"""A results file keeps what was run elsewhere: on another machine, or in a folder that is gone."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pyro_vae.learning.diagnostics import NonFiniteLossError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the installed package

from experiments.claims import Claim, higher  # noqa: E402
from experiments.table import Cell, Preset, Table, main  # noqa: E402

TABLE = Table(
    name="kept",
    title="Two sizes",
    base="--data.name digits --data.binarize threshold --data.test 1600",
    cells={"A": "--model.latent_dim 2", "B": "--model.latent_dim 3", "C": "--model.latent_dim 4"},
    presets={"smoke": Preset("--fit.epochs 1", 10, 20)},
    claims={
        "two": higher("B is better than A", "B", "A"),
        "three": Claim("C gains more", {"A": 1.0, "B": -2.0, "C": 1.0}),
    },
)


def draw(results, cells):
    from matplotlib.figure import Figure

    return Figure()


@pytest.fixture
def work(tmp_path):
    """Runs rows in a folder of runs that is empty, and reads the one results file."""

    def run(*words: str, table: Table = TABLE, failing: bool = False, **more) -> dict:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        places = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
        status = main(table, ["--preset", "smoke", "--device", "cpu", *places, *words], **more)
        assert status == int(failing)
        return json.loads((tmp_path / "kept-smoke.json").read_text(encoding="utf-8"))

    return run


def test_rows_and_claims_of_another_machine_stay(work):
    before = work("--only", "A", "B")
    after = work("--only", "C")
    assert [*after["rows"]] == ["A", "B", "C"]
    for row in ("A", "B"):
        assert after["rows"][row] == before["rows"][row]
    assert after["rows"]["C"]["runs"][0]["difference"] is None
    assert after["missing"] == {}
    # nobody has all three runs, so nobody can pair them
    assert after["claims"] == {"two": before["claims"]["two"]}


def test_a_row_that_is_run_again_is_replaced_and_the_others_are_no_longer_paired_with_it(work):
    before = work("--only", "A", "B")
    assert before["rows"]["B"]["runs"][0]["difference"] is not None
    after = work("--only", "A")
    assert after["rows"]["A"] == before["rows"]["A"]  # the same run, made anew
    (old,), (kept,) = before["rows"]["B"]["runs"], after["rows"]["B"]["runs"]
    assert kept == old | {"difference": None}
    assert after["claims"] == {}


def test_seeds_of_two_machines_stand_beside_each_other(work):
    first = work("--only", "A", "B")
    both = work("--only", "A", "B", "--seeds", "1")
    runs = both["rows"]["B"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[0] == first["rows"]["B"]["runs"][0]
    assert both["rows"]["B"]["over_seeds"]["log_evidence"]["mean"] == pytest.approx(
        sum(run["bounds"]["estimates"]["log_evidence"]["value"] for run in runs) / 2
    )


def test_what_the_words_of_today_would_not_make_goes(work):
    work()
    other = replace(TABLE, cells={**TABLE.cells, "B": "--model.latent_dim 5"})
    after = work("--only", "C", table=other)
    assert [*after["rows"]] == ["A", "C"]
    assert after["missing"] == {"B, seed 0": "not started"}
    more = replace(TABLE, presets={"smoke": Preset("--fit.epochs 1", 20, 20)})
    assert [*work("--only", "C", table=more)["rows"]] == ["C"]


def test_a_row_that_fails_here_is_not_kept(work, monkeypatch):
    work("--only", "A")

    def fail(cell: Cell, device: str) -> None:
        raise NonFiniteLossError("the loss", "z", "NaN")

    monkeypatch.setattr(Cell, "work", fail)
    told = work("--only", "A", failing=True)
    assert told["rows"] == {}
    assert told["missing"]["A, seed 0"].startswith("failed: ")


def test_a_figure_is_of_the_runs_that_are_here(work):
    work("--only", "A")
    assert [*work("--only", "B", draw=draw)["rows"]] == ["B"]


def test_a_damaged_file_is_said_and_written_anew(work, tmp_path, capsys):
    work("--only", "A")
    (tmp_path / "kept-smoke.json").write_text("{", encoding="utf-8")
    assert [*work("--only", "B")["rows"]] == ["B"]
    assert "kept-smoke.json is damaged" in capsys.readouterr().err
