"""Tables of users: types of columns, empty cells, labels, and other tables with their columns."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.data import Column
from pyro_vae.data.loading import load_unsplit

pytest.importorskip("pandas")
CSV = """\
name,height,visits,smoker,blood,married,patient,kind
Ann,1.5,3,0,A,yes,p1,T
Bob,-2,0,1,B,no,p2,B
Cid,0.25,,1,O,,p1,
Dan,,7,0,A,yes,p3,T
"""
COLUMNS = (
    Column("height", "real"),
    Column("visits", "count"),
    Column("smoker", "binary"),
    Column("blood", "categorical", ("A", "B", "O")),
    Column("married", "binary", ("no", "yes")),
)
VALUES = [[1.5, 3, 0, 0, 1], [-2, 0, 1, 1, 0], [0.25, np.nan, 1, 2, np.nan], [np.nan, 7, 0, 0, 1]]
load = partial(
    pv.data.load,
    *("table",),
    binarize="none",
    valid=0,
    test=0,
    drop=["name", "patient"],
    labels_key="kind",
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "x.csv").write_text(CSV)
    return str(tmp_path / "x.csv")


def test_types_are_recognised(file):
    data = load(path=file)
    assert data.columns == COLUMNS
    np.testing.assert_array_equal(data.train.values, np.array(VALUES)[data.train.rows])
    assert data.classes == ("B", "T")
    assert data.train.labels.tolist() == [[1, 0, -1, 1][row] for row in data.train.rows]
    grouped = load(path=file, drop=["name"], groups_key="patient", test=2)
    assert {tuple(sorted(s.rows.tolist())) for s in (grouped.train, grouped.test)} <= {
        *((0, 2), (1, 3)),
        *((0, 1, 2), (3,)),
        *((0, 2, 3), (1,)),
    }


def test_types_can_be_set(file):
    data = load(path=file, types=["visits=real", "smoker=categorical"])
    smoker = Column("smoker", "categorical", ("0", "1"))
    assert data.columns[1:3] == (Column("visits", "real"), smoker)
    for types, message in (
        (["height=count"], r"column 'height' of .* of type count; got values from -2 to 1\.5"),
        (["blood=real"], r"expected numbers in column 'blood' .* got strings, e\.g\. 'A'"),
        (["blood=binary"], r"expected two values in column 'blood' .* got 3"),
        (["height"], r"expected data\.types to be a list of NAME=TYPE, .*; got 'height'"),
        (["hight=real"], r"expected the name of a column of .*; got 'hight'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path=file, types=types)


def test_columns_of_names_raise(file):
    with pytest.raises(ValueError, match=r"in column 'name' .*; got another string in each"):
        load(path=file, drop=["patient"])


def test_row_numbers_of_pandas_are_no_column(tmp_path):
    import pandas

    counts = np.random.default_rng(0).poisson(2.0, (9, 3))
    pandas.DataFrame(counts).to_csv(tmp_path / "x.csv")
    data = pv.data.load("table", binarize="none", path=str(tmp_path / "x.csv"), valid=0, test=0)
    assert [column.name for column in data.columns] == ["0", "1", "2"]
    np.testing.assert_array_equal(data.train.values, counts[data.train.rows])
    assert not data.train.values.is_floating_point()


def test_other_tables_have_the_columns_of_the_training_data(file, tmp_path):
    # other order and fewer categories: the codes are those of the training data
    (tmp_path / "t.csv").write_text("married,blood,smoker,height,visits,kind\nyes,O,,1,2,B\n")
    data = load(path=file, test=str(tmp_path / "t.csv"))
    np.testing.assert_array_equal(data.test.values, [[1, 2, np.nan, 2, 1]])
    assert data.test.labels.tolist() == [0]
    # as a trained run stores them
    columns = tuple(Column.from_dict(json.loads(json.dumps(c.to_dict()))) for c in data.columns)
    new = load_unsplit(
        "table", binarize="none", path=str(tmp_path / "t.csv"), peak=None, columns=columns
    )
    np.testing.assert_array_equal(new.test.values, data.test.values)
    # new data need no labels
    (tmp_path / "n.csv").write_text("married,blood,smoker,height,visits\nyes,O,,1,2\n")
    new = load_unsplit(
        *("table",),
        binarize="none",
        path=str(tmp_path / "n.csv"),
        labels_key="kind",
        columns=columns,
    )
    assert new.test.labels is None
    (tmp_path / "t.csv").write_text("married,blood,smoker,height,visits,kind\nyes,X,,1,2,B\n")
    with pytest.raises(ValueError, match=r"\(A, B, O\) in column 'blood' of .*t\.csv; got 'X'"):
        load(path=file, test=str(tmp_path / "t.csv"))


def test_fit_shows_the_columns_and_warns_about_categories(file, tmp_path, capsys, caplog):
    argv = ["--data.name", "table", "--data.path", file, "--data.drop", "[name,patient,kind]"]
    argv += ["--data.binarize", "none", "--model.likelihood", "Gaussian", "--model.latent_dim=1"]
    argv += ["--fit.epochs", "1", "--data.valid", "0", "--data.test", "1"]
    assert main(["fit", *argv, "--run", str(tmp_path / "run")]) == 0
    assert (
        "columns: height: real; visits: count; smoker: binary; blood: " in capsys.readouterr().err
    )
    assert "Gaussian scores the categories of blood as numbers" in caplog.text


@pytest.mark.parametrize("writer", ["pandas", "nullable", "arrow types", "polars"])
def test_parquet(writer, file, tmp_path):
    """The columns of a table do not depend on the package that wrote it."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame, name = pandas.read_csv(file), str(tmp_path / "x.parquet")
    frame["kind"] = frame["kind"].astype("category")
    if writer == "nullable":
        frame = frame.convert_dtypes()
    elif writer == "arrow types":
        frame = frame.convert_dtypes(dtype_backend="pyarrow")
    if writer == "polars":
        pytest.importorskip("polars").from_pandas(frame).write_parquet(name)
    else:
        frame.to_parquet(name)
    expected, data = load(path=file), load(path=name)
    assert data.columns == expected.columns and data.classes == expected.classes
    assert data.checksum == expected.checksum
    assert data.train.labels.tolist() == expected.train.labels.tolist()


def test_columns_of_other_values_raise(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    file = str(tmp_path / "x.parquet")
    days = pandas.to_datetime(["2024-01-01", "2024-01-02"] * 2)
    columns = {
        "Timestamp": days,
        "date": days.date,
        "Timedelta": days - days[0],
        "ndarray": [[1.0, 2.0]] * 4,
    }
    for kind, values in columns.items():
        pandas.DataFrame({"a": [1, 2, 3, 4], "b": values}).to_parquet(file)
        message = rf"expected numbers or strings in column 'b' of .*; got a {kind}, e\.g\. "
        with pytest.raises(ValueError, match=message):
            pv.data.load("table", path=file, binarize="none")
