"""Labels that are strings or categories, of every type that contains them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import Dataset, Subset

import pyro_vae as pv
from pyro_vae.data import Split

NAMES = ["T", "B", "", "NK", "T", "B"]
#: The class of each name, in alphabetical order.
CODES = [2, 0, -1, 1, 2, 0]
X = np.random.default_rng(0).normal(size=(6, 2)).astype("f4")
MISSING = [name or None for name in NAMES]

FORMS = {
    "list": NAMES,
    "list with None": MISSING,
    "frame": pandas.DataFrame({"kind": MISSING}),
    "objects of bytes": np.array([name.encode() for name in NAMES], object),
    "tuple": tuple(NAMES),
    "array": np.array(NAMES),
    "bytes": np.array(NAMES, "S"),
    "objects": np.array(MISSING, object),
    "NumPy strings": np.array(NAMES, np.dtypes.StringDType()),
    "series": pandas.Series(MISSING),
    "series of objects": pandas.Series([name or np.nan for name in NAMES], dtype=object),
    "nullable series": pandas.Series(MISSING, dtype="string"),
    "categorical series": pandas.Series(MISSING, dtype="category"),
}


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_strings_become_classes(labels):
    split = Split(X, labels=labels)
    assert split.labels.tolist() == CODES and split.labels.dtype == torch.int64
    assert split.classes == ("B", "NK", "T")
    part = split.at(torch.tensor([3, 0]))
    assert part.labels.tolist() == [1, 2] and part.classes == split.classes
    assert "classes=('B', 'NK', 'T')" in repr(split)


def test_labels_take_the_numbers_of_given_classes():
    order = ["T", "NK", "B", "A"]
    split = Split(X, labels=NAMES, classes=order)
    assert split.labels.tolist() == [0, 2, -1, 1, 0, 2] and split.classes == tuple(order)
    # categories keep their order, and unused ones are kept
    column = pandas.Series(pandas.Categorical(MISSING, categories=order))
    assert Split(X, labels=column).labels.tolist() == split.labels.tolist()
    assert Split(X, labels=column).classes == tuple(order)
    # a category that no label has may be unknown
    renumbered = Split(X, labels=column, classes=["B", "NK", "T"])
    assert renumbered.labels.tolist() == CODES
    assert Split(X, labels=[0, 2, 1, 1, 0, 2], classes=order).classes == tuple(order)
    frame = pandas.DataFrame(X, columns=["a", "b"]).assign(kind=column)
    for labels in ("kind", NAMES):
        numbered = pv.data.as_split(frame, x=["a", "b"], labels=labels, classes=["B", "NK", "T"])
        assert numbered.labels.tolist() == CODES and numbered.classes == ("B", "NK", "T")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (NAMES, ["B", "T"], "expected labels among the classes B, T; got NK: use the same names"),
        ([0, 1, 2, 0, 1, 2], ["B", "T"], "expected labels below 2, the number of names .*; got 2"),
        (X, ["B", "T"], r"expected labels that are classes.* got labels of shape \(6, 2\)"),
        (["T", 3, "B", 1, 2, 3], None, "all strings or all numbers; got 3 among strings"),
        (NAMES, ["B", "T", "NK", "B"], "expected different names in classes; got B, T, NK, B"),
        ([0.5, None, 1, 1, 1, 1], None, "without NaN, unless they are classes; got NaN in 1 of 6"),
    ],
)
def test_labels_that_are_refused(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        Split(X, labels=labels, classes=classes)


def test_classes_with_empty_cells_are_unknown():
    """They are floating-point numbers, as pandas reads integers with empty cells."""
    numbers = [2, None, 0, 1, 2, 0]
    arrays = np.array(numbers, object), np.array(numbers, float)
    for labels in (numbers, tuple(numbers), *arrays, *map(pandas.Series, arrays)):
        assert Split(X, labels=labels).labels.tolist() == [2, -1, 0, 1, 2, 0]
    assert Split(X, labels=pandas.Series(numbers, dtype="Int64")).labels.tolist()[:2] == [2, -1]
    # numbers to condition on stay as they are
    assert Split(X, labels=[0.5, 2, 0, 1, 2, 0]).labels.dtype == torch.float32


def test_a_series_is_read_by_position():
    """Its index, here that of a shuffled table, is not that of the examples."""
    shuffled = pandas.Series([5.0, 3.0, 4.0, 1.0, 0.0, 2.0], index=[5, 3, 4, 1, 0, 2])
    assert Split(X, labels=shuffled).labels.tolist() == shuffled.tolist()
    assert Split(shuffled).values.tolist() == shuffled.tolist()
    integers = pandas.Series([1, None, 2], index=[2, 0, 1], dtype="Int64")
    np.testing.assert_array_equal(Split(integers).values, [1, np.nan, 2])


class Named(Dataset):
    """A data set that states the names of its classes, as those of torchvision do."""

    classes = ("cat", "dog", "fox")

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return X[i], self.labels[i]


def test_items_with_names():
    split = pv.data.as_split(Named(MISSING))
    assert split.labels.tolist() == CODES and split.classes == ("B", "NK", "T")
    split = pv.data.as_split(Subset(Named([0, 1, 1, 0, 2, 2]), [4, 1, 0]))
    assert split.labels.tolist() == [2, 1, 0] and split.classes == Named.classes
    # numbers that are none of the named classes
    assert pv.data.as_split(Named([0, 5, 1, 0, 2, 2])).classes is None
    assert pv.data.as_split(Named([0, None, 1, 0, 2, 2])).labels.tolist() == [0, -1, 1, 0, 2, 2]
    with pytest.raises(ValueError, match="expected a label in every item; got none in item 1"):
        pv.data.as_split(Named([0.5, None, 1.0, 0.0, 2.0, 2.0]))
    assert pv.data.as_split(Named([None] * 6)).labels is None
    # labels that are not needed are not converted
    assert torch.equal(Split(Named(NAMES)).values.gather(slice(None)), torch.from_numpy(X))


def test_a_class_is_left_out_by_its_name(tmp_path):
    file = str(tmp_path / "x.npz")
    np.savez(file, x=np.repeat(X, 4, 0), y=np.repeat(["T", "B", "7", "NK", "T", "B"], 4))
    load = partial(
        pv.data.load,
        "array",
        binarize="none",
        path=file,
        key="x",
        labels_key="y",
        valid=0.2,
        stratify=True,
    )
    assert load().train.classes == ("7", "B", "NK", "T")
    assert str(load()).endswith("labels: classes 7, B, NK, T")
    for name, number in (("NK", 2), ("7", 0), (7, 0), (3, 3)):
        data = load(without_class=name)
        for split in (data.train, data.valid):
            assert len(split) and number not in split.labels
        assert data.classes == ("7", "B", "NK", "T") and number in data.test.labels
    with pytest.raises(
        ValueError, match=r"one of at least two classes of 'array' \(7, B, NK, T\); got X"
    ):
        load(without_class="X")
    with pytest.raises(ValueError, match=r"classes of 'digits' \(0, 1, .*, 9\); got cat"):
        pv.data.load("digits", binarize="none", without_class="cat")
