"""Programs in the styles of Pyro's tutorials and examples: trained, evaluated, annealed, queried.

Each number is compared with log p(x) by closed form, quadrature or the Kalman filter.
"""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from idioms import IDIOMS, Idiom, N, plates
from pyro import poutine

import pyro_vae as pv

#: Standard errors of the mean over examples: one in 3 million runs exceeds it.
SIGMAS = 5.0


def check(bounds: pv.Bounds, truth: torch.Tensor, error: np.ndarray | None = None) -> None:
    """Compare log p̂, averaged over examples, with log p(x)."""
    estimate = bounds.per_datum["log_evidence"]
    variance = bounds.per_datum["log_evidence_variance"]
    deviation = np.asarray(estimate - truth.numpy()).mean()
    assert abs(deviation) < SIGMAS * np.sqrt(variance.sum()) / N + 2e-4


@pytest.fixture(params=IDIOMS)
def idiom(request: pytest.FixtureRequest) -> Idiom:
    return IDIOMS[request.param]()


def test_evaluated(idiom):
    truth = idiom.log_evidence()
    program = idiom.model, idiom.guide
    bounds = pv.evaluate(program, *idiom.args, **idiom.kwargs, num_samples=20_000, seed=1)
    check(bounds, truth)
    assert bounds.elbo <= truth.mean() + 0.01


def test_reliable(idiom):
    program = idiom.model, idiom.guide
    options = {"num_samples": 500, "reliable": True, "seed": 2}
    check(pv.evaluate(program, *idiom.args, **idiom.kwargs, **options), idiom.log_evidence())


def test_annealed(idiom):
    program = idiom.model, idiom.guide
    annealing = pv.Annealing(num_temperatures=20, num_steps=5, num_chains=24)
    result = pv.ais(program, *idiom.args, annealing=annealing, seed=3, **idiom.kwargs)
    difference = result.per_datum["ais"] - idiom.log_evidence().numpy()
    error = np.sqrt(result.per_datum["ais_variance"].sum()) / N
    assert abs(difference.mean()) < SIGMAS * error


def test_trained(idiom):
    program = idiom.model, idiom.guide
    before = pv.evaluate(program, *idiom.args, **idiom.kwargs, num_samples=2000).elbo
    options = {"epochs": 30, "batch_size": 3, **idiom.options}
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    history = pv.fit(program, *idiom.args, **idiom.kwargs, optimizer=optimizer, **options)
    assert history["elbo"][-1] > history["elbo"][0]
    truth = idiom.log_evidence()
    # the parameters that were trained are those that are evaluated
    bounds = pv.evaluate(program, *idiom.args, **idiom.kwargs, num_samples=20_000, seed=1)
    check(bounds, truth)
    assert bounds.elbo > before


def test_queried(idiom):
    program, x, args = (idiom.model, idiom.guide), idiom.args[0], idiom.args[1:]
    columns = pv.queries.encode(program, x, *args, **idiom.kwargs)
    for site, mean in idiom.codes.items():
        expected = mean().detach().numpy()
        np.testing.assert_allclose(columns[f"{site}.mean"], expected, atol=1e-5)

    made = pv.queries.reconstruct(program, x, *args, **idiom.kwargs)
    assert all(len(site.x) == N for site in made.sites.values())
    if not idiom.draws_minibatch:
        again = poutine.condition(idiom.model, made.latents)
        with torch.no_grad():
            sites = poutine.trace(again).get_trace(*idiom.args, **idiom.kwargs).nodes
        for name, generated in made.sites.items():
            torch.testing.assert_close(generated.mean, sites[name]["fn"].mean)

    new = pv.queries.sample(program, N, *args, like=x, **idiom.kwargs)
    assert new.latents.keys() == made.latents.keys()
    assert all(len(site.x) == N for site in new.sites.values())


def test_pyro_agrees_about_the_store():
    """``fit`` leaves the parameters of functions in Pyro's store, as SVI does."""
    idiom = IDIOMS["functions"]()
    before = pyro.param("scale").item()
    pv.fit((idiom.model, idiom.guide), *idiom.args, epochs=5)
    assert pyro.param("scale").item() != before


@pytest.mark.parametrize("objective", [pv.objectives.IWAE(20), pv.objectives.ELBO(gradient="stl")])
@pytest.mark.parametrize("name", ["plate cells", "plate unsized", "plate subsample"])
def test_objectives_with_svi(name, objective):
    """The plate may have any name in Pyro's own training loop, too."""
    idiom, ordinary = IDIOMS[name](), plates(lambda x: pyro.plate("data", len(x)))()
    x = idiom.args[0]
    ordinary.model.__self__.load_state_dict(idiom.model.__self__.state_dict())
    losses, gradients = [], []
    for program in (ordinary, idiom):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        module = program.model.__self__
        losses.append(objective.loss_and_grads(program.model, program.guide, x))
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradients[0], gradients[1])
