"""Data sets that torchvision downloads and reads."""

from __future__ import annotations

import gzip
import hashlib
import logging
import struct
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .base import RawData, SourceOptions

__all__ = ["fashion_mnist", "mnist"]

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
