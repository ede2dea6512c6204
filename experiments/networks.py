"""Networks on MNIST: dense, gated, convolutional and residual, with as many parameters."""

from __future__ import annotations

import sys

from .table import Preset, Table, main


def both(name: str, options: dict[str, str]) -> str:
    """The words for the same network as encoder and as decoder."""
    slots = ("--model.encoder", "--model.decoder")
    words = [f"{s} {name} " + " ".join(f"{s}.{k} {v}" for k, v in options.items()) for s in slots]
    return " ".join(words)


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
        "MLP": both("MLP", {"hidden": "{mlp}"}),
        "GatedMLP": both("GatedMLP", {"hidden": "{gated}"}),
        "ConvNet": both("ConvNet", {"channels": "{channels}", "hidden": "{convnet}"}),
        "ResNet": both(
            "ResNet", {"channels": "{channels}", "blocks": "{blocks}", "hidden": "{resnet}"}
        ),
    },
    presets={
        "smoke": Preset(
            fit="--data.name mnist5k --data.test 4850 --fit.epochs 1",
            num_samples=50,
            num_data=20,
            values={
                "mlp": "[8]",
                "gated": "[4]",
                "channels": "[2,4]",
                "blocks": 1,
                "convnet": "[8]",
                "resnet": "[8]",
            },
        ),
        # 419,264 parameters, the others within 0.5 % of it
        "small": Preset(
            fit="""
                --fit.epochs 15 --fit.optimizer Adam --fit.optimizer.lr 0.002
                --fit.schedule CosineAnnealingLR --fit.schedule.T_max 15 --fit.clip_norm 2000
            """,
            num_data=500,
            values={
                "mlp": "[200,200]",
                "gated": "[136,136]",
                "channels": "[8,16]",
                "blocks": 1,
                "convnet": "[246]",
                "resnet": "[239]",
            },
        ),
        # 1,116,864 parameters, those of the gated 300–300 of the VampPrior paper
        "paper": Preset(
            fit="""
                --data.valid 10000 --fit.epochs 2000 --fit.patience 50
                --fit.optimizer Adam --fit.optimizer.lr 0.0005
            """,
            values={
                "mlp": "[435,435]",
                "gated": "[300,300]",
                "channels": "[32,64]",
                "blocks": 2,
                "convnet": "[168]",
                "resnet": "[110]",
            },
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(TABLE))
