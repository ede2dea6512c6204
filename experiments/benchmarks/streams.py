"""Speed of a training step from a stream beside that from data in memory.

Both train the same VAE on the same values, in turns of one epoch. Printed is the median over the
rounds of the ratio of steps per second. One thread trains: on two cores, the processes that read
would take a core from two threads.

    OMP_NUM_THREADS=1 python experiments/benchmarks/streams.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from cases import WIDE
from harness import summarise, take_turns
from ours import make_model
from torch.utils.data import DataLoader, Dataset

import pyro_vae as pv
from pyro_vae.data import containers

ROUNDS, BATCH = 3, 128


class Pictures(Dataset):
    """Pictures that are read one by one from a memory map."""

    def __init__(self, path: Path) -> None:
        self._array = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.array(self._array[i])


def make_convolutional() -> pv.VAE:
    """A ConvNet on colour pictures of 64 × 64, with normal pixels."""
    options: dict[str, Any] = {"encoder": pv.networks.ConvNet, "decoder": pv.networks.ConvNet}
    return pv.VAE((3, 64, 64), 32, likelihood=pv.likelihoods.Gaussian, **options)


def compare(make: Callable[[], pv.VAE], data: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of the speed from the stream over that from memory."""

    def train(name: str) -> float:
        torch.manual_seed(0)
        # the epoch alone, without the checks before training
        return pv.fit(make(), data[name], epochs=1, batch_size=BATCH, compile=False)["seconds"][0]

    # load lazy imports, and fill the file cache
    take_turns(list(data), 1, train)
    seconds = take_turns(list(data), ROUNDS, train)
    return summarise([a / b for a, b in zip(seconds["memory"], seconds["stream"], strict=True)])


def main() -> int:
    # every memory map is a stream here, whatever its size
    containers.RESIDENT_BYTES = 0
    random, rows = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.npy"
        values = random.integers(0, 2, (25_600, 784), dtype=np.uint8)
        np.save(path, values)
        rows["784–400–20, memory map"] = compare(
            lambda: make_model(WIDE),
            {
                "memory": pv.data.Split(torch.from_numpy(values), 1.0),
                "stream": pv.data.as_split(np.load(path, mmap_mode="r"), peak=1.0),
            },
        ) | {"target": 0.8}
        path = Path(folder) / "pictures.npy"
        values = random.integers(0, 256, (7_680, 3, 64, 64), dtype=np.uint8)
        np.save(path, values)
        loader = DataLoader(Pictures(path), num_workers=2)
        rows["ConvNet 64 × 64, Dataset, 2 workers"] = compare(
            make_convolutional,
            {
                "memory": pv.data.Split(torch.from_numpy(values), 255.0),
                "stream": pv.data.as_split(loader, peak=255.0),
            },
        ) | {"target": 0.95}
    print(rows)
    command = "OMP_NUM_THREADS=1 python experiments/benchmarks/streams.py"
    machine.write_result("streams", command, {"rows": rows})
    return int(any(row["median"] < row["target"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
