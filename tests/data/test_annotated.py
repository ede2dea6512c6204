"""Files of AnnData, written in their published format."""

from __future__ import annotations

from functools import partial

import h5py
import numpy as np
import pytest
import scipy.sparse

import pyro_vae as pv

COUNTS = np.random.default_rng(0).poisson(0.7, (12, 5)).astype(np.float32)
TYPES = np.array([2, 0, 1, -1] * 3, np.int8)
load = partial(pv.data.load, "h5ad", binarize="none", valid=0, test=0)


def write_matrix(group, name, matrix):
    if isinstance(matrix, np.ndarray):
        group[name] = matrix
        return
    node = group.create_group(name)
    node.attrs["encoding-type"] = f"{matrix.format}_matrix"
    node.attrs["shape"] = matrix.shape
    for part in ("data", "indices", "indptr"):
        node[part] = getattr(matrix, part)


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "x.h5ad", "w") as stored:
        write_matrix(stored, "X", scipy.sparse.csr_matrix(COUNTS))
        layers = stored.create_group("layers")
        write_matrix(layers, "raw", scipy.sparse.csc_matrix(3 * COUNTS))
        write_matrix(layers, "dense", 2 * COUNTS)
        obs = stored.create_group("obs")
        obs["_index"] = np.array([f"cell{i}" for i in range(12)], dtype=object)
        obs["patient"] = np.array([f"p{i // 3}" for i in range(12)], dtype=object)
        obs["age"] = np.linspace(20, 80, 12)
        types = obs.create_group("type")
        types["codes"], types["categories"] = TYPES, np.array(["B", "NK", "T"], dtype=object)
        # as later versions write nullable strings
        kinds = obs.create_group("kind")
        kinds["codes"], names = TYPES, kinds.create_group("categories")
        names["values"], names["mask"] = types["categories"][:], np.zeros(3, bool)
    return str(tmp_path / "x.h5ad")


def test_matrices_of_all_kinds(file, monkeypatch):
    for layer, factor in ((None, 1), ("raw", 3), ("dense", 2)):
        for limit in (2**28, 10):
            monkeypatch.setattr("pyro_vae.data.containers.RESIDENT_BYTES", limit)
            data = load(path=file, layer=layer)
            np.testing.assert_array_equal(data.train.draw(), factor * COUNTS[data.train.rows])
            assert data.peak is None
    with pytest.raises(ValueError, match=r"data\.layer to name a layer .* got 'x', .* dense, raw"):
        load(path=file, layer="x")


def test_columns_of_obs(file):
    for key in ("type", "kind"):
        data = load(path=file, labels_key=key)
        assert data.classes == ("B", "NK", "T")
        np.testing.assert_array_equal(data.train.labels, TYPES[data.train.rows])
    ages = load(path=file, labels_key="age").train
    np.testing.assert_allclose(ages.labels, np.linspace(20, 80, 12)[ages.rows], rtol=1e-6)
    grouped = load(path=file, groups_key="patient", test=3)
    assert len(grouped.test) == 3 and len({int(row) // 3 for row in grouped.test.rows}) == 1
    for option in ("labels_key", "groups_key"):
        with pytest.raises(ValueError, match=rf"data\.{option} to name a column of obs .* got 'x'"):
            load(path=file, **{option: "x"})


def test_other_files_raise(tmp_path):
    (tmp_path / "x.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"expected .*x\.h5ad to be an \.h5ad file of AnnData"):
        load(path=str(tmp_path / "x.h5ad"))
