"""Priors on MNIST: the gain of learned priors, mixtures and flows over N(0, I).

VAE with a VampPrior (Tomczak & Welling, 2018), table 1, on dynamically binarised digits.
https://arxiv.org/abs/1705.07120
"""

from __future__ import annotations

import sys
from dataclasses import replace

from ..command import main
from ..tables import Preset, Table, budget, smoke

# The decoder starts at the pixels' means: without this, the VampPrior, which does not fix the scale
# of the latents, collapsed to a point.
BASE = """
    --data.name mnist --data.binarize dynamic --data.valid 0 --model.latent_dim 40
    --model.encoder {network} --model.encoder.hidden {hidden}
    --model.decoder {network} --model.decoder.hidden {hidden} --model.decoder.output_bias data
    --fit.batch_size 100
"""
PRESETS = {
    "smoke": smoke(network="MLP", hidden="[20]", components=10),
    # without clipping, the planar flow of ``experiments.studies.posteriors`` diverged
    "small": budget(
        """
            --fit.epochs 15 --fit.optimizer Adam --fit.optimizer.lr 0.002
            --fit.schedule CosineAnnealingLR --fit.schedule.T_max 15 --fit.clip_norm 2000
        """,
        num_data=500,
        network="MLP",
        hidden="[200,200]",
        components=100,
    ),
    "paper": budget(
        """
            --data.valid 10000 --fit.epochs 2000 --fit.patience 50
            --fit.optimizer Adam --fit.optimizer.lr 0.0005
        """,
        network="GatedMLP",
        hidden="[300,300]",
        components=500,
    ),
}
# As in the VampPrior paper, for all rows.
WARM_UP = " --objective ELBO --objective.beta LinearWarmUp --objective.beta.epochs "


def add_warm_up(preset: Preset, epochs: int) -> Preset:
    """Add KL warm-up over a number of epochs to a preset."""
    return replace(preset, fit=preset.fit + WARM_UP + str(epochs))


TABLE = Table(
    name="priors",
    title="Priors p(z): a VAE with 40 latents on dynamically binarised MNIST, test digits",
    base=BASE,
    cells={
        "StandardNormal": "--model.prior StandardNormal",
        "DiagonalNormal": "--model.prior DiagonalNormal",
        "Laplace": "--model.prior Laplace",
        "StudentT": "--model.prior StudentT",
        "MixtureOfNormals": """
            --model.prior MixtureOfNormals --model.prior.components {components}
        """,
        "VampPrior": "--model.prior VampPrior --model.prior.components {components}",
        "VampPrior from data": """
            --model.prior VampPrior --model.prior.components {components}
            --model.prior.start data
        """,
        "FlowPrior coupling": "--model.prior FlowPrior --model.prior.transform coupling",
        "FlowPrior autoregressive": """
            --model.prior FlowPrior --model.prior.transform autoregressive
        """,
        "FlowPrior spline": "--model.prior FlowPrior --model.prior.transform spline",
    },
    presets={
        "smoke": add_warm_up(PRESETS["smoke"], 1),
        "small": add_warm_up(replace(PRESETS["small"], num_data=300), 5),
        "paper": add_warm_up(PRESETS["paper"], 100),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
