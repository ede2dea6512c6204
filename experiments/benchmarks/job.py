"""What a contender is told to do. Every environment reads it, so NumPy is all it needs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Job", "Plan", "Problem", "Run", "fastest"]

#: Does the planned work, to its end, and gives what it found: timed.
Run = Callable[[], list[float]]
#: Makes ready so many steps or images, as whoever trains or judges finds them: not timed.
Plan = Callable[[int], Run]
#: The weight ``(out, in)`` and the bias ``(out,)`` of a layer.
Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A task with its sizes.

    Attributes:
        task: ``step`` and ``iwae``, of which ``Run`` gives the mean loss in nats per datum;
            ``evaluation``, of which it gives L_K of every image.
        problem: the file with the data and the weights that all contenders start from.
        batch: data in a minibatch.
        num_samples: K, of the IWAE bound and of L_K.
        device: ``cpu`` or ``cuda``.
        compiled: for contenders that come eager and compiled.
        learning_rate: Adam's.
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

    def minibatches(self) -> Callable[[int], np.ndarray]:
        """Gives the rows ``(count, batch)`` of the next minibatches, the same for everybody."""
        rng = np.random.default_rng(0)
        waiting = np.empty(0, dtype=np.int64)
        size = len(self.data.train)

        def take(count: int) -> np.ndarray:
            nonlocal waiting
            while len(waiting) < count * self.batch:
                waiting = np.concatenate([waiting, rng.permutation(size)])
            rows, waiting = np.split(waiting, [count * self.batch])
            return rows.reshape(count, self.batch)

        return take


class Problem:
    """Real binary digits, and the weights of a VAE of them: Bernoulli, tanh between layers.

    Attributes:
        train, test: 0/1 as float32, ``(N, 784)``.
        encoder: layers, the last of which gives μ and then log σ.
        decoder: layers, the last of which gives the logits.
    """

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            arrays: dict[str, Any] = dict(file)
        self.train = arrays["train"].astype(np.float32)
        self.test = arrays["test"].astype(np.float32)
        self.encoder = _layers(arrays, "encoder")
        self.decoder = _layers(arrays, "decoder")

    @property
    def hidden(self) -> tuple[int, ...]:
        """The widths of the encoder's hidden layers, which are the decoder's in reverse."""
        return tuple(len(bias) for _, bias in self.encoder[:-1])

    @property
    def latent_dim(self) -> int:
        return self.decoder[0][0].shape[1]

    @property
    def num_parameters(self) -> int:
        return sum(w.size + b.size for w, b in [*self.encoder, *self.decoder])

    @property
    def heads(self) -> tuple[Layer, Layer]:
        """The encoder's last layer as two: of μ and of log σ."""
        weight, bias = self.encoder[-1]
        (loc, log_scale), (loc_bias, log_scale_bias) = np.split(weight, 2), np.split(bias, 2)
        return (loc, loc_bias), (log_scale, log_scale_bias)


def _layers(arrays: dict[str, Any], name: str) -> list[Layer]:
    count = sum(key.startswith(f"{name}.") for key in arrays) // 2
    return [(arrays[f"{name}.{i}.weight"], arrays[f"{name}.{i}.bias"]) for i in range(count)]


def fastest(ways: dict[str, Callable[[], object]]) -> str:
    """The name of the way that takes least time, each after a first call that is not timed."""
    seconds = {}
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        way()
        seconds[name] = time.perf_counter() - start
    return min(seconds, key=lambda name: seconds[name])
