"""pythae's ``get_nll``.

References:
    Pythae: Unifying Generative Autoencoders in Python (Chadebec et al., 2022).
    https://arxiv.org/abs/2206.08309
"""

# these packages are installed in the peers' environment only
# pyright: reportMissingImports=false

from __future__ import annotations

import torch
from job import Job, Run, find_fastest
from peers.torch_networks import Networks
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch", "pythae")


class Encoder(BaseEncoder):
    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.network = networks.encoder

    def forward(self, x):
        loc, log_scale = self.network(x)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.network = networks.decoder

    def forward(self, z):
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


def prepare_evaluation(job: Job) -> Run:
    """Prepare ``get_nll`` with the fastest of three batch sizes.

    It runs image by image, because ``get_nll`` returns a mean over images, and under ``no_grad``,
    because ``get_nll`` would otherwise record an unused autograd graph.
    """
    config = VAEConfig(
        input_dim=tuple(job.data.train.shape[1:]),
        latent_dim=job.data.latent_dim,
        reconstruction_loss="bce",
    )
    networks, K = Networks(job), job.num_samples
    vae = VAE(config, encoder=Encoder(networks), decoder=Decoder(networks)).to(job.device).eval()
    x = torch.from_numpy(job.data.test).to(job.device)

    @torch.no_grad()
    def log_evidence(i: int, batch_size: int) -> float:
        return float(vae.get_nll(x[i : i + 1], n_samples=K, batch_size=batch_size))

    sizes = [K // parts for parts in (1, 5, 50) if K % parts == 0]
    size = find_fastest(lambda size: log_evidence(0, size), sizes)
    return lambda images: [log_evidence(i, size) for i in images]


TASKS = {"evaluation": prepare_evaluation}
