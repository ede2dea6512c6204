"""Arrays of users: sparse matrices, string labels, Python objects, and channels."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch

import pyro_vae as pv

RNG = np.random.default_rng(0)
load = partial(pv.data.load, "array", binarize="none", valid=0, test=0)


@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_sparse_matrix_saved_by_scipy(layout, tmp_path):
    counts = RNG.poisson(0.5, (30, 8))
    file = str(tmp_path / "counts.npz")
    scipy.sparse.save_npz(file, scipy.sparse.csr_matrix(counts).asformat(layout))
    data = load(path=file, values="integer")
    assert data.event_shape == (8,)
    np.testing.assert_array_equal(data.train.draw(), counts[data.train.rows])
    # its stored parts are arrays, too
    with pytest.raises(ValueError, match=r"expected no data\.key for a sparse matrix .* \(30, 8\)"):
        load(path=file, key="data")


def test_strings_are_classes_and_objects_are_refused(tmp_path):
    file = str(tmp_path / "x.npz")
    x, names = RNG.normal(size=(6, 2)), np.array(["T", "B", "T", "", "B", "NK"])
    np.savez(file, x=x, y=names, z=names.astype(object), b=names.astype("S"))
    for key in ("y", "b"):
        data = load(path=file, key="x", labels_key=key)
        assert data.classes == ("B", "NK", "T")
        labels = [data.classes[i] if i >= 0 else "" for i in data.train.labels]
        assert labels == names[data.train.rows].tolist()
    with pytest.raises(ValueError, match=r"strings in array 'z' of .*; got Python objects"):
        load(path=file, key="x", labels_key="z")


def test_channels_are_recognised_or_asked_for(tmp_path):
    def save(shape: tuple[int, ...], dtype: str = "u1") -> str:
        np.save(tmp_path / "x.npy", RNG.integers(0, 256, (5, *shape)).astype(dtype))
        return str(tmp_path / "x.npy")

    for shape, dtype, expected in (
        ((12, 16, 3), "u1", (3, 12, 16)),
        ((12, 16, 1), "u1", (1, 12, 16)),
        ((3, 12, 16), "f4", (3, 12, 16)),
        ((7, 12, 16), "f4", (7, 12, 16)),
        ((12, 16), "u1", (12, 16)),
    ):
        file = save(shape, dtype)
        data = load(path=file)
        assert data.event_shape == expected
        stored = np.load(file)[data.train.rows]
        if shape[-1] in (1, 3):
            assert torch.equal(data.train.values[:, 0], torch.from_numpy(stored[..., 0]))
    for shape, dtype in (((12, 16, 3), "f4"), ((3, 16, 3), "u1")):
        file = save(shape, dtype)
        with pytest.raises(ValueError, match=r"expected data\.channels to say where the channels"):
            load(path=file)
        assert load(path=file, channels="last").event_shape == (3, *shape[:2])
        assert load(path=file, channels="none").event_shape == shape
    with pytest.raises(ValueError, match=r"four dimensions in .* for data\.channels last"):
        load(path=save((12, 16)), channels="last")


def test_large_arrays_are_not_loaded(tmp_path, monkeypatch):
    """The same splits as those of an array in memory, in the order of the file, too."""
    x = RNG.normal(size=(40, 3)).astype("f4")
    np.save(tmp_path / "x.npy", x)
    scipy.sparse.save_npz(tmp_path / "s.npz", scipy.sparse.csr_matrix(x))
    options = {"path": str(tmp_path / "x.npy"), "valid": 0.1, "test": 0.2}
    resident = load(**options)
    for module in ("sources.arrays", "containers"):
        monkeypatch.setattr(f"pyro_vae.data.{module}.RESIDENT_BYTES", 100)
    mapped, sparse = load(**options), load(**options | {"path": str(tmp_path / "s.npz")})
    for data in (mapped, sparse):
        assert not isinstance(data.train.values, torch.Tensor)
        assert data.checksum == resident.checksum
        for split in ("train", "valid", "test", "all"):
            assert torch.equal(data.take(split).draw(), resident.take(split).draw())
            assert torch.equal(data.take(split).rows, resident.take(split).rows)


def test_files_of_other_sources_are_named(tmp_path):
    for name, source in (("x.csv", "table"), ("x.csv.gz", "table"), ("x.h5ad", "h5ad")):
        with pytest.raises(ValueError, match=rf"another file, .*{name}: set .* to {source}"):
            load(path=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"got a folder, .*: set data\.name to images"):
        load(path=str(tmp_path))
