"""Backend library and precision of matrix products."""

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

from .trace import is_tracing

__all__ = ["Precision", "check_precision", "matmul_backend"]

#: Precision of the linear and convolutional layers.
Precision = Literal["float32", "bfloat16"]

_log = logging.getLogger("pyro_vae")

#: Environment variable that selects the library of float32 products on a CPU.
_VARIABLE = "PYRO_VAE_MATMUL"
_LIBRARIES = ("auto", "mkl", "onednn")
#: Largest accepted ratio of oneDNN's error to MKL's.
_MAX_ERROR_RATIO = 4.0


def check_precision(precision: str) -> Precision:
    """Return ``precision`` if it is valid.

    Raises:
        ValueError: if it is neither ``float32`` nor ``bfloat16``.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"expected precision to be float32 or bfloat16; got {precision!r}")
    return precision  # type: ignore[return-value]


@contextmanager
def matmul_backend(precision: Precision = "float32") -> Iterator[None]:
    """Set the library and the precision of matrix products within a context.

    float32 products on a CPU use MKL, except on AMD processors, where oneDNN is faster. Set the
    environment variable ``PYRO_VAE_MATMUL`` to ``mkl`` or ``onednn`` to choose. The choice never
    depends on timings, because the results differ in the last digits. oneDNN may round to
    bfloat16 on processors that support it, so its error is measured first: if it is more than
    four times that of MKL, MKL is used.

    Arguments:
        precision: ``bfloat16`` rounds inputs and outputs of linear and convolutional layers;
            everything else, such as distributions and sums, keeps its precision.

    Raises:
        ValueError: if the environment variable has another value.
    """
    # a graph is traced once, and the library is that of its later calls
    library = _onednn() if _library() == "onednn" and not is_tracing() else nullcontext()
    with library, _BFloat16Layers() if precision == "bfloat16" else nullcontext():
        yield


def _library() -> str:
    library = os.environ.get(_VARIABLE, "auto")
    if library not in _LIBRARIES:
        raise ValueError(f"expected {_VARIABLE} to be auto, mkl or onednn; got {library!r}")
    if library != "auto":
        return library
    return "onednn" if _vendor() == "AuthenticAMD" else "mkl"


@functools.cache
def _vendor() -> str:
    """Vendor of the processor; an empty string if unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else platform.processor()
    match = re.search(r"AuthenticAMD|GenuineIntel", text)
    return match[0] if match else ""


@contextmanager
def _onednn() -> Iterator[None]:
    """Use oneDNN for float32 products on the CPU if it is accurate."""
    if not _is_accurate():
        yield
        return
    setting = _onednn_setting()
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


class _BFloat16Layers(TorchFunctionMode):
    """Compute float32 layers in bfloat16 and return float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS or not any(map(_is_float32, args)):
            return func(*args, **kwargs)
        args = tuple(map(_to_bfloat16, args))
        return func(*args, **{n: _to_bfloat16(v) for n, v in kwargs.items()}).float()


_LAYERS: tuple[Callable[..., Tensor], ...] = (
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _to_bfloat16(value: Any) -> Any:
    return value.bfloat16() if _is_float32(value) else value


def _onednn_setting() -> Any:
    """Object with oneDNN's matmul precision; ``None`` before torch 2.9."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@functools.cache
def _is_accurate() -> bool:
    """Whether oneDNN computes float32 products here about as accurately as MKL; cached."""
    setting = _onednn_setting()
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
    if errors["oneDNN"] <= _MAX_ERROR_RATIO * errors["MKL"]:
        return True
    _log.warning(
        "using MKL for matrix products: oneDNN's relative error is %.1e here, MKL's %.1e",
        errors["oneDNN"],
        errors["MKL"],
    )
    return False
