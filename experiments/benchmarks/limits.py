"""The arithmetic limit of this machine: the time of what cannot be left out.

Matrix products at the best float32 rate that any setting gives at these shapes, one pass of
tanh, softplus and sigmoid over what needs them, and the memory traffic of Adam and of the
gather, each measured here as fast as it goes. It is a contender like the others, so that it is
measured in the same rounds; its value, not its time, is the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from job import Job, Plan, Problem
from torch import Tensor

__all__ = ["PACKAGES", "TASKS", "element_seconds", "product_seconds", "settings"]

PACKAGES = ("torch",)
#: Relative error of a product that still counts as float32.
_EXACT = 1e-5
#: Rows that the layers of an evaluation may be given at once.
_ROWS = (1024, 4096, 16384)
#: Seconds that one measurement takes at least.
_LEAST = 0.005


def step(job: Job) -> Plan:
    """The limit of a step: ``[all, products, elements, bytes]``, seconds."""
    problem, device, rows = job.data, job.device, job.batch
    draws = rows * job.num_samples
    shapes = [
        shape
        for layers, count in ((problem.encoder, rows), (problem.decoder, draws))
        for i, (weight, _) in enumerate(layers)
        for shape in _three(count, *weight.T.shape, first=layers is problem.encoder and i == 0)
    ]
    pixels = problem.train.shape[1]
    # forwards softplus, backwards its derivative
    passes = {
        "softplus": draws * pixels,
        "sigmoid": draws * pixels,
        "tanh": (rows + draws) * sum(problem.hidden),
    }
    # Adam reads parameter, gradient and both moments and writes all but the gradient
    traffic = 4 * (7 * problem.num_parameters + 2 * rows * pixels)
    kernels = _kernels(device, job.compiled)

    def limit() -> list[float]:
        products = sum(product_seconds(*shape, device) for shape in shapes)
        elements = sum(n * element_seconds(kernels[k], n, device) for k, n in passes.items())
        moved = traffic * byte_seconds(problem.num_parameters, device)
        return [products + elements + moved, products, elements, moved]

    return lambda count: limit


def evaluation(job: Job) -> Plan:
    """The limit of one sample of L_K, in the same four numbers; what a pass reads counts in it."""
    problem, device = job.data, job.device
    hidden, pixels = sum(problem.hidden), problem.test.shape[1]
    kernels = _kernels(device, job.compiled)

    def limit() -> list[float]:
        products = sum(_product(problem, i, device) for i in range(len(problem.decoder)))
        size = _ROWS[0] * pixels
        elements = hidden * element_seconds(kernels["tanh"], size, device)
        elements += pixels * element_seconds(kernels["softplus"], size, device)
        return [products + elements, products, elements, 0.0]

    return lambda count: limit


def _product(problem: Problem, layer: int, device: str) -> float:
    """Seconds per row of a layer, with as many rows as suit it best."""
    width_in, width_out = problem.decoder[layer][0].T.shape
    return min(product_seconds(rows, width_in, width_out, device) / rows for rows in _ROWS)


def _three(rows: int, width_in: int, width_out: int, first: bool) -> list[tuple[int, int, int]]:
    """A layer's products: forwards, for its weights and, but in the first, for its inputs."""
    shapes = [(rows, width_in, width_out), (width_in, rows, width_out)]
    return shapes if first else [*shapes, (rows, width_out, width_in)]


def product_seconds(n: int, k: int, m: int, device: str) -> float:
    """Seconds of a float32 product (n × k) (k × m), by the library that is fastest at it."""
    a, b = torch.randn(n, k, device=device), torch.randn(k, m, device=device)
    out = torch.empty(n, m, device=device)
    found = []
    before = torch.get_float32_matmul_precision()
    try:
        for precision in settings(a, b):
            torch.set_float32_matmul_precision(precision)
            found.append(_seconds(lambda: torch.mm(a, b, out=out)))
    finally:
        torch.set_float32_matmul_precision(before)
    return min(found)


def settings(a: Tensor, b: Tensor) -> Iterable[str]:
    """The settings of float32 products that are as accurate as float32 here.

    On a CPU ``medium`` hands products to oneDNN, on some as bfloat16; on a GPU it is TF32.
    """
    exact = a[:32].double() @ b.double()
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            error = ((a[:32] @ b).double() - exact).norm() / exact.norm()
            if error < _EXACT:
                yield precision
    finally:
        torch.set_float32_matmul_precision(before)


def element_seconds(kernels: list[Callable[[Tensor], Tensor]], size: int, device: str) -> float:
    """Seconds per element of a pass over ``size`` numbers, by the fastest kernel."""
    # rows that a reduction can end at, as many numbers as were asked for or a few less
    x = torch.randn(max(1, size // 784), 784, device=device)
    return min(_seconds(lambda k=kernel: k(x)) for kernel in kernels) / x.numel()


def byte_seconds(size: int, device: str) -> float:
    """Seconds per byte of adding two tensors of ``size`` numbers into a third."""
    a, b, out = (torch.ones(size, device=device) for _ in range(3))
    return _seconds(lambda: torch.add(a, b, out=out)) / (3 * 4 * size)


def _kernels(device: str, compiled: bool) -> dict[str, list[Callable[[Tensor], Tensor]]]:
    """Ways to make a pass: torch's own and, if asked for and possible, Inductor's."""
    eager: dict[str, Callable[[Tensor], Tensor]] = {
        "softplus": lambda x: F.softplus(x).sum(-1),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    kernels = {name: [kernel] for name, kernel in eager.items()}
    for name, kernel in eager.items() if compiled else ():
        fused = torch.compile(kernel, dynamic=True)
        try:
            fused(torch.randn(64, 784, device=device))
        except Exception:  # no C++ compiler: torch's own pass is the limit then
            continue
        kernels[name].append(fused)
    return kernels


def _seconds(work: Callable[[], object]) -> float:
    """The fastest of five, each long enough for the clock."""
    work()
    count, seconds = 1, 0.0
    while (seconds := _timed(work, count)) < _LEAST:
        count *= 2
    return min(seconds, *(_timed(work, count) for _ in range(4))) / count


def _timed(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


TASKS = {"step": step, "iwae": step, "evaluation": evaluation}
