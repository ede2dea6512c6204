"""pythae's ``get_nll``.

References:
    Pythae: Unifying Generative Autoencoders in Python (Chadebec et al., 2022).
    https://arxiv.org/abs/2206.08309
"""

# these packages are in the extra bench, not in dev
# pyright: reportMissingImports=false

from __future__ import annotations

import torch
from job import Job, Run
from peers.plain_torch import make_mlp, prepare_images
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder


class Encoder(BaseEncoder):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        loc, log_scale = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z):
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


def prepare_evaluation(job: Job) -> Run:
    """Prepare ``get_nll``.

    It runs image by image, because ``get_nll`` returns a mean over images, and under ``no_grad``,
    because ``get_nll`` would otherwise record an unused autograd graph.
    """
    problem = job.problem
    options = {"input_dim": problem.train.shape[1:], "latent_dim": problem.latent_dims[0]}
    encoder, decoder = Encoder(make_mlp(*problem.encoders)), Decoder(make_mlp(*problem.decoders))
    vae = VAE(VAEConfig(**options, reconstruction_loss="bce"), encoder=encoder, decoder=decoder)
    vae = vae.to(job.device).eval()

    def log_evidence(image: torch.Tensor, batch_size: int) -> float:
        return float(vae.get_nll(image, n_samples=job.num_samples, batch_size=batch_size))

    return prepare_images(job, log_evidence, (1, 5, 50))


TASKS = {"evaluation": prepare_evaluation}
