"""NumPyro's ``SVI`` with many steps in one jitted ``lax.scan``; jitted L_K in plain JAX.

References:
    Example: Variational Autoencoder (NumPyro). https://num.pyro.ai/en/stable/examples/vae.html
"""

# these packages are in the extra bench, not in dev
# pyright: reportMissingImports=false

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from job import Job, Layers, Run, find_fastest
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from numpyro.optim import Adam


def load(networks: list[Layers]) -> Any:
    """Return weights ``(in, out)`` and biases on the device."""
    return jax.tree.map(lambda array: jnp.asarray(array.T), networks)


def mlp(weights, h):
    """Apply a multilayer perceptron with tanh activations."""
    for weight, bias in weights[:-1]:
        h = jnp.tanh(h @ weight + bias)
    return h @ weights[-1][0] + weights[-1][1]


def normal(weights, h):
    loc, log_scale = jnp.split(mlp(weights, h), 2, -1)
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def prepare_training(job: Job, loss: Trace_ELBO) -> Run:
    """Prepare steps of ``SVI``."""
    problem, x = job.problem, jnp.asarray(job.problem.train)
    encoders, decoders = load(problem.encoders), load(problem.decoders)

    def model(batch):
        likelihood, *conditionals = numpyro.param("decoders", decoders)
        prior = dist.Normal(jnp.zeros(problem.latent_dims[-1]), 1).to_event(1)
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample(f"z{len(conditionals)}", prior)
            for i in reversed(range(len(conditionals))):
                z = numpyro.sample(f"z{i}", normal(conditionals[i], z))
            logits = mlp(likelihood, z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(batch):
        z = batch
        with numpyro.plate("data", len(batch)):
            for i, encoder in enumerate(numpyro.param("encoders", encoders)):
                z = numpyro.sample(f"z{i}", normal(encoder, z))

    svi = SVI(model, guide, Adam(job.learning_rate), loss)
    state = svi.init(random.key(0), x[: job.batch])

    @jax.jit
    def run_steps(state, x, rows):
        return lax.scan(lambda state, index: svi.update(state, x[index]), state, rows)

    def run(inputs: np.ndarray) -> list[float]:
        nonlocal state
        state, losses = run_steps(state, x, jnp.asarray(inputs))
        return [float(losses.sum()) / inputs.size]

    return run


def prepare_evaluation(job: Job) -> Run:
    """Prepare L_K of each image, with a batch of one or four images, whichever is faster."""
    problem, K = job.problem, job.num_samples
    weights = load([*problem.encoders, *problem.decoders])
    test, key = jnp.asarray(problem.test), random.key(0)

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
        pairs = random.split(key, len(images)), images
        return lax.map(lambda pair: log_evidence(weights, *pair), pairs, batch_size=batch_size)

    size = find_fastest(lambda size: evaluate_all(weights, key, test[:4], size).tolist(), [1, 4])

    def run(images: np.ndarray) -> list[float]:
        nonlocal key
        key, subkey = random.split(key)
        return evaluate_all(weights, subkey, test[jnp.asarray(images)], size).tolist()

    return run


TASKS = {
    "step": lambda job: prepare_training(job, Trace_ELBO()),
    "iwae": lambda job: prepare_training(job, RenyiELBO(alpha=0, num_particles=job.num_samples)),
    "evaluation": prepare_evaluation,
}
