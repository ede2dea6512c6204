"""VAE and IWAE, one and two layers, k = 1, 5 and 50: log p̂ and active units.

Importance Weighted Autoencoders (Burda et al., 2015), table 1. https://arxiv.org/abs/1509.00519

``--recipe text`` follows the paper, with the output bias initialised at the logit of the training
mean, which the text does not mention and every known implementation has (``--bias none`` without).
``--recipe code`` follows the authors' code where it differs: Adam with β₁ = 0.99 and second moments
initialised at 1, gradients summed over the minibatch, rounded step sizes, 400 digits (or 1345
letters) held out, and initial weights that are identical for layers of one shape (``--start
independent`` without). Test images are binarised once.

With k = 1, the VAE and the IWAE are the same model with the same loss: one row is run for both.

``--data omniglot`` requires the file chardata.mat.
"""

from __future__ import annotations

import sys
from itertools import product

from ..command import main
from ..tables import Claim, Preset, Table, budget, ordering
from .iwae_paper import (
    MEASURES,
    ONE_LAYER,
    RECIPES,
    SAMPLED_KL,
    TABLE_1,
    TWO_LAYERS,
    Recipe,
    measure_ladder_gain,
    row_name,
)

LAYERS = {1: ONE_LAYER, 2: TWO_LAYERS}
KS = {1: "1", 5: "5", 50: "{k}"}
# the VAE averages its k samples
OBJECTIVES = {
    "VAE": f"--objective ELBO {SAMPLED_KL} --objective.num_particles",
    "IWAE": "--objective IWAE --objective.k",
}
TRAIN_SIZES = {"mnist": 60_000, "omniglot": 24_345}
#: Data of ``smoke``: 150 training digits, and few test digits for counting units.
DIGITS = "--data.name mnist5k --data.train 150 --data.test 100"
#: The last stage i of each preset: 3280 epochs in the paper, 13 (0.4 %) in ``small``.
STAGES = {"smoke": 0, "small": 2, "paper": 7}


def make_presets(recipe: Recipe, valid: int, digits: str = "") -> dict[str, Preset]:
    """Return the presets of a recipe.

    Arguments:
        recipe: the recipe.
        valid: number of training examples held out.
        digits: arguments for other data in ``smoke``.
    """
    presets = {}
    for name, last in STAGES.items():
        smoke = name == "smoke"
        presets[name] = budget(
            recipe.fit(last),
            num_samples=50 if smoke else 5000,
            # the variation between seeds, not that between digits, limits the comparisons
            num_data={"smoke": 20, "small": 1000}.get(name),
            **recipe.values,
            hidden="[20]" if smoke else "[200,200]",
            half="[10]" if smoke else "[100,100]",
            k=6 if smoke else 50,
            lr=0.001,
            valid=min(valid, 10) if smoke else valid,
            digits=digits if smoke else "",
            measures={"log p̂ − L_5000": measure_ladder_gain} if name == "paper" else None,
        )
    return presets


def make_rows() -> dict[str, str]:
    """Return the ten cells of a data set; with k = 1, the IWAE is the VAE."""
    return {
        row_name(layers, objective, k): f"{args} {OBJECTIVES[objective]} {KS[k]}"
        for (layers, args), objective, k in product(LAYERS.items(), OBJECTIVES, KS)
        if (objective, k) != ("IWAE", 1)
    }


def make_claims(units: bool = True) -> dict[str, Claim]:
    """Return the orderings of the paper as claims.

    Arguments:
        units: whether to include those of the active units.
    """
    claims: dict[str, Claim] = {}
    for layers in LAYERS:
        name = f"{layers} layer{'s' if layers > 1 else ''}"
        iwae_5, iwae_50 = (row_name(layers, "IWAE", k) for k in (5, 50))
        vae_1, vae_50 = (row_name(layers, "VAE", k) for k in (1, 50))
        claims |= {
            f"{name}: IWAE, 1 to 5": ordering(
                f"{name}: IWAE is better with k = 5 than with k = 1", iwae_5, vae_1
            ),
            f"{name}: IWAE, 5 to 50": ordering(
                f"{name}: IWAE is better with k = 50 than with k = 5", iwae_50, iwae_5
            ),
            f"{name}: hardly the VAE": Claim(
                f"{name}: IWAE gains more than the VAE from k = 50 instead of k = 1",
                {iwae_50: 1.0, vae_50: -1.0},  # k = 1 is the same row
            ),
            f"{name}: the VAE, 1 to 50": ordering(
                f"{name}: VAE is better with k = 50 than with k = 1", vae_50, vae_1
            ),
        }
        more = "IWAE has more active units"
        of_units = {
            ("units, 1 to 5", iwae_5, vae_1): f"{more} with k = 5 than with k = 1",
            ("units, 5 to 50", iwae_50, iwae_5): f"{more} with k = 50 than with k = 5",
            ("units of the VAE", iwae_50, vae_50): f"with k = 50, {more} than the VAE",
        }
        for (key, row, than), sentence in of_units.items() if units else ():
            claims[f"{name}: {key}"] = ordering(f"{name}: {sentence}", row, than, "active units")
    return claims


def make_table(recipe: Recipe, data: str) -> Table:
    """Return table 1 of a data set with one of the recipes."""
    digits = DIGITS if data == "mnist" else ""
    return Table(
        name="iwae_table1",
        title=(
            f"VAE and IWAE on {data} with dynamic binarisation and {describe(recipe)}; test data"
        ),
        base=f"--data.name {data} --data.binarize dynamic --data.valid {{valid}} {{digits}}",
        cells=make_rows(),
        measures=MEASURES,
        published=TABLE_1[data],
        claims=make_claims(),
        causes={"": recipe.cause},
        train_size=TRAIN_SIZES[data] - recipe.held_out[data],
        presets=make_presets(recipe, recipe.held_out[data], digits),
        variant={**recipe.variant, "data": data},
        tag="-".join(filter(None, [recipe.tag, data if data != "mnist" else ""])),
    )


def describe(recipe: Recipe) -> str:
    """Return the recipe and its open choices, for titles."""
    bias = "output bias at the training mean" if recipe.bias == "data" else "no output bias"
    return f"the recipe of the paper's {recipe.name} ({bias}, {recipe.start} initial weights)"


TABLES = [make_table(recipe, data) for data, recipe in product(TRAIN_SIZES, RECIPES)]
TABLE = TABLES[0]

if __name__ == "__main__":
    sys.exit(main(TABLES))
