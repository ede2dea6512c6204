"""Bidirectional Monte Carlo on a trained 784–200–200–50 decoder: its gap, and its time.

The time is set beside that of the matrix products which the gradients cannot do without,
measured in the same process before and after. Run it on a quiet machine:

    pyro-vae fit --config experiments/mnist_vae.yaml --run runs/mnist_vae
    python experiments/benchmarks/annealing.py runs/mnist_vae
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import machine
import torch

from pyro_vae.evaluation import Annealing, ais, bdmc, evaluate
from pyro_vae.runs.run import Run

SIZE, CHAINS = 64, 8
#: From few temperatures to those of the comparison, from q(z|x) and, for the last, from p(z).
SETTINGS = [
    Annealing(CHAINS, 50, 10),
    Annealing(CHAINS, 100, 10),
    Annealing(CHAINS, 500, 10),
    Annealing(CHAINS, 500, 10, initial="prior"),
]
#: Products of a decoder's gradient by its latents: layers forwards, and the same backwards.
LAYERS = [(50, 200), (200, 200), (200, 784)]
REPEATS = 200


def seconds_of_products(rows: int) -> float:
    """Seconds that the matrix products of one gradient take."""
    weights = [torch.randn(shape) for shape in LAYERS]
    inputs = [torch.randn(rows, shape[0]) for shape in LAYERS]
    outputs = [torch.randn(rows, shape[1]) for shape in LAYERS]

    def products() -> None:
        for w, a, b in zip(weights, inputs, outputs, strict=True):
            a @ w
            b @ w.T

    products()
    start = time.perf_counter()
    for _ in range(REPEATS):
        products()
    return (time.perf_counter() - start) / REPEATS


def row(vae, annealing: Annealing) -> dict[str, object]:
    before = seconds_of_products(SIZE * CHAINS)
    start = time.perf_counter()
    bounds = bdmc(vae, SIZE, annealing=annealing, num_samples=0)
    seconds = time.perf_counter() - start
    after = seconds_of_products(SIZE * CHAINS)
    # both ways, and the gradient at a new temperature besides those of its leapfrog steps
    gradients = 2 * annealing.num_temperatures * (annealing.num_steps + 1)
    low, high, gap = (bounds.estimates[n] for n in ("ais", "upper", "bdmc_gap"))
    return {
        **asdict(annealing),
        "lower": [round(low.value, 3), round(low.se_monte_carlo, 3)],
        "upper": [round(high.value, 3), round(high.se_monte_carlo, 3)],
        "gap": [round(gap.value, 3), round(gap.se_monte_carlo, 3)],
        "acceptance": round(float(bounds.per_datum["acceptance"].mean()), 3),
        "seconds": round(seconds, 1),
        "ratio_to_matrix_products": round(seconds / (gradients * (before + after) / 2), 2),
    }


def real_digits(vae, data) -> dict[str, object]:
    """AIS beside L_5000 on the first test digits."""
    test = data.test.head(SIZE)
    annealed = ais(vae, test, annealing=SETTINGS[2]).estimates["ais"]
    weighed = evaluate(vae, test, num_samples=5000).estimates["iwae_5000"]
    return {
        "AIS": [round(annealed.value, 3), round(annealed.se_monte_carlo, 3)],
        "L_5000": [round(weighed.value, 3), round(weighed.se_monte_carlo, 3)],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected the folder of a trained run; how to make one stands in this file's head")
    _, data, vae = Run(sys.argv[1]).open()
    machine.write(
        "annealing",
        "python experiments/benchmarks/annealing.py runs/mnist_vae",
        {
            "what": f"{SIZE} data simulated by 784–200–200–50 (experiments/mnist_vae.yaml), "
            f"{CHAINS} chains each, forwards and backwards with a pilot; mean and Monte Carlo "
            f"standard error in nats per datum",
            "rows": [row(vae, annealing) for annealing in SETTINGS],
            "real_test_digits": real_digits(vae, data),
        },
    )
