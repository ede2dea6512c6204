"""``SVI.step`` with one torch optimiser per parameter (Pyro's) and with one for all (ours).

The same programs, data and loss, interleaved in one process; medians and quartiles of the
ratio of adjacent rounds, because a shared machine's speed drifts. Run it on a quiet machine:

    python experiments/benchmarks/fused_optimiser.py
"""

from __future__ import annotations

import time
from functools import partial

import machine
import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim

import pyro_vae as pv
from pyro_vae.learning.optim import Joint

ROUNDS, STEPS = 30, 40


def steps(make_optim, hidden: tuple[int, ...], latent_dim: int, x: torch.Tensor):
    """A function that makes ``STEPS`` steps of its own model and returns seconds per step."""
    pyro.set_rng_seed(0)
    network = partial(pv.networks.MLP, hidden=hidden)
    vae = pv.VAE((784,), latent_dim, encoder=network, decoder=network)
    optim: PyroOptim = make_optim()
    svi = SVI(vae.model, vae.guide, optim, Trace_ELBO())
    state = {}

    def run() -> float:
        with pyro.get_param_store().scope(state.get("store", {"params": {}, "constraints": {}})):
            start = time.perf_counter()
            for _ in range(STEPS):
                svi.step(x)
            seconds = (time.perf_counter() - start) / STEPS
            state["store"] = pyro.get_param_store().get_state()
        return seconds

    return run


def compare(hidden: tuple[int, ...], latent_dim: int, batch: int) -> dict[str, object]:
    x = torch.bernoulli(torch.full((batch, 784), 0.3))
    before = steps(lambda: pyro.optim.Adam({"lr": 1e-3}), hidden, latent_dim, x)
    after = steps(lambda: Joint(partial(torch.optim.Adam, lr=1e-3)), hidden, latent_dim, x)
    with pyro.validation_enabled(False):
        before(), after()  # warm up
        pairs = np.array([(before(), after()) for _ in range(ROUNDS)])
    ratios = pairs[:, 1] / pairs[:, 0]
    quartiles = np.percentile(ratios, [25, 50, 75]).round(3)
    return {
        "model": f"784–{'–'.join(map(str, hidden))}–{latent_dim}, Bernoulli, batch {batch}",
        "ratio_median": float(quartiles[1]),
        "ratio_quartiles": [float(quartiles[0]), float(quartiles[2])],
    }


if __name__ == "__main__":
    machine.write(
        "fused_optimiser",
        "python experiments/benchmarks/fused_optimiser.py",
        {
            "what": "SVI.step with pyro.optim.Adam (before) and with Joint(Adam) (after)",
            "rounds": f"{ROUNDS} interleaved rounds of {STEPS} steps each",
            "rows": [compare((200, 200), 50, 20), compare((400,), 20, 128)],
        },
    )
