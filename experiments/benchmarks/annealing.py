"""Gap of bidirectional Monte Carlo on a trained 784–200–200–50 decoder.

pyro-vae fit --config experiments/mnist_vae.yaml --run runs/mnist_vae
python experiments/benchmarks/annealing.py runs/mnist_vae
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Any

import machine

from pyro_vae.evaluation import Annealing, Bounds, ais, bdmc, evaluate
from pyro_vae.runs.run import Run

NUM_EXAMPLES, NUM_CHAINS = 64, 8
#: Increasing numbers of temperatures from q(z|x), then the largest number from p(z).
SETTINGS = [
    *(Annealing(NUM_CHAINS, temperatures, 10) for temperatures in (50, 100, 500)),
    Annealing(NUM_CHAINS, 500, 10, initial="prior"),
]


def read_estimate(bounds: Bounds, name: str) -> list[float]:
    """Return an estimate and its Monte Carlo standard error."""
    estimate = bounds.estimates[name]
    return [round(estimate.value, 3), round(estimate.se_monte_carlo, 3)]


def measure_gap(vae: Any, annealing: Annealing) -> dict[str, Any]:
    """Run BDMC on simulated data with one annealing schedule."""
    start = time.perf_counter()
    bounds = bdmc(vae, NUM_EXAMPLES, annealing=annealing, num_samples=0)
    return {
        **asdict(annealing),
        "seconds": round(time.perf_counter() - start, 1),
        "lower": read_estimate(bounds, "ais"),
        "upper": read_estimate(bounds, "upper"),
        "gap": read_estimate(bounds, "bdmc_gap"),
        "acceptance": round(float(bounds.per_datum["acceptance"].mean()), 3),
    }


def main(folder: str) -> None:
    _, data, vae = Run(folder).open()
    test = data.test.head(NUM_EXAMPLES)
    content = {
        "what": f"{NUM_EXAMPLES} examples simulated by 784–200–200–50 (experiments/mnist_vae.yaml),"
        f" {NUM_CHAINS} chains each, forward and reverse, with a pilot; mean and Monte Carlo "
        f"standard error in nats per datum",
        "rows": [measure_gap(vae, annealing) for annealing in SETTINGS],
        "real_test_digits": {
            "AIS": read_estimate(ais(vae, test, annealing=SETTINGS[2]), "ais"),
            "L_5000": read_estimate(evaluate(vae, test, num_samples=5000), "iwae_5000"),
        },
    }
    command = "python experiments/benchmarks/annealing.py runs/mnist_vae"
    machine.write_result("annealing", command, content)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected the folder of a trained run; see the docstring of annealing.py")
    main(sys.argv[1])
