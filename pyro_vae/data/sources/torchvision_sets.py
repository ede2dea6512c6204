"""Data sets that torchvision downloads and reads."""

from __future__ import annotations

import gzip
import hashlib
import logging
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..labels import number_by_names
from .base import RawData, SourceOptions
from .folders import read_pictures

__all__ = [
    "celeba",
    "cifar10",
    "emnist",
    "fashion_mnist",
    "kmnist",
    "mnist",
    "omniglot105",
    "svhn",
]

_log = logging.getLogger("pyro_vae")

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


def mnist(options: SourceOptions) -> RawData:
    """60,000 + 10,000 digits of 28 × 28 pixels, levels 0…255, via torchvision."""
    return _load_torchvision("MNIST", options.root)


def fashion_mnist(options: SourceOptions) -> RawData:
    """60,000 + 10,000 images of clothes, 28 × 28, levels 0…255, via torchvision."""
    return _load_torchvision("FashionMNIST", options.root)


def cifar10(options: SourceOptions) -> RawData:
    """50,000 + 10,000 colour images of ten classes, 3 × 32 × 32, levels 0…255, via torchvision."""
    train, test = _open("CIFAR10", options.root, {"train": True}, {"train": False})
    return _with_test(*(_from_arrays(part.data, part.targets, last=True) for part in (train, test)))


def svhn(options: SourceOptions) -> RawData:
    """73,257 + 26,032 house numbers in colour, 3 × 32 × 32, levels 0…255, via torchvision."""
    train, test = _open("SVHN", options.root, {"split": "train"}, {"split": "test"})
    return _with_test(*(_from_arrays(part.data, part.labels) for part in (train, test)))


def kmnist(options: SourceOptions) -> RawData:
    """60,000 + 10,000 Japanese letters of 28 × 28 pixels, levels 0…255, via torchvision."""
    train, test = _open("KMNIST", options.root, {"train": True}, {"train": False})
    return _with_test(*(_from_arrays(part.data, part.targets) for part in (train, test)))


def emnist(options: SourceOptions) -> RawData:
    """112,800 + 18,800 letters and digits of 47 classes, 28 × 28, levels 0…255, via torchvision.

    This is the balanced part of EMNIST, turned upright.
    """
    parts = ({"split": "balanced", "train": flag} for flag in (True, False))
    train, test = _open("EMNIST", options.root, *parts)
    # the published images are transposed
    return _with_test(*(_from_arrays(part.data.mT, part.targets) for part in (train, test)))


def celeba(options: SourceOptions) -> RawData:
    """202,599 faces in colour, 3 × 218 × 178 or ``size``, levels 0…255, via torchvision.

    The labels are the 40 attributes, 0 or 1, as numbers. Training, validation and test data are the
    published ones. Pictures are read when they are needed.
    """
    splits = [{"split": name, "target_type": "attr"} for name in ("train", "valid", "test")]
    opened = _open("CelebA", options.root, *splits)
    folder = options.root / "celeba" / "img_align_celeba"
    train, valid, test = (
        RawData(
            read_pictures([folder / name for name in part.filename], options.size),
            part.attr.to(torch.get_default_dtype()),
            peak=255,
        )
        for part in opened
    )
    return replace(train, valid=valid, test=test)


def omniglot105(options: SourceOptions) -> RawData:
    """19,280 + 13,180 handwritten characters, 105 × 105 or ``size``, levels 0…255, via torchvision.

    These are the published pictures, with strokes of level 255. The set ``omniglot`` has those of
    the IWAE paper, of 28 × 28 pixels, and another test set. Training data are the background set,
    of 964 characters in 30 alphabets, and test data the evaluation set, of 659 others in 20. The
    labels are the characters, named ``alphabet/character``.
    """
    opened = _open("Omniglot", options.root, {"background": True}, {"background": False})
    folders = [Path(part.target_folder) for part in opened]
    files = [sorted(folder.glob("*/*/*.png")) for folder in folders]
    for folder, found in zip(folders, files, strict=True):
        if not found:
            raise FileNotFoundError(
                f"expected pictures of Omniglot in {folder}; found none: remove its .zip file, and "
                f"it is downloaded again"
            )
    names = [[f"{f.parts[-3]}/{f.parts[-2]}" for f in found] for found in files]
    # the characters of the test data after those of the training data
    classes = tuple(name for part in names for name in dict.fromkeys(part))
    train, test = (
        RawData(
            read_pictures(found, options.size, is_colour=False, is_inverted=True),
            number_by_names(part, classes),
            peak=255,
            classes=classes,
        )
        for found, part in zip(files, names, strict=True)
    )
    return _with_test(train, test)


def _open(name: str, root: Path, *parts: dict[str, Any]) -> list[Any]:
    """Return the parts of a data set, which are downloaded once."""
    dataset = getattr(_import_torchvision_datasets(), name)
    try:
        return [dataset(root=str(root), download=True, **part) for part in parts]
    except (OSError, RuntimeError, AssertionError, KeyError, ValueError) as error:
        raise FileNotFoundError(
            f"expected {name} under {root}; found none and could not download it ({error}): "
            f"connect to the internet once, or set data.root or PYRO_VAE_DATA to its folder"
        ) from error


def _from_arrays(values: Any, labels: Any, last: bool = False) -> RawData:
    """Return images of bytes ``(N, C, H, W)``, also from ``(N, H, W)`` or channels ``last``."""
    images = torch.as_tensor(values)
    if images.ndim == 3:
        images = images[:, None]
    elif last:
        images = images.movedim(-1, 1)
    return RawData(images.contiguous(), torch.as_tensor(labels).long(), peak=255)


def _with_test(train: RawData, test: RawData) -> RawData:
    return replace(train, test=test)


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
