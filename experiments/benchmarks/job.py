"""Description of a contender's task. Requires only NumPy, because every environment imports it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Job", "Plan", "Problem", "Run", "find_fastest"]

#: Executes the planned steps or images and returns their values. This call is timed.
Run = Callable[[], list[float]]
#: Prepares the given number of steps or images. This call is not timed.
Plan = Callable[[int], Run]
#: The weight ``(out, in)`` and the bias ``(out,)`` of a layer.
Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A task with its sizes.

    Attributes:
        task: ``step`` or ``iwae``, for which ``Run`` returns the mean loss in nats per datum;
            ``evaluation``, for which it returns L_K of every image.
        problem: the file with the data and the initial weights, shared by all contenders.
        batch: examples in a minibatch.
        num_samples: K of the IWAE bound and of L_K.
        device: ``cpu`` or ``cuda``.
        compiled: whether contenders with an eager and a compiled variant compile.
        learning_rate: Adam's learning rate.
    """

    task: str
    problem: str
    batch: int = 128
    num_samples: int = 1
    device: str = "cpu"
    compiled: bool = False
    learning_rate: float = 1e-3

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        return cls(**json.loads(text))

    @cached_property
    def data(self) -> Problem:
        return Problem(self.problem)

    def make_minibatch_sampler(self) -> Callable[[int], np.ndarray]:
        """Return a function that gives the rows ``(count, batch)`` of the next minibatches.

        The order of the rows is the same for all contenders.
        """
        rng = np.random.default_rng(0)
        pending = np.empty(0, dtype=np.int64)
        size = len(self.data.train)

        def next_rows(count: int) -> np.ndarray:
            nonlocal pending
            while len(pending) < count * self.batch:
                pending = np.concatenate([pending, rng.permutation(size)])
            rows, pending = np.split(pending, [count * self.batch])
            return rows.reshape(count, self.batch)

        return next_rows


class Problem:
    """Binarised digits and the weights of a VAE (Bernoulli likelihood, tanh activations).

    Attributes:
        train, test: 0/1 as float32, ``(N, 784)``.
        encoder: layers; the last one outputs μ followed by log σ.
        decoder: layers; the last one outputs the logits.
    """

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            arrays: dict[str, Any] = dict(file)
        self.train = arrays["train"].astype(np.float32)
        self.test = arrays["test"].astype(np.float32)
        self.encoder = _read_layers(arrays, "encoder")
        self.decoder = _read_layers(arrays, "decoder")

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers; the decoder has them in reverse order."""
        return tuple(len(bias) for _, bias in self.encoder[:-1])

    @property
    def latent_dim(self) -> int:
        return self.decoder[0][0].shape[1]

    @property
    def num_parameters(self) -> int:
        return sum(w.size + b.size for w, b in [*self.encoder, *self.decoder])

    @property
    def heads(self) -> tuple[Layer, Layer]:
        """The encoder's last layer, split into the layers of μ and log σ."""
        weight, bias = self.encoder[-1]
        (loc, log_scale), (loc_bias, log_scale_bias) = np.split(weight, 2), np.split(bias, 2)
        return (loc, loc_bias), (log_scale, log_scale_bias)


def _read_layers(arrays: dict[str, Any], name: str) -> list[Layer]:
    count = sum(key.startswith(f"{name}.") for key in arrays) // 2
    return [(arrays[f"{name}.{i}.weight"], arrays[f"{name}.{i}.bias"]) for i in range(count)]


def find_fastest(candidates: dict[str, Callable[[], object]]) -> str:
    """Return the name of the fastest function. Each is called once before it is timed."""
    seconds = {}
    for name, candidate in candidates.items():
        candidate()
        start = time.perf_counter()
        candidate()
        seconds[name] = time.perf_counter() - start
    return min(seconds, key=lambda name: seconds[name])
