"""The VAE of the PyTorch examples: BCE + KL and Adam, eager or compiled.

References:
    Basic VAE Example (pytorch/examples). https://github.com/pytorch/examples/tree/main/vae
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from job import Job, Plan, Run
from peers.torch_networks import Decoder, Encoder
from torch import Tensor, nn

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch",)


class VAE(nn.Module):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(job.data), Decoder(job.data)
        self.to(job.device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_scale = self.encoder(x)
        z = mu + torch.randn_like(mu) * torch.exp(log_scale)
        return torch.sigmoid(self.decoder(z)), mu, 2 * log_scale


def loss_function(vae: VAE, x: Tensor) -> Tensor:
    """Return BCE + KL, summed over the minibatch."""
    recon_x, mu, logvar = vae(x)
    bce = F.binary_cross_entropy(recon_x, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return bce + kld


def plan_step(job: Job) -> Plan:
    """Plan steps of the example's training loop, with the loss compiled if requested."""
    torch.manual_seed(0)
    vae = VAE(job)
    x = torch.from_numpy(job.data.train).to(job.device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=job.learning_rate)
    compute_loss = torch.compile(loss_function) if job.compiled else loss_function
    next_rows = job.make_minibatch_sampler()

    def plan(count: int) -> Run:
        rows = torch.from_numpy(next_rows(count)).to(job.device)

        def run() -> list[float]:
            train_loss = 0.0
            for index in rows:
                optimizer.zero_grad()
                loss = compute_loss(vae, x[index])
                loss.backward()
                train_loss += loss.item()
                optimizer.step()
            return [train_loss / rows.numel()]

        return run

    return plan


TASKS = {"step": plan_step}
