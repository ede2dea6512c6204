"""Errors of distributions at a site: observed NaN and improper priors."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae import queries
from pyro_vae.evaluation import Defensive
from pyro_vae.evaluation.annealing import Annealing
from pyro_vae.learning.diagnostics import NonFiniteLossError

X = torch.tensor([[0.5, -1.0], [float("nan"), 2.0], [1.0, float("nan")], [0.0, 0.3]])
OBSERVED = ~X.isnan()


class Masked(nn.Module):
    """x | z ~ N(z, 1) for each observed entry, masked by its distribution."""

    def __init__(self, replace):
        super().__init__()
        self.slope, self.replace = nn.Parameter(torch.tensor(0.5)), replace

    def model(self, x):
        pyro.module("masked", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            fn = dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).mask(~x.isnan()).to_event(1)
            pyro.sample("x", fn, obs=x.nan_to_num(7.0) if self.replace else x)

    def guide(self, x):
        pyro.module("masked", self)
        with pyro.plate("data", len(x)):
            loc = self.slope * x.nan_to_num().mean(-1, keepdim=True)
            pyro.sample("z", dist.Normal(loc, 0.8).to_event(1))


def masked_by_row(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with poutine.mask(mask=~x.isnan().any(-1)):
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("model", [Masked(False).model, masked_by_row], ids=["entry", "row"])
def test_masked_nan_raises(model):
    message = (
        r"without NaN at site 'x', masked entries included.*got 2 NaN of 8: replace them by a "
        r"value in the support"
    )
    program = (model, Masked(False).guide)
    for call in (
        lambda: pv.evaluate(program, X, num_samples=50),
        lambda: pv.ais(program, X, annealing=Annealing(2, 2, 2)),
        lambda: pv.latents(program, X),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_masked_nan_in_training_raises():
    message = "the data contain NaN, whose gradient is NaN even where it is masked; replace NaN by"
    with pytest.raises(NonFiniteLossError, match=message):
        pv.fit(Masked(False), X, epochs=1)


def test_replaced_nan_under_a_mask():
    """log p of the observed entries: z + N(0, I), with the covariance I + 1."""
    program = Masked(True)
    bounds = pv.evaluate(program, X, num_samples=20_000)
    for row, observed, value in zip(X, OBSERVED, bounds.per_datum["log_evidence"], strict=True):
        entries = row[observed]
        covariance = torch.eye(len(entries)) + 1
        truth = dist.MultivariateNormal(torch.zeros(len(entries)), covariance).log_prob(entries)
        assert value == pytest.approx(float(truth), abs=0.03)
    # training, too: the objective before the first update is the ELBO
    still = partial(torch.optim.SGD, lr=0.0)
    objective = pv.objectives.ELBO(num_particles=5000)
    history = pv.fit(program, X, epochs=1, optimizer=still, objective=objective)
    assert history["elbo"][0] == pytest.approx(bounds.elbo, abs=0.1)


def improper_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def improper_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.1))


@pytest.mark.parametrize(
    "call",
    [
        lambda p, x: pv.ais(p, x, annealing=Annealing(2, 2, 2)),
        lambda p, x: pv.ais(p, x, annealing=Annealing(2, 2, 2, initial="prior")),
        lambda p, x: pv.evaluate(p, x, num_samples=50, estimators=[Defensive(0.1)]),
        lambda p, x: pv.gaps(p, x),
        lambda p, x: pv.bdmc(p, x),
        lambda p, x: queries.sample(p, 4, like=x),
        lambda p, x: queries.impute(p, x),
    ],
    ids=["ais", "ais from the prior", "defensive", "gaps", "bdmc", "sample", "impute"],
)
@pytest.mark.filterwarnings("ignore:log p\\(x\\) is undefined")
def test_improper_prior_raises(call):
    x = torch.tensor([-1.0, 0.0, 0.7, 2.0])
    with pytest.raises(
        ValueError, match=r"got an improper prior \(ImproperUniform\), which has no"
    ):
        call((improper_model, improper_guide), x)


def test_an_improper_prior_is_reported():
    x = torch.tensor([-1.0, 0.0, 0.7, 2.0])
    with pytest.warns(UserWarning, match="is undefined.*: an improper prior at site 'z'"):
        bounds = pv.evaluate((improper_model, improper_guide), x, num_samples=5000)
    # ∫ N(x; z, 1) dz = 1
    assert bounds.log_evidence == pytest.approx(0.0, abs=0.05)
    assert "no row bounds or estimates it: an improper prior at site 'z'" in str(bounds)


def test_unobserved_values_are_not_blamed_for_other_gradients():
    """Programs of the package leave NaN in the data out, so that it is not the cause."""
    vae = pv.VAE((2,), 1, likelihood=pv.likelihoods.Gaussian)
    weight = next(vae.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLossError, match="the gradient is not finite") as caught:
        pv.fit(vae, torch.tensor([[0.3, math.nan], [1.0, -0.5]]), epochs=1, compile=False)
    assert "NaN, whose gradient" not in str(caught.value)


def test_parameters_that_are_nan_are_named():
    vae = pv.VAE((6,), 2, likelihood=pv.likelihoods.Gaussian)
    name, parameter = next(iter(vae.named_parameters()))
    with torch.no_grad():
        parameter.fill_(math.nan)
    with pytest.raises(
        ValueError, match=rf"expected parameters without NaN; got NaN in '{name}': "
    ):
        pv.evaluate(vae, torch.randn(20, 6), num_samples=5)


def test_a_refusal_inside_a_run_has_no_table_of_shapes():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if z.ndim:
                raise ValueError("expected a; got b: do c")
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"^expected a; got b: do c$"):
        pv.evaluate((model, guide), torch.randn(3), num_samples=5)
