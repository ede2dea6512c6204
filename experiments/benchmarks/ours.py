"""This package as a contender."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pyro
import torch
from job import Job, Problem, Run
from peers.plain_torch import load_weights, prepare_steps
from pyro.infer import ELBO, SVI
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import pyro_vae as pv
from pyro_vae.learning import CompiledSVI
from pyro_vae.learning.cuda_graph import enable_capturable
from pyro_vae.learning.optimizers import FusedOptimizer


def make_model(widths: tuple[tuple[int, ...], ...], shape: tuple[int, ...] = (784,)) -> Any:
    """Return a VAE with the hidden units and latents of each layer of latents."""
    encoders = [partial(pv.networks.MLP, hidden=hidden) for *hidden, _ in widths]
    decoders = [partial(pv.networks.MLP, hidden=hidden[::-1]) for *hidden, _ in widths]
    latent_dims = tuple(layer[-1] for layer in widths)
    if len(widths) == 1:
        return pv.VAE(shape, latent_dims[0], encoder=encoders[0], decoder=decoders[0])
    return pv.HierarchicalVAE(shape, latent_dims, encoders=encoders, decoders=decoders)


def find_networks(vae: Any) -> list[nn.Module]:
    """Return the encoders and the decoders, each from the lowest layer of latents."""
    if isinstance(vae, pv.VAE):
        return [vae.posterior.network, vae.likelihood.network]
    layers = [*vae.inference.layers, vae.likelihood, *vae.conditionals]
    return [layer.network for layer in layers]


@cache
def make_problem(widths: tuple[tuple[int, ...], ...]) -> Problem:
    """Return binarised ``mnist5k`` (1000 test examples) and the weights of a trained VAE.

    With initial weights, a contender without the KL divergence, near zero, would go unnoticed.
    """
    data = pv.data.load("mnist5k", binarize="static", valid=0, test=1000)
    train, test = (split.materialize(0).flatten(1) for split in (data.train, data.test))
    pyro.set_rng_seed(0)
    vae = make_model(widths)
    pv.fit(vae, train, epochs=10, seed=0, device="cpu")
    arrays = [[p.detach().numpy() for p in network.parameters()] for network in find_networks(vae)]
    networks = [list(zip(weights[::2], weights[1::2], strict=True)) for weights in arrays]
    depth = len(widths)
    return Problem(widths, train.numpy(), test.numpy(), networks[:depth], networks[depth:])


def make_vae(job: Job) -> Any:
    """Return the VAE with the problem's weights, on the device."""
    problem = job.problem
    vae = make_model(problem.widths, problem.train.shape[1:])
    weights = problem.encoders + problem.decoders
    for network, layers in zip(find_networks(vae), weights, strict=True):
        load_weights(network, layers)
    pyro.set_rng_seed(0)
    return vae.to(job.device)


def prepare_training(job: Job, objective: ELBO, binarize: bool = False) -> Run:
    """Prepare steps of SVI on minibatches; compiled steps gather and binarise them."""
    pyro.enable_validation(False)
    vae, optim = make_vae(job), FusedOptimizer(partial(torch.optim.Adam, lr=job.learning_rate))
    if not job.compiled:
        return prepare_steps(job, SVI(vae.model, vae.guide, optim, loss=objective).step)
    optim.add(dict(vae.named_parameters()))
    if job.device == "cuda" and optim.optimizer is not None:
        enable_capturable(optim.optimizer)
    x = torch.from_numpy(job.problem.train).to(job.device)

    def draw(rows: Tensor) -> tuple[Tensor]:
        return (torch.bernoulli(x[rows]) if binarize else x[rows],)

    svi = CompiledSVI(vae.model, vae.guide, optim, objective, draw, precision=job.precision)

    def run(inputs: np.ndarray) -> list[float]:
        # synchronise once, after all steps, as ``fit`` does
        losses = [svi.step(index) for index in torch.from_numpy(inputs).to(job.device)]
        return [float(torch.stack(losses).sum()) / inputs.size]

    return run


def prepare_evaluation(job: Job) -> Run:
    """Prepare L_K of each image by one call of ``log_weights``, or of ``evaluate`` in bfloat16."""
    vae, x = make_vae(job).eval(), torch.from_numpy(job.problem.test).to(job.device)
    if job.precision != "float32":
        evaluate = partial(pv.evaluate, num_samples=job.num_samples, precision=job.precision)
        return prepare_bounds(job, vae, evaluate)

    def run(images: np.ndarray) -> list[float]:
        log_w = pv.log_weights(vae.model, vae.guide, x[images], num_samples=job.num_samples)
        return (log_w.logsumexp(0) - math.log(job.num_samples)).tolist()

    return run


def prepare_bounds(
    job: Job, vae: Any, evaluate: Callable[..., pv.Bounds], name: str = "log_evidence"
) -> Run:
    """Prepare the estimates of each image that a function returns as a column of ``Bounds``."""
    x, seeds = torch.from_numpy(job.problem.test).to(job.device), iter(range(10**9))
    return lambda images: evaluate(vae, x[images], seed=next(seeds)).per_datum[name].tolist()


def prepare_ais(job: Job) -> Run:
    annealing = pv.Annealing(num_chains=8, num_temperatures=job.num_samples, num_steps=10)
    return prepare_bounds(job, make_vae(job).eval(), partial(pv.ais, annealing=annealing), "ais")


def prepare_kernels(job: Job) -> Run:
    """Prepare the measurement of the seconds of the GPU's kernels in a step."""
    run = TASKS["step"](job)

    def measure(inputs: np.ndarray) -> list[float]:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run(inputs)
        events = profiler.key_averages()
        return [sum(event.self_device_time_total for event in events) / 1e6 / len(inputs)]

    return measure


TASKS = {
    "step": lambda job: prepare_training(job, pv.objectives.ELBO()),
    "iwae": lambda job: prepare_training(job, pv.objectives.IWAE(job.num_samples)),
    "evaluation": prepare_evaluation,
    "ais": prepare_ais,
    "kernels": prepare_kernels,
}
