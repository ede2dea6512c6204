"""How much memory ``evaluate`` takes beyond what the process had before the call.

A 784–200–200–50 VAE with its initial weights and random binary data: the cost does not depend
on what the weights are. Each case runs in a process of its own, whose peak resident size the
kernel records.

    python experiments/benchmarks/evaluation_memory.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import machine

#: (data, draws per datum): the whole MNIST test set, and a few data very thoroughly.
CASES = [(10_000, 5_000), (10, 1_000_000)]
LIMIT_MIB = 1024


def resident_mib() -> float:
    """The resident size now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(num_data: int, num_samples: int) -> dict[str, int]:
    """Evaluates in this process."""
    import pyro
    import torch

    import pyro_vae as pv

    pyro.set_rng_seed(0)
    vae = pv.VAE((784,), 50)
    x = torch.bernoulli(torch.full((num_data, 784), 0.3))
    # what torch and ArviZ load at their first use is not the evaluator's
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
        print(json.dumps(measure(*map(int, sys.argv[1:]))))
    else:
        rows = []
        for case in CASES:
            words = [sys.executable, __file__, *map(str, case)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout))
        machine.write(
            "evaluation_memory",
            "python experiments/benchmarks/evaluation_memory.py",
            {"what": "pv.evaluate, 784–200–200–50, float32", "limit_mib": LIMIT_MIB, "rows": rows},
        )
        sys.exit(max(row["above_mib"] for row in rows) >= LIMIT_MIB)
