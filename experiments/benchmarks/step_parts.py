"""Where the time of a compiled training step goes, as shares of its time on one thread.

    OMP_NUM_THREADS=1 python experiments/benchmarks/step_parts.py

Batch 20, 784–200–200–50, synthetic data. The profiler adds to the small parts.
"""

from __future__ import annotations

from functools import partial

import machine
import pyro
import torch
from torch.profiler import ProfilerActivity, profile

import pyro_vae as pv
from pyro_vae.compiler.allocator import keep_freed_memory
from pyro_vae.learning import CompiledSVI
from pyro_vae.learning.optimizers import FusedOptimizer

BATCH, STEPS = 20, 100
#: Parts by a piece of the names of their events; the first that fits counts.
PARTS = {
    "products": ("aten::mm", "aten::addmm"),
    "Adam": ("_fused_adam",),
    "random numbers": ("normal", "uniform", "bernoulli", "rand"),
    "compiled kernels": ("CompiledFxGraph",),
    "everything else": ("",),
}


def measure_parts() -> dict[str, float]:
    """Return the share of each part in the time of a step."""
    torch.manual_seed(0)
    keep_freed_memory()
    network = partial(pv.networks.MLP, hidden=(200, 200))
    vae = pv.VAE((784,), 50, encoder=network, decoder=network)
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=1e-3))
    optim.add(dict(vae.named_parameters()))
    svi = CompiledSVI(
        vae.model,
        vae.guide,
        optim,
        pv.objectives.ELBO(),
        draw=lambda x, rows: (torch.bernoulli(x[rows]),),
    )
    x, rows = torch.rand(BATCH * STEPS, 784), torch.randperm(BATCH * STEPS).view(STEPS, BATCH)
    for index in rows:
        svi.step(x, index)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for index in rows:
            svi.step(x, index)
    times = dict.fromkeys(PARTS, 0.0)
    for event in profiled.key_averages():
        part = next(p for p, names in PARTS.items() if any(n in event.key for n in names))
        times[part] += event.self_cpu_time_total
    return {part: time / sum(times.values()) for part, time in times.items()}


if __name__ == "__main__":
    pyro.enable_validation(False)
    parts = measure_parts()
    print(machine.describe_machine()["cpu"])
    print("\n".join(f"{part}: {share:.0%}" for part, share in parts.items()))
