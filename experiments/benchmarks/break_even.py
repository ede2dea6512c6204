"""Number of training steps from which compilation pays off.

    TORCHINDUCTOR_CACHE_DIR=FOLDER python experiments/benchmarks/break_even.py CASE

Printed are the milliseconds of an eager and of a compiled step, the seconds of compilation, and the
number of steps that save them. The first call finds the folder empty; a second one finds the graph
in it. The model has 784 pixels, the data are synthetic.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

import pyro_vae as pv

#: Hidden layers, latents, batch size, objective, steps of an epoch.
CASES = {
    "step": ((400,), 20, 128, partial(pv.objectives.ELBO), 31),
    "iwae": ((200, 200), 50, 20, partial(pv.objectives.IWAE, 50), 30),
    "batch_20": ((200, 200), 50, 20, partial(pv.objectives.ELBO), 100),
}


def measure(case: str) -> str:
    """Return the measurements of a case in this process."""
    hidden, latents, batch, make_objective, steps = CASES[case]
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(batch * steps, 1, 28, 28))
    network = partial(pv.networks.MLP, hidden=hidden)
    seconds, compile_seconds = {}, 0.0
    for compile in (False, True):
        vae = pv.VAE((1, 28, 28), latents, encoder=network, decoder=network)
        options = {"batch_size": batch, "objective": make_objective(), "compile": compile}
        epochs = pv.fit(vae, x, epochs=4, **options).epochs
        seconds[compile] = min(epoch["seconds"] for epoch in epochs[1:]) / steps
        compile_seconds = epochs[0].get("compile_seconds", 0.0)
    return (
        f"eager {1e3 * seconds[False]:.2f} ms, compiled {1e3 * seconds[True]:.2f} ms, compilation "
        f"{compile_seconds:.1f} s: {compile_seconds / (seconds[False] - seconds[True]):.0f} steps"
    )


if __name__ == "__main__":
    print(measure(sys.argv[1]))
