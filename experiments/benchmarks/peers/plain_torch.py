"""The VAE of the PyTorch examples: BCE + KL and Adam, eager or compiled.

References:
    Basic VAE Example (pytorch/examples). https://github.com/pytorch/examples/tree/main/vae
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from job import Job, Run
from peers.torch_networks import Networks
from torch import Tensor

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch",)


def loss_function(vae: Networks, x: Tensor) -> Tensor:
    """Return BCE + KL, summed over the minibatch."""
    mu, log_scale = vae.encoder(x)
    z = mu + torch.randn_like(mu) * torch.exp(log_scale)
    bce = F.binary_cross_entropy(torch.sigmoid(vae.decoder(z)), x, reduction="sum")
    if not hasattr(vae, "upper_encoder"):
        return bce + kl_to_standard_normal(mu, 2 * log_scale)
    upper_mu, upper_log_scale = vae.upper_encoder(z)
    upper = upper_mu + torch.randn_like(upper_mu) * torch.exp(upper_log_scale)
    prior_mu, prior_log_scale = vae.upper_decoder(upper)
    # log q(z₁|x) − log p(z₁|z₂) at the sample
    ratio = 0.5 * ((z - prior_mu) / torch.exp(prior_log_scale)).pow(2) + prior_log_scale
    ratio -= 0.5 * ((z - mu) / torch.exp(log_scale)).pow(2) + log_scale
    return bce + ratio.sum() + kl_to_standard_normal(upper_mu, 2 * upper_log_scale)


def kl_to_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def prepare_step(job: Job) -> Run:
    """Prepare steps of the example's training loop, with the loss compiled if requested."""
    torch.manual_seed(0)
    vae, x = Networks(job), torch.from_numpy(job.data.train).to(job.device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=job.learning_rate)
    compute_loss = torch.compile(loss_function) if job.compiled else loss_function

    def run(inputs: np.ndarray) -> list[float]:
        train_loss = 0.0
        for index in torch.from_numpy(inputs).to(job.device):
            optimizer.zero_grad()
            loss = compute_loss(vae, x[index])
            loss.backward()
            train_loss += loss.item()
            optimizer.step()
        return [train_loss / inputs.size]

    return run


TASKS = {"step": prepare_step}
