"""Least time of a task: its arithmetic and memory traffic at the rates of this machine.

A limit is the sum of three times, each measured alone: the matrix products with the fastest
library, one pass for each elementary function with the fastest of torch's kernels, and Adam's
memory traffic. It is a contender whose values (``[all, products, elements, bytes]`` in seconds),
not its run time, are the limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from job import Job, Run
from torch import Tensor
from torch.utils.benchmark import Timer

#: Maximum relative error of a float32 matrix product.
MAX_ERROR = 1e-5
#: Samples of an evaluation that are computed together, and multiples that may be faster.
SAMPLES, MULTIPLES = 1024, (1, 4, 16)
#: Elementary functions. The second is that of the Bernoulli likelihood, the third its derivative.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": lambda x: F.softplus(x).sum(-1),
    "sigmoid": torch.sigmoid,
}


def count_work(job: Job) -> tuple[list[tuple[int, int, int]], Counter[str], int]:
    """Count the work of a training step, or of ``SAMPLES`` samples of L_K or gradients of AIS.

    Returns:
        The sizes of each matrix product (n × k) (k × m), the numbers that each of ``KERNELS`` is
        applied to, and the number of parameters.
    """
    trains, products, passes, parameters = job.is_training, [], Counter(), 0
    encoders, decoders = job.problem.encoders, job.problem.decoders
    samples = job.batch * job.num_samples if trains else SAMPLES
    for i, layers in enumerate([*encoders, *decoders] if trains else decoders[:1]):
        n = job.batch if trains and i == 0 else samples
        for j, (weight, _) in enumerate(layers):
            m, k = weight.shape
            products.append((n, k, m))
            if trains:
                products.append((m, n, k))  # the gradient of the weights
            if job.task == "ais" or (trains and i + j > 0):
                products.append((n, m, k))  # the gradient of the inputs, if they are not data
            passes["tanh"] += n * m if j < len(layers) - 1 else 0
            parameters += weight.size + m
    passes["softplus"] = samples * job.problem.train.shape[1]
    if job.task != "evaluation":
        passes["sigmoid"] = passes["softplus"]
    return products, passes, parameters


def prepare(job: Job) -> Run:
    """Prepare the measurement of a limit, with eager and, if compiled, Inductor's kernels.

    It is the time of a step, of a sample, or of an image with 8 chains of AIS, whose 10 leapfrog
    steps at each temperature need 11 gradients.
    """
    variants = [KERNELS]
    if job.compiled:
        variants += [{name: torch.compile(k, dynamic=True) for name, k in KERNELS.items()}]
    work, passes, parameters = count_work(job)
    gradients = 8 * 11 * job.num_samples if job.task == "ais" else 1
    times, multiples = (1, (1,)) if job.is_training else (gradients / SAMPLES, MULTIPLES)
    # Adam reads parameters, gradients and both moments, and writes all but the gradients
    traffic = 4 * (7 * parameters + 2 * job.batch * job.problem.train.shape[1])

    def run(inputs: np.ndarray) -> list[float]:
        products = [
            min(time_product(r * n, *km, job.device) / r for r in multiples) for n, *km in work
        ]
        elements = [
            time_pass([v[name] for v in variants], n, job.device) for name, n in passes.items()
        ]
        memory = traffic * time_byte(parameters, job.device) if job.is_training else 0.0
        parts = [times * sum(products), times * sum(elements), memory]
        return [sum(parts), *parts]

    return run


def time_product(n: int, k: int, m: int, device: str) -> float:
    """Return the seconds of a float32 product (n × k) (k × m) with the fastest library.

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


def time_pass(kernels: list[Callable[[Tensor], Tensor]], numbers: int, device: str) -> float:
    """Return the seconds of a pass over numbers with the fastest kernel."""
    # whole rows, because one of the kernels sums over them
    x = torch.randn(max(1, numbers // 784), 784, device=device)
    return min(_time(lambda k=kernel: k(x)) for kernel in kernels) * numbers / x.numel()


def time_byte(size: int, device: str) -> float:
    """Return the seconds per byte of adding two tensors of ``size`` numbers into a third."""
    a, b, out = (torch.ones(size, device=device) for _ in range(3))
    return _time(lambda: torch.add(a, b, out=out)) / (3 * 4 * size)


def _time(work: Callable[[], object]) -> float:
    """Return the least seconds per call of several blocks of calls."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.025).times)


TASKS = dict.fromkeys(("step", "iwae", "evaluation", "ais"), prepare)
