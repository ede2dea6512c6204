"""Which components go together: the table, as it was meant, and that all of it is true."""

from __future__ import annotations

import itertools

import pytest
import torch
from components import COMBINED, POSTERIORS, PRIORS, SMALL, kind

import pyro_vae as pv
from pyro_vae import likelihoods, posteriors, priors
from pyro_vae.config import catalogue
from pyro_vae.config.jsonargparse_compat import names
from pyro_vae.data import Kind
from pyro_vae.models import compatibility

#: By prior, the posteriors that it does not go with. A new class has to be thought about here.
REFUSED = {
    "DiagonalNormal": {"PowerSpherical"},
    "FlowPrior": {"PowerSpherical"},
    "Laplace": {"PowerSpherical"},
    "MixtureOfNormals": {"PowerSpherical"},
    "StandardNormal": {"PowerSpherical"},
    "StudentT": {"PowerSpherical"},
    "UniformSphere": set(names(posteriors)) - {"PowerSpherical"},
    "VampPrior": {"PlanarFlow", "PowerSpherical", "RadialFlow", "SemiAmortized", "SylvesterFlow"},
}
#: Data of every kind.
EXAMPLES = {
    Kind.BINARY: [[0.0, 1.0], [1.0, 1.0]],
    Kind.UNIT: [[0.25, 0.5], [0.75, 0.1]],
    Kind.LEVELS: [[0.0, 3.0], [255.0, 1.0]],
    Kind.COUNTS: [[0.0, 3.0], [256.0, 1.0]],
    Kind.REAL: [[-1.5, 3.0], [2.0, 1.0]],
}


def test_the_table_is_as_it_was_meant():
    assert REFUSED.keys() == set(names(priors))
    for prior, posterior in itertools.product(names(priors), names(posteriors)):
        rule = compatibility.broken(getattr(priors, prior), getattr(posteriors, posterior))
        assert (rule is not None) == (posterior in REFUSED[prior]), (prior, posterior)


@pytest.mark.parametrize(("prior", "posterior"), list(itertools.product(PRIORS, POSTERIORS)))
def test_what_is_allowed_runs_and_the_rest_is_refused_at_construction(prior, posterior):
    def build():
        parts = {"prior": PRIORS[prior], "posterior": POSTERIORS[posterior]}
        return pv.VAE((3,), 2, encoder=SMALL, decoder=SMALL, **parts)

    if (prior, posterior) in COMBINED:
        x = torch.bernoulli(torch.full((6, 3), 0.5))
        vae = build()
        pv.fit(vae, x, epochs=1, batch_size=3)
        bounds = pv.evaluate(vae, x, num_samples=40)
        # a probability of three pixels, above its bound
        assert bounds.elbo < bounds.log_evidence < 0
        return
    with pytest.raises(ValueError) as refused:
        build()
    message = str(refused.value)
    assert message.startswith("expected ") and "; got prior " in message and "\n" not in message
    for name in (kind(PRIORS[prior]).__name__, kind(POSTERIORS[posterior]).__name__):
        assert name in message


def test_the_family_of_a_refined_posterior_counts():
    from functools import partial

    refined = partial(posteriors.SemiAmortized, family=posteriors.PowerSpherical)
    parts = {"encoder": SMALL, "decoder": SMALL, "posterior": refined}
    with pytest.raises(ValueError, match="latents in the same space; got prior StandardNormal"):
        pv.VAE((3,), 2, **parts)
    pv.VAE((3,), 2, prior=priors.UniformSphere, **parts)


@pytest.mark.parametrize("likelihood", names(likelihoods))
@pytest.mark.parametrize("values", list(Kind))
def test_a_likelihood_scores_what_the_table_says(likelihood, values):
    cls = getattr(likelihoods, likelihood)
    made = cls(2, (2,), SMALL)
    x = torch.tensor(EXAMPLES[values])
    # 256 is above the levels of a byte, which these three scores by default
    above = hasattr(made, "levels") and bool(x.max() > made.levels)
    if cls.scores(values) and not above:
        made.check(x)
        assert bool(made(torch.zeros(2, 2)).log_prob(x).isfinite().all())
    else:
        with pytest.raises(ValueError, match=f"{likelihood}.* scores .*; got .*: "):
            made.check(x)


def test_the_table_is_printed():
    printed = catalogue.combinations()
    above, below = (
        {line.split()[0]: line.strip() for line in half.splitlines()}
        for half in printed.split("\n\n")
    )
    for prior, refused in REFUSED.items():
        told = set(above[prior].split(maxsplit=1)[1].removeprefix("all but ").split(", "))
        allowed = set(names(posteriors)) - refused
        assert told == (refused if "all but" in above[prior] else allowed)
    for likelihood in names(likelihoods):
        cls = getattr(likelihoods, likelihood)
        assert below[likelihood].split()[1:] == ["yes" if cls.scores(k) else "–" for k in Kind]
    for rule in compatibility.RULES:
        assert rule.expected in printed and rule.remedy in printed
    assert catalogue.overview().endswith(printed)
    assert catalogue.overview("combinations") == printed
