"""Count likelihoods on scikit-learn's digits: 8 × 8 pixels with counts from 0 to 16."""

from __future__ import annotations

import sys

from ..command import main
from ..tables import Table, budget

TABLE = Table(
    name="counts",
    title="Likelihoods of counts 0 … 16: a VAE with 10 latents on scikit-learn's digits",
    base="""
        --data.name digits --data.binarize none --data.values integer --data.valid 0.1
        --model.latent_dim 10
        --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.standardize true
        --model.decoder MLP --model.decoder.hidden {hidden} --fit.batch_size 50
    """,
    cells={
        "Binomial": "--model.likelihood Binomial --model.likelihood.levels 16",
        "Categorical": "--model.likelihood Categorical --model.likelihood.levels 16",
        "DiscretizedLogistic": """
            --model.likelihood DiscretizedLogistic --model.likelihood.levels 16
        """,
        "MixtureOfDiscretizedLogistics": """
            --model.likelihood MixtureOfDiscretizedLogistics --model.likelihood.levels 16
        """,
        # these four also give probability to counts above 16, which never occur
        "Poisson": "--model.likelihood Poisson",
        "Poisson with library": """
            --model.likelihood Poisson --model.likelihood.library decoded
        """,
        "NegativeBinomial": "--model.likelihood NegativeBinomial",
        "ZeroInflatedNegativeBinomial": "--model.likelihood ZeroInflatedNegativeBinomial",
    },
    presets={
        "smoke": budget(
            "--data.test 1600 --fit.epochs 1", num_samples=50, num_data=20, hidden="[20]"
        ),
        "small": budget("--fit.epochs 400 --fit.patience 40", hidden="[100]"),
        # not from a paper: the same with more patience
        "paper": budget(
            "--fit.epochs 4000 --fit.patience 200 --fit.optimizer Adam --fit.optimizer.lr 0.0003",
            hidden="[100]",
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
