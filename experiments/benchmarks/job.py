"""Task of a contender and its data, and what runs in its process. Imports only NumPy."""

from __future__ import annotations

import atexit
import os
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import parent_process
from threading import Thread
from typing import Any

import numpy as np

#: Computes the given inputs and returns values that all contenders must agree on. It is timed.
Run = Callable[[np.ndarray], list[float]]
#: Weights ``(out, in)`` and biases ``(out,)`` of the layers of a network, with tanh between them.
Layers = list[tuple[np.ndarray, np.ndarray]]


class BenchmarkError(RuntimeError):
    """A contender failed or does other work than the others; the message is one sentence."""


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
            ``import`` without values; or ``kernels``, whose value is the seconds of the GPU's
            kernels in a step.
        problem: the data and the weights, the same for all contenders; ``None`` for ``import``.
        batch: examples in a minibatch.
        num_samples: K of the IWAE bound and of L_K, or the number of temperatures.
        threads: the number of threads and cores.
        device: ``cpu`` or ``cuda``.
        learning_rate: Adam's learning rate.
        compiled: whether contenders with an eager and a compiled variant compile.
        precision: float32 or bfloat16, for contenders that have both.
        without: the optimisation that ``internals`` switches off.
    """

    task: str
    problem: Any
    batch: int = 128
    num_samples: int = 1
    threads: int = 1
    device: str = "cpu"
    learning_rate: float = 1e-3
    compiled: bool = False
    precision: Any = "float32"
    without: str = ""

    @property
    def is_training(self) -> bool:
        return self.task in ("step", "iwae", "kernels")


def make_inputs(job: Job) -> Callable[[int], np.ndarray]:
    """Return a function that gives the next inputs, the same for all contenders.

    Minibatches are drawn with replacement; images are the first ones, again and again.
    """
    rng = np.random.default_rng(0)

    def next_inputs(count: int) -> np.ndarray:
        if job.is_training:
            return rng.integers(len(job.problem.train), size=(count, job.batch))
        return np.arange(count) % (len(job.problem.test) if job.problem else 1)

    return next_inputs


def find_fastest(run: Callable[[int], object], candidates: list[int]) -> int:
    """Return the candidate with which ``run`` is fastest, by the faster of two runs."""
    return min(candidates, key=lambda c: min(timeit.repeat(lambda: run(c), number=1, repeat=2)))


#: The contender of this process, its inputs and the time of its start; set by ``start``.
_run: Run
_next_inputs: Callable[[int], np.ndarray]
_begin: float


def start(module: str, job: Job) -> None:
    """Start ``TASKS[job.task]`` of a module in this new process."""
    global _run, _next_inputs, _begin
    _begin = time.perf_counter()
    # a benchmark that is killed leaves no process behind
    Thread(target=_follow, args=[parent_process()], daemon=True).start()
    atexit.register(os._exit, 0)  # after all other exit functions; torch takes a second to end
    os.dup2(2, 1)  # a library's output goes to stderr
    sys.dont_write_bytecode = False  # the first start compiles this package, as its installer does
    if hasattr(os, "sched_setaffinity"):
        # libraries choose their number of threads accordingly
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    os.environ.update(
        OMP_NUM_THREADS=str(job.threads),
        MKL_NUM_THREADS=str(job.threads),
        JAX_PLATFORMS=job.device,
        # by default JAX allocates most of a GPU's memory and multiplies in TF32
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
        JAX_DEFAULT_MATMUL_PRECISION="highest" if job.device == "cuda" else "default",
    )
    contender, _next_inputs = import_module(module), make_inputs(job)
    _run = contender.TASKS[job.task](job) if job.task != "import" else lambda inputs: []


def _follow(parent: Any) -> None:
    """End this process with its parent."""
    parent.join()
    os._exit(1)


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in this process; an exception becomes one that can be sent."""
    try:
        return function(*args)
    except Exception as error:
        raise BenchmarkError(f"{type(error).__name__}: {error}".splitlines()[0]) from None


def measure(count: int, warm: int = 0) -> dict[str, Any]:
    """Return seconds and values of ``count`` steps or images, after ``warm`` untimed ones."""
    if warm:
        _run(_next_inputs(warm))
    inputs = _next_inputs(count)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    values = _run(inputs)
    end, cpu_seconds = time.perf_counter(), time.process_time() - cpu_begin
    seconds = {"seconds": end - begin, "cpu_seconds": cpu_seconds, "since_start": end - _begin}
    return {**seconds, "values": values}
