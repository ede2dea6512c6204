"""Schedules of β and the ELBO weighted by β."""

from __future__ import annotations

from functools import partial

import pyro
import pytest
import torch
from components import PRIORS, small_vae
from linear_gaussian import LinearGaussian
from pyro.infer import SVI

import pyro_vae as pv
from pyro_vae.config.catalogue import list_components
from pyro_vae.learning.objectives import ELBO
from pyro_vae.learning.objectives.base import StepInfo
from pyro_vae.learning.schedules import Cyclical, LinearWarmUp

X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (LinearWarmUp(4), {0: 0.0, 1: 0.25, 3.5: 0.875, 4: 1.0, 50: 1.0}),
        (LinearWarmUp(2, start=4.0, end=1.0), {0: 4.0, 1: 2.5, 2: 1.0, 3: 1.0}),
        (Cyclical(10, rising=0.5), {0: 0.0, 2.5: 0.5, 5: 1.0, 9.9: 1.0, 10: 0.0, 12.5: 0.5}),
        (Cyclical(4, rising=1.0, start=0.5), {0: 0.5, 2: 0.75, 3: 0.875, 4: 0.5}),
    ],
)
def test_values_by_epoch(schedule, values):
    for epoch, value in values.items():
        assert schedule(epoch) == pytest.approx(value)


def _gradients(objective, vae, terms):
    """Return gradients of an objective and of explicit terms, with the same noise."""
    rows = []
    for run in (lambda: objective.loss_and_grads(vae.model, vae.guide, X), terms):
        vae.zero_grad()
        pyro.set_rng_seed(5)
        run()
        rows.append(
            [torch.zeros(()) if p.grad is None else p.grad.clone() for p in vae.parameters()]
        )
    return rows


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("analytic_kl", [False, True])
@pytest.mark.parametrize("prior", ["DiagonalNormal", "MixtureOfNormals"])
def test_gradient_equals_that_of_the_weighted_terms(beta, analytic_kl, prior):
    vae = small_vae(PRIORS[prior]).double()
    objective = ELBO(analytic_kl=analytic_kl, beta=beta)
    objective.loss(vae.model, vae.guide, X)

    def terms():
        q, p = vae.posterior(X), vae.prior()
        z = q.rsample()
        kl = q.log_prob(z) - p.log_prob(z)
        if analytic_kl and prior == "DiagonalNormal":
            kl = torch.distributions.kl_divergence(q, p)
        (beta * kl - vae.likelihood(z).log_prob(X)).sum().backward()

    with pyro.get_param_store().scope():
        ours, expected = _gradients(objective, vae, terms)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double().expand_as(a))


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_loss_is_the_unweighted_elbo(beta):
    program = LinearGaussian(2, shift=0.5, inflate=1.3)
    x = program.sample(3)
    elbo = float(program.log_evidence(x).sum()) - 3 * program.divergence
    objective = ELBO(num_particles=1000, beta=beta)
    program.model, program.guide  # noqa: B018
    values = torch.tensor(
        [-objective.loss_and_grads(program.model, program.guide, x) for _ in range(20)]
    )
    # false alarm at 5 standard errors of 20 values < 1e-4
    assert abs(values.mean() - elbo) < 5 * values.std() / 20**0.5


def test_fit_passes_the_epoch_to_the_schedule():
    epochs = []

    class Recording(LinearWarmUp):
        def __call__(self, epoch):
            epochs.append(epoch)
            return super().__call__(epoch)

    vae = small_vae()
    pv.fit(vae, X.float().repeat(5, 1), objective=ELBO(beta=Recording(2)), epochs=3, batch_size=4)
    # ten examples in minibatches of four: three steps per epoch
    assert epochs[-9:] == pytest.approx([i / 3 for i in range(9)])


@pytest.mark.parametrize("make", [ELBO, pv.objectives.EnumeratedELBO])
def test_requires_the_epoch(make):
    """Without the epoch, a warm-up would stay at β = 0."""
    vae, objective = small_vae().double(), make(beta=LinearWarmUp(10))
    objective.loss(vae.model, vae.guide, X)  # the loss does not depend on β
    for run in (objective.loss_and_grads, objective.differentiable_loss):
        with pytest.raises(
            ValueError, match=r"the current epoch, to evaluate LinearWarmUp\(.*set_step\(StepInfo\("
        ):
            run(vae.model, vae.guide, X)
    objective.set_step(StepInfo(epoch=2.0))
    assert objective.loss_and_grads(vae.model, vae.guide, X) > 0


def test_public_names():
    assert {"Cyclical", "FreeBits", "LinearWarmUp", "StepInfo"} <= set(pv.learning.__all__)
    assert pv.objectives.ELBO(beta=pv.learning.LinearWarmUp(10)).beta == LinearWarmUp(10)
    listed = list_components("objectives")
    assert "LinearWarmUp" not in listed and "FreeBits" not in listed and "  ELBO " in listed


def test_beta_zero_ignores_the_kl():
    x = torch.bernoulli(torch.rand(40, 3))
    adam = partial(torch.optim.Adam, lr=0.02)
    kls = {}
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        vae = small_vae()
        pv.fit(vae, x, objective=ELBO(beta=beta), epochs=150, optimizer=adam)
        kl = torch.distributions.kl_divergence(vae.posterior(x), vae.prior().expand((40,)))
        kls[beta] = float(kl.detach().mean())
    assert kls[0.0] > 3 * kls[1.0]


def test_resumed_run_continues_the_schedule(tmp_path):
    x = torch.bernoulli(torch.rand(40, 3))
    uninterrupted, resumed = (small_vae() for _ in range(2))
    resumed.load_state_dict(uninterrupted.state_dict())
    fit = partial(pv.fit, objective=ELBO(beta=LinearWarmUp(6)), batch_size=16)
    fit(uninterrupted, x, epochs=4)
    fit(resumed, x, epochs=2, checkpoint=tmp_path / "state.pt")
    fit(resumed, x, epochs=4, checkpoint=tmp_path / "state.pt", resume=True)
    for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    other = partial(pv.fit, objective=ELBO(beta=LinearWarmUp(7)), batch_size=16)
    with pytest.raises(ValueError, match="another objective"):
        other(small_vae(), x, epochs=4, checkpoint=tmp_path / "state.pt", resume=True)


def test_schedules_with_plain_svi():
    vae = small_vae().double()
    objective = ELBO(beta=Cyclical(2))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), objective)
    losses = []
    for step in range(200):
        objective.set_step(StepInfo(step / 20))
        losses.append(svi.step(X))
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(beta=-0.1), "expected beta ≥ 0 and finite, or a schedule; got -0.1"),
        (lambda: ELBO(beta=True), "expected beta ≥ 0 and finite, or a schedule; got True"),
        (lambda: LinearWarmUp(0), "expected epochs > 0 and finite; got 0"),
        (lambda: LinearWarmUp(start=-1.0), "expected start ≥ 0 and finite; got -1.0"),
        (lambda: Cyclical(rising=1.5), r"expected rising in \(0, 1\]; got 1.5"),
        (lambda: Cyclical(period=float("inf")), "expected period > 0 and finite; got inf"),
    ],
)
def test_rejects_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
