"""Peak memory of ``evaluate`` above the size of the process before the call.

The model is a 784–200–200–50 VAE with initial weights, the data are random and binary; the cost
does not depend on the values of the weights. Each case runs in its own process, whose peak
resident size is read from the kernel.

    python experiments/benchmarks/evaluation_memory.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import machine

#: (examples, samples per example): the size of the MNIST test set, and few examples with a large K.
CASES = [(10_000, 5_000), (10, 1_000_000)]
LIMIT_MIB = 1024


def resident_mib() -> float:
    """Current resident size of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure_memory(num_data: int, num_samples: int) -> dict[str, int]:
    """Run ``evaluate`` in this process and return its memory use."""
    import pyro
    import torch

    import pyro_vae as pv

    pyro.set_rng_seed(0)
    vae = pv.VAE((784,), 50)
    x = torch.bernoulli(torch.full((num_data, 784), 0.3))
    # load the lazily imported parts of torch and ArviZ before measuring
    pv.evaluate(vae, x[:2], num_samples=500)
    before = resident_mib()
    bounds = pv.evaluate(vae, x, num_samples=num_samples, progress=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert len(bounds) == num_data
    return {
        "num_data": num_data,
        "num_samples": num_samples,
        "resident_before_mib": round(before),
        "peak_mib": round(peak),
        "above_mib": round(peak - before),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure_memory(*map(int, sys.argv[1:]))))
    else:
        rows = []
        for case in CASES:
            command = [sys.executable, __file__, *map(str, case)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout))
        machine.write_result(
            "evaluation_memory",
            "python experiments/benchmarks/evaluation_memory.py",
            {"what": "pv.evaluate, 784–200–200–50, float32", "limit_mib": LIMIT_MIB, "rows": rows},
        )
        sys.exit(max(row["above_mib"] for row in rows) >= LIMIT_MIB)
