"""Two layers of latents on MNIST: the model of the IWAE paper and the ladder VAE.

Importance Weighted Autoencoders (Burda et al., 2015), table 1, and Ladder Variational
Autoencoders (Sønderby et al., 2016). https://arxiv.org/abs/1509.00519
https://arxiv.org/abs/1602.02282
"""

from __future__ import annotations

import sys
from dataclasses import replace

from ..command import main
from ..papers.iwae_paper import TABLE_1, TWO_LAYERS, measure_active_units
from ..tables import Preset, Table
from .iwae import DATA, OBJECTIVES
from .iwae import TABLE as ONE_LAYER

LADDER = "--model.inference TopDown"
# as in the ladder VAE paper; without it the KL of the lower layer stayed near zero
WARM_UP = "--objective.beta LinearWarmUp --objective.beta.epochs {rising}"


def _add_values(preset: Preset, half: str, rising: int) -> Preset:
    """Add the widths of the networks between the layers and the warm-up epochs to a preset."""
    return replace(preset, values={**preset.values, "half": half, "rising": rising})


TABLE = Table(
    name="hierarchical",
    title="Two layers, 100 and 50 latents, on binarised MNIST; published: after 3280 epochs",
    base=DATA + TWO_LAYERS,
    cells={
        **OBJECTIVES,
        "ladder, VAE, k = 1": f"{LADDER} --objective ELBO",
        "ladder, warmed up": f"{LADDER} --objective ELBO {WARM_UP}",
    },
    measures={"active units": measure_active_units},
    published={row: str(TABLE_1["mnist"][f"2 layers: {row}"]) for row in OBJECTIVES},
    presets={
        "smoke": _add_values(ONE_LAYER.presets["smoke"], "[10]", 1),
        "small": replace(
            _add_values(ONE_LAYER.presets["small"], "[100,100]", 6),
            num_data=2000,
            exclude=["VAE, k = 50", "IWAE, k = 50"],
        ),
        "paper": _add_values(ONE_LAYER.presets["paper"], "[100,100]", 200),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
