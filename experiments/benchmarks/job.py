"""Task of a contender and its data. Requires only NumPy, because every environment imports it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Job", "Layers", "Problem", "Run", "Upper", "find_fastest", "make_inputs"]

#: Computes the given inputs and returns values that all contenders must agree on. It is timed.
Run = Callable[[np.ndarray], list[float]]
#: Weights ``(out, in)`` and biases ``(out,)`` of the layers of a network.
Layers = list[tuple[np.ndarray, np.ndarray]]
#: Hidden layers of the networks above z₁, and the number of latents z₂.
Upper = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Job:
    """A task with its sizes.

    Attributes:
        task: ``step`` or ``iwae``, whose inputs are the rows ``(steps, batch)`` of minibatches and
            whose value is their mean loss in nats per datum; or ``evaluation`` (L_K) or ``ais``,
            whose inputs are the indices ``(images,)`` and whose values are the estimates.
        problem: the file with the data and the weights, shared by all contenders.
        batch: examples in a minibatch.
        num_samples: K of the IWAE bound and of L_K, or the number of temperatures.
        device: ``cpu`` or ``cuda``.
        learning_rate: Adam's learning rate.
        compiled: whether contenders with an eager and a compiled variant compile.
        precision: float32 or bfloat16, for contenders that have both.
        without: the optimisation that ``internals`` switches off.
    """

    task: str
    problem: str
    batch: int = 128
    num_samples: int = 1
    device: str = "cpu"
    learning_rate: float = 1e-3
    compiled: bool = False
    precision: str = "float32"
    without: str = ""

    @cached_property
    def data(self) -> Problem:
        return Problem(self.problem)


class Problem:
    """Binarised digits and the weights of a VAE (Bernoulli likelihood, tanh activations).

    Attributes:
        train, test: 0/1 as float32, ``(N, 784)``.
        encoder: layers; the last one outputs μ followed by log σ.
        decoder: layers; the last one outputs the logits.
        upper_encoder, upper_decoder: layers of q(z₂|z₁) and p(z₁|z₂), which output μ followed by
            log σ; empty without a second layer of latents.
    """

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        self.train, self.test = (arrays[name].astype(np.float32) for name in ("train", "test"))
        self.encoder, self.decoder, self.upper_encoder, self.upper_decoder = (
            _read_layers(arrays, name)
            for name in ("encoder", "decoder", "upper_encoder", "upper_decoder")
        )

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers; the decoder has them in reverse order."""
        return tuple(len(bias) for _, bias in self.encoder[:-1])

    @property
    def latent_dim(self) -> int:
        return self.decoder[0][0].shape[1]

    @property
    def upper(self) -> Upper | None:
        """Widths of the upper encoder's hidden layers, and the number of upper latents."""
        if not self.upper_encoder:
            return None
        hidden = tuple(len(bias) for _, bias in self.upper_encoder[:-1])
        return hidden, self.upper_decoder[0][0].shape[1]


def _read_layers(arrays: dict[str, np.ndarray], name: str) -> Layers:
    count = sum(key.startswith(f"{name}.") for key in arrays) // 2
    return [(arrays[f"{name}.{i}.weight"], arrays[f"{name}.{i}.bias"]) for i in range(count)]


def make_inputs(job: Job) -> Callable[[int], np.ndarray]:
    """Return a function that gives the next inputs, the same for all contenders.

    Minibatches are consecutive parts of permutations of the data. Images are always the first
    ones, beginning again where there are fewer than wanted.
    """
    rng, pending = np.random.default_rng(0), np.empty(0, dtype=np.int64)

    def next_inputs(count: int) -> np.ndarray:
        nonlocal pending
        if job.task not in ("step", "iwae"):
            return np.arange(count) % len(job.data.test)
        while len(pending) < count * job.batch:
            pending = np.concatenate([pending, rng.permutation(len(job.data.train))])
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
