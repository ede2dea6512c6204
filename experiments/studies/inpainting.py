"""Lower half of an image given the upper half: log p(x_mis | x_obs) and a pixelwise baseline.

Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende et
al., 2014), section 6.4, and Leveraging the Exact Likelihood of Deep Latent Variable Models
(Mattei & Frellsen, 2018). https://arxiv.org/abs/1401.4082 https://arxiv.org/abs/1802.04826
"""

from __future__ import annotations

import sys

from ..measures import measure_lower_half
from ..table import Preset, Table, main

TABLE = Table(
    name="inpainting",
    title="log p(lower half | upper half) of test images; in parentheses: independent pixels",
    base="--model.encoder MLP --model.decoder MLP --fit.batch_size 100",
    cells={
        "MNIST: VAE": """
            --data.name {digits} --data.binarize dynamic --data.valid 0 --model.latent_dim 20
            --model.encoder.hidden {hidden} --model.decoder.hidden {hidden}
            --model.decoder.output_bias data --fit.epochs {epochs}
        """,
        "Frey Face: VAE": """
            --data.name frey --data.binarize none --model.latent_dim 10
            --model.likelihood Gaussian --model.likelihood.scale decoded
            --model.likelihood.mean sigmoid --model.likelihood.min_scale 0.01
            --model.encoder.hidden {frey} --model.decoder.hidden {frey}
            --fit.epochs {frey_epochs} --fit.patience 60
        """,
    },
    measures={"lower half": measure_lower_half},
    presets={
        "smoke": Preset(
            fit="",
            num_samples=50,
            num_data=20,
            values={
                "digits": "mnist5k",
                "hidden": "[20]",
                "epochs": 1,
                "frey": "[20]",
                "frey_epochs": 1,
            },
        ),
        "small": Preset(
            fit="",
            num_samples=1000,
            num_data=200,
            values={
                "digits": "mnist",
                "hidden": "[200,200]",
                "epochs": 15,
                "frey": "[200]",
                "frey_epochs": 600,
            },
        ),
        "paper": Preset(
            fit="",
            values={
                "digits": "mnist",
                "hidden": "[500,500]",
                "epochs": 500,
                "frey": "[200]",
                "frey_epochs": 2000,
            },
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
