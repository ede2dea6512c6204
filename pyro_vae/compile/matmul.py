"""How products of matrices are made: by which library, and in which precision."""

from __future__ import annotations

import functools
import logging
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Precision", "check_precision", "matmul_backend"]

#: What the linear and convolutional layers of networks compute in.
Precision = Literal["float32", "bfloat16"]

_log = logging.getLogger("pyro_vae")

#: The environment's word for the library of float32 products on a CPU.
_VARIABLE = "PYRO_VAE_MATMUL"
_LIBRARIES = ("auto", "mkl", "onednn")
#: How much larger than MKL's the error of oneDNN's products may be.
_MOST_ERROR = 4.0


def check_precision(precision: str) -> Precision:
    """``precision`` if it is one.

    Raises:
        ValueError: if it is another word.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"expected precision to be float32 or bfloat16; got {precision!r}")
    return precision  # type: ignore[return-value]


@contextmanager
def matmul_backend(precision: Precision = "float32") -> Iterator[None]:
    """Matrix products as they were asked for, and as before afterwards.

    float32 products on a CPU are MKL's, but on AMD's processors oneDNN's, which is faster there;
    the environment variable ``PYRO_VAE_MATMUL`` can choose, ``mkl`` or ``onednn``. The clock
    never does, for their results differ in the last digits. oneDNN may round to bfloat16 on
    processors that have it; so its error is measured first, and where it is more than four times
    MKL's it is not used.

    Arguments:
        precision: ``bfloat16`` rounds inputs and outputs of linear and convolutional layers;
            all else, distributions and sums, stays as it is.

    Raises:
        ValueError: if the environment variable is another word.
    """
    library = _onednn() if _library() == "onednn" else nullcontext()
    with library, _Rounded() if precision == "bfloat16" else nullcontext():
        yield


def _library() -> str:
    wanted = os.environ.get(_VARIABLE, "auto")
    if wanted not in _LIBRARIES:
        raise ValueError(f"expected {_VARIABLE} to be auto, mkl or onednn; got {wanted!r}")
    if wanted != "auto":
        return wanted
    return "onednn" if _vendor() == "AuthenticAMD" else "mkl"


@functools.cache
def _vendor() -> str:
    """Who made the processor, where the system says."""
    about = Path("/proc/cpuinfo")
    text = about.read_text() if about.is_file() else platform.processor()
    found = re.search(r"AuthenticAMD|GenuineIntel", text)
    return found[0] if found else ""


@contextmanager
def _onednn() -> Iterator[None]:
    """oneDNN's products, where they are accurate; a GPU's are not touched."""
    if not _accurate():
        yield
        return
    setting = _setting()
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


class _Rounded(TorchFunctionMode):
    """Layers of networks in bfloat16, of float32 numbers to float32 numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS or not any(map(_is_single, args)):
            return func(*args, **kwargs)
        args = tuple(map(_halved, args))
        return func(*args, **{n: _halved(v) for n, v in kwargs.items()}).float()


_LAYERS: tuple[Callable[..., Tensor], ...] = (
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)


def _is_single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _halved(value: Any) -> Any:
    return value.bfloat16() if _is_single(value) else value


def _setting() -> Any:
    """What holds oneDNN's precision of products; torch before 2.9 has none for it alone."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@functools.cache
def _accurate() -> bool:
    """Whether oneDNN takes float32 products here and is as accurate as MKL, tried once."""
    setting = _setting()
    if setting is None or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=generator)
    exact = a.double() @ b.double()
    before, errors = setting.fp32_precision, {}
    for library, precision in (("MKL", "none"), ("oneDNN", "bf16")):
        setting.fp32_precision = precision
        errors[library] = float(((a @ b).double() - exact).norm() / exact.norm())
    setting.fp32_precision = before
    if errors["oneDNN"] <= _MOST_ERROR * errors["MKL"]:
        return True
    _log.warning(
        "products are left to MKL: oneDNN's relative error here is %.1e, MKL's %.1e",
        errors["oneDNN"],
        errors["MKL"],
    )
    return False
