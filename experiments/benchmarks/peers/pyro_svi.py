"""Pyro's ``SVI`` with the model and guide of Pyro's VAE tutorial.

Two changes make it faster than the tutorial: the decoder outputs logits instead of probabilities,
which the distribution would convert back, and all of Pyro's validation is off, not only that of
the distributions.

References:
    Variational Autoencoders (Pyro tutorials). https://pyro.ai/examples/vae.html
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from job import Job, Run
from peers.plain_torch import Networks, prepare_images, prepare_steps
from pyro.infer import ELBO, SVI, RenyiELBO, Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor


class VAE(Networks):
    def __init__(self, job: Job) -> None:
        pyro.enable_validation(False)
        pyro.set_rng_seed(0)
        super().__init__(job)
        (self.encoder,), (self.decoder,) = self.encoders, self.decoders
        (self.latent_dim,) = job.problem.latent_dims

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], self.latent_dim), x.new_ones(self.latent_dim)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def prepare_training(job: Job, loss: ELBO) -> Run:
    """Prepare steps of ``SVI`` with ``pyro.optim.Adam``."""
    vae = VAE(job)
    svi = SVI(vae.model, vae.guide, Adam({"lr": job.learning_rate}), loss=loss)
    return prepare_steps(job, svi.step)


def prepare_evaluation(job: Job) -> Run:
    """Prepare L_K by ``vectorized_importance_weights``.

    It runs image by image, because the log weights it returns are summed over the batch.
    """
    vae, options = VAE(job).eval(), {"max_plate_nesting": 1, "normalized": False}

    def log_evidence(image: Tensor, num_samples: int) -> float:
        program = (vae.model, vae.guide, image)
        weights: list[Any] = [
            vectorized_importance_weights(*program, num_samples=num_samples, **options)[0]
            for _ in range(job.num_samples // num_samples)
        ]
        return float(torch.cat(weights).logsumexp(0) - math.log(job.num_samples))

    return prepare_images(job, log_evidence, (1, 5, 20))


def prepare_iwae(job: Job) -> Run:
    options = {"num_particles": job.num_samples, "vectorize_particles": True}
    return prepare_training(job, RenyiELBO(alpha=0, max_plate_nesting=1, **options))


TASKS = {
    "step": lambda job: prepare_training(job, Trace_ELBO()),
    "iwae": prepare_iwae,
    "evaluation": prepare_evaluation,
}
