"""Posteriors on MNIST: the gap between ELBO and log p̂ for richer families q(z|x).

Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018), table 1, in
the setting of ``experiments.studies.priors``. https://arxiv.org/abs/1803.05649
"""

from __future__ import annotations

import sys

from ..command import main
from ..tables import Table
from .priors import BASE, PRESETS

TABLE = Table(
    name="posteriors",
    title="Posteriors q(z|x): a VAE with 40 latents on dynamically binarised MNIST, test digits",
    base=BASE,
    cells={
        "DiagonalNormal": "--model.posterior DiagonalNormal",
        "FullCovarianceNormal": "--model.posterior FullCovarianceNormal",
        "LowRankNormal": "--model.posterior LowRankNormal --model.posterior.rank 5",
        "PlanarFlow": "--model.posterior PlanarFlow --model.posterior.flows 8",
        "RadialFlow": "--model.posterior RadialFlow --model.posterior.flows 8",
        "HouseholderFlow": "--model.posterior HouseholderFlow --model.posterior.flows 8",
        "SylvesterFlow": "--model.posterior SylvesterFlow --model.posterior.flows 4",
        "InverseAutoregressiveFlow": """
            --model.posterior InverseAutoregressiveFlow --model.posterior.flows 2
        """,
        "SplineFlow": "--model.posterior SplineFlow",
        "SemiAmortized": "--model.posterior SemiAmortized --model.posterior.steps 5",
        # latents on the sphere need another prior
        "PowerSpherical": "--model.posterior PowerSpherical --model.prior UniformSphere",
    },
    presets=PRESETS,
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
