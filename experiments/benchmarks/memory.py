"""Peak memory of training and evaluation above the size of the process before the call.

Each case runs in its own process, whose peak resident size is read from the kernel. The array that
is larger than memory is written to a temporary folder and mapped.

    python experiments/benchmarks/memory.py                 # an array of 8 GB
    python experiments/benchmarks/memory.py --gigabytes 1   # smaller and faster
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

import pyro_vae as pv

LIMIT_MIB = 1024
#: Colour pictures, and the rows that are written at a time.
SHAPE, BLOCK = (3, 64, 64), 4096
STEPS = 1000
#: Examples and samples per example: those of the MNIST test set, few examples with a large K, and
#: rows of the array.
EVALUATIONS = {"digits": (10_000, 5_000), "large K": (10, 1_000_000), "array": (50_000, 1)}


def write_array(path: Path, gigabytes: float) -> None:
    """Write random bytes to a ``.npy`` file, block by block."""
    rows = max(1000, int(gigabytes * 1e9) // int(np.prod(SHAPE)))
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, *SHAPE))
    block = np.random.default_rng(0).integers(0, 256, (BLOCK, *SHAPE), dtype=np.uint8)
    for start in range(0, rows, BLOCK):
        array[start : start + BLOCK] = block[: rows - start]
    array.flush()


def measure(case: str, path: str) -> dict[str, Any]:
    """Train on the array (``fit``) or evaluate in this process, and return its memory use."""
    torch.manual_seed(0)
    data: Any = torch.bernoulli(torch.full((10_000, 784), 0.3))
    vae = pv.VAE((784,), 50)
    if case in ("fit", "array"):
        network = partial(pv.networks.MLP, hidden=(16,))
        vae = pv.VAE(SHAPE, 8, likelihood=pv.likelihoods.Gaussian, encoder=network, decoder=network)
        data = pv.data.as_split(np.load(path, mmap_mode="r"), peak=255)
    num_data, num_samples = EVALUATIONS.get(case, (len(data), 1))
    data = data.head(num_data) if case == "array" else data[:num_data] if case != "fit" else data
    # load the lazily imported parts of torch and ArviZ before measuring
    few = data[:300] if isinstance(data, torch.Tensor) else data.head(300)
    pv.fit(vae, few, epochs=1, compile=False)
    pv.evaluate(vae, few, num_samples=500)
    before = _read_mib("VmRSS")
    if case == "fit":
        pv.fit(vae, data, epochs=1, batch_size=-(-len(data) // STEPS), compile=False)
    else:
        assert len(pv.evaluate(vae, data, num_samples=num_samples)) == len(data)
    above = round(_read_mib("VmHWM") - before)
    return {"case": case, "rows": len(data), "num_samples": num_samples, "above_mib": above}


def _read_mib(name: str) -> float:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the array")
    parser.add_argument("--case", help="measure this case in this process", metavar="NAME")
    parser.add_argument("--array", help="file of the array, with --case")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.array)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        write_array(path, options.gigabytes)
        rows = []
        for case in ("fit", *EVALUATIONS):
            command = [sys.executable, __file__, "--case", case, "--array", str(path)]
            rows.append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
            print(rows[-1], flush=True)
        what = "MiB above the process; fit and array: a mapped array of colour pictures"
        size = path.stat().st_size >> 20
        content = {"what": what, "limit_mib": LIMIT_MIB, "array_mib": size, "rows": rows}
        machine.write_result("memory", "python experiments/benchmarks/memory.py", content)
    return int(max(row["above_mib"] for row in rows) > LIMIT_MIB)


if __name__ == "__main__":
    sys.exit(main())
