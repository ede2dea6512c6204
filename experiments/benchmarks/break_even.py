"""Number of training steps, or of samples of L_K, from which compilation pays off.

    TORCHINDUCTOR_CACHE_DIR=FOLDER python experiments/benchmarks/break_even.py CASE

Printed are the times of an eager and of a compiled step (or of a million samples), the seconds of
compilation, and the number of steps (or millions of samples) that save them. The first call finds
the folder empty; a second one finds the graph in it. The model has 784 pixels, the data are
synthetic.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import pyro_vae as pv

#: Hidden layers, latents, batch size, objective, steps of an epoch.
TRAINING = {
    "step": ((400,), 20, 128, partial(pv.objectives.ELBO), 31),
    "iwae": ((200, 200), 50, 20, partial(pv.objectives.IWAE, 50), 30),
    "batch_20": ((200, 200), 50, 20, partial(pv.objectives.ELBO), 100),
}
#: Hidden layers, latents, examples and samples of each.
EVALUATION = {"evaluation": ((200, 200), 50, 100, 5000)}


class Times(NamedTuple):
    """Seconds of a unit of work, eager and compiled, and of compilation."""

    eager: float
    compiled: float
    compilation: float

    @property
    def break_even(self) -> float:
        """Units of work from which compilation pays off; infinite if it never does."""
        gain = self.eager - self.compiled
        return self.compilation / gain if gain > 0 else float("inf")


def make_model(hidden: tuple[int, ...], latents: int, count: int) -> tuple[pv.VAE, Tensor]:
    """Return a VAE, and binary images."""
    torch.manual_seed(0)
    network = partial(pv.networks.MLP, hidden=hidden)
    vae = pv.VAE((1, 28, 28), latents, encoder=network, decoder=network)
    return vae, torch.bernoulli(torch.rand(count, 1, 28, 28))


def measure_training(case: str) -> Times:
    """Return the times of a training step."""
    hidden, latents, batch, make_objective, steps = TRAINING[case]
    seconds, compilation = {}, 0.0
    for compile in (False, True):
        vae, x = make_model(hidden, latents, batch * steps)
        options = {"batch_size": batch, "objective": make_objective(), "compile": compile}
        epochs = pv.fit(vae, x, epochs=4, **options).epochs
        seconds[compile] = min(epoch["seconds"] for epoch in epochs[1:]) / steps
        compilation = epochs[0].get("compile_seconds", 0.0)
    return Times(seconds[False], seconds[True], compilation)


def measure_evaluation(case: str) -> Times:
    """Return the times of a million samples of L_K."""
    hidden, latents, examples, samples = EVALUATION[case]
    vae, x = make_model(hidden, latents, examples)
    vae.eval()

    def run(compile: bool) -> float:
        start = time.perf_counter()
        pv.log_weights(vae.model, vae.guide, x, num_samples=samples, compile=compile)
        return time.perf_counter() - start

    run(False)
    first, rounds = run(True), [(run(False), run(True)) for _ in range(3)]
    eager, compiled = map(min, zip(*rounds, strict=True))
    millions = examples * samples / 1e6
    return Times(eager / millions, compiled / millions, first - compiled)


def main(case: str) -> str:
    """Return the measurements of a case in this process, as a line."""
    if case in EVALUATION:
        times, unit, scale, name = measure_evaluation(case), "s", 1, "million samples"
    else:
        times, unit, scale, name = measure_training(case), "ms", 1e3, "steps"
    return (
        f"eager {scale * times.eager:.2f} {unit}, compiled {scale * times.compiled:.2f} {unit}, "
        f"compilation {times.compilation:.1f} s: {times.break_even:.3g} {name}"
    )


if __name__ == "__main__":
    print(main(sys.argv[1]))
