"""Arithmetic limit of this machine: a lower bound on the time of a step or an evaluation.

It is the sum of the matrix products at the best float32 rate at their shapes, one elementwise
pass for each tanh, softplus and sigmoid, and the memory traffic of Adam and of the gather. Each
part is measured in isolation. The limit takes turns as a contender does; the values it returns
(``[total, products, elements, bytes]`` in seconds), not its run time, are the limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from job import Job, Run
from peers.plain_torch import Networks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

#: Maximum relative error of a float32 matrix product.
MAX_ERROR = 1e-5
#: Samples of an evaluation that are computed together, and multiples that may be faster.
SAMPLES, MULTIPLES = 1024, (1, 4, 16)
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
#: Operators that need one pass of an elementary function over their first argument.
PASSES: dict[Any, Callable[[Tensor], Tensor]] = {
    torch.ops.aten.tanh.default: torch.tanh,
    torch.ops.aten.softplus.default: lambda x: F.softplus(x).sum(-1),
    torch.ops.aten.softplus_backward.default: torch.sigmoid,
}


class Work(TorchDispatchMode):
    """Record of what the operators within this context compute at least.

    Attributes:
        products: sizes of each matrix product (n × k) (k × m).
        passes: how many numbers each operator of ``PASSES`` is applied to.
        times: how often the work is done.
        multiples: factors of n, of which the fastest in relation counts.
        parameters: parameters that Adam updates.
        traffic: bytes moved between memory and processor, if not part of the passes.
    """

    def __init__(self, times: float = 1.0, multiples: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.times, self.multiples, self.parameters, self.traffic = times, multiples, 0, 0
        self.products: list[tuple[int, int, int]] = []
        self.passes: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            a, b = args[-2:]
            self.products.append((*a.shape, b.shape[1]))
        elif func in PASSES:
            self.passes[func] += args[0].numel()
        return func(*args, **(kwargs or {}))


def count_step(job: Job) -> Work:
    """Return the work of a training step."""
    networks, pixels = Networks(replace(job, device="cpu")), job.problem.train.shape[1]
    with Work() as work:
        z, outputs = torch.zeros(job.batch, pixels), []
        for encoder, decoder in zip(networks.encoders, networks.decoders, strict=True):
            loc, scale = encoder(z).chunk(2, -1)
            z = loc + scale if outputs else (loc + scale).repeat(job.num_samples, 1)
            outputs.append(decoder(z) if outputs else F.softplus(decoder(z)))
        torch.stack([output.sum() for output in outputs]).sum().backward()
    work.parameters = sum(parameter.numel() for parameter in networks.parameters())
    # Adam reads parameters, gradients and both moments, and writes all but the gradients
    work.traffic = 4 * (7 * work.parameters + 2 * job.batch * pixels)
    return work


def count_samples(job: Job, gradients: int = 0) -> Work:
    """Return the work of a sample of L_K, or of gradients of log p(x|z) by z."""
    decoder = Networks(replace(job, device="cpu")).decoders[0].requires_grad_(False)
    z = torch.zeros(SAMPLES, *job.problem.latent_dims, requires_grad=gradients > 0)
    with Work((gradients or 1) / SAMPLES, MULTIPLES) as work:
        total = F.softplus(decoder(z)).sum()
        if gradients:
            total.backward()
    return work


def count_ais(job: Job) -> Work:
    """Return the work per image of 8 chains with 10 leapfrog steps at each temperature.

    Each step needs a gradient with respect to the latents, and each temperature one more.
    """
    return count_samples(job, gradients=8 * 11 * job.num_samples)


def prepare(job: Job, work: Work) -> Run:
    """Prepare the measurement of a limit, with eager and, if compiled, Inductor's kernels."""
    kernels = [PASSES]
    if job.compiled:
        kernels += [{op: torch.compile(kernel, dynamic=True) for op, kernel in PASSES.items()}]

    def run(inputs: np.ndarray) -> list[float]:
        products = work.times * sum(
            min(time_product(r * n, k, m, job.device) / r for r in work.multiples)
            for n, k, m in work.products
        )
        elements = work.times * sum(
            time_pass([variant[op] for variant in kernels], numbers, job.device)
            for op, numbers in work.passes.items()
        )
        memory = work.traffic and work.traffic * time_byte(work.parameters, job.device)
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


COUNTS = {"step": count_step, "iwae": count_step, "evaluation": count_samples, "ais": count_ais}
TASKS = {task: lambda job, count=count: prepare(job, count(job)) for task, count in COUNTS.items()}
