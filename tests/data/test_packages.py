"""Data of other packages, read from their real objects: polars, Arrow, AnnData, Hugging Face."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from scipy import sparse
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae.data import Split, as_split, containers
from pyro_vae.data.containers import Container, IndexedArray, StoredSparseRows
from pyro_vae.data.items import DatasetItems, SequentialItems

N = 12
X = np.random.default_rng(0).poisson(0.8, (N, 4)).astype("f4")
NAMES = ["T", "B", None, "NK"] * 3
CODES = [2, 0, -1, 1] * 3
ROWS = torch.tensor([7, 0, 11, 7, -1])


def check(split: Split, expected: np.ndarray = X, labels: object = None) -> None:
    """Check all values, some in another order, and the labels."""
    torch.testing.assert_close(split.draw(), torch.from_numpy(expected), equal_nan=True)
    some = split.at(ROWS).draw()
    torch.testing.assert_close(some, torch.from_numpy(expected[ROWS]), equal_nan=True)
    assert (None if split.labels is None else split.labels.tolist()) == labels


class TestPolars:
    @pytest.fixture
    def frame(self):
        polars = pytest.importorskip("polars")
        columns = {name: X[:, i] for i, name in enumerate("abcd")}
        return polars.DataFrame({**columns, "kind": NAMES})

    def test_frame_and_column(self, frame):
        numbers = frame.drop("kind")
        check(as_split(numbers))
        check(as_split(numbers, x=["b", "a"]), X[:, [1, 0]])
        check(as_split(frame["a"]), X[:, 0])
        split = as_split(frame, labels="kind")
        check(split, labels=CODES)
        assert split.classes == ("B", "NK", "T")
        check(Split(numbers, labels=frame["kind"]), labels=CODES)
        with pytest.raises(
            ValueError, match="columns of numbers; got other values in 'kind': drop"
        ):
            as_split(frame)
        with pytest.raises(ValueError, match="expected a column named 'e'; found 'a', 'b', 'c'"):
            as_split(frame, labels="e")
        with pytest.raises(ValueError, match=r"got a LazyFrame: call its method collect\(\) first"):
            as_split(numbers.lazy())

    def test_nulls_and_booleans(self, frame):
        import polars

        numbers = frame.drop("kind")
        holes = X.copy()
        holes[X[:, 0] == 0, 0] = np.nan
        is_seen = polars.col("a") > 0
        check(as_split(numbers.with_columns(polars.when(is_seen).then("a"))), holes)
        mixed = numbers.with_columns(
            polars.when(is_seen).then(polars.col("a").cast(int)), b=is_seen
        )
        holes[:, 1] = X[:, 0] > 0
        check(as_split(mixed), holes)

    def test_categories(self, frame):
        import polars

        for dtype, codes, classes in (
            (polars.Categorical, CODES, ("B", "NK", "T")),
            (polars.Enum(["T", "NK", "B"]), [0, 2, -1, 1] * 3, ("T", "NK", "B")),
        ):
            split = as_split(frame.with_columns(polars.col("kind").cast(dtype)), labels="kind")
            assert split.labels.tolist() == codes and split.classes == classes


def test_arrow():
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({name: X[:, i] for i, name in enumerate("abcd")})
    check(as_split(table))
    labelled = table.append_column("kind", pyarrow.array(NAMES).dictionary_encode())
    split = as_split(labelled, labels="kind")
    # the order of its dictionary
    check(split, labels=[0, 1, -1, 2] * 3)
    assert split.classes == ("T", "B", "NK")
    check(Split(table, labels=pyarrow.array(NAMES)), labels=CODES)
    holes = np.where(X == 0, np.nan, X)
    nulls = {n: pyarrow.array(X[:, i].astype(int), mask=X[:, i] == 0) for i, n in enumerate("abcd")}
    check(as_split(pyarrow.table(nulls)), holes)
    backed = pandas.DataFrame(X.astype(int), columns=list("abcd")).convert_dtypes(
        dtype_backend="pyarrow"
    )
    check(as_split(backed.mask(backed == 0)), holes)


def test_masked_arrays_are_unobserved_where_masked():
    holes = np.where(X == 0, np.nan, X)
    for dtype in ("f4", "i8"):
        check(as_split(np.ma.masked_equal(X.astype(dtype), 0)), holes)
    check(as_split(np.ma.array(X)))


def test_xarray(monkeypatch):
    """Arrays are read by index, as they may be in a file; strings are labels."""
    xarray = pytest.importorskip("xarray")
    names = xarray.DataArray(np.array([name or "" for name in NAMES]))
    check(Split(xarray.DataArray(X), labels=names), labels=CODES)
    monkeypatch.setattr(containers, "RESIDENT_BYTES", 0)
    split = as_split(xarray.DataArray(X))
    assert isinstance(split.values, IndexedArray)
    check(split)
    with pytest.raises(ValueError, match=r"or a pv\.data\.Split; got Dataset"):
        as_split(xarray.Dataset({"a": ("row", X[:, 0])}))


def test_zarr():
    zarr = pytest.importorskip("zarr")
    check(as_split(zarr.array(X, chunks=(5, 4))))


# of AnnData with pandas 3
@pytest.mark.filterwarnings("ignore:The '(future.infer_string|mode.chained_assignment)' option")
class TestAnnData:
    @pytest.fixture
    def annotated(self):
        anndata = pytest.importorskip("anndata")
        # this version of AnnData does not write the strings of pandas 3
        with pandas.option_context("future.infer_string", False):
            donors = ["u", "w", "v", "w"] * 3
            cells = pandas.Categorical(NAMES)
            obs = pandas.DataFrame({"cell": cells, "donor": donors, "depth": X.sum(1)})
            obs.index = [f"cell {i}" for i in range(N)]
            layers = {"csc": sparse.csc_matrix(2 * X), "dense": 3 * X}
            names = pandas.DataFrame(index=list("abcd"))
            yield anndata.AnnData(
                sparse.csr_matrix(X), obs, names, layers=layers, obsm={"pca": X[:, :2]}
            )

    def check_all(self, data):
        check(as_split(data))
        split = as_split(data, labels="cell")
        check(split, labels=CODES)
        assert split.classes == ("B", "NK", "T")
        check(as_split(data, labels="donor"), labels=[0, 2, 1, 2] * 3)
        check(as_split(data, x="csc", labels="depth"), 2 * X, labels=X.sum(1).tolist())
        check(as_split(data, x="dense"), 3 * X)
        check(as_split(data, x="pca"), X[:, :2])

    @pytest.mark.parametrize("limit", [0, 2**28])
    def test_in_memory_and_backed(self, annotated, limit, tmp_path, monkeypatch):
        import anndata

        monkeypatch.setattr(containers, "RESIDENT_BYTES", limit)
        monkeypatch.setattr(containers, "_BLOCK_BYTES", 5 * 4 * X.shape[1])
        self.check_all(annotated)
        assert isinstance(as_split(annotated).values, Container) == (limit == 0)
        annotated.write_h5ad(tmp_path / "x.h5ad")
        backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
        self.check_all(backed)
        if limit == 0:
            assert isinstance(as_split(backed).values, StoredSparseRows)
        for matrix in (X, sparse.csc_matrix(X)):
            annotated.X = matrix
            annotated.write_h5ad(tmp_path / "y.h5ad")
            self.check_all(anndata.read_h5ad(tmp_path / "y.h5ad", backed="r"))

    def test_parts_that_do_not_exist(self, annotated):
        with pytest.raises(
            ValueError, match="layer or an entry of obsm named 'raw'; found 'csc', 'dense', 'pca'"
        ):
            as_split(annotated, x="raw")
        with pytest.raises(ValueError, match="column of obs named 'c'; found 'cell', 'donor'"):
            as_split(annotated, labels="c")
        annotated.X = None
        with pytest.raises(ValueError, match="AnnData object with X; got one without: name a la"):
            as_split(annotated)

    @pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
    def test_files_that_anndata_writes(self, annotated, kind, tmp_path):
        annotated.X = kind(X)
        annotated.write_h5ad(tmp_path / "x.h5ad")
        options = {"path": str(tmp_path / "x.h5ad"), "binarize": "none", "valid": 0, "test": 0}
        for layer, factor in ((None, 1), ("csc", 2), ("dense", 3)):
            data = pv.data.load("h5ad", labels_key="cell", layer=layer, **options)
            np.testing.assert_array_equal(data.train.draw(), factor * X[data.train.rows])
            assert data.classes == data.train.classes == ("B", "NK", "T")
            assert data.train.labels.tolist() == [CODES[row] for row in data.train.rows]
        data = pv.data.load("h5ad", labels_key="donor", groups_key="donor", **options)
        assert data.classes == ("u", "v", "w")

    def test_nullable_columns(self, annotated, tmp_path):
        import anndata

        annotated.obs["batch"] = pandas.array([1, 0, None, 2] * 3, dtype="Int64")
        annotated.obs["name"] = pandas.array(NAMES, dtype=pandas.StringDtype("python"))
        with anndata.settings.override(allow_write_nullable_strings=True):
            annotated.write_h5ad(tmp_path / "x.h5ad")
        options = {"path": str(tmp_path / "x.h5ad"), "binarize": "none", "valid": 0, "test": 0}
        for key, codes in (("batch", [1, 0, -1, 2] * 3), ("name", CODES)):
            data = pv.data.load("h5ad", labels_key=key, **options)
            assert data.train.labels.tolist() == [codes[row] for row in data.train.rows]
            assert data.classes == (None if key == "batch" else ("B", "NK", "T"))
            with pytest.raises(ValueError, match=f"every example in column '{key}' .*; got none f"):
                pv.data.load("h5ad", groups_key=key, **options)


class TestHuggingFace:
    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets")

    @pytest.mark.parametrize("kind", [None, "torch", "numpy", "pandas", "arrow", "polars"])
    def test_formats(self, datasets, kind):
        items = {"x": X.tolist(), "label": NAMES}
        dataset = datasets.Dataset.from_dict(items).with_format(kind)
        split = as_split(dataset)
        assert isinstance(split.values, DatasetItems)
        check(split, labels=CODES)
        assert split.classes == ("B", "NK", "T")
        check(as_split(DataLoader(dataset, batch_size=5, shuffle=True)), labels=CODES)

    def test_columns(self, datasets):
        frame = pandas.DataFrame(X, columns=list("abcd")).assign(depth=X.sum(1))
        dataset = datasets.Dataset.from_pandas(frame)
        for kind in (None, "torch"):
            split = as_split(dataset.with_format(kind), x=list("abcd"), labels="depth")
            check(split, labels=X.sum(1).tolist())
        with pytest.raises(ValueError, match=r"an entry 'x'; got 'a', .* name the entries by pv"):
            as_split(dataset)
        with pytest.raises(ValueError, match="got a dict: pass one of its splits"):
            as_split(datasets.DatasetDict(train=dataset))

    @pytest.mark.parametrize("kind", [None, "torch", "numpy"])
    def test_pictures_with_named_classes(self, datasets, kind):
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (N, 6, 5, 3)).astype("u1")
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "fox"])}
        )
        items = {"image": list(map(Image.fromarray, pixels)), "label": [2, 0, 1] * 4}
        dataset = datasets.Dataset.from_dict(items, features=features).with_format(kind)
        split = as_split(dataset)
        check(split, pixels.transpose(0, 3, 1, 2).astype("f4"), labels=[2, 0, 1] * 4)
        assert split.classes == ("cat", "dog", "fox") and split.values.dtype == torch.uint8
        streamed = as_split(dataset.to_iterable_dataset())
        assert streamed.classes == split.classes and torch.equal(streamed.labels, split.labels)

    def test_transform(self, datasets):
        dataset = datasets.Dataset.from_dict({"raw": X.tolist(), "y": CODES})
        dataset.set_transform(lambda rows: {"x": 2 * np.array(rows["raw"], "f4"), "y": rows["y"]})
        check(as_split(dataset), 2 * X, labels=CODES)

    @pytest.mark.parametrize("kind", [None, "torch", "numpy"])
    def test_stream(self, datasets, kind):
        items = {"x": X.tolist(), "label": NAMES}
        stream = datasets.Dataset.from_dict(items).to_iterable_dataset().with_format(kind)
        split = as_split(stream)
        assert isinstance(split.values, SequentialItems)
        assert torch.equal(split.draw(), torch.from_numpy(X))
        assert split.labels.tolist() == CODES and split.classes == ("B", "NK", "T")
        # in another order in every epoch
        shuffled = stream.shuffle(seed=0, buffer_size=8)
        split = as_split(shuffled)
        known = {tuple(x): label for x, label in zip(X.tolist(), CODES, strict=True)}
        if len(known) == N:
            assert [known[tuple(x)] for x in split.draw().tolist()] == split.labels.tolist()
        shuffled.set_epoch(1)
        with pytest.raises(ValueError, match=r"same order in every pass, .*; got another label"):
            split.draw()
