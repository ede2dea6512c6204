"""Peak memory of training on, and of evaluating, an array that is larger than memory.

The script writes an array of bytes to a temporary folder, and maps it. A small VAE reads it for a
number of steps and evaluates all or some of its rows. Each case runs in its own process, whose
peak resident size is read from the kernel.

    python experiments/benchmarks/stream_memory.py                 # 8 GB
    python experiments/benchmarks/stream_memory.py --gigabytes 1   # smaller and faster
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

#: Colour pictures of 64 × 64 pixels.
SHAPE = (3, 64, 64)
LIMIT_MIB = 1024
#: Rows that are written at a time.
BLOCK = 4096


def write_array(path: Path, gigabytes: float) -> int:
    """Write random bytes to a ``.npy`` file, block by block; return the number of rows."""
    rows = max(1000, int(gigabytes * 1e9) // int(np.prod(SHAPE)))
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, *SHAPE))
    block = np.random.default_rng(0).integers(0, 256, (BLOCK, *SHAPE), dtype=np.uint8)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        array[start:stop] = block[: stop - start]
    array.flush()
    return rows


def measure(case: str, path: str, rows: int, batch_size: int) -> dict[str, Any]:
    """Train or evaluate in this process and return its memory use.

    Arguments:
        case: ``fit`` trains for an epoch on all rows, with minibatches of ``batch_size``;
            ``evaluate`` evaluates the first ``rows`` rows.
    """
    import pyro_vae as pv

    def network(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Any:
        return pv.networks.MLP(in_shape, out_shape, hidden=(16,))

    options: dict[str, Any] = {"encoder": network, "decoder": network}
    vae = pv.VAE(SHAPE, 8, likelihood=pv.likelihoods.Gaussian, **options)
    small = pv.data.as_split(np.zeros((300, *SHAPE), np.uint8), peak=255)
    # load the lazily imported parts of torch and ArviZ before measuring
    pv.fit(vae, small, epochs=1, compile=False)
    pv.evaluate(vae, small, num_samples=1, compile=False)
    start, before = time.perf_counter(), _resident_mib()
    split = pv.data.as_split(np.load(path, mmap_mode="r"), peak=255)
    steps = None
    if case == "fit":
        history = pv.fit(vae, split, epochs=1, batch_size=batch_size, compile=False)
        steps = history["step"][-1]
    else:
        bounds = pv.evaluate(vae, split.head(rows), num_samples=1, compile=False)
        assert len(bounds) == min(rows, len(split))
    return {
        "case": case,
        "rows": len(split) if case == "fit" else min(rows, len(split)),
        "array_mib": Path(path).stat().st_size >> 20,
        "steps": steps,
        "above_mib": round(_peak_mib() - before),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak_mib() -> float:
    # getrusage would include the parent process, which has written the array
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the array")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of the epoch")
    parser.add_argument("--rows", type=int, default=50_000, help="rows to evaluate")
    parser.add_argument("--folder", help="folder of the array; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "x.npy"
        size = write_array(path, options.gigabytes)
        results = []
        for case in ("fit", "evaluate"):
            arguments = [case, str(path), str(options.rows), str(-(-size // options.steps))]
            output = subprocess.check_output([sys.executable, __file__, "--measure", *arguments])
            results.append(json.loads(output))
            print(json.dumps(results[-1]), flush=True)
    exceeded = [row["case"] for row in results if row["above_mib"] > LIMIT_MIB]
    print(f"limit {LIMIT_MIB} MiB above the start:", ", ".join(exceeded) or "kept")
    return int(bool(exceeded))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        case, path, *numbers = sys.argv[2:]
        print(json.dumps(measure(case, path, *map(int, numbers))))
    else:
        sys.exit(main())
