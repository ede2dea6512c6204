"""Arithmetic limit of this machine: a lower bound on the time of a step or an evaluation.

It is the sum of the matrix products at the best float32 rate at their shapes, one elementwise
pass for each tanh, softplus and sigmoid, and the memory traffic of Adam and of the gather. Each
part is measured in isolation. The limit is run as a contender, so that it is measured in the same
rounds; the values it returns, not its run time, are the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from job import Job, Plan, Problem
from torch import Tensor

__all__ = [
    "PACKAGES",
    "TASKS",
    "float32_precisions",
    "plan_evaluation",
    "plan_step",
    "time_add_per_byte",
    "time_elementwise",
    "time_matmul",
]

PACKAGES = ("torch",)
#: Maximum relative error of a float32 matrix product.
_MAX_ERROR = 1e-5
#: Batch sizes tried for the layers of an evaluation.
_BATCH_SIZES = (1024, 4096, 16384)
#: Minimum duration of one measurement, in seconds.
_MIN_SECONDS = 0.005


def plan_step(job: Job) -> Plan:
    """Plan the limit of a training step.

    Returns:
        A plan whose runs return ``[total, products, elements, bytes]`` in seconds.
    """
    problem, device, rows = job.data, job.device, job.batch
    samples = rows * job.num_samples
    shapes = [
        shape
        for layers, count in ((problem.encoder, rows), (problem.decoder, samples))
        for i, (weight, _) in enumerate(layers)
        for shape in _training_shapes(
            count, *weight.T.shape, first=layers is problem.encoder and i == 0
        )
    ]
    pixels = problem.train.shape[1]
    # softplus in the forward pass, its derivative in the backward pass
    passes = {
        "softplus": samples * pixels,
        "sigmoid": samples * pixels,
        "tanh": (rows + samples) * sum(problem.hidden),
    }
    # Adam reads parameters, gradients and both moments, and writes all but the gradients
    traffic = 4 * (7 * problem.num_parameters + 2 * rows * pixels)
    kernels = _make_kernels(device, job.compiled)

    def limit() -> list[float]:
        products = sum(time_matmul(*shape, device) for shape in shapes)
        elements = sum(n * time_elementwise(kernels[k], n, device) for k, n in passes.items())
        memory = traffic * time_add_per_byte(problem.num_parameters, device)
        return [products + elements + memory, products, elements, memory]

    return lambda count: limit


def plan_evaluation(job: Job) -> Plan:
    """Plan the limit of one sample of L_K.

    Returns:
        A plan whose runs return ``[total, products, elements, 0]`` in seconds. The memory traffic
        is part of the elementwise passes.
    """
    problem, device = job.data, job.device
    hidden, pixels = sum(problem.hidden), problem.test.shape[1]
    kernels = _make_kernels(device, job.compiled)

    def limit() -> list[float]:
        products = sum(_time_layer(problem, i, device) for i in range(len(problem.decoder)))
        size = _BATCH_SIZES[0] * pixels
        elements = hidden * time_elementwise(kernels["tanh"], size, device)
        elements += pixels * time_elementwise(kernels["softplus"], size, device)
        return [products + elements, products, elements, 0.0]

    return lambda count: limit


def _time_layer(problem: Problem, layer: int, device: str) -> float:
    """Return the seconds per row of a decoder layer at its best batch size."""
    width_in, width_out = problem.decoder[layer][0].T.shape
    return min(time_matmul(rows, width_in, width_out, device) / rows for rows in _BATCH_SIZES)


def _training_shapes(
    rows: int, width_in: int, width_out: int, first: bool
) -> list[tuple[int, int, int]]:
    """Return the shapes ``(n, k, m)`` of a layer's matrix products in a training step.

    These are the forward pass, the gradient of the weights and, except in the first layer, the
    gradient of the inputs.
    """
    shapes = [(rows, width_in, width_out), (width_in, rows, width_out)]
    return shapes if first else [*shapes, (rows, width_out, width_in)]


def time_matmul(n: int, k: int, m: int, device: str) -> float:
    """Return the seconds of a float32 product (n × k) (k × m) with the fastest backend."""
    a, b = torch.randn(n, k, device=device), torch.randn(k, m, device=device)
    out = torch.empty(n, m, device=device)
    seconds = []
    before = torch.get_float32_matmul_precision()
    try:
        for precision in float32_precisions(a, b):
            torch.set_float32_matmul_precision(precision)
            seconds.append(_time_best(lambda: torch.mm(a, b, out=out)))
    finally:
        torch.set_float32_matmul_precision(before)
    return min(seconds)


def float32_precisions(a: Tensor, b: Tensor) -> Iterable[str]:
    """Yield the values of ``set_float32_matmul_precision`` that keep float32 accuracy.

    On a CPU, ``medium`` selects oneDNN, which uses bfloat16 on some processors; on a GPU it
    selects TF32.
    """
    exact = a[:32].double() @ b.double()
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            error = ((a[:32] @ b).double() - exact).norm() / exact.norm()
            if error < _MAX_ERROR:
                yield precision
    finally:
        torch.set_float32_matmul_precision(before)


def time_elementwise(kernels: list[Callable[[Tensor], Tensor]], size: int, device: str) -> float:
    """Return the seconds per element of a pass over ``size`` numbers with the fastest kernel."""
    # whole rows, because one of the kernels sums over them
    x = torch.randn(max(1, size // 784), 784, device=device)
    return min(_time_best(lambda k=kernel: k(x)) for kernel in kernels) / x.numel()


def time_add_per_byte(size: int, device: str) -> float:
    """Return the seconds per byte of adding two tensors of ``size`` numbers into a third."""
    a, b, out = (torch.ones(size, device=device) for _ in range(3))
    return _time_best(lambda: torch.add(a, b, out=out)) / (3 * 4 * size)


def _make_kernels(device: str, compiled: bool) -> dict[str, list[Callable[[Tensor], Tensor]]]:
    """Return the kernels of each elementwise function: eager and, if ``compiled``, Inductor's."""
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
        except Exception:  # without a C++ compiler, the eager kernel is the limit
            continue
        kernels[name].append(fused)
    return kernels


def _time_best(work: Callable[[], object]) -> float:
    """Return the seconds per call: the fastest of five measurements of sufficient length."""
    work()
    count, seconds = 1, 0.0
    while (seconds := _time_calls(work, count)) < _MIN_SECONDS:
        count *= 2
    return min(seconds, *(_time_calls(work, count) for _ in range(4))) / count


def _time_calls(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


TASKS = {"step": plan_step, "iwae": plan_step, "evaluation": plan_evaluation}
