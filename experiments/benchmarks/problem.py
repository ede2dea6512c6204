"""Creation of the file shared by all contenders: digits and the weights of a VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
from job import Upper
from ours import find_networks, make_model
from torch import nn

import pyro_vae as pv

__all__ = ["make_problem"]


def make_problem(
    path: Path,
    hidden: tuple[int, ...],
    latent_dim: int,
    upper: Upper | None = None,
    epochs: int = 0,
) -> Path:
    """Write statically binarised ``mnist5k`` (4000 training, 1000 test examples) and weights.

    The weights are trained for some epochs. With initial weights the KL divergence is near zero,
    and a contender that omits it would go unnoticed.

    Arguments:
        path: the ``.npz`` file to write.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse order.
        latent_dim: number of latent variables.
        upper: hidden layers and latents of a second layer, if any.
        epochs: number of training epochs.
    """
    data = pv.data.load("mnist5k", binarize="static", valid=0, test=1000)
    train, test = (split.materialize(0).flatten(1) for split in (data.train, data.test))
    pyro.set_rng_seed(0)
    vae = make_model(train.shape[1:], hidden, latent_dim, upper)
    if epochs:
        pv.fit(vae, train, epochs=epochs, seed=0, device="cpu")
    arrays: dict[str, Any] = {"train": train.bool().numpy(), "test": test.bool().numpy()}
    for name, network in find_networks(vae).items():
        linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for i, layer in enumerate(linear):
            arrays[f"{name}.{i}.weight"] = layer.weight.detach().numpy()
            arrays[f"{name}.{i}.bias"] = layer.bias.detach().numpy()
    np.savez(path, **arrays)
    return path
