"""Posterior collapse with a deep decoder, and its remedies: KL warm-up and free bits.

Ladder Variational Autoencoders (Sønderby et al., 2016), section 2.3, for the warm-up, and
Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
appendix C.8, for free bits. https://arxiv.org/abs/1602.02282 https://arxiv.org/abs/1606.04934
"""

from __future__ import annotations

import sys

from ..command import main
from ..papers.iwae_paper import measure_active_units
from ..tables import ADAM, Table, budget, smoke

DEEP = "--model.decoder.hidden {deep}"
WARM_UP = "--objective.beta LinearWarmUp --objective.beta.epochs {rising}"
FREE_BITS = "--objective.free_bits {nats}"

TABLE = Table(
    name="collapse",
    title="Posterior collapse: active units out of 50, dynamically binarised MNIST",
    base="""
        --data.name mnist --data.binarize dynamic --data.valid 0 --model.latent_dim 50
        --model.encoder MLP --model.encoder.hidden {hidden}
        --model.decoder MLP --model.decoder.output_bias data --objective ELBO
    """,
    cells={
        "deep decoder": DEEP,
        "deep, LinearWarmUp": f"{DEEP} {WARM_UP}",
        "deep, Cyclical": f"""
            {DEEP} --objective.beta Cyclical --objective.beta.period {{period}}
        """,
        "deep, free bits": f"{DEEP} {FREE_BITS}",
        "deep, LinearWarmUp, free bits": f"{DEEP} {WARM_UP} {FREE_BITS}",
        "shallow decoder": "--model.decoder.hidden {hidden}",
    },
    measures={"active units": measure_active_units},
    presets={
        "smoke": smoke(hidden="[20]", deep="[20,20]", rising=1, period=1, nats=0.1),
        "small": budget(
            f"--fit.epochs 12 {ADAM}",
            num_data=1000,
            hidden="[200,200]",
            deep="[200,200,200,200,200]",
            rising=8,
            period=4,
            nats=0.2,
        ),
        "paper": budget(
            """
                --fit.epochs 2000 --fit.batch_size 256
                --fit.optimizer Adam --fit.optimizer.lr 0.001
            """,
            hidden="[200,200]",
            deep="[200,200,200,200,200]",
            rising=200,
            period=100,
            nats=0.2,
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
