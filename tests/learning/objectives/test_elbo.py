"""The ELBO objective against Pyro's estimators."""

from __future__ import annotations

import logging
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import PRIORS, SMALL
from linear_gaussian import LinearGaussian
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv


def _vae(prior=pv.priors.StandardNormal):
    pyro.set_rng_seed(3)
    return pv.VAE((3,), 2, prior, encoder=SMALL, decoder=SMALL).double()


X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def _loss_and_gradient(objective, vae):
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(5)
        vae.zero_grad()
        loss = objective.loss_and_grads(vae.model, vae.guide, X)
        return loss, [p.grad.clone() for p in vae.parameters()]


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize(
    ("analytic_kl", "pyro_elbo"),
    [(False, Trace_ELBO), (True, TraceMeanField_ELBO), (None, TraceMeanField_ELBO)],
)
def test_value_and_gradient_equal_those_of_pyro(particles, analytic_kl, pyro_elbo):
    vae = _vae()
    ours = pv.objectives.ELBO(particles, analytic_kl)
    ours.loss(vae.model, vae.guide, X)  # selects the estimator with an additional run
    theirs = pyro_elbo(num_particles=particles, vectorize_particles=particles > 1)
    theirs.loss(vae.model, vae.guide, X)
    (loss, grads), (expected, expected_grads) = (_loss_and_gradient(o, vae) for o in (ours, theirs))
    assert loss == expected
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=0)


def test_selects_analytic_kl_if_available(caplog):
    with caplog.at_level(logging.WARNING, logger="pyro_vae"):
        vae, objective = _vae(), pv.objectives.ELBO()
        assert objective.uses_analytic_kl(vae.model, vae.guide, X)
        assert not caplog.records
        mixture = _vae(PRIORS["MixtureOfNormals"])
        assert not objective.uses_analytic_kl(mixture.model, mixture.guide, X)
    assert caplog.messages == [
        "site 'z' has no analytic KL (Normal to MixtureSameFamily): estimating it by sampling"
    ]


def test_analytic_kl_for_one_of_two_sites(caplog):
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.StudentT(3.0, 0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x, 1.0))
            pyro.sample("b", dist.Normal(x, 1.0))

    with caplog.at_level(logging.WARNING, logger="pyro_vae"):
        assert pv.objectives.ELBO().uses_analytic_kl(model, guide, torch.zeros(2))
    assert caplog.messages == [
        "site 'b' has no analytic KL (Normal to StudentT): estimating it by sampling"
    ]


class BottomUp:
    """z2 → z1 → x, with the guide q(z1|x) q(z2|z1), which samples z1 before z2."""

    @staticmethod
    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 0.3))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    @staticmethod
    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.5 * x, 0.7))
            pyro.sample("z2", dist.Normal(0.9 * z1, 0.3))


class Discrete:
    """One latent that is not reparameterised and one that is."""

    @staticmethod
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(4 * c + z, 1.0), obs=x)

    @staticmethod
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=pyro.param("logit", torch.zeros(()))))
            pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (BottomUp, "the guide samples z1, z2 in this order and the model z2, z1"),
        (Discrete, "site 'c' of the guide (Bernoulli) is not reparameterised"),
    ],
)
def test_does_not_select_analytic_kl_if_it_would_be_wrong(program, reason, caplog):
    x = torch.full((2000,), 4.0)
    with caplog.at_level(logging.WARNING, logger="pyro_vae"):
        objective = pv.objectives.ELBO()
        assert not objective.uses_analytic_kl(program.model, program.guide, x)
    assert reason in caplog.messages[0]
    ours = -objective.loss(program.model, program.guide, x) / len(x)
    bounds = pv.evaluate((program.model, program.guide), x, num_samples=50)
    assert ours == pytest.approx(bounds.elbo, abs=0.7)  # Discrete has a standard error of 0.13
    with pytest.raises(ValueError, match="expected a program whose KL is analytic; "):
        analytic = pv.objectives.ELBO(analytic_kl=True)
        analytic.loss(program.model, program.guide, x)


def _semi_supervised():
    pyro.set_rng_seed(3)
    parts = {"classifier": SMALL, "encoder": SMALL, "decoder": SMALL}
    return pv.SemiSupervisedVAE((3,), 2, 2, **parts).double()


@pytest.mark.parametrize("labelled_first", [True, False])
def test_estimator_depends_on_the_arguments(labelled_first):
    """Estimator B is valid with labels; without, the sampled class has no pathwise gradient."""
    vae, objective, y = _semi_supervised(), pv.objectives.ELBO(), torch.tensor([0, 1])
    calls = [(X, y), (X,), (X, None), (X, y)]
    calls = calls if labelled_first else calls[1:]
    for args in calls:
        with pyro.validation_enabled(False):  # as in fit
            objective.loss(vae.model, vae.guide, *args)
        assert objective.uses_analytic_kl(vae.model, vae.guide, *args) is (args[-1] is y)
    assert objective.uses_analytic_kl(vae.model, vae.guide, X, y=y)
    # the estimator is cached, so no further random numbers are used
    state = torch.get_rng_state()
    objective.uses_analytic_kl(vae.model, vae.guide, X)
    assert torch.equal(state, torch.get_rng_state())


def test_unlabelled_minibatches_after_labelled_ones_have_the_right_gradient():
    """Against the sum over classes, at 5 standard errors of 300 means: false alarm < 1e-4."""
    vae, objective = _semi_supervised(), pv.objectives.ELBO()
    objective.loss(vae.model, vae.guide, X, torch.tensor([0, 1]))
    exact = pv.objectives.EnumeratedELBO(20_000)
    means = []
    for elbo, repeats in ((objective, 300), (exact, 1)):
        rows = []
        with pyro.validation_enabled(False):  # as in fit
            for _ in range(repeats):
                vae.zero_grad()
                batch = X.repeat_interleave(50, 0) if repeats > 1 else X
                elbo.loss_and_grads(vae.model, vae.guide, batch)
                grads = [p.grad.flatten() for p in vae.classifier.parameters()]
                rows.append(torch.cat(grads) * 2 / len(batch))
        means.append(torch.stack(rows))
    ours, (expected,) = means
    error = ours.std(0) / 300**0.5 + 0.01 * expected.abs()
    assert ((ours.mean(0) - expected).abs() < 5 * error + 1e-9).all()
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("make", [partial(pv.objectives.ELBO, 3), pv.objectives.EnumeratedELBO])
def test_pyro_does_not_guess_max_plate_nesting(make):
    """Pyro would log its guess."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("pyro.infer.elbo")
    logger.addHandler(handler)
    try:
        vae, objective = _vae(), make()
        objective.loss_and_grads(vae.model, vae.guide, X)
    finally:
        logger.removeHandler(handler)
    assert not records


def test_rejects_undeclared_batch_shapes_like_pyro():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4, 3), 1.0).to_event(0))
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(4, 3), 1.0))

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        pv.objectives.ELBO(3, analytic_kl=False).loss(model, guide, torch.zeros(3))


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_mean_equals_the_closed_form(analytic_kl):
    program = LinearGaussian(2, shift=0.5, inflate=1.3)
    x = program.sample(3)
    elbo = float(program.log_evidence(x).sum()) - 3 * program.divergence
    objective = pv.objectives.ELBO(num_particles=1000, analytic_kl=analytic_kl)
    values = torch.tensor([-objective.loss(program.model, program.guide, x) for _ in range(20)])
    # false alarm at 5 standard errors of 20 values < 1e-4
    assert abs(values.mean() - elbo) < 5 * values.std() / 20**0.5


def test_plain_svi():
    vae = _vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), pv.objectives.ELBO())
    losses = [svi.step(X) for _ in range(300)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("particles", [0, 1.5, True])
def test_rejects_bad_num_particles(particles):
    with pytest.raises(ValueError, match="expected num_particles to be a positive integer; got"):
        pv.objectives.ELBO(particles)
