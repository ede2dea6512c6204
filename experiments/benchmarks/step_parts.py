"""Where the time of a compiled training step goes, as shares of its time on one thread.

    OMP_NUM_THREADS=1 python experiments/benchmarks/step_parts.py

Batch 20, 784–200–200–50, binarisation in the step. The profiler adds to the small parts.
"""

from __future__ import annotations

import machine
from cases import DEEP
from job import Job, make_inputs
from ours import make_problem, prepare_training
from torch.profiler import ProfilerActivity, profile

import pyro_vae as pv
from pyro_vae.compiler.allocator import keep_freed_memory

STEPS = 100
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
    keep_freed_memory()
    job = Job("step", make_problem(DEEP), batch=20, compiled=True)
    run = prepare_training(job, pv.objectives.ELBO(), binarize=True)
    next_inputs = make_inputs(job)
    run(next_inputs(STEPS))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run(next_inputs(STEPS))
    times = dict.fromkeys(PARTS, 0.0)
    for event in profiled.key_averages():
        part = next(p for p, names in PARTS.items() if any(n in event.key for n in names))
        times[part] += event.self_cpu_time_total
    return {part: time / sum(times.values()) for part, time in times.items()}


if __name__ == "__main__":
    print(machine.describe_machine()["cpu"])
    print("\n".join(f"{part}: {share:.0%}" for part, share in measure_parts().items()))
