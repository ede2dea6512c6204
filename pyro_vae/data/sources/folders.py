"""Folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.validation import as_path, positive_int
from ..containers import Container, keep_resident
from .base import RawData, SourceOptions
from .labels import align_classes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["images", "read_pictures"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY, _COLOUR = ("1", "L"), ("RGB", "P", "CMYK", "YCbCr", "HSV", "LAB")
#: Modes with transparency, and what remains of an opaque picture.
_TRANSPARENT = {"LA": "L", "RGBA": "RGB", "PA": "P"}
#: Names of folders with the parts of a data set.
_PARTS = {"train": "train", "test": "test", "valid": "valid", "val": "valid", "validation": "valid"}


def images(options: SourceOptions) -> RawData:
    """A folder of pictures, grey or colour, ``(C, H, W)``, levels 0…255.

    Folders in it are classes, named after the folders; ``train``, ``valid`` and ``test`` are the
    parts of the data set instead, with or without classes in them. Pictures are in the order of
    their paths. With ``size``, they are cropped in the middle to its proportions and resized.
    """
    if options.path is None:
        raise ValueError("data set 'images' needs data.path, the path of a folder of pictures")
    folder = as_path(options.path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder of pictures at data.path; found none at {folder}"
        )
    names = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    if "train" not in names or not names <= _PARTS.keys():
        return _read_folder(folder, options, None)
    found = {_PARTS[p.name.lower()]: p for p in sorted(folder.iterdir()) if p.is_dir()}
    train = _read_folder(found["train"], options, None)
    like = {n: _read_folder(found[n], options, train) for n in ("valid", "test") if n in found}
    return replace(train, **like)


def read_pictures(
    files: Sequence[Path],
    size: int | Sequence[int] | None,
    *,
    is_colour: bool = True,
    is_inverted: bool = False,
) -> Tensor | Container:
    """Return pictures of one size, or cropped and resized to ``size``; inverted if they are so."""
    found = [_inspect(files[0])] if size is None else []
    shape = _find_size(found, size, files[0].parent)
    pictures = _Pictures(list(files), shape, is_colour, size is not None, is_inverted)
    return keep_resident(pictures)


class _Picture(NamedTuple):
    """A picture's file, its height and width, and whether it has colours."""

    file: Path
    shape: tuple[int, int]
    is_colour: bool


def _read_folder(folder: Path, options: SourceOptions, train: RawData | None) -> RawData:
    """Read a folder; validation and test data have the colours and classes of ``train``."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not files:
        raise FileNotFoundError(
            f"expected pictures ({', '.join(s[1:] for s in _SUFFIXES)}) in {folder}; found none"
        )
    found = [_inspect(file) for file in files]
    size = _find_size(found, options.size, folder)
    is_colour = options.colour
    if train is not None:
        is_colour = train.values.shape[1] == 3
    if is_colour is None:
        is_colour = any(picture.is_colour for picture in found)
    pictures = _Pictures(files, size, is_colour, options.size is not None)
    labels, classes = _find_classes(files, folder)
    raw = RawData(keep_resident(pictures), labels, peak=255, classes=classes)
    return raw if train is None else align_classes(raw, train.classes, str(folder))


def _inspect(file: Path) -> _Picture:
    with _open(file) as picture:
        turned = picture.getexif().get(0x0112, 1) >= 5  # the orientation swaps the sides
        width, height = picture.size
        is_colour = _TRANSPARENT.get(picture.mode, picture.mode) in _COLOUR
    return _Picture(file, (width, height) if turned else (height, width), is_colour)


def _open(file: Path) -> Image:
    """Open a picture; raise a ``ValueError`` that names the file if it cannot be read."""
    from PIL import Image

    try:
        picture = Image.open(file)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(
            f"expected {file} to be a picture; the file is damaged or has other contents: remove "
            f"it from the folder"
        ) from error
    known = (*_GREY, *_COLOUR, *_TRANSPARENT)
    if picture.mode not in known:
        picture.close()
        raise ValueError(
            f"expected pictures of 8 bits per channel; got mode {picture.mode} in {file}: convert "
            f"it, or save an array of its values as .npy for data set 'array'"
        )
    return picture


def _find_size(found: list[_Picture], size: object, folder: Path) -> tuple[int, int]:
    if size is not None:
        sides = [size] if isinstance(size, int) else list(size)  # type: ignore[call-overload]
        if len(sides) not in (1, 2):
            raise ValueError(f"expected data.size to be one or two numbers of pixels; got {size}")
        height, width = (positive_int("data.size", side) for side in (sides[0], sides[-1]))
        return height, width
    other = next((p for p in found if p.shape != found[0].shape), None)
    if other is not None:
        shapes = " and ".join(f"{p.file} ({p.shape[0]} × {p.shape[1]})" for p in (found[0], other))
        raise ValueError(
            f"expected pictures of one size in {folder}; got {shapes}: set data.size, to which "
            f"they are cropped and resized"
        )
    return found[0].shape


def _find_classes(files: list[Path], folder: Path) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Return the classes of the pictures, if they are in folders of classes."""
    parts = [file.relative_to(folder).parts for file in files]
    depths = {len(part) for part in parts}
    if depths == {1}:
        return None, None
    if 1 in depths:
        direct = files[[len(part) for part in parts].index(1)]
        raise ValueError(
            f"expected pictures either in {folder} or in folders of classes in it; got both, e.g. "
            f"{direct}: move it to a folder"
        )
    names = sorted({part[0] for part in parts})
    return torch.tensor([names.index(part[0]) for part in parts]), tuple(names)


class _Pictures(Container):
    """Files of pictures that are read when they are needed, as bytes ``(C, H, W)``."""

    def __init__(
        self,
        files: list[Path],
        size: tuple[int, int],
        is_colour: bool,
        resize: bool,
        is_inverted: bool = False,
    ) -> None:
        self._files, self._size, self._mode = files, size, "RGB" if is_colour else "L"
        self._resize, self._is_inverted = resize, is_inverted
        self.shape = (len(files), 3 if is_colour else 1, *size)
        self.dtype = torch.uint8

    def _read(self, rows: Tensor) -> Tensor:
        parts = [self._read_picture(self._files[row]) for row in rows.tolist()]
        stacked = np.stack(parts) if parts else np.empty((0, *self.shape[1:]), np.uint8)
        return torch.from_numpy(stacked)

    def _read_picture(self, file: Path) -> np.ndarray:
        from PIL import ImageOps

        with _open(file) as opened:
            try:
                picture = ImageOps.exif_transpose(opened)
            except (OSError, SyntaxError) as error:
                raise ValueError(
                    f"expected {file} to be a picture; the file is damaged: remove it from the "
                    f"folder"
                ) from error
        is_transparent = picture.mode in _TRANSPARENT or "transparency" in picture.info
        if is_transparent and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError(
                f"expected pictures without transparency; got some in {file}: save it on a "
                f"background"
            )
        picture = picture.convert(self._mode)
        if self._resize:
            height, width = self._size
            picture = ImageOps.fit(picture, (width, height))
        values = np.asarray(picture, np.uint8).reshape(*self._size, -1)
        values = 255 - values if self._is_inverted else values
        return np.ascontiguousarray(values.transpose(2, 0, 1))
