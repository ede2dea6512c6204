"""Pyro's ``SVI`` with the model and guide of Pyro's VAE tutorial.

Two changes make it faster than the tutorial: the decoder outputs logits instead of probabilities,
which the distribution would convert back, and all of Pyro's validation is off, not only that of
the distributions.

References:
    Variational Autoencoders (Pyro tutorials). https://pyro.ai/examples/vae.html
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from job import Job, Run, find_fastest
from peers.torch_networks import Networks
from pyro.infer import ELBO, SVI, RenyiELBO, Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch", "pyro-ppl")


class VAE(Networks):
    def __init__(self, job: Job) -> None:
        pyro.enable_validation(False)
        pyro.set_rng_seed(0)
        super().__init__(job)
        self.latent_dim = job.data.latent_dim

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], self.latent_dim), x.new_ones(self.latent_dim)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def prepare_training(job: Job, loss: ELBO) -> Run:
    """Prepare steps of ``SVI`` with ``pyro.optim.Adam``."""
    vae, x = VAE(job), torch.from_numpy(job.data.train).to(job.device)
    svi = SVI(vae.model, vae.guide, Adam({"lr": job.learning_rate}), loss=loss)

    def run(inputs: np.ndarray) -> list[float]:
        rows = torch.from_numpy(inputs).to(job.device)
        return [sum(cast(float, svi.step(x[index])) for index in rows) / inputs.size]

    return run


def prepare_evaluation(job: Job) -> Run:
    """Prepare L_K by ``vectorized_importance_weights``.

    It runs image by image, because the log weights it returns are summed over the batch. The
    samples of an image take 1, 5 or 20 calls, whichever is fastest.
    """
    vae, x = VAE(job).eval(), torch.from_numpy(job.data.test).to(job.device)

    @torch.no_grad()
    def log_evidence(image: Tensor, num_samples: int) -> float:
        weights = [
            vectorized_importance_weights(
                *(vae.model, vae.guide, image),
                num_samples=num_samples,
                max_plate_nesting=1,
                normalized=False,
            )[0]
            for _ in range(job.num_samples // num_samples)
        ]
        return float(
            torch.cat(cast(list[Tensor], weights)).logsumexp(0) - math.log(job.num_samples)
        )

    sizes = [job.num_samples // parts for parts in (1, 5, 20) if job.num_samples % parts == 0]
    size = find_fastest(lambda size: log_evidence(x[:1], size), sizes)
    return lambda images: [log_evidence(x[i : i + 1], size) for i in images]


TASKS = {
    "step": lambda job: prepare_training(job, Trace_ELBO()),
    "iwae": lambda job: prepare_training(
        job,
        RenyiELBO(
            alpha=0, num_particles=job.num_samples, vectorize_particles=True, max_plate_nesting=1
        ),
    ),
    "evaluation": prepare_evaluation,
}
