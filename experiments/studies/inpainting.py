"""Lower half of an image given the upper half: log p(x_mis | x_obs) and a pixelwise baseline.

Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende et
al., 2014), section 6.4, and Leveraging the Exact Likelihood of Deep Latent Variable Models
(Mattei & Frellsen, 2018). https://arxiv.org/abs/1401.4082 https://arxiv.org/abs/1802.04826
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from pyro_vae import queries
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

from ..command import main
from ..tables import Table, budget


def measure_lower_half(
    model: Autoencoder, data: Dataset, num_data: int = 100, num_samples: int = 2000
) -> dict[str, Any]:
    """Return log p̂(lower half | upper half) of test images, paired with a pixelwise baseline.

    ``value`` is the model's. ``pixelwise`` treats pixels as independent, with the frequencies (or
    means and standard deviations) of the training data; ``gain`` is the paired difference.
    """
    x, train = data.test.head(num_data).materialize(0), data.train.materialize(0)
    observed = queries.mask("lower-half", data.event_shape)
    score = queries.score_missing(model, x, observed=observed, num_samples=num_samples)
    values, baseline = score.value, queries.score_pixelwise(train, x, observed)
    gain = values - baseline
    root = len(x) ** 0.5
    return {
        "value": float(values.mean()),
        "se": float(values.std() / root),
        "se_monte_carlo": float(score.variance.sum().sqrt() / len(x)),
        "text": f"{values.mean():.1f} ({baseline.mean():.1f})",
        "pixelwise": float(baseline.mean()),
        "gain": {"value": float(gain.mean()), "se_paired": float(gain.std() / root)},
        "unreliable": int((score.khat >= 0.7).sum()),
        "num_data": len(x),
        "num_samples": num_samples,
    }


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
        "smoke": budget(
            num_samples=50,
            num_data=20,
            measures={"lower half": partial(measure_lower_half, num_data=10, num_samples=50)},
            digits="mnist5k",
            hidden="[20]",
            epochs=1,
            frey="[20]",
            frey_epochs=1,
        ),
        "small": budget(
            num_samples=1000,
            num_data=200,
            digits="mnist",
            hidden="[200,200]",
            epochs=15,
            frey="[200]",
            frey_epochs=600,
        ),
        "paper": budget(
            digits="mnist", hidden="[500,500]", epochs=500, frey="[200]", frey_epochs=2000
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
