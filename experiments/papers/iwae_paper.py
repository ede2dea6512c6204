"""Networks, recipes, measures and published results of Importance Weighted Autoencoders.

Burda, Grosse & Salakhutdinov, 2015. https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from scipy.stats import norm

import pyro_vae as pv
from pyro_vae.data import Dataset
from pyro_vae.models import Autoencoder

from ..tables import Published

__all__ = [
    "CODE",
    "MEASURES",
    "ONE_LAYER",
    "RECIPES",
    "SAMPLED_KL",
    "TABLE_1",
    "TABLE_2",
    "TABLE_3",
    "TEXT",
    "TWO_LAYERS",
    "Recipe",
    "count_units_as_authors",
    "measure_active_units",
    "measure_ladder_gain",
    "row_name",
]

_PAPER = "Burda, Grosse & Salakhutdinov 2015, arXiv 1509.00519"
ONE_LAYER = """
    --model.latent_dim 50
    --model.encoder {network} --model.encoder.hidden {hidden} --model.encoder.init glorot
    --model.decoder {network} --model.decoder.hidden {hidden} --model.decoder.init glorot
    --model.decoder.output_bias {bias}
"""
_FIRST_DECODER = (
    "{{class_path: {network}, init_args: {{hidden: {hidden}, init: glorot, output_bias: {bias}}}}}"
)
# x – 200 – 200 – z1 (100) – 100 – 100 – z2 (50), and back
TWO_LAYERS = """
    --model HierarchicalVAE --model.latent_dims [100,50]
    --model.encoders '[
        {{class_path: {network}, init_args: {{hidden: {hidden}, init: glorot}}}},
        {{class_path: {network}, init_args: {{hidden: {half}, init: glorot}}}}
    ]'
    --model.decoders '[
        {first_decoder},
        {{class_path: {network}, init_args: {{hidden: {half}, init: glorot}}}}
    ]'
""".replace("{first_decoder}", _FIRST_DECODER)


#: The KL is estimated by sampling, as in both recipes.
SAMPLED_KL = "--objective.analytic_kl false"
#: Test examples of the ladder, which takes about a second for each.
_LADDER_EXAMPLES = 200
_PLUGIN = "--plugin {here}/paper_optimizers.py"


@dataclass(frozen=True)
class Recipe:
    """Training of the paper, by its text or by the authors' code, with the choices left open.

    In both, minibatches have 20 examples, and stage i = 0 … 7 is 3^i epochs at 10^(−i/7) times
    the first step size, 0.001.

    Attributes:
        name: ``text`` or ``code``.
        optimizer, schedule: arguments of ``pyro-vae fit``, the first with a placeholder ``{lr}``.
        held_out: number of training examples held out, by data set.
        cause: suspected cause of a difference from the paper at the full budget.
        bias: ``data`` if the output bias starts at the logit of the training mean, or ``none``.
        start: ``independent`` initial weights, or ``identical`` ones for layers of one shape.
    """

    name: str
    optimizer: str
    schedule: str
    held_out: Mapping[str, int]
    cause: str
    bias: str = "data"
    start: str = "independent"

    @property
    def variant(self) -> dict[str, str]:
        """Options that select the recipe."""
        return {"recipe": self.name, "bias": self.bias, "start": self.start}

    @property
    def tag(self) -> str:
        """Suffix of file names."""
        choices = {"text": "", "data": "", "none": "no-bias", _DEFAULT_START[self.name]: ""}
        return "-".join(filter(None, (choices.get(c, c) for c in self.variant.values())))

    @property
    def values(self) -> dict[str, Any]:
        """Replacements of the placeholders of the networks."""
        network = {"independent": "MLP", "identical": "paper_optimizers.IdenticalStartMLP"}
        bias = {"data": "data", "none": "null"}
        return {"network": network[self.start], "bias": bias[self.bias]}

    def fit(self, last: int) -> str:
        """Return the arguments of ``pyro-vae fit`` for the stages up to ``last``."""
        milestones = str([(3**i - 1) // 2 for i in range(1, last + 1)]).replace(" ", "")
        schedule = self.schedule.replace("{milestones}", milestones)
        epochs = (3 ** (last + 1) - 1) // 2
        return f"--fit.epochs {epochs} --fit.batch_size 20 {self.optimizer} {schedule}"

    def fit_stage(self, stage: int) -> str:
        """Return the arguments of ``pyro-vae fit`` for one stage alone, without a schedule."""
        return f"--fit.epochs {3**stage} --fit.batch_size 20 {self.optimizer}"


_DEFAULT_START = {"text": "independent", "code": "identical"}
TEXT = Recipe(
    name="text",
    # Gradients here are sums over the minibatch. The text is read as using means over 20 examples,
    # which gives the same steps if ε = 1e-4 is multiplied by 20.
    optimizer="--fit.optimizer Adam --fit.optimizer.lr {lr} --fit.optimizer.eps 0.002",
    schedule=(
        "--fit.schedule MultiStepLR --fit.schedule.gamma 0.7196856730011519 "
        "--fit.schedule.milestones {milestones}"
    ),
    held_out={"mnist": 0, "omniglot": 0},
    cause="the published numbers are from the code, which differs from the text: --recipe code",
)
CODE = Recipe(
    name="code",
    optimizer=f"{_PLUGIN} --fit.optimizer paper_optimizers.AdamFromOne --fit.optimizer.lr {{lr}}",
    schedule="--fit.schedule paper_optimizers.RoundedSteps",
    held_out={"mnist": 400, "omniglot": 1345},
    cause="other random numbers, and minibatches shuffled in every epoch",
    start="identical",
)
#: Without options, the first recipe of a name is selected.
RECIPES = (TEXT, CODE, replace(TEXT, bias="none"), replace(CODE, start="independent"))


def measure_active_units(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the active units on the test examples, by layer and bottom up (e.g. 26+7).

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5.2.
        https://arxiv.org/abs/1509.00519
    """
    units = pv.active_units(model, data.test)
    counts = dict(sorted(units.counts.items()))
    probabilities = [
        norm.cdf((v - units.threshold) / np.maximum(units.se[site], 1e-12))
        for site, v in units.variance.items()
    ]
    return {
        "value": sum(counts.values()),
        # uncertainty of the units near the threshold, treated as independent
        "se": float(sum((p * (1 - p)).sum() for p in probabilities)) ** 0.5,
        "text": "+".join(map(str, counts.values())),
        "variance": {site: v.round(5).tolist() for site, v in units.variance.items()},
        "num_samples": units.num_samples,
    }


@torch.no_grad()
def count_units_as_authors(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return the active units as the authors' code estimates them.

    It has the first 500 training examples and one sample of each layer: the variance of E[h2|h1]
    over the examples includes that of h1 given x. ``value`` and ``text`` are as for
    :func:`measure_active_units`.

    References:
        ``get_units_variances`` in https://github.com/yburda/iwae/blob/master/iwae.py
    """
    # the guide is run by Pyro itself, which stores the parameters
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.manual_seed(0)
        x = data.train.head(500).draw()
        sites: dict[str, Any] = dict(poutine.trace(model.guide).get_trace(x).nodes)
    latents = sorted(name for name, site in sites.items() if name.startswith("z"))
    means = [sites[name]["fn"].base_dist.loc for name in latents]
    counts = [int((mean.var(0, correction=0) >= 0.01).sum()) for mean in means]
    return {"value": sum(counts), "text": "+".join(map(str, counts))}


def measure_ladder_gain(model: Autoencoder, data: Dataset) -> dict[str, Any]:
    """Return by how much L_5000 falls short of log p̂ from the ladder of proposals, in nats.

    The mean of log p̂ − L_5000 over the first 200 test examples, with the standard error over these
    examples. ``text`` says how many log p̂ are flagged, if any.
    """
    bounds = pv.evaluate(model, data.test.head(_LADDER_EXAMPLES), num_samples=5000, reliable=True)
    gain = bounds.per_datum["log_evidence"] - bounds.per_datum["guide_log_evidence"]
    value, error = float(gain.mean()), float(gain.std(ddof=1)) / len(gain) ** 0.5
    flagged = len(bounds.unreliable)
    note = f" ({flagged} of {len(gain)} flagged)" if flagged else ""
    return {
        "value": value,
        "se": error,
        "text": f"{value:+.2f} ± {error:.2f}{note}",
        "unreliable": flagged,
        "num_data": len(gain),
    }


#: Columns of the tables: our estimate, and that of the authors' code, which the paper printed.
MEASURES = {"active units": measure_active_units, "as the authors": count_units_as_authors}


def _parse_published(text: str, source: str) -> Published:
    """Parse "NLL / active units", the format of the paper's tables."""
    nll, _, units = text.partition(" / ")
    return Published(-float(nll), source, tuple(int(n) for n in units.split("+")) if units else ())


def row_name(layers: int, objective: str, k: int) -> str:
    """Return the name of a row of the IWAE paper's tables."""
    return f"{layers} layer{'s' if layers > 1 else ''}: {objective}, k = {k}"


def _parse_rows(
    source: str, printed: Mapping[tuple[int, int], tuple[str, str]]
) -> dict[str, Published]:
    return {
        row_name(layers, objective, k): _parse_published(text, source)
        for (layers, k), pair in printed.items()
        for objective, text in zip(("VAE", "IWAE"), pair, strict=True)
    }


#: By data set, then by row. The VAE averages its k samples.
TABLE_1 = {
    "mnist": _parse_rows(
        f"{_PAPER}, table 1",
        {
            (1, 1): ("86.76 / 19", "86.76 / 19"),
            (1, 5): ("86.47 / 20", "85.54 / 22"),
            (1, 50): ("86.35 / 20", "84.78 / 25"),
            (2, 1): ("85.33 / 16+5", "85.33 / 16+5"),
            (2, 5): ("85.01 / 17+5", "83.89 / 21+5"),
            (2, 50): ("84.78 / 17+5", "82.90 / 26+7"),
        },
    ),
    "omniglot": _parse_rows(
        f"{_PAPER}, table 1",
        {
            (1, 1): ("108.11 / 28", "108.11 / 28"),
            (1, 5): ("107.62 / 28", "106.12 / 34"),
            (1, 50): ("107.80 / 28", "104.67 / 41"),
            (2, 1): ("107.58 / 28+4", "107.56 / 30+5"),
            (2, 5): ("106.31 / 30+5", "104.79 / 38+6"),
            (2, 50): ("106.30 / 30+5", "103.38 / 44+7"),
        },
    ),
}
TABLE_2 = {
    "VAE, then IWAE, k = 50": _parse_published("84.88 / 22", f"{_PAPER}, table 2"),
    "IWAE, k = 50, then VAE": _parse_published("86.02 / 23", f"{_PAPER}, table 2"),
}
TABLE_3 = _parse_rows(
    f"{_PAPER}, table 3 (Larochelle's binarisation)",
    {
        (1, 1): ("88.71", "88.71"),
        (1, 5): ("88.83", "87.63"),
        (1, 50): ("89.05", "87.10"),
        (2, 1): ("88.08", "88.08"),
        (2, 5): ("87.63", "86.17"),
        (2, 50): ("87.86", "85.32"),
    },
)
