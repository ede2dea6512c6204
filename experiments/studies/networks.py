"""Networks on MNIST with equal numbers of parameters: MLP, gated, convolutional, residual."""

from __future__ import annotations

import sys

from ..command import main
from ..tables import Table, budget, smoke


def both_networks(name: str, options: dict[str, str]) -> str:
    """Return the arguments of the same network for encoder and decoder."""
    slots = ("--model.encoder", "--model.decoder")
    args = [f"{s} {name} " + " ".join(f"{s}.{k} {v}" for k, v in options.items()) for s in slots]
    return " ".join(args)


TABLE = Table(
    name="networks",
    title=(
        "Networks with nearly equal numbers of parameters: a VAE with 40 latents on dynamically "
        "binarised MNIST, test digits"
    ),
    base="""
        --data.name mnist --data.binarize dynamic --data.valid 0 --model.latent_dim 40
        --fit.batch_size 100
    """,
    cells={
        "MLP": both_networks("MLP", {"hidden": "{mlp}"}),
        "GatedMLP": both_networks("GatedMLP", {"hidden": "{gated}"}),
        "ConvNet": both_networks("ConvNet", {"channels": "{channels}", "hidden": "{convnet}"}),
        "ResNet": both_networks(
            "ResNet", {"channels": "{channels}", "blocks": "{blocks}", "hidden": "{resnet}"}
        ),
    },
    presets={
        "smoke": smoke(
            mlp="[8]", gated="[4]", channels="[2,4]", blocks=1, convnet="[8]", resnet="[8]"
        ),
        # MLP: 419,264 parameters, the others within 0.5 %
        "small": budget(
            """
                --fit.epochs 15 --fit.optimizer Adam --fit.optimizer.lr 0.002
                --fit.schedule CosineAnnealingLR --fit.schedule.T_max 15 --fit.clip_norm 2000
            """,
            num_data=500,
            mlp="[200,200]",
            gated="[136,136]",
            channels="[8,16]",
            blocks=1,
            convnet="[246]",
            resnet="[239]",
        ),
        # 1,116,864 parameters, as the gated 300–300 network of the VampPrior paper
        "paper": budget(
            """
                --data.valid 10000 --fit.epochs 2000 --fit.patience 50
                --fit.optimizer Adam --fit.optimizer.lr 0.0005
            """,
            mlp="[435,435]",
            gated="[300,300]",
            channels="[32,64]",
            blocks=2,
            convnet="[168]",
            resnet="[110]",
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
