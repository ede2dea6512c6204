"""This package as a contender."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
import pyro
import torch
from job import Job, Run, Upper
from pyro.infer import ELBO, SVI
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.learning import CompiledSVI
from pyro_vae.learning.cuda_graph import enable_capturable
from pyro_vae.learning.optimizers import FusedOptimizer

__all__ = ["PACKAGES", "TASKS", "find_networks", "make_model", "make_vae", "prepare_bounds"]

PACKAGES = ("torch", "pyro-ppl", "pyro-vae")


def prepare_training(job: Job, objective: ELBO) -> Run:
    """Prepare steps of SVI on minibatches gathered from data on the device."""
    vae = make_vae(job)
    x = torch.from_numpy(job.data.train).to(job.device)
    optim = FusedOptimizer(partial(torch.optim.Adam, lr=job.learning_rate))
    svi: SVI
    if job.compiled:
        optim.add(dict(vae.named_parameters()))
        if job.device == "cuda" and optim.optimizer is not None:
            enable_capturable(optim.optimizer)
        svi = CompiledSVI(vae.model, vae.guide, optim, objective, draw=lambda rows: (x[rows],))
    else:
        svi = SVI(vae.model, vae.guide, optim, loss=objective)

    def run(inputs: np.ndarray) -> list[float]:
        rows = torch.from_numpy(inputs).to(job.device)
        with pyro.validation_enabled(False):
            if job.compiled:
                # synchronise once, after all steps, as ``fit`` does
                total = float(torch.stack([cast(Tensor, svi.step(i)) for i in rows]).sum())
            else:
                total = sum(cast(float, svi.step(x[index])) for index in rows)
        return [total / inputs.size]

    return run


def prepare_log_weights(job: Job) -> Run:
    """Prepare L_K of each image by one call of ``log_weights``."""
    vae, x = make_vae(job).eval(), torch.from_numpy(job.data.test).to(job.device)

    def run(images: np.ndarray) -> list[float]:
        log_w = pv.log_weights(vae.model, vae.guide, x[images], num_samples=job.num_samples)
        return (log_w.logsumexp(0) - math.log(job.num_samples)).tolist()

    return run


def prepare_bounds(
    job: Job,
    vae: pv.VAE | pv.HierarchicalVAE,
    evaluate: Callable[..., pv.Bounds],
    name: str = "log_evidence",
) -> Run:
    """Prepare the estimates of each image that a function returns as a column of ``Bounds``."""
    x, seeds = torch.from_numpy(job.data.test).to(job.device), iter(range(10**9))
    return lambda images: evaluate(vae, x[images], seed=next(seeds)).per_datum[name].tolist()


def prepare_evaluate(job: Job) -> Run:
    """Prepare ``evaluate``, which also returns L_5, L_50, L_500, the ELBO, ESS, k̂ and errors."""
    evaluate = partial(pv.evaluate, num_samples=job.num_samples, precision=job.precision)
    return prepare_bounds(job, make_vae(job).eval(), evaluate)


def prepare_ais(job: Job) -> Run:
    annealing = pv.Annealing(num_chains=8, num_temperatures=job.num_samples, num_steps=10)
    return prepare_bounds(job, make_vae(job).eval(), partial(pv.ais, annealing=annealing), "ais")


def make_model(
    shape: tuple[int, ...], hidden: tuple[int, ...], latent_dim: int, upper: Upper | None
) -> pv.VAE | pv.HierarchicalVAE:
    """Return a VAE with one layer of latents, or with a second one above it."""
    encoder = partial(pv.networks.MLP, hidden=hidden)
    decoder = partial(pv.networks.MLP, hidden=hidden[::-1])
    if upper is None:
        return pv.VAE(shape, latent_dim, encoder=encoder, decoder=decoder)
    above = partial(pv.networks.MLP, hidden=upper[0])
    return pv.HierarchicalVAE(
        shape, (latent_dim, upper[1]), encoders=[encoder, above], decoders=[decoder, above]
    )


def find_networks(vae: pv.VAE | pv.HierarchicalVAE) -> dict[str, nn.Module]:
    """Return the networks by their names in ``Problem``."""
    decoder = vae.likelihood.network
    if isinstance(vae, pv.VAE):
        return {"encoder": vae.posterior.network, "decoder": decoder}
    lower, upper = vae.inference.layers
    names = {"encoder": lower.network, "decoder": decoder, "upper_encoder": upper.network}
    return {**names, "upper_decoder": vae.conditionals[0].network}


def make_vae(job: Job) -> pv.VAE | pv.HierarchicalVAE:
    """Return the VAE with the problem's weights, on the device."""
    problem = job.data
    shape = problem.train.shape[1:]
    vae = make_model(shape, problem.hidden, problem.latent_dim, problem.upper)
    for name, network in find_networks(vae).items():
        linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for layer, (weight, bias) in zip(linear, getattr(problem, name), strict=True):
            layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    pyro.set_rng_seed(0)
    return vae.to(job.device)


TASKS = {
    "step": lambda job: prepare_training(job, pv.objectives.ELBO()),
    "iwae": lambda job: prepare_training(job, pv.objectives.IWAE(job.num_samples)),
    "evaluation": prepare_log_weights,
    "evaluate": prepare_evaluate,
    "ais": prepare_ais,
}
