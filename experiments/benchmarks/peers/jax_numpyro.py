"""NumPyro's ``SVI`` with many steps in one jitted ``lax.scan``; jitted L_K in plain JAX.

References:
    Example: Variational Autoencoder (NumPyro). https://num.pyro.ai/en/stable/examples/vae.html
"""

# these packages are installed in the peers' environment only
# pyright: reportMissingImports=false

from __future__ import annotations

from functools import partial

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

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("jax", "numpyro")


def load(layers: Layers) -> list[tuple[jax.Array, jax.Array]]:
    """Return weights ``(in, out)`` and biases on the device."""
    return [(jnp.asarray(weight.T), jnp.asarray(bias)) for weight, bias in layers]


def mlp(weights: list[tuple[jax.Array, jax.Array]], h: jax.Array) -> jax.Array:
    """Apply a multilayer perceptron with tanh activations."""
    for weight, bias in weights[:-1]:
        h = jnp.tanh(h @ weight + bias)
    return h @ weights[-1][0] + weights[-1][1]


def prepare_training(job: Job, loss: Trace_ELBO) -> Run:
    """Prepare steps of ``SVI``."""
    problem, x = job.data, jnp.asarray(job.data.train)
    encoder, decoder = load(problem.encoder), load(problem.decoder)
    upper_encoder, upper_decoder = load(problem.upper_encoder), load(problem.upper_decoder)
    top = problem.latent_dim if problem.upper is None else problem.upper[1]

    def normal(weights, h):
        loc, log_scale = jnp.split(mlp(weights, h), 2, -1)
        return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)

    def model(batch):
        weights = numpyro.param("decoder", decoder)
        upper = numpyro.param("upper_decoder", upper_decoder) if upper_decoder else None
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample("top", dist.Normal(jnp.zeros(top), 1).to_event(1))
            if upper:
                z = numpyro.sample("z", normal(upper, z))
            logits = mlp(weights, z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(batch):
        weights = numpyro.param("encoder", encoder)
        upper = numpyro.param("upper_encoder", upper_encoder) if upper_encoder else None
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample("z" if upper else "top", normal(weights, batch))
            if upper:
                numpyro.sample("top", normal(upper, z))

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
    problem, K = job.data, job.num_samples
    weights = load(problem.encoder), load(problem.decoder)
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
