"""A trained VAE goes on as an IWAE, and a trained IWAE as a VAE: is it the objective?

Importance Weighted Autoencoders (Burda et al., 2015), table 2. https://arxiv.org/abs/1509.00519

Each row begins with the weights of a cell of table 1 (``--start_from``), which is run if it is not
there, and does its last stage again with the other objective: in ``paper`` 3⁷ epochs at 1e-4, in
``small`` 3² epochs at the step size of i = 2. Adam's moments begin anew; the authors' code kept
them.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from .claims import before, higher
from .iwae_table1 import OBJECTIVES, ONE_LAYER, OPTIMIZERS, STAGES
from .iwae_table1 import table as table1
from .published import IWAE_TABLE_2, iwae_row
from .table import Preset, Table, main

TO_IWAE, TO_VAE = IWAE_TABLE_2


def again(preset: Preset, recipe: str, last: int) -> Preset:
    """The last stage alone, at its step size."""
    words = f"--fit.epochs {3**last} --fit.batch_size 20 {OPTIMIZERS[recipe]}"
    values = {**preset.values, "lr": float(f"{1e-3 * 10 ** (-last / 7):.4g}")}
    return replace(preset, fit=words, values=values)


def table(recipe: str) -> Table:
    """Table 2 by a recipe."""
    first = table1(recipe, "mnist")
    rows = {TO_IWAE: iwae_row(1, "VAE", 1), TO_VAE: iwae_row(1, "IWAE", 50)}
    return replace(
        first,
        name="iwae_table2",
        title=(
            f"One layer on mnist, trained and then trained again with the other objective, by the "
            f"recipe of the paper's {recipe}; test data"
        ),
        cells={
            TO_IWAE: f"{ONE_LAYER} {OBJECTIVES['IWAE']} {{k}}",
            TO_VAE: f"{ONE_LAYER} {OBJECTIVES['VAE']} 1",
        },
        published=IWAE_TABLE_2,
        claims={
            "to IWAE": higher(
                "a trained VAE gains by going on as an IWAE", TO_IWAE, before(TO_IWAE)
            ),
            "units to IWAE": higher(
                "it has more active units then", TO_IWAE, before(TO_IWAE), "active units"
            ),
            "to VAE": higher("a trained IWAE loses by going on as a VAE", before(TO_VAE), TO_VAE),
            "units to VAE": higher(
                "it has fewer active units then", before(TO_VAE), TO_VAE, "active units"
            ),
        },
        causes={"": "Adam's moments begin anew, the authors' code kept them"},
        starts={row: (first, start) for row, start in rows.items()},
        presets={
            name: again(preset, recipe, STAGES[name]) for name, preset in first.presets.items()
        },
        variant={"recipe": recipe},
        tag="" if recipe == "text" else recipe,
    )


TABLES = [table(recipe) for recipe in OPTIMIZERS]
TABLE = TABLES[0]

if __name__ == "__main__":
    sys.exit(main(TABLES))
