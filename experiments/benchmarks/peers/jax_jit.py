"""Jitted importance sampling in plain JAX."""

# these packages are installed in the peers' environment only
# pyright: reportMissingImports=false

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from job import Job, Plan, Run, find_fastest
from peers.jax_networks import load_layers, mlp

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("jax",)


def plan_evaluation(job: Job) -> Plan:
    """Plan L_K of each image, with a batch of one or four images, whichever is faster."""
    problem, K = job.data, job.num_samples
    weights = load_layers(problem.encoder), load_layers(problem.decoder)
    test = jnp.asarray(problem.test)

    def log_evidence(weights, key, x):
        encoder, decoder = weights
        loc, log_scale = jnp.split(mlp(encoder, x), 2)
        noise = random.normal(key, (K, len(loc)))
        z = loc + jnp.exp(log_scale) * noise
        logits = mlp(decoder, z)
        log_likelihood = (x * logits - jax.nn.softplus(logits)).sum(-1)
        log_ratio = (norm.logpdf(z) - norm.logpdf(noise) + log_scale).sum(-1)
        return logsumexp(log_likelihood + log_ratio) - jnp.log(K)

    @partial(jax.jit, static_argnames="batch_size")
    def evaluate_all(weights, key, images, batch_size):
        keys = random.split(key, len(images))
        evaluate_one = partial(log_evidence, weights)
        return lax.map(lambda pair: evaluate_one(*pair), (keys, images), batch_size=batch_size)

    key = random.key(0)
    sizes = {"one": None, "four": 4}

    def evaluate_four(size: int | None) -> None:
        evaluate_all(weights, key, test[:4], size).block_until_ready()

    batch_size = sizes[find_fastest({n: partial(evaluate_four, s) for n, s in sizes.items()})]

    def plan(count: int) -> Run:
        nonlocal key
        images = test[jnp.arange(count) % len(test)]
        key, subkey = random.split(key)
        return lambda: evaluate_all(weights, subkey, images, batch_size).tolist()

    return plan


TASKS = {"evaluation": plan_evaluation}
