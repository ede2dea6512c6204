"""Number of training steps, or of samples of L_K, from which compilation pays off.

    TORCHINDUCTOR_CACHE_DIR=FOLDER python experiments/benchmarks/break_even.py CASE

Printed are the times of an eager and of a compiled step (or of a million samples), the seconds of
compilation, and the number of steps (or millions of samples) that save them. The first call finds
the folder empty; a second one finds the graph in it. The data are synthetic.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
from cases import DEEP, WIDE
from ours import make_model

import pyro_vae as pv

#: Model, batch size, objective, steps of an epoch.
TRAINING = {
    "step": (WIDE, 128, pv.objectives.ELBO, 31),
    "iwae": (DEEP, 20, partial(pv.objectives.IWAE, 50), 30),
    "batch_20": (DEEP, 20, pv.objectives.ELBO, 100),
}
#: Examples, and samples of each.
EXAMPLES, SAMPLES = 100, 5000


def measure_training(case: str) -> tuple[float, float, float]:
    """Return the seconds of an eager step, of a compiled step and of compilation."""
    widths, batch, make_objective, steps = TRAINING[case]
    seconds, compilation = [], 0.0
    for compile in (False, True):
        torch.manual_seed(0)
        vae, x = make_model(widths), torch.bernoulli(torch.rand(batch * steps, 784))
        options = {"batch_size": batch, "objective": make_objective(), "compile": compile}
        epochs = pv.fit(vae, x, epochs=4, **options).epochs
        seconds.append(min(epoch["seconds"] for epoch in epochs[1:]) / steps)
        compilation = epochs[0].get("compile_seconds", 0.0)
    return *seconds, compilation


def measure_evaluation() -> tuple[float, float, float]:
    """Return the seconds of a million samples of L_K, eager and compiled, and of compilation."""
    torch.manual_seed(0)
    vae, x = make_model(DEEP).eval(), torch.bernoulli(torch.rand(EXAMPLES, 784))

    def run(compile: bool) -> float:
        start = time.perf_counter()
        pv.log_weights(vae.model, vae.guide, x, num_samples=SAMPLES, compile=compile)
        return time.perf_counter() - start

    run(False)
    first, rounds = run(True), [(run(False), run(True)) for _ in range(3)]
    eager, compiled = map(min, zip(*rounds, strict=True))
    millions = EXAMPLES * SAMPLES / 1e6
    return eager / millions, compiled / millions, first - compiled


def main(case: str) -> str:
    """Return the measurements of a case in this process, as a line."""
    is_step = case in TRAINING
    eager, compiled, compilation = measure_training(case) if is_step else measure_evaluation()
    count = compilation / (eager - compiled) if eager > compiled else float("inf")
    scale, unit, name = (1e3, "ms", "steps") if is_step else (1, "s", "million samples")
    return (
        f"eager {scale * eager:.2f} {unit}, compiled {scale * compiled:.2f} {unit}, "
        f"compilation {compilation:.1f} s: {count:.3g} {name}"
    )


if __name__ == "__main__":
    if sys.argv[1:] not in ([case] for case in (*TRAINING, "evaluation")):
        sys.exit(f"expected one of {', '.join(TRAINING)} and evaluation as the argument")
    print(main(sys.argv[1]))
