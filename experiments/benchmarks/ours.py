"""This package as a contender."""

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
from pyro_vae.learning.cuda_graph import enable_capturable
from pyro_vae.learning.optimizers import FusedOptimizer

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("torch", "pyro-ppl", "pyro-vae")


def plan_training(job: Job, objective) -> Plan:
    """Plan steps of SVI on minibatches gathered from data on the device."""
    vae = make_vae(job)
    x = torch.from_numpy(job.data.train).to(job.device)
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=job.learning_rate))
    next_rows = job.make_minibatch_sampler()
    svi: SVI
    if job.compiled:
        optim.add(dict(vae.named_parameters()))
        if job.device == "cuda" and optim.optimizer is not None:
            enable_capturable(optim.optimizer)
        svi = CompiledSVI(vae.model, vae.guide, optim, objective, draw=lambda rows: (x[rows],))
    else:
        svi = SVI(vae.model, vae.guide, optim, loss=objective)

    def plan(count: int) -> Run:
        rows = torch.from_numpy(next_rows(count)).to(job.device)

        def run() -> list[float]:
            with pyro.validation_enabled(False):
                if job.compiled:
                    # synchronise once, after all steps, as ``fit`` does
                    total = float(torch.stack([cast(Tensor, svi.step(i)) for i in rows]).sum())
                else:
                    total = sum(cast(float, svi.step(x[index])) for index in rows)
            return [total / rows.numel()]

        return run

    return plan


def plan_log_weights(job: Job) -> Plan:
    """Plan L_K of each image by one call of ``log_weights``."""
    vae = make_vae(job).eval()
    x = torch.from_numpy(job.data.test).to(job.device)

    def plan(count: int) -> Run:
        images = cycle_examples(x, count)

        def run() -> list[float]:
            log_w = pv.log_weights(vae.model, vae.guide, images, num_samples=job.num_samples)
            return (log_w.logsumexp(0) - math.log(job.num_samples)).tolist()

        return run

    return plan


def plan_evaluate(job: Job) -> Plan:
    """Plan L_K of each image by ``evaluate``.

    ``evaluate`` also returns L_5, L_50, L_500, the ELBO, ESS, k̂ and standard errors.
    """
    vae = make_vae(job).eval()
    x = torch.from_numpy(job.data.test).to(job.device)
    seed = 0

    def plan(count: int) -> Run:
        images = cycle_examples(x, count)

        def run() -> list[float]:
            nonlocal seed
            seed += 1
            bounds = pv.evaluate(vae, images, num_samples=job.num_samples, seed=seed)
            return bounds.per_datum["log_evidence"].tolist()

        return run

    return plan


def cycle_examples(x: Tensor, count: int) -> Tensor:
    """Return ``count`` examples, starting again at the first if there are fewer."""
    return x[torch.arange(count, device=x.device) % len(x)]


def make_vae(job: Job) -> pv.VAE:
    """Return the VAE with the problem's weights, on the device."""
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
    "step": lambda job: plan_training(job, pv.objectives.ELBO()),
    "iwae": lambda job: plan_training(job, pv.objectives.IWAE(job.num_samples)),
    "evaluation": plan_log_weights,
    "evaluate": plan_evaluate,
}
