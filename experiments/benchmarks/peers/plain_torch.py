"""The VAE of the PyTorch examples: BCE + KL and Adam, eager or compiled.

References:
    Basic VAE Example (pytorch/examples). https://github.com/pytorch/examples/tree/main/vae
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from job import Job, Layers, Run, find_fastest
from torch import Tensor, nn


class Networks(nn.Module):
    """The problem's networks on the device, see ``Problem``."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(map(make_mlp, job.problem.encoders))
        self.decoders = nn.ModuleList(map(make_mlp, job.problem.decoders))
        self.to(job.device)


def make_mlp(layers: Layers) -> nn.Sequential:
    """Return linear layers with tanh between them."""
    modules = [m for weight, _ in layers for m in (nn.Tanh(), nn.Linear(*weight.T.shape))]
    network = nn.Sequential(*modules[1:])
    load_weights(network, layers)
    return network


def load_weights(network: nn.Module, layers: Layers) -> None:
    for parameter, array in zip(network.parameters(), chain(*layers), strict=True):
        parameter.data = torch.tensor(array)


def loss_function(vae: Networks, x: Tensor) -> Tensor:
    """Return BCE + KL, summed over the minibatch; between layers of latents, KL at the sample."""
    z, q, loss = [x], [], 0
    for encoder in vae.encoders:
        mu, log_scale = encoder(z[-1]).chunk(2, -1)
        z.append(mu + torch.randn_like(mu) * torch.exp(log_scale))
        q.append((mu, log_scale))
    for i in range(1, len(q)):
        p = vae.decoders[i](z[i + 1]).chunk(2, -1)
        for (mu, log_scale), sign in ((p, 1), (q[i - 1], -1)):
            terms = log_scale + 0.5 * ((z[i] - mu) / torch.exp(log_scale)).pow(2)
            loss = loss + sign * terms.sum()
    bce = F.binary_cross_entropy(torch.sigmoid(vae.decoders[0](z[1])), x, reduction="sum")
    mu, logvar = q[-1][0], 2 * q[-1][1]
    return loss + bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def prepare_training(job: Job) -> Run:
    """Prepare steps of the example's training loop, with the loss compiled if requested."""
    torch.manual_seed(0)
    vae = Networks(job)
    optimizer = torch.optim.Adam(vae.parameters(), lr=job.learning_rate)
    compute_loss = torch.compile(loss_function) if job.compiled else loss_function

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        loss = compute_loss(vae, x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return prepare_steps(job, step)


def prepare_steps(job: Job, step: Callable[[Tensor], Any]) -> Run:
    """Prepare steps on minibatches gathered from data on the device."""
    x = torch.from_numpy(job.problem.train).to(job.device)

    def run(inputs: np.ndarray) -> list[float]:
        rows = torch.from_numpy(inputs).to(job.device)
        return [sum(step(x[index]) for index in rows) / inputs.size]

    return run


def prepare_images(
    job: Job, estimate: Callable[[Tensor, int], float], num_parts: tuple[int, ...]
) -> Run:
    """Prepare estimates image by image, with the samples in the fastest number of parts."""
    x = torch.from_numpy(job.problem.test).to(job.device)
    sizes = [job.num_samples // n for n in num_parts if job.num_samples % n == 0]
    with torch.no_grad():
        size = find_fastest(lambda size: estimate(x[:1], size), sizes)
    return torch.no_grad()(lambda images: [estimate(x[i : i + 1], size) for i in images])


TASKS = {"step": prepare_training}
