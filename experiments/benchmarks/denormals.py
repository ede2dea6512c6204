"""Denormal numbers of training steps and evaluations, and their cost on this processor.

    OMP_NUM_THREADS=1 python experiments/benchmarks/denormals.py

Reported is the number of denormal results per million results of torch's operators, and the median
ratio of the time without to that with ``torch.set_flush_denormal(True)``, in turns, for eager code.
A ratio above 1 is what denormal numbers cost. The last row shows IWAE as it would be if negligible
weights had a gradient. The model is 784–200–200–50 after two epochs of IWAE on 4050 digits.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import machine
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.learning.objectives import weighted
from pyro_vae.learning.objectives.base import Objective, StepInfo

BATCH, ROUNDS = 20, 15


class DenormalCounter(TorchDispatchMode):
    """Counts the denormal numbers that torch's operators return, and all numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # uninitialised memory may contain any number
        if not str(func).startswith(("aten.empty", "aten.new_empty")):
            for value in tree_leaves(result):
                if isinstance(value, Tensor) and value.is_floating_point():
                    tiny = torch.finfo(value.dtype).tiny
                    self.found += int(((value != 0) & (value.abs() < tiny)).sum())
                    self.total += value.numel()
        return result


def measure(run: Callable[[], Any]) -> tuple[float, float]:
    """Return denormal numbers per million, and the ratio of times without and with flushing."""
    run()
    with DenormalCounter() as counter:
        run()
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    torch.set_flush_denormal(False)
    return 1e6 * counter.found / counter.total, statistics.median(ratios)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = pv.data.load("mnist5k", binarize="dynamic")
    network = partial(pv.networks.MLP, hidden=(200, 200))
    vae = pv.VAE(data.event_shape, 50, encoder=network, decoder=network)
    pv.fit(vae, data.train, objective=objectives.IWAE(50), epochs=2, batch_size=BATCH)
    x = data.train.materialize(0)[:BATCH]

    def step(objective: Objective) -> None:
        vae.zero_grad()
        objective.set_step(StepInfo(1.0, len(data.train), torch.arange(BATCH)))
        torch.manual_seed(1)
        objective.loss_and_grads(vae.model, vae.guide, x)

    tasks: dict[str, Callable[[], Any]] = {
        "ELBO": partial(step, objectives.ELBO()),
        "ELBO, STL": partial(step, objectives.ELBO(gradient="stl")),
        "IWAE, k = 50": partial(step, objectives.IWAE(50)),
        "IWAE, DReG, k = 50": partial(step, objectives.IWAE(50, gradient="dreg")),
        "MIWAE, 8 × 8": partial(step, objectives.MIWAE(8, 8)),
        "PIWAE, 8 × 8": partial(step, objectives.PIWAE(8, 8)),
        "CIWAE, k = 50": partial(step, objectives.CIWAE(50)),
        "Rényi, α = 0.5, k = 50": partial(step, objectives.Renyi(0.5, 50)),
        "reweighted wake-sleep, k = 50": partial(step, objectives.ReweightedWakeSleep(50)),
        "L_500": partial(pv.evaluate, vae, x, num_samples=500, compile=False),
        "Laplace proposals": partial(pv.evaluation.laplace, vae, x),
        "AIS": partial(pv.ais, vae, x, annealing=pv.Annealing(4, 10, 5)),
    }
    print(f"{machine.describe_machine()['cpu']}, one thread\n")
    print("| | denormal numbers per million | time without flushing over with |\n|---|---|---|")
    for name, run in tasks.items():
        share, ratio = measure(run)
        print(f"| {name} | {share:.0f} | {ratio:.2f} |", flush=True)
    weighted._NEGLIGIBLE = math.inf
    share, ratio = measure(tasks["IWAE, k = 50"])
    print(f"| IWAE, k = 50, with negligible weights | {share:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
