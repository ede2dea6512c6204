"""Backend library and precision of matrix products."""

from __future__ import annotations

import functools
import logging
import math
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
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from .trace import is_tracing

__all__ = [
    "Precision",
    "TrainingPrecision",
    "check_precision",
    "check_training_precision",
    "has_bfloat16",
    "has_large_products",
    "layer_precision",
    "log_slow_precision",
    "matmul_backend",
]

#: Precision of the linear and convolutional layers.
Precision = Literal["float32", "bfloat16"]
#: Precision of the layers in training; TF32 is one of GPUs.
TrainingPrecision = Literal["float32", "bfloat16", "tf32"]

_log = logging.getLogger("pyro_vae")

#: Environment variable that selects the library of float32 products on a CPU.
_VARIABLE = "PYRO_VAE_MATMUL"
_LIBRARIES = ("auto", "mkl", "onednn")
#: Smallest dimension of the largest product from which oneDNN is used on AMD processors. A call of
#: oneDNN costs more: with it, a step takes 1.79 times as long for 1 row and 1.25 times for 20 on
#: Zen 4, 2.04 and 1.10 times on Zen 5 (``few_rows`` of experiments/benchmarks/internals.py).
#: Without it (``onednn``), a step takes 1.04 times as long for 128 rows on Zen 4, but 1.16 times
#: for 32 and 1.57 times for 100 on Zen 5, whose full rate of AVX-512 MKL does not use.
_MIN_DIMENSION, _MIN_DIMENSION_ZEN_5 = 128, 32
_ZEN_5 = 26
#: Products of two matrices, the last two arguments.
_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}
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


def check_training_precision(
    precision: str, dtype: torch.dtype, device: torch.device
) -> TrainingPrecision:
    """Return ``precision`` if a program can be trained with it.

    Logs once if bfloat16 is slower than float32 on the device.

    Arguments:
        precision: the name of the precision.
        dtype, device: those of the program.

    Raises:
        ValueError: if the precision is unknown, if it would round a program that is not in
            float32, or for ``tf32`` without a GPU that supports it.
    """
    known = get_args(TrainingPrecision)
    if precision not in known:
        raise ValueError(f"expected precision to be {', '.join(known)}; got {precision!r}")
    if precision == "float32":
        return precision
    if dtype is not torch.float32:
        raise ValueError(
            f"expected a program in float32 with precision {precision}; got one in "
            f"{str(dtype).removeprefix('torch.')}: convert it (program.float()), or leave out "
            f"precision"
        )
    if precision == "tf32" and not _has_tf32(device):
        raise ValueError(
            f"expected a GPU with TF32 (compute capability 8.0 or higher) with precision tf32; got "
            f"the device {device}: use bfloat16 or float32"
        )
    log_slow_precision(precision, device)
    return precision  # type: ignore[return-value]


def log_slow_precision(precision: str, device: torch.device) -> None:
    """Log once if ``precision`` is slower than float32 on a device."""
    if precision == "bfloat16" and (reason := _find_slow_bfloat16(device)):
        _log_slow_bfloat16(reason)


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; ``True`` if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = _cpu_flags()
    return not flags or not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags)


def _find_slow_bfloat16(device: torch.device) -> str:
    """Return why products in bfloat16 are slower than in float32; empty if they are not."""
    if not has_bfloat16(device):
        name = "GPU" if device.type == "cuda" else "processor"
        return f"this {name} has no instructions for it"
    # such steps take 1.7 to 1.8 times as long (docs/explanation/performance.md, intel-xeon-avx512)
    if device.type == "cpu" and "GenuineIntel" in _cpuinfo() and "amx_bf16" not in _cpu_flags():
        return "this Intel processor has AVX-512 but not AMX for it"
    return ""


def _cpu_flags() -> list[str]:
    """Instruction sets of the processor; empty if unknown."""
    # "flags" of x86, "Features" of ARM
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    return flags[1].split() if flags else []


@functools.cache
def _log_slow_bfloat16(reason: str) -> None:
    _log.warning("precision bfloat16 is slower than float32 here: %s", reason)


@contextmanager
def layer_precision(precision: TrainingPrecision) -> Iterator[None]:
    """Set the precision of layers within a context, also of those in a graph that is traced.

    Arguments:
        precision: ``bfloat16`` rounds the inputs, the weights and the product of linear and
            convolutional layers; the bias is added in float32. In the backward pass it rounds the
            gradients that enter and leave a product. ``tf32`` rounds the inputs of all products of
            float32 matrices on a GPU. ``float32`` changes nothing.
    """
    if precision == "tf32":
        with _tf32():
            yield
    else:
        with _BFloat16Layers() if precision == "bfloat16" else nullcontext():
            yield


@contextmanager
def _tf32() -> Iterator[None]:
    """Allow TF32 in products of float32 matrices and in convolutions on a GPU."""
    cudnn: Any = torch.backends.cudnn
    # before torch 2.9, another attribute, which newer versions do not allow beside the new one
    is_new = hasattr(cudnn, "conv")
    settings: tuple[Any, ...] = torch.backends.cuda.matmul, cudnn.conv if is_new else cudnn
    name, enabled = ("fp32_precision", "tf32") if is_new else ("allow_tf32", True)
    before = [getattr(setting, name) for setting in settings]
    for setting in settings:
        setattr(setting, name, enabled)
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setattr(setting, name, value)


@contextmanager
def matmul_backend(
    precision: TrainingPrecision = "float32", large_products: bool = True
) -> Iterator[None]:
    """Set the library and the precision of matrix products within a context.

    float32 products on a CPU use MKL, except large ones on AMD processors, where oneDNN is faster.
    Set the environment variable ``PYRO_VAE_MATMUL`` to ``mkl`` or ``onednn`` to choose. The choice
    never depends on timings, because the results differ in the last digits. oneDNN may round to
    bfloat16 on processors that support it, so its error is measured first: if it is more than
    four times that of MKL, MKL is used. Without AVX-512 (Zen 3 and earlier), torch computes all
    float32 products by MKL, whatever is chosen here.

    Arguments:
        precision: as for :func:`layer_precision`.
        large_products: whether the products are large, see :func:`has_large_products`.

    Raises:
        ValueError: if the environment variable has another value.
    """
    # a graph is traced once, and the library is that of its later calls
    uses_onednn = _library(large_products) == "onednn" and not is_tracing()
    with _onednn() if uses_onednn else nullcontext(), layer_precision(precision):
        yield


def has_large_products(graph: GraphModule) -> bool:
    """Whether the largest product of a traced graph is large enough for oneDNN, if on AMD.

    The smallest of its three dimensions decides. It is usually the number of rows, that is of
    examples times samples.
    """
    sizes = [
        (*a.meta["val"].shape[-2:], b.meta["val"].shape[-1])
        for node in graph.graph.nodes
        if node.target in _PRODUCTS
        for a, b in [node.args[-2:]]
    ]
    least = _MIN_DIMENSION_ZEN_5 if _family() >= _ZEN_5 else _MIN_DIMENSION
    return bool(sizes) and min(max(sizes, key=math.prod)) >= least


def _library(large_products: bool) -> str:
    library = os.environ.get(_VARIABLE, "auto")
    if library not in _LIBRARIES:
        raise ValueError(f"expected {_VARIABLE} to be auto, mkl or onednn; got {library!r}")
    if library != "auto":
        return library
    return "onednn" if large_products and _vendor() == "AuthenticAMD" else "mkl"


@functools.cache
def _vendor() -> str:
    """Vendor of the processor; an empty string if unknown."""
    match = re.search(r"AuthenticAMD|GenuineIntel", _cpuinfo() or platform.processor())
    return match[0] if match else ""


@functools.cache
def _family() -> int:
    """Family of an x86 processor; 0 if unknown."""
    match = re.search(r"^cpu family\s*: (\d+)", _cpuinfo(), re.MULTILINE)
    return int(match[1]) if match else 0


@functools.cache
def _cpuinfo() -> str:
    """Linux's description of the processor; an empty string on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.is_file() else ""


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
    """Compute the products of float32 layers in bfloat16, and return float32.

    Products in bfloat16 have sums in float32, which are rounded once. On processors without
    AVX-512, where torch does not use oneDNN for them, a transposed convolution adds rounded terms.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS or not any(map(_is_float32, args)):
            return func(*args, **kwargs)
        return _apply_layer(func, *args, **kwargs)


def _apply_layer(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    product = func(_to_bfloat16(input), _to_bfloat16(weight), None, *args, **kwargs).float()
    # in float32, where it is fused with the next operation
    return product if bias is None else product + bias.reshape(-1, *(1,) * _LAYERS[func])


#: Layers, and their number of dimensions after that of the features.
_LAYERS: dict[Callable[..., Tensor], int] = {
    F.linear: 0,
    F.conv1d: 1,
    F.conv2d: 2,
    F.conv3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}


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
