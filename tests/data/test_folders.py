"""Folders of pictures: order, classes, sizes, colours, and pictures that are refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import pyro_vae as pv

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
load = partial(pv.data.load, "images", binarize="none", values="integer", valid=0, test=0)


def save(folder, pictures, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names or map(str, range(len(pictures))), pictures, strict=True):
        Image.fromarray(picture).save(folder / f"{name}.png")


@pytest.mark.parametrize("large", [False, True])
def test_pictures_in_the_order_of_their_paths(large, tmp_path, monkeypatch):
    if large:
        monkeypatch.setattr("pyro_vae.data.containers.RESIDENT_BYTES", 10)
    save(tmp_path, COLOUR)
    (tmp_path / "notes.txt").write_text("no picture")
    data = load(path=str(tmp_path))
    assert isinstance(data.train.values, torch.Tensor) is not large
    assert data.event_shape == (3, 5, 4)
    expected = torch.from_numpy(COLOUR[data.train.rows].transpose(0, 3, 1, 2)).float()
    assert torch.equal(data.train.draw(), expected)
    assert data.train.labels is None
    unit = load(path=str(tmp_path), values="unit")
    torch.testing.assert_close(unit.train.draw(), expected / 255)
    grey = load(path=str(tmp_path), colour=False)
    luma = (COLOUR[grey.train.rows] @ np.array([0.299, 0.587, 0.114])).round()
    assert np.abs(grey.train.draw()[:, 0].numpy() - luma).max() <= 1


def test_folders_are_classes_or_parts(tmp_path):
    grey = COLOUR[..., 0]
    for part, count in (("train", 3), ("test", 2)):
        for name in ("dog", "cat")[: 2 if part == "train" else 1]:
            save(tmp_path / part / name, grey[:count])
    data = load(path=str(tmp_path))
    assert (len(data.train), len(data.test)) == (6, 2)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [[0, 0, 0, 1, 1, 1][row] for row in data.train.rows]
    assert data.test.labels.tolist() == [1, 1]
    assert data.event_shape == (1, 5, 4)
    np.testing.assert_array_equal(data.test.draw()[:, 0], grey[:2])
    classes = load(path=str(tmp_path / "train"), test=str(tmp_path / "test"))
    assert torch.equal(classes.test.labels, data.test.labels)
    save(tmp_path / "train", grey[:1])
    with pytest.raises(ValueError, match=r"either in .*train or in folders of classes .* got both"):
        load(path=str(tmp_path))


def test_sizes(tmp_path):
    save(tmp_path, [np.full((8, 8), 7, np.uint8), np.full((8, 12), 9, np.uint8)])
    with pytest.raises(ValueError, match=r"one size in .*0\.png \(8 × 8\) and .*1\.png"):
        load(path=str(tmp_path))
    data = load(path=str(tmp_path), size=4)
    assert data.event_shape == (1, 4, 4)
    assert sorted(data.train.draw().flatten(1).unique(dim=1).flatten().tolist()) == [7, 9]
    assert load(path=str(tmp_path), size=[2, 6]).event_shape == (1, 2, 6)


def test_unsuitable_pictures_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected pictures \(bmp, .*\) in .*; found none"):
        load(path=str(tmp_path))
    Image.fromarray(COLOUR[0, ..., 0].astype(np.uint16) * 200).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"of 8 bits per channel; got mode I(;16)? in .*a\.png"):
        load(path=str(tmp_path))
    alpha = np.concatenate([COLOUR[0], np.full((5, 4, 1), 9, np.uint8)], -1)
    Image.fromarray(alpha).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"without transparency; got some in .*a\.png"):
        load(path=str(tmp_path))
    alpha[..., 3] = 255
    Image.fromarray(alpha).save(tmp_path / "a.png")
    assert load(path=str(tmp_path), test=0).event_shape == (3, 5, 4)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"expected .*a\.png to be a picture; the file is damaged"):
        load(path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"folder of pictures at data\.path; found none at"):
        load(path=str(tmp_path / "missing"))
