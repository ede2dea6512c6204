"""Arithmetic limit of this machine: a lower bound on the time of a step or an evaluation.

It is the sum of the matrix products at the best float32 rate at their shapes, one elementwise
pass for each tanh, softplus and sigmoid, and the memory traffic of Adam and of the gather. Each
part is measured in isolation. The limit takes turns as a contender does; the values it returns
(``[total, products, elements, bytes]`` in seconds), not its run time, are the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from job import Job, Layers, Run
from torch import Tensor
from torch.utils.benchmark import Timer

__all__ = ["PACKAGES", "TASKS", "Product", "Work", "count_ais", "count_evaluation", "count_step"]

PACKAGES = ("torch",)
#: Maximum relative error of a float32 matrix product.
MAX_ERROR = 1e-5
#: Batch sizes tried for the layers of an evaluation.
BATCH_SIZES = (1024, 4096, 16384)


class Product(NamedTuple):
    """A product (n × k) (k × m) that is computed ``count`` times."""

    n: int
    k: int
    m: int
    count: float = 1.0


@dataclass
class Work:
    """What a step or a sample computes at least.

    Attributes:
        products: for each matrix product its alternatives, of which the fastest counts.
        passes: for each elementwise function how many numbers it is applied to, and how often.
        parameters: parameters that Adam updates.
        traffic: bytes moved between memory and processor.
    """

    products: list[list[Product]] = field(default_factory=list)
    passes: dict[str, tuple[int, float]] = field(default_factory=dict)
    parameters: int = 0
    traffic: int = 0


def count_step(job: Job) -> Work:
    """Return the work of a training step."""
    problem, rows = job.data, job.batch
    samples, pixels = rows * job.num_samples, problem.train.shape[1]
    upper = [*problem.upper_encoder, *problem.upper_decoder]
    parameters = sum(w.size + b.size for w, b in [*problem.encoder, *problem.decoder, *upper])
    hidden_above = 2 * sum(problem.upper[0]) if problem.upper else 0
    return Work(
        products=[
            *_training_products(problem.encoder, rows, input_gradient=False),
            *_training_products(problem.decoder, samples, input_gradient=True),
            *_training_products(problem.upper_encoder, samples, input_gradient=True),
            *_training_products(problem.upper_decoder, samples, input_gradient=True),
        ],
        # softplus in the forward pass, its derivative in the backward pass
        passes={
            "softplus": (samples * pixels, 1.0),
            "sigmoid": (samples * pixels, 1.0),
            "tanh": ((rows + samples) * sum(problem.hidden) + samples * hidden_above, 1.0),
        },
        parameters=parameters,
        # Adam reads parameters, gradients and both moments, and writes all but the gradients
        traffic=4 * (7 * parameters + 2 * rows * pixels),
    )


def count_evaluation(job: Job) -> Work:
    """Return the work of one sample of L_K; its memory traffic is part of the passes."""
    problem, rows = job.data, BATCH_SIZES[0]
    return Work(
        products=[
            [Product(n, *weight.T.shape, 1 / n) for n in BATCH_SIZES]
            for weight, _ in problem.decoder
        ],
        passes={
            "tanh": (rows * sum(problem.hidden), 1 / rows),
            "softplus": (rows * problem.test.shape[1], 1 / rows),
        },
    )


def count_ais(job: Job) -> Work:
    """Return the work per image of 8 chains with 10 leapfrog steps at each temperature.

    Each step needs a gradient with respect to the latents, and each temperature one more.
    """
    gradients, work = 8 * 11 * job.num_samples, count_evaluation(job)
    products = [[p._replace(count=p.count * gradients) for p in row] for row in work.products]
    return Work(
        products=[*products, *([p._replace(k=p.m, m=p.k) for p in row] for row in products)],
        passes={
            name: (n, count * gradients)
            for name, (n, count) in {**work.passes, "sigmoid": work.passes["softplus"]}.items()
        },
    )


def _training_products(layers: Layers, rows: int, input_gradient: bool) -> Iterator[list[Product]]:
    """Yield the products of forward pass, weight gradients and input gradients."""
    for i, (weight, _) in enumerate(layers):
        width_out, width_in = weight.shape
        yield [Product(rows, width_in, width_out)]
        yield [Product(width_in, rows, width_out)]
        if i or input_gradient:
            yield [Product(rows, width_out, width_in)]


def prepare(job: Job, count: Callable[[Job], Work]) -> Run:
    """Prepare the measurement of a task's limit."""
    work, kernels = count(job), _make_kernels(job)

    def run(inputs: np.ndarray) -> list[float]:
        products = sum(
            min(p.count * time_product(p.n, p.k, p.m, job.device) for p in alternatives)
            for alternatives in work.products
        )
        elements = sum(
            count * n * _time_pass(kernels[name], n, job.device)
            for name, (n, count) in work.passes.items()
        )
        memory = work.traffic and work.traffic * _time_byte(work.parameters, job.device)
        return [products + elements + memory, products, elements, memory]

    return run


def time_product(n: int, k: int, m: int, device: str) -> float:
    """Return the seconds of a float32 product (n × k) (k × m) with the fastest backend.

    On a CPU, the precision ``medium`` selects oneDNN, which uses bfloat16 on some processors; on a
    GPU it selects TF32. It counts only where its result has float32 accuracy.
    """
    a, b = torch.randn(n, k, device=device), torch.randn(k, m, device=device)
    out, exact = torch.empty(n, m, device=device), a[:32].double() @ b.double()
    seconds, before = [], torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            if ((a[:32] @ b).double() - exact).norm() < MAX_ERROR * exact.norm():
                seconds.append(_time(lambda: torch.mm(a, b, out=out)))
    finally:
        torch.set_float32_matmul_precision(before)
    return min(seconds)


def _time_pass(kernels: list[Callable[[Tensor], Tensor]], numbers: int, device: str) -> float:
    """Return the seconds per number of a pass with the fastest kernel."""
    # whole rows, because one of the kernels sums over them
    x = torch.randn(max(1, numbers // 784), 784, device=device)
    return min(_time(lambda k=kernel: k(x)) for kernel in kernels) / x.numel()


def _time_byte(size: int, device: str) -> float:
    """Return the seconds per byte of adding two tensors of ``size`` numbers into a third."""
    a, b, out = (torch.ones(size, device=device) for _ in range(3))
    return _time(lambda: torch.add(a, b, out=out)) / (3 * 4 * size)


def _time(work: Callable[[], object]) -> float:
    """Return the least seconds per call of several blocks of calls."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.025).times)


def _make_kernels(job: Job) -> dict[str, list[Callable[[Tensor], Tensor]]]:
    """Return the kernels of each elementwise function: eager and, if compiled, Inductor's."""
    eager: dict[str, Callable[[Tensor], Tensor]] = {
        "softplus": lambda x: F.softplus(x).sum(-1),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    if not job.compiled:
        return {name: [kernel] for name, kernel in eager.items()}
    return {name: [f, torch.compile(f, dynamic=True)] for name, f in eager.items()}


TASKS = {
    "step": lambda job: prepare(job, count_step),
    "iwae": lambda job: prepare(job, count_step),
    "evaluation": lambda job: prepare(job, count_evaluation),
    "ais": lambda job: prepare(job, count_ais),
}
