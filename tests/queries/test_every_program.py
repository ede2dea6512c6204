"""All queries on all programs: conditional, hierarchical, and with a latent class."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import queries

SMALL = partial(pv.networks.MLP, hidden=(6,))
PARTS = {"encoder": SMALL, "decoder": SMALL}
LABELS = torch.tensor([0, 2, 1, 2])

PROGRAMS = {
    "conditional": (
        lambda: pv.ConditionalVAE((5,), condition=3, latent_dim=2, **PARTS), (LABELS,)
    ),
    "class unknown": (
        lambda: pv.SemiSupervisedVAE((5,), 3, 2, classifier=SMALL, **PARTS), ()
    ),
    "class known": (
        lambda: pv.SemiSupervisedVAE((5,), 3, 2, classifier=SMALL, **PARTS), (LABELS,)
    ),
    "weights": (lambda: pv.BayesianVAE((5,), 2, **PARTS), ()),
    "layers": (
        lambda: pv.HierarchicalVAE((5,), latent_dims=(3, 2), encoders=SMALL, decoders=SMALL), ()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_queries(name):
    make, args = PROGRAMS[name]
    program, x = make(), torch.bernoulli(torch.full((4, 5), 0.5))

    generated = queries.sample(program, 4, *args)
    assert set(generated.x.unique().tolist()) <= {0.0, 1.0}
    assert generated.mean.shape == generated.x.shape == (4, 5)

    reconstruction = queries.reconstruct(program, x, *args)
    assert reconstruction.latents.keys() == generated.latents.keys()
    assert reconstruction.x.shape == x.shape

    path = queries.interpolate(program, x, x.roll(2, 0), *args, steps=3)
    ends = [queries.encode(program, part, *args) for part in (x, x.roll(2, 0))]
    for column in (column for column in ends[0] if column.endswith(".mean")):
        z = path.latents[column.removesuffix(".mean")]
        for end, columns in ((0, ends[0]), (-1, ends[1])):
            np.testing.assert_allclose(z[end].numpy(), columns[column], atol=1e-5)

    traversal = queries.traverse(program, x, *args, dims=[1], values=[-1.0, 1.0])
    assert traversal.mean.shape == (1, 2, 4, 5)

    # the evidence of complete examples agrees with evaluate
    complete = queries.impute(program, x, *args, num_samples=2000, refit_steps=20)
    bounds = pv.evaluate((program.model, program.guide), x, *args, num_samples=2000)
    error = complete.log_evidence_variance.numpy() + bounds.per_datum["log_evidence_variance"]
    difference = complete.log_evidence.numpy() - bounds.per_datum["log_evidence"]
    # 20 comparisons at 5 standard errors: false-alarm rate 1 in 80,000
    assert (np.abs(difference) < 5 * error**0.5 + 1e-4).all()
    observed = torch.tensor([True, True, False, True, False])
    partial = queries.impute(program, x, *args, observed=observed, num_samples=200, refit_steps=5)
    assert torch.equal(partial.x[..., observed], x[:, observed].expand(16, 4, 3))
    # the probabilities of all four completions sum to one
    completed = x.repeat(4, 1)
    completed[:, 2:5:2] = torch.cartesian_prod(*2 * [torch.arange(2.0)]).repeat_interleave(4, 0)
    score = queries.score_missing(
        program,
        completed,
        *(a.repeat(4) for a in args),
        observed=observed,
        num_samples=1500,
        rounds=2,
        refit_steps=5,
    )
    total = score.value.exp().reshape(4, 4).sum(0)
    assert torch.allclose(total, torch.ones(4, dtype=torch.float64), atol=0.15)
