"""Queries of a table on the command line: columns by name, units of the file, and its rows."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import assert_error

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.data import decode_columns
from pyro_vae.likelihoods import Columns

FIT = [
    *("fit", "--data.name", "table", "--data.path", "t.csv", "--data.labels_key", "kind"),
    *("--data.binarize", "none", "--model.likelihood", "Columns", "--model.latent_dim", "1"),
    *("--model.encoder.hidden", "[4]", "--model.decoder.hidden", "[4]", "--fit.epochs", "1"),
    *("--fit.device", "cpu"),
]
INFER = ["infer", "run", "--columns", "age,blood", "--num-data", "3", "--num-samples", "40"]
NAMES = ["age", "visits", "blood"]


def _write_table():
    rng = np.random.default_rng(0)
    rows = [
        [f"{60 + 9 * rng.standard_normal():.1f}", rng.poisson(3), "ABO"[rng.integers(3)], kind]
        for kind in rng.choice(["ill", "well"], 60)
    ]
    rows[7][1] = ""
    with Path("t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*NAMES, "kind"], *rows])


def read(name):
    with Path(name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _write_table()
        assert main([*FIT, "--data.scale", "standard", "--run", "run"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_parts_follow_from_the_columns(capsys):
    assert main([*FIT, "--run", "counts"]) == 0
    assert "likelihoods: Gaussian: age; NegativeBinomial: visits; Categorical: blood\n" in (
        capsys.readouterr().err
    )
    # scaled counts are real numbers
    parts = pv.load("run").program.likelihood.parts
    assert [type(part).__name__ for part in parts] == ["Gaussian", "Categorical"]
    # a run is opened and used without its data, and resumed with the same configuration
    Path("t.csv").rename("elsewhere.csv")
    try:
        run = pv.load("counts")
        assert isinstance(run.program.likelihood, Columns) and run.columns[2].categories == (
            *("A", "B", "O"),
        )
        assert main(["sample", "counts", "--output", "s.csv", "--num-samples", "4"]) == 0
    finally:
        Path("elsewhere.csv").rename("t.csv")
    assert main(["fit", "--run", "counts", "--resume", "--fit.epochs", "2"]) == 0


def test_columns_need_a_table(folder, capsys):
    message = (
        "expected a data set loaded from a table, with the types of its columns, for the "
        "likelihood Columns; got one without: set data.name to table, or pass parts and columns"
    )
    argv = ["fit", "--data.name", "digits", "--data.binarize", "none", "--run", "new"]
    argv += ["--model.likelihood", "Columns", "--model.latent_dim", "1"]
    assert_error(capsys, argv, message, folder)


def test_samples_have_the_names_of_the_file():
    assert main(["sample", "run", "--output", "s.csv", "--num-samples", "5"]) == 0
    run = pv.load("run")
    expected = decode_columns(run.scale.undo(pv.queries.sample(run.program, 5).x), run.columns)
    rows = read("s.csv")
    assert list(rows[0]) == NAMES
    assert [row["blood"] for row in rows] == expected["blood"]
    np.testing.assert_allclose([float(row["age"]) for row in rows], expected["age"], rtol=1e-6)


def test_columns_are_inferred_by_name(capsys):
    assert main([*INFER, "--draws", "2", "--output", "i.csv"]) == 0
    out = capsys.readouterr().out
    run = pv.load("run")
    split = run.data.test.head(3)
    observed = pv.queries.mask_columns(["age", "blood"], run.columns)
    assert observed.tolist() == [False, True, False]
    result = pv.queries.impute(run.program, split, observed=observed, draws=2, num_samples=40)
    assert result.rows.tolist() == split.rows.tolist()
    rows, table = read("i.csv"), read("t.csv")
    assert [int(row["row"]) for row in rows] == split.rows.repeat_interleave(2).tolist()
    assert [row["draw"] for row in rows] == ["0", "1"] * 3
    # the observed column is that of the file
    assert all(row["visits"] in (table[int(row["row"])]["visits"], "") for row in rows)
    x = run.scale.undo(result.x).transpose(0, 1).flatten(0, 1)
    expected = decode_columns(x, run.columns)
    assert [row["blood"] for row in rows] == expected["blood"]
    np.testing.assert_allclose([float(row["age"]) for row in rows], expected["age"], rtol=1e-6)
    # the errors have the units of the file
    truth = np.array([float(table[i]["age"]) for i in split.rows])
    error = np.sqrt(np.mean((run.scale.undo(result.mean)[:, 0].numpy() - truth) ** 2))
    printed = re.search(r"units of the data: age RMSE ([\d.]+), blood (\d+) % equal", out)
    assert float(printed[1]) == pytest.approx(error, rel=1e-3)
    true_blood = [table[int(row["row"])]["blood"] for row in rows]
    equal = np.mean([a == b for a, b in zip(expected["blood"], true_blood, strict=True)])
    assert int(printed[2]) == round(100 * equal)
    assert "log-densities are those of scaled values (data.scale standard)" in out


def test_empty_cells_are_inferred(capsys):
    argv = ["infer", "run", "--split", "all", "--num-data", "9", "--num-samples", "40"]
    assert main([*argv, "--draws", "1", "--output", "e.csv"]) == 0
    assert "3 of 3 columns observed except 1 values (NaN)" in capsys.readouterr().out
    rows, table = read("e.csv"), read("t.csv")
    assert [int(row["row"]) for row in rows] == list(range(9))
    assert [row["blood"] for row in rows] == [row["blood"] for row in table[:9]]
    # counts survive the scale and its inverse
    visits = [row["visits"] for row in rows]
    assert visits[:7] + visits[8:] == [row["visits"] for row in (*table[:7], table[8])]
    assert float(visits[7]) < 1e3


def test_columns_of_new_rows_are_inferred(folder, capsys):
    Path("new.csv").write_text("visits,blood,age\n2,A,\n5,O,\n")
    argv = ["infer", "run", "--data.path", "new.csv", "--num-data", "null", "--num-samples", "40"]
    assert main([*argv, "--draws", "1", "--output", "n.csv"]) == 0
    rows = read("n.csv")
    assert [row["row"] for row in rows] == ["0", "1"]
    assert [(row["visits"], row["blood"]) for row in rows] == [("2", "A"), ("5", "O")]
    assert all(0 < float(row["age"]) < 200 for row in rows)
    # a named column that is empty has no errors, and one of two rows is complete
    Path("new.csv").write_text("visits,blood,age\n2,A,\n5,O,40\n")
    capsys.readouterr()
    assert main([*argv, "--draws", "1", "--columns", "blood"]) == 0
    out = capsys.readouterr().out
    assert "log p̂(x_mis | x_obs) of 1 complete examples: -" in out
    assert "units of the data: blood" in out
    Path("new.csv").write_text("visits,blood\n2,A\n5,O\n")
    message = (
        "expected the columns of the training data in .*new.csv; got none of the name 'age': add "
        "it, with empty cells if its values are unknown"
    )
    assert_error(capsys, argv, message, folder)


def test_reconstruction_errors_are_in_units(capsys):
    argv = ["reconstruct", "run", "--num-data", "6", "--output", "r.csv"]
    assert main(argv) == 0
    run = pv.load("run")
    x = run.data.test.head(6).materialize(0)
    generated = pv.queries.reconstruct(run.program, x)
    age = (run.scale.undo(generated.mean) - run.scale.undo(x))[:, 0].square().mean().sqrt()
    printed = re.search(r"age RMSE ([\d.]+), visits RMSE", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(float(age), rel=1e-3)
    rows = read("r.csv")
    assert list(rows[0]) == ["row", *NAMES]
    assert [int(row["row"]) for row in rows] == run.data.test.head(6).rows.tolist()


def test_scores_keep_the_rows_of_the_file(capsys):
    argv = ["anomaly", "run", "--split", "all", "--num-samples", "20"]
    assert main([*argv, "--output", "a.csv"]) == 0
    out = capsys.readouterr().out
    assert "60 examples of the run\nELBO: mean -" in out and "AUROC" not in out
    rows, run = read("a.csv"), pv.load("run")
    data = run.data.take("all")
    scores = pv.queries.score_examples(run.program, data, num_samples=20)
    assert [int(row["row"]) for row in rows] == list(range(60)) == scores["row"].tolist()
    np.testing.assert_allclose([float(row["elbo"]) for row in rows], scores["elbo"])
    assert [row["labels"] for row in rows] == [row["kind"] for row in read("t.csv")]
    assert main([*argv, "--against-class", "1", "--output", "a.npz"]) == 0
    assert "AUROC" in capsys.readouterr().out
    with np.load("a.npz") as arrays:
        is_ill = data.labels.numpy() == 1
        assert arrays["row"].tolist() == [*np.flatnonzero(~is_ill), *np.flatnonzero(is_ill)]
        assert arrays["is_anomalous"].tolist() == sorted(is_ill)


def test_latents_in_a_csv_file():
    assert main(["encode", "run", "--num-data", "4", "--output", "z.csv"]) == 0
    run = pv.load("run")
    expected = pv.queries.encode(run.program, run.data.test.head(4))
    rows = read("z.csv")
    assert list(rows[0]) == ["z.mean.0", "z.std.0", "labels", "row"]
    np.testing.assert_allclose([float(row["z.mean.0"]) for row in rows], expected["z.mean"][:, 0])
    assert [row["labels"] for row in rows] == [run.classes[i] for i in expected["labels"]]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--columns", "agee"], "expected the name of a column to be .*'agee'; did you mean .*"),
        (["--columns", "age", "--missing", "none"], "expected --missing or --columns; got both"),
        ([], "expected missing values to infer; got 3 complete examples: name others by --columns "
         "NAMES or --missing random:FRACTION"),
        (["--columns", "age", "--output", "t.csv"], "expected another --output than the data of.*"),
    ],
)  # fmt: skip
def test_bad_columns(argv, message, folder, capsys):
    assert_error(capsys, ["infer", "run", "--num-data", "3", *argv], message, folder)


def test_decoded_values():
    columns = (
        pv.data.Column("a", "real"),
        pv.data.Column("b", "count"),
        pv.data.Column("c", "binary", ("no", "yes")),
    )
    values = torch.tensor([[49.7, 2.0, 1.0], [torch.nan, 2.5, torch.nan]])
    assert decode_columns(values, columns) == {
        "a": [49.7, None],
        "b": [2, 2.5],
        "c": ["yes", None],
    }
    with pytest.raises(ValueError, match=r"expected rows of 3 columns, \(a, b, c\); got shape"):
        decode_columns(values[:, :2], columns)
