"""Makes the file that all contenders start from: digits and the weights of a VAE."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from torch import nn

import pyro_vae as pv

__all__ = ["make"]


def make(path: Path, hidden: tuple[int, ...], latent_dim: int, epochs: int = 0) -> Path:
    """Writes ``mnist5k``, binarised once, 4000 to train on and 1000 to judge, and weights.

    They are learned for some epochs, or a contender that forgot the KL divergence, which is
    nothing before, would not be found out.

    Arguments:
        path: the ``.npz`` file to write.
        hidden: the widths of the encoder's hidden layers; the decoder has them in reverse.
        latent_dim: the number of latent variables.
        epochs: of learning.
    """
    data = pv.data.load("mnist5k", binarize="static", valid=0, test=1000)
    train, test = (split.materialize(0).flatten(1) for split in (data.train, data.test))
    pyro.set_rng_seed(0)
    vae = pv.VAE(
        train.shape[1:],
        latent_dim,
        encoder=partial(pv.networks.MLP, hidden=hidden),
        decoder=partial(pv.networks.MLP, hidden=hidden[::-1]),
    )
    if epochs:
        pv.fit(vae, train, epochs=epochs, seed=0, device="cpu")
    arrays: dict[str, Any] = {"train": train.bool().numpy(), "test": test.bool().numpy()}
    for name, network in (("encoder", vae.posterior.network), ("decoder", vae.likelihood.network)):
        linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for i, layer in enumerate(linear):
            arrays[f"{name}.{i}.weight"] = layer.weight.detach().numpy()
            arrays[f"{name}.{i}.bias"] = layer.bias.detach().numpy()
    np.savez(path, **arrays)
    return path
