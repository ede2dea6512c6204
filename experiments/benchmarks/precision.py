"""Time of a training step in bfloat16 over that in float32.

    OMP_NUM_THREADS=1 python experiments/benchmarks/precision.py

Both compiled steps run in one process, in turns. CPU time hardly depends on the load of the
machine; a table row has the median of the ratios (quartiles).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import machine
import numpy as np
import pyro
import torch

import pyro_vae as pv
from pyro_vae.learning import CompiledSVI
from pyro_vae.learning.optimizers import FusedOptimizer

#: Hidden layers, latent variables, batch size, objective and steps per turn.
TASKS: dict[str, tuple[tuple[int, ...], int, int, Callable[[], Any], int]] = {
    "784–400–20, batch 128": ((400,), 20, 128, pv.objectives.ELBO, 10),
    "784–200–200–50, batch 100": ((200, 200), 50, 100, pv.objectives.ELBO, 10),
    "784–200–200–50, batch 20": ((200, 200), 50, 20, pv.objectives.ELBO, 20),
    "784–200–200–50, batch 20, IWAE, k = 50": (
        (200, 200),
        50,
        20,
        partial(pv.objectives.IWAE, 50),
        4,
    ),
}
_TURNS = 20


def make_step(task: str, precision: Any) -> Callable[[], Any]:
    """Return a function that takes a compiled step on random binary images."""
    hidden, latent_dim, batch, objective, _ = TASKS[task]
    torch.manual_seed(0)
    network = partial(pv.networks.MLP, hidden=hidden)
    vae = pv.VAE((784,), latent_dim, encoder=network, decoder=network)
    x = torch.bernoulli(torch.full((batch, 784), 0.2))
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=1e-3))
    optim.add(dict(vae.named_parameters()))
    svi = CompiledSVI(vae.model, vae.guide, optim, objective(), precision=precision)
    svi.step(x)
    if svi.reasons:
        raise RuntimeError(svi.reasons[0])
    return lambda: svi.step(x)


def measure(task: str) -> np.ndarray:
    """Return the quartiles of the ratio of CPU times."""
    steps = {name: make_step(task, name) for name in ("float32", "bfloat16")}
    ratios = []
    for _ in range(_TURNS):
        seconds = []
        for step in steps.values():
            step()
            start = time.process_time()
            for _ in range(TASKS[task][-1]):
                step()
            seconds.append(time.process_time() - start)
        ratios.append(seconds[1] / seconds[0])
    return np.quantile(ratios, [0.25, 0.5, 0.75])


def main() -> None:
    """Measure and print the table."""
    pyro.enable_validation(False)
    print(f"{machine.describe_machine()['cpu']}, {torch.get_num_threads()} threads\n")
    print("| | bfloat16 over float32 |\n|---|---|")
    for task in TASKS:
        with pyro.get_param_store().scope():
            low, median, high = measure(task)
        print(f"| {task} | {median:.2f} ({low:.2f}–{high:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
