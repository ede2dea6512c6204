"""A trained VAE is trained further as an IWAE, and a trained IWAE as a VAE.

Importance Weighted Autoencoders (Burda et al., 2015), table 2. https://arxiv.org/abs/1509.00519

Each row starts from the weights of a cell of table 1 (``--start_from``), which is run if necessary,
and repeats its last stage with the other objective: 3⁷ epochs at 1e-4 in ``paper``, 3² epochs at
the step size of i = 2 in ``small``. Adam starts again, with second moments at 1 in ``--recipe
code``; the authors' code kept its moments.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from ..command import main
from ..tables import Preset, Table, ordering, start_label
from .iwae_paper import ONE_LAYER, RECIPES, TABLE_2, Recipe, row_name
from .iwae_table1 import OBJECTIVES, STAGES, describe
from .iwae_table1 import make_table as table1

TO_IWAE, TO_VAE = TABLE_2


def last_stage(preset: Preset, recipe: Recipe, last: int) -> Preset:
    """Return a preset with the last stage only, at its step size."""
    args = recipe.fit_stage(last)
    values = {**preset.values, "lr": float(f"{1e-3 * 10 ** (-last / 7):.4g}")}
    return replace(preset, fit=args, values=values)


def make_table(recipe: Recipe) -> Table:
    """Return table 2 with one of the recipes."""
    first = table1(recipe, "mnist")
    rows = {TO_IWAE: row_name(1, "VAE", 1), TO_VAE: row_name(1, "IWAE", 50)}
    return replace(
        first,
        name="iwae_table2",
        title=(
            f"One layer on mnist, trained further with the other objective and {describe(recipe)}; "
            f"Adam starts again; test data"
        ),
        cells={
            TO_IWAE: f"{ONE_LAYER} {OBJECTIVES['IWAE']} {{k}}",
            TO_VAE: f"{ONE_LAYER} {OBJECTIVES['VAE']} 1",
        },
        published=TABLE_2,
        claims={
            "to IWAE": ordering(
                "a trained VAE improves when trained further as an IWAE",
                TO_IWAE,
                start_label(TO_IWAE),
            ),
            "units to IWAE": ordering(
                "the VAE has more active units when trained further as an IWAE",
                TO_IWAE,
                start_label(TO_IWAE),
                "active units",
            ),
            "to VAE": ordering(
                "a trained IWAE gets worse when trained further as a VAE",
                start_label(TO_VAE),
                TO_VAE,
            ),
            "units to VAE": ordering(
                "the IWAE has fewer active units when trained further as a VAE",
                start_label(TO_VAE),
                TO_VAE,
                "active units",
            ),
        },
        causes={"": "Adam starts again; the authors' code kept its moments"},
        starts={row: (first, start) for row, start in rows.items()},
        presets={
            name: last_stage(preset, recipe, STAGES[name]) for name, preset in first.presets.items()
        },
        variant=recipe.variant,
        tag=recipe.tag,
    )


TABLES = [make_table(recipe) for recipe in RECIPES]
TABLE = TABLES[0]

if __name__ == "__main__":
    sys.exit(main(TABLES))
