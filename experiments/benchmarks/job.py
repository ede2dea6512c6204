"""Task of a contender, its data and its process. Imports only NumPy: all environments have it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

#: Computes the given inputs and returns values that all contenders must agree on. It is timed.
Run = Callable[[np.ndarray], list[float]]
#: Weights ``(out, in)`` and biases ``(out,)`` of the layers of a network, with tanh between them.
Layers = list[tuple[np.ndarray, np.ndarray]]
#: Packages whose versions are recorded, by the names of their modules.
PACKAGES = {"pyro": "pyro-ppl", "pyro_vae": "pyro-vae"} | {
    name: name for name in ("numpy", "torch", "jax", "numpyro", "pythae")
}


@dataclass
class Problem:
    """Binarised digits and the weights of a VAE with a Bernoulli likelihood.

    Attributes:
        widths: hidden units and latents of each layer of latents, the lowest first.
        train, test: 0/1 as float32, ``(N, 784)``.
        encoders: for each layer of latents, the network from the layer below to μ and log σ.
        decoders: likewise, that to the logits, then those to μ and log σ of the layer below.
    """

    widths: tuple[tuple[int, ...], ...]
    train: np.ndarray
    test: np.ndarray
    encoders: list[Layers]
    decoders: list[Layers]

    @property
    def latent_dims(self) -> list[int]:
        return [widths[-1] for widths in self.widths]


@dataclass(frozen=True)
class Job:
    """A task with its sizes.

    Attributes:
        task: ``step`` or ``iwae``, whose inputs are the rows ``(steps, batch)`` of minibatches and
            whose value is their mean loss in nats per datum; or ``evaluation`` (L_K) or ``ais``,
            whose inputs are the indices ``(images,)`` and whose values are the estimates; or
            ``import`` without values.
        problem: the data and the weights, the same for all contenders; ``None`` for ``import``.
        batch: examples in a minibatch.
        num_samples: K of the IWAE bound and of L_K, or the number of temperatures.
        device: ``cpu`` or ``cuda``.
        learning_rate: Adam's learning rate.
        compiled: whether contenders with an eager and a compiled variant compile.
        empty_cache: whether they compile with an empty cache of compiled code.
        precision: float32 or bfloat16, for contenders that have both.
        without: the optimisation that ``internals`` switches off.
    """

    task: str
    problem: Any
    batch: int = 128
    num_samples: int = 1
    device: str = "cpu"
    learning_rate: float = 1e-3
    compiled: bool = False
    empty_cache: bool = False
    precision: Any = "float32"
    without: str = ""


def make_inputs(job: Job) -> Callable[[int], np.ndarray]:
    """Return a function that gives the next inputs, the same for all contenders.

    Minibatches are consecutive parts of permutations of the data. Images are always the first
    ones, beginning again where there are fewer than wanted.
    """
    rng, pending = np.random.default_rng(0), np.empty(0, dtype=np.int64)

    def next_inputs(count: int) -> np.ndarray:
        nonlocal pending
        if job.task not in ("step", "iwae"):
            return np.arange(count) % (len(job.problem.test) if job.problem else 1)
        while len(pending) < count * job.batch:
            pending = np.concatenate([pending, rng.permutation(len(job.problem.train))])
        rows, pending = np.split(pending, [count * job.batch])
        return rows.reshape(count, job.batch)

    return next_inputs


def find_fastest(run: Callable[[int], object], candidates: list[int]) -> int:
    """Return the candidate with which ``run`` is fastest. Each runs once before it is timed."""
    seconds = {}
    for candidate in candidates:
        run(candidate)
        start = time.perf_counter()
        run(candidate)
        seconds[candidate] = time.perf_counter() - start
    return min(seconds, key=lambda candidate: seconds[candidate])


def serve(file_descriptor: int, start: float) -> None:
    """Run a contender in this process, which began at ``start``; see ``harness.Worker``."""
    connection = Connection(file_descriptor)
    try:
        with tempfile.TemporaryDirectory() as empty:
            _answer_requests(connection, start, empty)
    except EOFError:
        pass  # no more requests
    except Exception:
        connection.send(traceback.format_exc().strip().splitlines()[-1])


def _answer_requests(connection: Connection, start: float, empty: str) -> None:
    module, job, threads = connection.recv()
    if hasattr(os, "sched_setaffinity"):
        # libraries choose their number of threads accordingly
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if job.empty_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
    contender = import_module(module)
    run = contender.TASKS[job.task](job) if job.task != "import" else lambda inputs: []
    next_inputs = make_inputs(job)
    while True:
        answer = measure(run, next_inputs, *connection.recv())
        versions = {p: metadata.version(p) for name, p in PACKAGES.items() if name in sys.modules}
        connection.send({**answer, "since_start": answer["end"] - start, "versions": versions})


def measure(
    run: Run, next_inputs: Callable[[int], Any], count: int, warm: int = 0, profiled: bool = False
) -> dict[str, Any]:
    """Return seconds and values of ``count`` steps or images, after ``warm`` untimed ones.

    If profiled, the seconds are those of the kernels on the GPU.
    """
    if warm:
        run(next_inputs(warm))
    inputs = next_inputs(count)
    if profiled:
        # imported here, because some contenders' environments lack torch
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run(inputs)
        microseconds = sum(event.self_device_time_total for event in profiler.key_averages())
        return {"seconds": microseconds / 1e6, "end": time.perf_counter()}
    start, cpu_start = time.perf_counter(), time.process_time()
    values = run(inputs)
    end, cpu_seconds = time.perf_counter(), time.process_time() - cpu_start
    return {"seconds": end - start, "cpu_seconds": cpu_seconds, "end": end, "values": values}
