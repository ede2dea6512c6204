"""Which rung of the ladder each kind of program reaches: ``evaluate(…, reliable=True)`` on all.

A program with latents on a sphere, or with a posterior that only scores its own samples, stops at a
rung below; the table states the reason.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np

import pyro_vae as pv
from pyro_vae.data import Dataset

from ..command import main
from ..tables import ADAM, Table, budget
from .reliable import count_proposals

__all__ = ["TABLE"]


def measure_ladder(program: Any, data: Dataset, num_samples: int, num_data: int) -> dict[str, Any]:
    """Return log p̂ of the ladder and the proposals that it used."""
    bounds = pv.evaluate(program, data.test.head(num_data), num_samples=num_samples, reliable=True)
    row = bounds.estimates["log_evidence"]
    return {
        "value": row.value,
        "se": float(np.nan_to_num(row.se_monte_carlo)),
        "text": count_proposals(bounds),
        "proposals": bounds.proposals,
        "flagged": len(bounds.unreliable),
        "left out": bounds.settings.get("left_out", {}),
        "warning": bounds.warning,
    }


NETWORKS = """
    --model.latent_dim 10 --model.encoder.hidden {hidden} --model.decoder.hidden {hidden}
"""
DIGITS = f"--data.name mnist5k --data.binarize dynamic {NETWORKS}"
COUNTS = f"--data.name digits --data.binarize none --data.values integer {NETWORKS}"

TABLE = Table(
    name="reliable_programs",
    title="Proposals of log p̂ on the ladder, by program: 10 latents, with two layers 10 and 5",
    base=ADAM,
    cells={
        "VAE": DIGITS,
        "two layers": """
            --data.name mnist5k --data.binarize dynamic
            --model HierarchicalVAE --model.latent_dims [10,5]
            --model.encoders MLP --model.encoders.hidden {hidden}
            --model.decoders MLP --model.decoders.hidden {hidden}
        """,
        "conditional": f"{DIGITS} --model ConditionalVAE",
        "M2, labels summed out": f"""
            {DIGITS} --model SemiSupervisedVAE --data.labelled 1000 --objective EnumeratedELBO
        """,
        "Bayesian decoder": f"{DIGITS} --model BayesianVAE",
        "planar flow as q": f"{DIGITS} --model.posterior PlanarFlow",
        "inverse autoregressive flow as q": f"{DIGITS} --model.posterior InverseAutoregressiveFlow",
        "VampPrior": f"""
            {DIGITS} --model.prior VampPrior --model.prior.components 100 --model.prior.start data
        """,
        "Gaussian pixels": f"""
            --data.name mnist5k --data.binarize none --data.values dequantized {NETWORKS}
            --model.likelihood Gaussian
        """,
        "Poisson counts": f"{COUNTS} --model.likelihood Poisson",
        "negative binomial counts": f"{COUNTS} --model.likelihood NegativeBinomial",
        "latents on a sphere": f"""
            {DIGITS} --model.posterior PowerSpherical --model.prior UniformSphere
        """,
    },
    presets={
        "smoke": budget(
            "--fit.epochs 1",
            num_samples=50,
            num_data=20,
            measures={"ladder": partial(measure_ladder, num_samples=50, num_data=5)},
            hidden="[20]",
        ),
        "small": budget(
            "--fit.epochs 15",
            num_samples=1000,
            num_data=50,
            measures={"ladder": partial(measure_ladder, num_samples=1000, num_data=50)},
            hidden="[200,200]",
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
