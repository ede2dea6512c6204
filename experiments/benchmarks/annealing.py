"""Gap and run time of bidirectional Monte Carlo on a trained 784–200–200–50 decoder.

The run time is compared with the time of the matrix products in the required gradients, which is
measured in the same process before and after. Run it on an idle machine:

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

NUM_EXAMPLES, NUM_CHAINS = 64, 8
#: Increasing numbers of temperatures from q(z|x), then the largest number from p(z).
SETTINGS = [
    Annealing(NUM_CHAINS, 50, 10),
    Annealing(NUM_CHAINS, 100, 10),
    Annealing(NUM_CHAINS, 500, 10),
    Annealing(NUM_CHAINS, 500, 10, initial="prior"),
]
#: Layers ``(in, out)`` of the decoder.
LAYERS = [(50, 200), (200, 200), (200, 784)]
REPEATS = 200


def time_matmuls(rows: int) -> float:
    """Return the seconds of the matrix products in one gradient with respect to the latents."""
    weights = [torch.randn(shape) for shape in LAYERS]
    inputs = [torch.randn(rows, shape[0]) for shape in LAYERS]
    outputs = [torch.randn(rows, shape[1]) for shape in LAYERS]

    def multiply() -> None:
        for w, a, b in zip(weights, inputs, outputs, strict=True):
            a @ w
            b @ w.T

    multiply()
    start = time.perf_counter()
    for _ in range(REPEATS):
        multiply()
    return (time.perf_counter() - start) / REPEATS


def measure_annealing(vae, annealing: Annealing) -> dict[str, object]:
    """Run BDMC on simulated data with one annealing schedule."""
    before = time_matmuls(NUM_EXAMPLES * NUM_CHAINS)
    start = time.perf_counter()
    bounds = bdmc(vae, NUM_EXAMPLES, annealing=annealing, num_samples=0)
    seconds = time.perf_counter() - start
    after = time_matmuls(NUM_EXAMPLES * NUM_CHAINS)
    # forward and reverse; each temperature needs one gradient besides those of its leapfrog steps
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


def compare_on_test_digits(vae, data) -> dict[str, object]:
    """Compare AIS with L_5000 on the first test digits."""
    test = data.test.head(NUM_EXAMPLES)
    annealed = ais(vae, test, annealing=SETTINGS[2]).estimates["ais"]
    importance = evaluate(vae, test, num_samples=5000).estimates["iwae_5000"]
    return {
        "AIS": [round(annealed.value, 3), round(annealed.se_monte_carlo, 3)],
        "L_5000": [round(importance.value, 3), round(importance.se_monte_carlo, 3)],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected the folder of a trained run; see the docstring of annealing.py")
    _, data, vae = Run(sys.argv[1]).open()
    machine.write_result(
        "annealing",
        "python experiments/benchmarks/annealing.py runs/mnist_vae",
        {
            "what": f"{NUM_EXAMPLES} examples simulated by 784–200–200–50 "
            f"(experiments/mnist_vae.yaml), {NUM_CHAINS} chains each, forward and reverse, with a "
            f"pilot; mean and Monte Carlo standard error in nats per datum",
            "rows": [measure_annealing(vae, annealing) for annealing in SETTINGS],
            "real_test_digits": compare_on_test_digits(vae, data),
        },
    )
