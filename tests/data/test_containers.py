"""Containers: the same values as an array, whatever they are read from."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from scipy import sparse
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import pyro_vae as pv
from pyro_vae.data import Kind, Split, containers
from pyro_vae.data.containers import Container, IndexedArray, MappedArray, SparseRows
from pyro_vae.data.conversion import as_values
from pyro_vae.data.items import DatasetItems, SequentialItems
from pyro_vae.data.kinds import kind_of_blocks
from pyro_vae.data.splits import as_data, checksum

X = np.random.default_rng(0).poisson(1.0, (30, 4)).astype(np.float32)
ROWS = torch.tensor([7, 0, 29, 7, -1])


class Items(Dataset):
    """Items made by a function of the row."""

    def __init__(self, make=lambda i: (X[i], i % 3)):
        self.make = make

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.make(i)


class Iterated(IterableDataset):
    """The rows of X in order; fewer in later passes, if ``shrinks``."""

    def __init__(self, shrinks=False):
        self.passes, self.shrinks = 0, shrinks

    def __iter__(self):
        self.passes += 1
        yield from X[: 20 if self.shrinks and self.passes > 2 else 30]


class Stored:
    """An array that is read by sorted lists of different rows, as those of HDF5 files are."""

    shape, dtype = X.shape, X.dtype

    def __getitem__(self, rows):
        assert (np.diff(rows) > 0).all()
        return X[rows]


@pytest.fixture(autouse=True)
def _nothing_resident(monkeypatch):
    """Keep small data out of memory too, and read them in blocks of two rows."""
    monkeypatch.setattr(containers, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(containers, "_BLOCK_BYTES", 2 * X.shape[1] * 4)


def save(path, array, **options):
    stored = np.memmap(path, mode="w+", dtype=array.dtype, shape=array.shape, **options)
    stored[:] = array
    stored.flush()
    return stored


VIEWS = {
    "whole": lambda m: m,
    "later rows": lambda m: m[3:],
    "every other row, reversed": lambda m: m[::-2],
    "columns": lambda m: m[:, 1:3],
    "transposed": lambda m: m.T,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_map(tmp_path, view, order):
    # an offset in the second page of the file
    mapped = view(save(tmp_path / "x", X.astype(">f8"), order=order, offset=5000))
    values = as_values(mapped)
    assert isinstance(values, MappedArray) and values.dtype == torch.float64
    expected = torch.from_numpy(np.array(mapped, dtype=np.float64))
    assert values.shape == expected.shape
    rows = ROWS % len(expected)
    assert torch.equal(values.gather(rows), expected[rows])
    assert torch.equal(values[2:].gather(torch.tensor([1, 0])), expected[[3, 2]])
    assert torch.equal(values.gather(slice(None)), expected)


def test_memory_map_of_another_file(tmp_path):
    mapped = save(tmp_path / "x", X)
    (tmp_path / "x").unlink()
    save(tmp_path / "x", X + 1)
    with pytest.raises(ValueError, match="to contain the memory-mapped values; it has been repl"):
        as_values(mapped)
    # a container keeps its own file open
    mapped = save(tmp_path / "y", X)
    values = as_values(mapped)
    (tmp_path / "y").unlink()
    save(tmp_path / "y", X + 1)
    assert torch.equal(values.gather(ROWS), torch.from_numpy(X)[ROWS])


CONTAINERS = {
    "csr": lambda: sparse.csr_matrix(X),
    "coo array": lambda: sparse.coo_array(X),
    "csc": lambda: sparse.csc_matrix(X),
    "torch sparse": lambda: torch.from_numpy(X).to_sparse(),
    "indexed": Stored,
    "data set": lambda: Items(lambda i: X[i]),
    "pairs": Items,
    "mapping": lambda: Items(lambda i: {"x": torch.from_numpy(X[i]), "y": 0}),
    "loader": lambda: DataLoader(Items(), batch_size=7, shuffle=True),
}


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_reads_the_rows_of_an_array(make):
    values = as_values(make())
    assert isinstance(values, Container) and values.shape == X.shape
    expected = torch.from_numpy(X).to(values.dtype)
    assert torch.equal(values.gather(ROWS), expected[ROWS])
    assert torch.equal(values[ROWS][1:3].gather(slice(None)), expected[[0, 29]])
    assert checksum([values]) == checksum([expected])
    assert kind_of_blocks(x for _, x in Split(values).iter_materialized(0)) is Kind.LEVELS


FORMS = {
    "array": lambda: X,
    "nested list": lambda: X.tolist(),
    "arrays in a list": lambda: list(X),
    "tensors in a list": lambda: list(torch.from_numpy(X)),
    "frame": lambda: pandas.DataFrame(X),
    "nullable frame": lambda: pandas.DataFrame(X).astype({0: "Float64", 1: "Int64"}),
    "reversed array": lambda: X[::-1].copy()[::-1],
    "read-only array": lambda: np.frombuffer(X.tobytes(), np.float32).reshape(X.shape),
    "unsigned": lambda: X.astype(np.uint16),
    "TensorDataset": lambda: TensorDataset(torch.from_numpy(X)),
    "Subset": lambda: Subset(TensorDataset(torch.from_numpy(X[::-1].copy())), range(29, -1, -1)),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_becomes_a_tensor(make):
    values = as_values(make())
    assert isinstance(values, torch.Tensor)
    assert torch.equal(values.float(), torch.from_numpy(X))


def test_small_containers_become_tensors(monkeypatch, tmp_path):
    monkeypatch.setattr(containers, "RESIDENT_BYTES", X.nbytes)
    for data in (save(tmp_path / "x", X), sparse.csr_matrix(X), Stored()):
        assert torch.equal(as_values(data), torch.from_numpy(X))
    # a data set may transform its items, and is read on every use
    assert isinstance(as_values(Items()), DatasetItems)


def test_labels():
    assert pv.data.as_split(Items()).labels.tolist() == [i % 3 for i in range(30)]
    assert as_data(Items()).labels is None
    named = Items(lambda i: {"a": X[i], "b": float(i)})
    split = pv.data.as_split(named, x="a", labels="b")
    assert torch.equal(split.labels, torch.arange(30.0))
    frame = pandas.DataFrame(X).assign(kind=["b", "a", None] * 10)
    split = pv.data.as_split(frame, labels="kind")
    assert torch.equal(split.values, torch.from_numpy(X))
    assert split.labels.tolist() == [1, 0, -1] * 10
    assert pv.data.as_split(frame, x=[1, 0]).event_shape == (2,)
    pair = pv.data.as_split(TensorDataset(torch.from_numpy(X), torch.arange(30)))
    assert torch.equal(pair.labels, torch.arange(30))


def test_iterable_data_are_read_in_order():
    dataset = Iterated()
    values = as_values(dataset)
    assert isinstance(values, SequentialItems) and values.shape == X.shape
    for _ in range(2):
        parts = [values.gather(slice(i, i + 10)) for i in range(0, 30, 10)]
        assert torch.equal(torch.cat(parts), torch.from_numpy(X))
    # one pass to count, one to see the first item, and two to read
    assert dataset.passes == 4
    assert torch.equal(values.gather(torch.tensor([2, 5])), torch.from_numpy(X)[[2, 5]])
    with pytest.raises(ValueError, match="to be read in its order; got a read of shuffled rows"):
        values.gather(torch.tensor([5, 2]))
    with pytest.raises(ValueError, match=r"expected 30 items in every pass .*; got at most 20"):
        as_values(Iterated(shrinks=True)).gather(slice(None))


@pytest.mark.parametrize("options", [{"dynamic": True}, {"noisy": True, "peak": 9}, {"peak": 9}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_have_the_noise_of_the_whole(options, dtype):
    grey = torch.from_numpy(X / 9 if "dynamic" in options else X)
    split = Split(grey, **options)
    parts = list(split.iter_materialized(3, dtype))
    assert len(parts) == 15 and parts[0][1].dtype == dtype
    assert torch.equal(torch.cat([x for _, x in parts]), split.materialize(3, dtype))
    stream = Split(sparse.csr_matrix(grey.numpy()), **options)
    assert isinstance(stream.values, SparseRows)
    assert torch.equal(stream.materialize(3, dtype), split.materialize(3, dtype))
    assert torch.equal(stream.head(9).draw(ROWS[:2]).ceil(), stream.draw(ROWS[:2]).ceil()) or (
        options.get("dynamic")
    )


def test_random_items_are_the_same_in_every_evaluation():
    noisy = as_data(Items(lambda i: torch.from_numpy(X[i]) + torch.rand(4)))
    assert torch.equal(noisy.materialize(0), noisy.materialize(0))
    assert not torch.equal(noisy.materialize(0), noisy.materialize(1))
    assert not torch.equal(noisy.draw(ROWS), noisy.draw(ROWS))


REFUSED = {
    "ragged list": (lambda: [[1, 2], [3]], "expected a list of numbers, or of examples of the s"),
    "complex": (lambda: X * 1j, "expected real numbers; got an array of complex"),
    "text column": (
        lambda: pandas.DataFrame({"a": [1, 2], "b": ["u", "v"]}),
        "expected columns of numbers; got other values in 'b': drop these columns, convert",
    ),
    "huge": (lambda: np.array([2**63], np.uint64), "expected integers below 2⁶³; got 92233720"),
    "sparse vector": (lambda: sparse.coo_array(X[0]), r"sparse matrix of shape \(N, D\); got sha"),
    "object": (object, "or a pv.data.Split; got object"),
    "empty": (lambda: Subset(Items(), []), "expected at least one example; got an empty data set"),
    "triples": (lambda: Items(lambda i: (1, 2, 3)), r"items x or \(x, label\); got 3 parts"),
    "unnamed": (
        lambda: Items(lambda i: {"image": X[i], "id": i}),
        r"an entry 'x'; got 'image', 'id': name the entries by pv.data.as_split\(dataset, x=…",
    ),
    "sizes": (
        lambda: Items(lambda i: X[i, : 1 + i % 2]),
        r"same shape and type, \(1,\) of torch.float32; got \(2,\) of torch.float32 in item 1",
    ),
    "strings": (lambda: Items(lambda i: "text"), "x of an item: expected real numbers; got an"),
    "collate_fn": (lambda: DataLoader(Items(), collate_fn=list), "with a collate_fn, which is not"),
    "sampler": (
        lambda: DataLoader(Items(), sampler=torch.utils.data.SubsetRandomSampler([1])),
        "with a SubsetRandomSampler, whose order is not used here: pass its dataset",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        as_data(make()).materialize(0)


def test_named_parts_that_do_not_exist():
    with pytest.raises(ValueError, match="expected a column named 'c'; found 0, 1"):
        pv.data.as_split(pandas.DataFrame(X), labels="c")
    with pytest.raises(ValueError, match="to name parts of a Dataset, a data frame or an AnnData"):
        pv.data.as_split(X, x="a")
    with pytest.raises(IndexError, match="expected rows below 30; got 30"):
        IndexedArray(Stored()).gather(torch.tensor([30]))
