"""VAE and IWAE, one and two layers, k = 1, 5 and 50: log p̂ and active units.

Importance Weighted Autoencoders (Burda et al., 2015), table 1. https://arxiv.org/abs/1509.00519

``--recipe text`` does what the paper says, ``--recipe code`` what its authors' code does where
that differs: Adam's β₁ = 0.99 and second moments that start at 1, gradients that are summed over
the minibatch, rounded step sizes, the output bias at the logit of the training mean, 400 digits (or
1345 letters) held out. Test images are binarised by one draw.

``--data omniglot`` wants the file chardata.mat.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import product

from .claims import Claim, higher
from .hierarchical import TWO_LAYERS
from .iwae import ONE_LAYER
from .measures import active_units
from .published import IWAE_TABLE_1, iwae_row
from .table import Preset, Table, main

LAYERS = {1: ONE_LAYER, 2: TWO_LAYERS}
KS = {1: "1", 5: "5", 50: "{k}"}
# the VAE's k draws are averaged, and like the paper's its KL is a draw, too
OBJECTIVES = {
    "VAE": "--objective ELBO --objective.analytic_kl false --objective.num_particles",
    "IWAE": "--objective IWAE --objective.k",
}
OPTIMIZERS = {
    # The gradient here is the minibatch's sum. The text's is taken for the mean of 20: the same
    # steps, if its ε = 1e-4 becomes 20 times as much.
    "text": "--fit.optimizer Adam --fit.optimizer.lr {lr} --fit.optimizer.eps 0.002",
    "code": """
        --plugin {here}/paper_optimizers.py
        --fit.optimizer paper_optimizers.AdamFromOne --fit.optimizer.lr {lr}
    """,
}
# 3^i epochs at 10^(−i/7) of the first step size
SCHEDULES = {
    "text": """
        --fit.schedule MultiStepLR --fit.schedule.gamma 0.7196856730011519
        --fit.schedule.milestones {milestones}
    """,
    "code": "--fit.schedule paper_optimizers.RoundedSteps",
}
#: Why a whole budget may end elsewhere.
CAUSES = {
    "text": "the figures are the code's, which differs from the text: --recipe code",
    "code": "other random numbers, and minibatches in a new order in every epoch",
}
BIAS = {"text": "null", "code": "data"}
HELD_OUT = {
    ("text", "mnist"): 0,
    ("text", "omniglot"): 0,
    ("code", "mnist"): 400,
    ("code", "omniglot"): 1345,
}
TRAIN_SIZES = {"mnist": 60_000, "omniglot": 24_345}
#: For ``smoke``: 150 digits to learn from, and few enough test digits to count units on.
DIGITS = "--data.name mnist5k --data.test 100 --data.valid 4750"
#: The last i of a preset: 3280 epochs are the paper's, 13 are 0.4 % of them.
STAGES = {"smoke": 0, "small": 2, "paper": 7}


def presets(recipe: str, valid: int, digits: str = "") -> dict[str, Preset]:
    """The presets of a recipe that holds out so many training data.

    Arguments:
        recipe: ``text`` or ``code``.
        valid: how many.
        digits: words for other data in ``smoke``.
    """
    made = {}
    for name, last in STAGES.items():
        smoke = name == "smoke"
        values = {
            "hidden": "[20]" if smoke else "[200,200]",
            "half": "[10]" if smoke else "[100,100]",
            "k": 6 if smoke else 50,
            "bias": BIAS[recipe],
            "lr": 0.001,
            "valid": min(valid, 10) if smoke else valid,
            "digits": digits if smoke else "",
            "milestones": str([(3**i - 1) // 2 for i in range(1, last + 1)]).replace(" ", ""),
        }
        fit = f"--fit.epochs {(3 ** (last + 1) - 1) // 2} --fit.batch_size 20"
        made[name] = Preset(
            fit=f"{fit} {OPTIMIZERS[recipe]} {SCHEDULES[recipe]}",
            num_samples=50 if smoke else 5000,
            num_data={"smoke": 20, "small": 2000}.get(name),
            values=values,
        )
    return made


def cells() -> dict[str, str]:
    """The twelve cells of a data set."""
    return {
        iwae_row(layers, objective, k): f"{words} {OBJECTIVES[objective]} {KS[k]}"
        for (layers, words), objective, k in product(LAYERS.items(), OBJECTIVES, KS)
    }


def claims(units: bool = True) -> dict[str, Claim]:
    """The paper's orderings."""
    found: dict[str, Claim] = {}
    for layers in LAYERS:
        rows = {(o, k): iwae_row(layers, o, k) for o, k in product(OBJECTIVES, KS)}
        name = f"{layers} layer{'s' if layers > 1 else ''}"
        one, few, many = (rows["IWAE", k] for k in KS)
        vae, averaged = rows["VAE", 1], rows["VAE", 50]
        found |= {
            f"{name}: IWAE, 1 to 5": higher(f"{name}: IWAE is better with k = 5 than 1", few, one),
            f"{name}: IWAE, 5 to 50": higher(
                f"{name}: IWAE is better with k = 50 than 5", many, few
            ),
            f"{name}: hardly the VAE": Claim(
                f"{name}: k = 50 instead of 1 gains the IWAE more than the VAE",
                {many: 1.0, one: -1.0, averaged: -1.0, vae: 1.0},
            ),
            f"{name}: the VAE, 1 to 50": higher(
                f"{name}: VAE is better with k = 50 than 1", averaged, vae
            ),
        }
        if units:
            found |= {
                f"{name}: units, 1 to 5": higher(
                    f"{name}: IWAE has more active units with k = 5 than 1",
                    *(few, one, "active units"),
                ),
                f"{name}: units, 5 to 50": higher(
                    f"{name}: IWAE has more active units with k = 50 than 5",
                    *(many, few, "active units"),
                ),
                f"{name}: units of the VAE": higher(
                    f"{name}: IWAE, k = 50, has more active units than the VAE, k = 50",
                    *(many, averaged, "active units"),
                ),
            }
    return found


def table(recipe: str, data: str) -> Table:
    """Table 1 by a recipe, of a data set."""
    digits = DIGITS if data == "mnist" else ""
    tags: Mapping[str, str] = {"recipe": recipe, "data": data}
    return Table(
        name="iwae_table1",
        title=(
            f"VAE and IWAE on {data}, binarised anew for every minibatch, by the recipe of the "
            f"paper's {recipe}; test data"
        ),
        base=f"--data.name {data} --data.binarize dynamic --data.valid {{valid}} {{digits}}",
        cells=cells(),
        measures={"active units": active_units},
        published=IWAE_TABLE_1[data],
        claims=claims(),
        causes={"": CAUSES[recipe]},
        train_size=TRAIN_SIZES[data] - HELD_OUT[recipe, data],
        presets=presets(recipe, HELD_OUT[recipe, data], digits),
        variant=tags,
        tag="-".join(value for value in tags.values() if value not in ("text", "mnist")),
    )


TABLES = [table(recipe, data) for data, recipe in product(TRAIN_SIZES, OPTIMIZERS)]
TABLE = TABLES[0]

if __name__ == "__main__":
    sys.exit(main(TABLES))
