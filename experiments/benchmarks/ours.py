"""The contender that is this package."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import pyro
import torch
from job import Job, Plan, Run
from pyro.infer import SVI
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.learning import CompiledSVI
from pyro_vae.learning.cuda_graph import make_capturable
from pyro_vae.learning.optimizers import FusedOptimizer

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch", "pyro-ppl", "pyro-vae")


def learn(job: Job, objective) -> Plan:
    """Steps of SVI, gathering minibatches from data on the device."""
    vae = model(job)
    x = torch.from_numpy(job.data.train).to(job.device)
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=job.learning_rate))
    take = job.minibatches()
    svi: SVI
    if job.compiled:
        optim.add(dict(vae.named_parameters()))
        if job.device == "cuda" and optim.optimizer is not None:
            make_capturable(optim.optimizer)
        svi = CompiledSVI(vae.model, vae.guide, optim, objective, draw=lambda rows: (x[rows],))
    else:
        svi = SVI(vae.model, vae.guide, optim, loss=objective)

    def plan(count: int) -> Run:
        rows = torch.from_numpy(take(count)).to(job.device)

        def run() -> list[float]:
            with pyro.validation_enabled(False):
                if job.compiled:
                    # nobody looks at a loss before all are there, as in ``fit``
                    total = float(torch.stack([cast(Tensor, svi.step(i)) for i in rows]).sum())
                else:
                    total = sum(cast(float, svi.step(x[index])) for index in rows)
            return [total / rows.numel()]

        return run

    return plan


def log_weights(job: Job) -> Plan:
    """L_K of each image from ``log_weights``, as one call."""
    vae = model(job).eval()
    x = torch.from_numpy(job.data.test).to(job.device)

    def plan(count: int) -> Run:
        images = repeated(x, count)

        def run() -> list[float]:
            log_w = pv.log_weights(vae.model, vae.guide, images, num_samples=job.num_samples)
            return (log_w.logsumexp(0) - math.log(job.num_samples)).tolist()

        return run

    return plan


def evaluate(job: Job) -> Plan:
    """The same from ``evaluate``, which also gives L_5, L_50, L_500, ELBO, ESS, k̂ and errors."""
    vae = model(job).eval()
    x = torch.from_numpy(job.data.test).to(job.device)
    seed = 0

    def plan(count: int) -> Run:
        images = repeated(x, count)

        def run() -> list[float]:
            nonlocal seed
            seed += 1
            bounds = pv.evaluate(vae, images, num_samples=job.num_samples, seed=seed)
            return bounds.per_datum["log_evidence"].tolist()

        return run

    return plan


def repeated(x: Tensor, count: int) -> Tensor:
    """``count`` data, from the start again if there are fewer."""
    return x[torch.arange(count, device=x.device) % len(x)]


def model(job: Job) -> pv.VAE:
    """The VAE with the problem's weights, on the device."""
    problem = job.data
    vae = pv.VAE(
        problem.train.shape[1:],
        problem.latent_dim,
        encoder=partial(pv.networks.MLP, hidden=problem.hidden),
        decoder=partial(pv.networks.MLP, hidden=problem.hidden[::-1]),
    )
    for network, layers in (
        (vae.posterior.network, problem.encoder),
        (vae.likelihood.network, problem.decoder),
    ):
        linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for layer, (weight, bias) in zip(linear, layers, strict=True):
            layer.weight.data = torch.tensor(weight)
            layer.bias.data = torch.tensor(bias)
    pyro.set_rng_seed(0)
    return vae.to(job.device)


TASKS = {
    "step": lambda job: learn(job, pv.objectives.ELBO()),
    "iwae": lambda job: learn(job, pv.objectives.IWAE(job.num_samples)),
    "evaluation": log_weights,
    "evaluate": evaluate,
}
