"""Training in bfloat16 beside float32: test ELBO and L_5000 of a VAE and an IWAE on MNIST.

The recipe of ``experiments/mnist_vae.yaml``, and an IWAE with k = 5, trained for fewer epochs. Both
are evaluated in float32. ``experiments/benchmarks/bench.py`` measures the time of a step.
"""

from __future__ import annotations

import sys

from ..command import main
from ..tables import Table, budget, group_rows, smoke

BASE = """
    --data.name mnist --data.binarize dynamic --data.valid 0 --model.latent_dim 50
    --model.encoder MLP --model.encoder.hidden {hidden}
    --model.decoder MLP --model.decoder.hidden {hidden}
    --fit.batch_size 100 --fit.compile {compile}
"""
PRECISIONS = {name: f"--fit.precision {name}" for name in ("float32", "bfloat16")}

TABLE = Table(
    name="precision",
    title="Precision of training: a VAE and an IWAE with 50 latents on binarised MNIST",
    base=BASE,
    cells={
        **group_rows("VAE", "--objective ELBO --fit.epochs {epochs}", PRECISIONS),
        **group_rows(
            "IWAE, k = 5", "--objective IWAE --objective.k 5 --fit.epochs {iwae_epochs}", PRECISIONS
        ),
    },
    presets={
        "smoke": smoke(hidden="[20]", compile="false", epochs=1, iwae_epochs=1),
        "small": budget(
            num_data=300, hidden="[200,200]", compile="true", epochs=30, iwae_epochs=10
        ),
        "paper": budget(hidden="[200,200]", compile="true", epochs=30, iwae_epochs=30),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
