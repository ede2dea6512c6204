"""Likelihoods of grey images in bits per dimension: probabilities of levels and densities.

The density of uniformly dequantised levels bounds the probability of the levels: A
note on the evaluation of generative models (Theis et al., 2015), section 3.1.
https://arxiv.org/abs/1511.01844
"""

from __future__ import annotations

import sys

from ..command import main
from ..tables import Table, budget, group_rows

DISCRETE = "--data.values integer --model.likelihood"
DENSITY = "--data.values dequantized --model.likelihood"
ROWS = {
    "DiscretizedLogistic": f"{DISCRETE} DiscretizedLogistic",
    "MixtureOfDiscretizedLogistics": f"{DISCRETE} MixtureOfDiscretizedLogistics",
    "Binomial": f"{DISCRETE} Binomial",
    "Categorical": f"{DISCRETE} Categorical",
    "Gaussian learned": f"{DENSITY} Gaussian --model.likelihood.scale learned",
    "Gaussian optimal": f"{DENSITY} Gaussian --model.likelihood.scale optimal",
    "Laplace": f"{DENSITY} Laplace",
    "StudentT": f"{DENSITY} StudentT",
    "Beta": f"{DENSITY} Beta",
    "ContinuousBernoulli": f"{DENSITY} ContinuousBernoulli",
}
MNIST = """
    --data.name {mnist} --data.binarize none --data.valid 0 --model.latent_dim 40
    --model.encoder MLP --model.encoder.hidden {hidden} --model.encoder.standardize true
    --model.decoder MLP --model.decoder.hidden {hidden} --model.decoder.output_bias data
    --fit.epochs {mnist_epochs}
"""
# split by blocks of 50 frames; training stops early on the validation blocks
FREY = """
    --data.name frey --data.binarize none --model.latent_dim 10
    --model.encoder MLP --model.encoder.hidden {frey_hidden} --model.encoder.standardize true
    --model.decoder MLP --model.decoder.hidden {frey_hidden} --model.decoder.output_bias data
    --fit.epochs {frey_epochs} --fit.patience 30
"""
TABLE = Table(
    name="likelihoods",
    title=(
        "Likelihoods p(x|z) of grey images: test bits per dimension. Probabilities of levels "
        "(DiscretizedLogistic to Categorical) and densities (the other rows) are "
        "comparable only because the densities score uniformly dequantised levels: their bits "
        "are upper bounds on those of the implied discrete models."
    ),
    base="--fit.batch_size 100",
    cells={**group_rows("MNIST", MNIST, ROWS), **group_rows("Frey Face", FREY, ROWS)},
    presets={
        "smoke": budget(
            "--data.test 0.97",
            num_samples=50,
            num_data=20,
            exclude=["MNIST: Categorical", *(f"Frey Face: {row}" for row in list(ROWS)[2:])],
            mnist="mnist5k",
            hidden="[5]",
            mnist_epochs=1,
            frey_hidden="[5]",
            frey_epochs=1,
        ),
        "small": budget(
            num_samples=500,
            num_data=500,
            exclude=["MNIST: Categorical"],
            mnist="mnist",
            hidden="[200,200]",
            mnist_epochs=4,
            frey_hidden="[200]",
            frey_epochs=120,
        ),
        "paper": budget(
            mnist="mnist",
            hidden="[200,200]",
            mnist_epochs=200,
            frey_hidden="[200]",
            frey_epochs=2000,
        ),
    },
    bits=True,
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
