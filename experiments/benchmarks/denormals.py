"""Denormal numbers of training steps and evaluations, and their cost on this processor.

    OMP_NUM_THREADS=1 python experiments/benchmarks/denormals.py

Reported is the number of denormal results per million results of torch's operators, and the median
ratio of the time without to that with ``torch.set_flush_denormal(True)``, in turns, for eager code.
A ratio above 1 is what denormal numbers cost. The last rows show IWAE as it would be if negligible
weights had a gradient, and Adam if its moments of dead weights were kept. The model is
784–200–200–50 after two epochs of IWAE on 4050 digits. The rows of Adam train a new one for 1599
steps on MNIST, half an epoch, where some pixels are black in thousands of minibatches. With words
as arguments, only the rows that contain one of them are measured.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import machine
import torch
from cases import DEEP
from ours import make_model
from pyro.infer import SVI
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.learning import FusedOptimizer, optimizers
from pyro_vae.learning.objectives import weighted
from pyro_vae.learning.objectives.base import Objective, StepInfo

BATCH, ROUNDS = 20, 15


def is_denormal(value: Tensor) -> Tensor:
    """Whether numbers are denormal."""
    return (value != 0) & (value.abs() < torch.finfo(value.dtype).tiny)


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
                    self.found += int(is_denormal(value).sum())
                    self.total += value.numel()
        return result


def count_denormals(run: Callable[[], Any]) -> float:
    """Return the denormal numbers per million results of the operators of ``run``."""
    with DenormalCounter() as counter:
        run()
    return 1e6 * counter.found / counter.total


def measure_cost(run: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> float:
    """Return the median ratio of the time without to that with flushing, in turns.

    ``prepare`` is called before each turn and not timed.
    """
    run()
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for flush in (False, True):
            prepare()
            torch.set_flush_denormal(flush)
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    torch.set_flush_denormal(False)
    return statistics.median(ratios)


def measure_adam() -> tuple[float, float]:
    """Return denormal numbers per million moments just before a removal, and their cost."""
    torch.manual_seed(0)
    data = pv.data.load("mnist", binarize="dynamic")
    vae, x = make_model(DEEP, data.event_shape), data.train.materialize(0)
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=1e-3))
    optim.add(dict(vae.named_parameters()))
    svi = SVI(vae.model, vae.guide, optim, objectives.ELBO())
    for _ in range(1599):
        svi.step(x[torch.randint(len(x), (BATCH,))])
    assert optim.optimizer is not None
    states = optim.optimizer.state.values()
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    before = [moment.clone() for moment in moments]
    share = 1e6 * sum(int(is_denormal(m).sum()) for m in moments) / sum(m.numel() for m in moments)
    for parameter in vae.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def restore() -> None:
        torch.set_flush_denormal(False)
        for moment, value in zip(moments, before, strict=True):
            moment.copy_(value)

    return share, measure_cost(optim.optimizer.step, restore)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = pv.data.load("mnist5k", binarize="dynamic")
    vae = make_model(DEEP, data.event_shape)
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
    words = sys.argv[1:]

    def report(name: str, measure: Callable[[], tuple[float, float]]) -> None:
        if not words or any(word in name for word in words):
            share, ratio = measure()
            print(f"| {name} | {share:.0f} | {ratio:.2f} |", flush=True)

    def report_task(name: str, run: Callable[[], Any]) -> None:
        report(name, lambda: (count_denormals(run), measure_cost(run)))

    print(f"{machine.describe_machine()['cpu']}, one thread\n")
    print("| | denormal numbers per million | time without flushing over with |\n|---|---|---|")
    for name, run in tasks.items():
        report_task(name, run)
    report("Adam", measure_adam)
    weighted._NEGLIGIBLE = math.inf
    report_task("IWAE, k = 50, with negligible weights", tasks["IWAE, k = 50"])
    optimizers._STEPS_BETWEEN_REMOVALS = sys.maxsize
    report("Adam, with moments of dead weights", measure_adam)


if __name__ == "__main__":
    main()
