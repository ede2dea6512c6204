"""Compatible components: the table of rules, checked against construction and training."""

from __future__ import annotations

import itertools

import pytest
import torch
from components import COMPATIBLE_PAIRS, POSTERIORS, PRIORS, SMALL, component_class

import pyro_vae as pv
from pyro_vae import likelihoods, posteriors, priors
from pyro_vae.config import catalogue
from pyro_vae.config.classes import component_names
from pyro_vae.data import Kind
from pyro_vae.models import compatibility

#: Incompatible posteriors of each prior. New classes have to be added here.
INCOMPATIBLE = {
    "DiagonalNormal": {"PowerSpherical"},
    "FlowPrior": {"PowerSpherical"},
    "Laplace": {"PowerSpherical"},
    "MixtureOfNormals": {"PowerSpherical"},
    "StandardNormal": {"PowerSpherical"},
    "StudentT": {"PowerSpherical"},
    "UniformSphere": set(component_names(posteriors)) - {"PowerSpherical"},
    "VampPrior": {"PlanarFlow", "PowerSpherical", "RadialFlow", "SemiAmortized", "SylvesterFlow"},
    "ZukoPrior": {"PowerSpherical"},
}
#: Example data of every kind.
EXAMPLES = {
    Kind.BINARY: [[0.0, 1.0], [1.0, 1.0]],
    Kind.UNIT: [[0.25, 0.5], [0.75, 0.1]],
    Kind.LEVELS: [[0.0, 3.0], [255.0, 1.0]],
    Kind.COUNTS: [[0.0, 3.0], [256.0, 1.0]],
    Kind.REAL: [[-1.5, 3.0], [2.0, 1.0]],
}


def test_rules_match_the_expected_table():
    assert INCOMPATIBLE.keys() == set(component_names(priors))
    for prior, posterior in itertools.product(component_names(priors), component_names(posteriors)):
        rule = compatibility.find_violation(getattr(priors, prior), getattr(posteriors, posterior))
        assert (rule is not None) == (posterior in INCOMPATIBLE[prior]), (prior, posterior)


def is_variant(name, components):
    """Whether another entry of the same class precedes this one."""
    cls = component_class(components[name])
    return next(n for n, make in components.items() if component_class(make) is cls) != name


#: The rules compare classes, so variants of priors are combined with a few posteriors only.
PAIRS = [
    (prior, posterior)
    for prior, posterior in itertools.product(PRIORS, POSTERIORS)
    if not is_variant(prior, PRIORS)
    or posterior in ("DiagonalNormal", "InverseAutoregressiveFlow", "PowerSpherical")
]


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_compatible_pairs_train_and_others_raise_at_construction(prior, posterior):
    def build():
        parts = {"prior": PRIORS[prior], "posterior": POSTERIORS[posterior]}
        return pv.VAE((3,), 2, encoder=SMALL, decoder=SMALL, **parts)

    if (prior, posterior) in COMPATIBLE_PAIRS:
        x = torch.bernoulli(torch.full((6, 3), 0.5))
        vae = build()
        pv.fit(vae, x, epochs=1, batch_size=3)
        bounds = pv.evaluate(vae, x, num_samples=40)
        # a probability mass of three binary pixels, above its bound
        assert bounds.elbo < bounds.log_evidence < 0
        return
    with pytest.raises(ValueError) as caught:
        build()
    message = str(caught.value)
    assert message.startswith("expected ") and "; got prior " in message and "\n" not in message
    for name in (
        component_class(PRIORS[prior]).__name__,
        component_class(POSTERIORS[posterior]).__name__,
    ):
        assert name in message


def test_rules_apply_to_the_family_of_a_refined_posterior():
    from functools import partial

    refined = partial(posteriors.SemiAmortized, family=posteriors.PowerSpherical)
    parts = {"encoder": SMALL, "decoder": SMALL, "posterior": refined}
    with pytest.raises(ValueError, match="latents in the same space; got prior StandardNormal"):
        pv.VAE((3,), 2, **parts)
    pv.VAE((3,), 2, prior=priors.UniformSphere, **parts)


@pytest.mark.parametrize("likelihood", sorted({*component_names(likelihoods)} - {"Columns"}))
@pytest.mark.parametrize("values", list(Kind))
def test_likelihoods_score_the_data_of_the_table(likelihood, values):
    cls = getattr(likelihoods, likelihood)
    p = cls(2, (2,), SMALL)
    x = torch.tensor(EXAMPLES[values])
    # 256 is above the default levels
    is_outside = hasattr(p, "levels") and bool(x.max() > p.levels)
    is_outside |= likelihood == "LogNormal" and bool(x.min() <= 0)
    if cls.supports(values) and not is_outside:
        p.check(x)
        assert bool(p(torch.zeros(2, 2)).log_prob(x).isfinite().all())
    else:
        with pytest.raises(ValueError, match=f"{likelihood}.* scores .*; got .*: "):
            p.check(x)


def test_printed_table_matches_the_rules():
    printed = catalogue.list_combinations()
    above, below = (
        {line.split()[0]: line.strip() for line in half.splitlines()}
        for half in printed.split("\n\n")
    )
    for prior, incompatible in INCOMPATIBLE.items():
        listed = set(above[prior].split(maxsplit=1)[1].removeprefix("all but ").split(", "))
        allowed = set(component_names(posteriors)) - incompatible
        assert listed == (incompatible if "all but" in above[prior] else allowed)
    for likelihood in component_names(likelihoods):
        cls = getattr(likelihoods, likelihood)
        assert below[likelihood].split()[1:] == ["yes" if cls.supports(k) else "–" for k in Kind]
    for rule in compatibility.RULES:
        assert rule.expected in printed and rule.remedy in printed
    assert catalogue.list_components().endswith(printed)
    assert catalogue.list_components("combinations") == printed
