"""NumPyro's ``SVI`` with all steps of a round in one jitted ``lax.scan``.

References:
    Example: Variational Autoencoder (NumPyro). https://num.pyro.ai/en/stable/examples/vae.html
"""

# these packages are installed in the peers' environment only
# pyright: reportMissingImports=false

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from job import Job, Plan, Run
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam
from peers.jax_networks import load_layers, mlp

__all__ = ["PACKAGES", "TASKS"]

PACKAGES = ("jax", "numpyro")


def plan_step(job: Job) -> Plan:
    """Plan steps of ``SVI``."""
    problem = job.data
    encoder, decoder = load_layers(problem.encoder), load_layers(problem.decoder)
    x = jnp.asarray(problem.train)

    def model(batch):
        weights = numpyro.param("decoder", decoder)
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(problem.latent_dim), 1).to_event(1))
            logits = mlp(weights, z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(batch):
        weights = numpyro.param("encoder", encoder)
        with numpyro.plate("data", len(batch)):
            loc, log_scale = jnp.split(mlp(weights, batch), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, Adam(job.learning_rate), Trace_ELBO())
    state = svi.init(random.key(0), x[: job.batch])

    @jax.jit
    def run_steps(state, x, rows):
        return lax.scan(lambda state, index: svi.update(state, x[index]), state, rows)

    next_rows = job.make_minibatch_sampler()

    def plan(count: int) -> Run:
        rows = jnp.asarray(next_rows(count))

        def run() -> list[float]:
            nonlocal state
            state, losses = run_steps(state, x, rows)
            return [float(losses.sum()) / rows.size]

        return run

    return plan


TASKS = {"step": plan_step}
