"""Speed of a training step from a stream beside that from data in memory.

Both train the same VAE on the same values, in turns of one epoch, so that a busy machine slows
both. Reported is the median over the rounds of the ratio of steps per second. Targets: at least
0.8 for 784–400–20 at batch 128 from a memory map, and at least 0.95 for a ConvNet on colour
pictures of 64 × 64 with two worker processes. One thread trains: on two cores, workers would take
a core from two threads.

    OMP_NUM_THREADS=1 python experiments/benchmarks/stream_speed.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import pyro_vae as pv
from pyro_vae.data import containers


class Pictures(Dataset):
    """Pictures that are read one by one from a memory map."""

    def __init__(self, path: Path) -> None:
        self._array = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.array(self._array[i])


def make_dense() -> pv.VAE:
    """784–400–20, with Bernoulli pixels."""
    network = partial(pv.networks.MLP, hidden=(400,))
    return pv.VAE((784,), 20, encoder=network, decoder=network)


def make_convolutional() -> pv.VAE:
    """A ConvNet on colour pictures of 64 × 64, with normal pixels."""
    options: dict[str, Any] = {"encoder": pv.networks.ConvNet, "decoder": pv.networks.ConvNet}
    return pv.VAE((3, 64, 64), 32, likelihood=pv.likelihoods.Gaussian, **options)


def compare(resident: Any, stream: Any, make: Any, batch_size: int, rounds: int) -> dict[str, Any]:
    """Train on both in turns; return seconds per step and the median ratio of the speeds."""
    steps = -(-len(resident) // batch_size)
    seconds: dict[str, list[float]] = {"resident": [], "stream": []}
    for data in (resident, stream):
        # load what is imported lazily, and fill the file cache
        pv.fit(make(), data, epochs=1, batch_size=batch_size, compile=False)
    for _ in range(rounds):
        for name, data in (("resident", resident), ("stream", stream)):
            torch.manual_seed(0)
            vae = make()
            # the epoch alone, without the checks before training
            history = pv.fit(vae, data, epochs=1, batch_size=batch_size, compile=False)
            seconds[name].append(history["seconds"][0] / steps)
    pairs = zip(seconds["resident"], seconds["stream"], strict=True)
    return {
        "resident_ms": round(1000 * statistics.median(seconds["resident"]), 2),
        "stream_ms": round(1000 * statistics.median(seconds["stream"]), 2),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dense-rows", type=int, default=25_600)
    parser.add_argument("--pictures", type=int, default=7_680)
    options = parser.parse_args()
    # every memory map is a stream here, whatever its size
    containers.RESIDENT_BYTES = 0
    random, failed = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape, rows, target, make in (
            ("784-400-20, memory map", (784,), options.dense_rows, 0.8, make_dense),
            ("ConvNet 64x64, 2 workers", (3, 64, 64), options.pictures, 0.95, make_convolutional),
        ):
            path = Path(folder) / f"{rows}.npy"
            values = random.integers(0, 256, (rows, *shape), dtype=np.uint8)
            values = (values > 127).astype(np.uint8) if shape == (784,) else values
            np.save(path, values)
            peak = 1.0 if shape == (784,) else 255.0
            resident = pv.data.Split(torch.from_numpy(values), peak)
            stream = pv.data.as_split(np.load(path, mmap_mode="r"), peak=peak)
            if shape != (784,):
                stream = pv.data.as_split(DataLoader(Pictures(path), num_workers=2), peak=peak)
            start = time.perf_counter()
            result = compare(resident, stream, make, 128, options.rounds)
            result |= {"case": name, "target": target, "total": round(time.perf_counter() - start)}
            print(json.dumps(result), flush=True)
            if result["ratio"] < target:
                failed.append(name)
    print("below the target:", "; ".join(failed) or "none")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
