"""log p(x) that can be trusted: the ladder of proposals beside long AIS, BDMC and the guide.

For each model: the share of test digits with a bad k̂, for samples of q(z|x) and for the Laplace
proposals before any AIS; log p̂ of ``evaluate(…, reliable=True)``, and how many digits ended on
which proposal; its difference from long AIS on the same digits; whether it lies between BDMC's
bounds on data that the model simulates; and its cost.

On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016).
https://arxiv.org/abs/1611.04273
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.evaluation import Annealing, Bounds, laplace
from pyro_vae.evaluation.annealing.bidirectional import simulate_data
from pyro_vae.evaluation.importance.psis import khat_threshold

from ..command import main
from ..tables import Measure, Table, budget

__all__ = ["TABLE", "count_proposals", "make_measures"]


def count_proposals(bounds: Bounds) -> str:
    """Return how many examples ended on which proposal, and how many are still flagged."""
    used = [f"{name} {count}" for name, count in bounds.proposals.items() if count]
    return f"{', '.join(used)}; flagged {len(bounds.unreliable)} of {len(bounds)}"


def make_measures(
    num_samples: int, num_data: int, annealing: Annealing, num_annealed: int, num_timed: int
) -> dict[str, Measure]:
    """Return the measures of a trained model.

    Arguments:
        num_samples: the number K of samples of q.
        num_data: the number of test examples.
        annealing: the settings of the long AIS and of BDMC.
        num_annealed: the number of examples of AIS; half as many are simulated.
        num_timed: the number of examples on which the cost is measured.
    """

    def bad_khat(program: Any, data: Dataset) -> dict[str, Any]:
        """Share of bad k̂ for the guide's samples and for the Laplace proposals."""
        x = data.test.head(num_data)
        guide = pv.evaluate(program, x, num_samples=num_samples)
        proposals = laplace(program, x)
        bad = _count_bad(proposals, "laplace_khat")
        return {
            "value": 100 * bad / len(proposals),
            "text": f"{100 * bad / len(proposals):.1f} %",
            "num_data": len(guide),
            "guide": len(guide.unreliable),
            "laplace": bad,
            "estimates": {
                f"L_{num_samples}": guide.summary()["estimates"]["log_evidence"],
                "laplace": proposals.summary()["estimates"]["laplace"],
            },
        }

    def ladder(program: Any, data: Dataset) -> dict[str, Any]:
        """log p̂ of the ladder."""
        bounds = pv.evaluate(
            program, data.test.head(num_data), num_samples=num_samples, reliable=True
        )
        return {
            **_estimate(bounds, "log_evidence"),
            "proposals": bounds.proposals,
            "flagged": len(bounds.unreliable),
            "gap": _estimate(bounds, "gap"),
            "warning": bounds.warning,
        }

    def minus_ais(program: Any, data: Dataset) -> dict[str, Any]:
        """Mean difference of the ladder from long AIS on the same examples."""
        x = data.test.head(num_annealed)
        bounds = pv.evaluate(program, x, num_samples=num_samples, reliable=True)
        annealed = pv.ais(program, x, annealing=annealing)
        values = [_estimate(bounds, "log_evidence"), _estimate(annealed, "ais")]
        difference = values[0]["value"] - values[1]["value"]
        se = math.hypot(*(value["se"] for value in values))
        return {"value": difference, "se": se, "ladder": values[0], "ais": values[1]}

    def simulated(program: Any, data: Dataset) -> dict[str, Any]:
        """Distance of the ladder from the range of BDMC's bounds; zero inside."""
        size = num_annealed // 2
        sandwich = pv.bdmc(program, size, annealing=annealing, num_samples=0)
        x, _, _ = simulate_data(program, size, (), 0)
        bounds = pv.evaluate(program, x, num_samples=num_samples, reliable=True)
        value, low, high = (
            _estimate(result, name)
            for result, name in (
                (bounds, "log_evidence"),
                (sandwich, "ais"),
                (sandwich, "upper"),
            )
        )
        outside = max(low["value"] - value["value"], value["value"] - high["value"], 0.0)
        se = math.hypot(value["se"], max(low["se"], high["se"]))
        return {"value": outside, "se": se, "ladder": value, "lower": low, "upper": high}

    def cost(program: Any, data: Dataset) -> dict[str, Any]:
        """Time of the Laplace proposals, and of the whole ladder, over that of K samples of q."""
        x = data.test.head(num_timed)
        runs = {
            "guide": partial(pv.evaluate, program, x, num_samples=num_samples),
            "laplace": partial(laplace, program, x),
            "ladder": partial(pv.evaluate, program, x, num_samples=num_samples, reliable=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for name in runs:
            runs[name]()  # the first run compiles
        for _ in range(3):
            for name, run in runs.items():
                seconds[name].append(_time(run))
        ratios = {
            name: statistics.median(
                own / base for own, base in zip(seconds[name], seconds["guide"], strict=True)
            )
            for name in ("laplace", "ladder")
        }
        return {"value": ratios["laplace"], "ladder": ratios["ladder"], "num_data": num_timed}

    return {
        "bad k̂": bad_khat,
        "ladder": ladder,
        "ladder − AIS": minus_ais,
        "outside BDMC": simulated,
        "cost": cost,
    }


def _count_bad(bounds: Bounds, name: str) -> int:
    threshold = khat_threshold(bounds.num_samples)
    return int((~(bounds.per_datum[name] < threshold)).sum())


def _estimate(bounds: Bounds, name: str) -> dict[str, float]:
    row = bounds.estimates[name]
    return {"value": row.value, "se": float(np.nan_to_num(row.se_monte_carlo))}


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


TABLE = Table(
    name="reliable",
    title=(
        "The ladder of proposals: share of bad k̂ before AIS, log p̂, difference from long AIS, "
        "distance from BDMC's bounds on simulated data, time over that of 5000 samples of q"
    ),
    base="""
        --data.binarize dynamic --objective ELBO --fit.batch_size 100
        --model.encoder.hidden {hidden} --model.decoder.hidden {hidden}
    """,
    # the models of experiments/demo.yaml and experiments/mnist_vae.yaml
    cells={
        "20 latents": """
            --data.name mnist5k --model.latent_dim 20 --fit.epochs {epochs} --fit.patience 20
            --fit.optimizer Adam --fit.optimizer.lr 0.002
        """,
        "50 latents": """
            --data.name {digits} --data.valid 0 --model.latent_dim 50 --fit.epochs {digit_epochs}
        """,
    },
    presets={
        "smoke": budget(
            "--data.train 150 --data.test 100",
            num_samples=50,
            num_data=20,
            measures=make_measures(50, 20, Annealing(2, 10, 2), 5, 5),
            hidden="[20]",
            epochs=1,
            digits="mnist5k",
            digit_epochs=1,
        ),
        "small": budget(
            num_samples=5000,
            num_data=1000,
            measures=make_measures(5000, 1000, Annealing(8, 400, 10), 100, 100),
            hidden="[200,200]",
            epochs=150,
            digits="mnist",
            digit_epochs=30,
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
