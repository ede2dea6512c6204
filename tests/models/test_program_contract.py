"""The contract of every program: what fit, log_weights, evaluate and the objectives ask of it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial

import pyro
import pytest
import torch
from components import PROGRAMS, kind, program_for
from pyro.poutine.messenger import Messenger

import pyro_vae as pv
from pyro_vae import models, objectives
from pyro_vae.config.jsonargparse_compat import names
from pyro_vae.core.components import Labels
from pyro_vae.programs import importance_weights
from pyro_vae.programs.base import attach_noise, label_use, sample_sites, trace_program
from pyro_vae.programs.inputs import program_args

#: Every objective, by a name and whether it differentiates through every draw.
OBJECTIVES = {
    "CIWAE": (lambda: objectives.CIWAE(5), False),
    "ELBO": (objectives.ELBO, False),
    "ELBO of particles": (lambda: objectives.ELBO(3, analytic_kl=False), False),
    "ELBO, stl": (lambda: objectives.ELBO(3, gradient="stl"), True),
    "EnumeratedELBO": (objectives.EnumeratedELBO, False),
    "IWAE": (lambda: objectives.IWAE(5), False),
    "IWAE, stl": (lambda: objectives.IWAE(5, gradient="stl"), True),
    "IWAE, dreg": (lambda: objectives.IWAE(5, gradient="dreg"), True),
    "MIWAE": (lambda: objectives.MIWAE(2, 3), False),
    "MonteCarloEM": (lambda: objectives.MonteCarloEM(2, updates=2, warm_up=3), False),
    "PIWAE": (lambda: objectives.PIWAE(2, 3), False),
    "Renyi": (lambda: objectives.Renyi(0.5, 5), False),
    "ReweightedWakeSleep": (lambda: objectives.ReweightedWakeSleep(5), False),
    "WakeSleep": (objectives.WakeSleep, False),
}


@pytest.fixture(scope="module")
def data():
    """Real digits, 8 × 8, with their classes."""
    return pv.data.load("digits", binarize="threshold")


@pytest.fixture(params=PROGRAMS)
def make(request):
    return PROGRAMS[request.param]


@pytest.fixture
def program(make, data):
    return program_for(make, data)


class Middle(Messenger):
    """Puts the middle of its distribution in place of every draw, so that no noise is left."""

    def _pyro_sample(self, msg):
        if msg["value"] is None and hasattr(msg["fn"], "batch_shape"):
            fn = msg["fn"]
            msg["value"] = fn.probs.argmax(-1) if hasattr(fn, "probs") else fn.mean


def _middle_weights(program, given, **kwargs):
    with Middle():
        return pv.log_weights(program.model, program.guide, *given, num_samples=4, **kwargs)


def test_every_program_and_every_objective_is_listed():
    programs = {n for n in names(models) if issubclass(getattr(models, n), models.Autoencoder)}
    assert programs == {name.split(",")[0] for name in PROGRAMS}
    assert programs <= set(pv.__all__)
    listed = {name.split(",")[0].split(" ")[0] for name in OBJECTIVES}
    assert listed == set(names(objectives)) - {"Objective"}


def test_says_what_it_wants_of_the_data(make, data):
    cls = kind(make)
    assert isinstance(cls.labels, Labels) and cls.from_data[0] == "event_shape"
    assert set(cls.from_data) <= set(inspect.signature(cls).parameters)
    for method in (cls.model, cls.guide):
        assert {"x", "size"} <= set(inspect.signature(method).parameters)


def test_learns_from_real_data(program, data):
    train = data.train.head(300)
    before = pv.evaluate(program, train, num_samples=10)
    objective = objectives.EnumeratedELBO()  # sums out what is discrete, and is the ELBO else
    fast = partial(torch.optim.Adam, lr=0.02)
    valid = data.valid.head(50)
    settings = {"epochs": 4, "batch_size": 30, "optimizer": fast, "objective": objective}
    history = pv.fit(program, train, valid=valid, **settings)
    after = pv.evaluate(program, train, num_samples=10)
    assert len(history) == 4 and after.elbo > before.elbo + 5
    assert before.elbo < before.log_evidence < 0 and after.elbo < after.log_evidence < 0


def test_log_weights_are_per_datum_and_repeatable(program, data):
    given = program_args(program, data.train.head(6), 0)
    every = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        every.append(pv.log_weights(program.model, program.guide, *given, num_samples=4))
    assert every[0].shape == (4, 6) and every[0].isfinite().all()
    assert torch.equal(*every)
    # each datum has its own, and each draw
    assert len(every[0].unique()) == 24


@pytest.mark.parametrize("chunk_size", [1, 5, 7, 24, 1000])
def test_chunked_equals_unchunked(program, data, chunk_size):
    given = program_args(program, data.train.head(6), 0)
    expected = _middle_weights(program, given)
    chunked = _middle_weights(program, given, chunk_size=chunk_size)
    torch.testing.assert_close(chunked, expected, rtol=1e-5, atol=1e-4)
    assert len(expected[0].unique()) == 6


def test_particles_on_the_left_equal_tiled_ones(program, data):
    given = program_args(program.eval(), data.train.head(6), 0)
    found = importance_weights.find_layout(program.model, program.guide, *given)
    assert not found.tiled and found.nesting == 1
    draws = attach_noise(trace_program(program.model, program.guide, given, {})[0])
    left, tiled = (
        importance_weights.run_particles(
            program.model,
            program.guide,
            *given,
            num_samples=3,
            layout=importance_weights.Layout(1, tiled=tiled),
            draws=draws,
        )
        for tiled in (False, True)
    )
    for ours, theirs in ((left.log_p, tiled.log_p), (left.log_q, tiled.log_q)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].shape == (3, 6)
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-4)


def test_state_goes_into_a_twin(make, program, data):
    twin = program_for(make, data)
    train = data.train.head(40)
    pv.fit(program, train, epochs=1, batch_size=20)
    given = program_args(program, train.head(6), 0)
    expected = _middle_weights(program, given)
    assert not torch.allclose(_middle_weights(twin, given), expected)
    twin.load_state_dict(program.state_dict())
    torch.testing.assert_close(_middle_weights(twin, given), expected, rtol=0, atol=0)


def test_dtypes(program, data):
    x, *labels = program_args(program, data.train.head(6), 0)
    narrow = _middle_weights(program, (x, *labels))
    wide = _middle_weights(program.double(), (x.double(), *labels))
    assert narrow.dtype == torch.float32 and wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), narrow, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"expected x of torch.float64"):
        program.check(x, *labels)


def test_without_data_the_model_makes_some(program, data):
    labels = data.train.labels[:5]
    conditions = label_use(program) is Labels.CONDITION
    with torch.no_grad():
        x = program.model(None, labels) if conditions else program.model(size=5)
    assert x.shape == (5, *data.event_shape)
    given = (x, labels) if conditions else (x,)
    program.check(*given)
    assert pv.log_weights(program.model, program.guide, *given, num_samples=3).isfinite().all()


def test_gradients_reach_every_parameter(program, data):
    program.double()
    x, *labels = program_args(program, data.train.head(30), 0)
    pv.initialize(program, x.double())
    objective = objectives.EnumeratedELBO(2)
    objective.loss_and_grads(program.model, program.guide, x.double(), *labels)
    for name, parameter in program.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 1e-10, name


def test_foreign_data_are_refused(program, data):
    x, *labels = program_args(program, data.train.head(6), 0)
    program.check(x, *labels)
    with pytest.raises(ValueError, match=r"expected x.shape \(N ≥ 1, "):
        program.check(x[..., :-1], *labels)
    with pytest.raises(ValueError, match="Bernoulli scores only 0/1; got"):
        program.check(x + 0.5, *labels)
    if label_use(program) is not Labels.UNUSED:
        with pytest.raises(ValueError, match=r"expected .*class.* from 0 to 9"):
            program.check(x, torch.tensor([0, 1, 2, 3, 4, 10]))


#: Which objectives refuse a discrete latent, a model that observes labels too, or weights that
#: all data share, and how.
REFUSED = {
    **{
        ("BayesianVAE", name): "every site in the plate .* outside of it: use ELBO with gradient"
        for name, (_, pathwise) in OBJECTIVES.items()
        if pathwise or "ELBO" not in name
    },
    ("BayesianVAE", "MonteCarloEM"): "expected values for all latent sites; got none for 'network",
    ("SemiSupervisedVAE", "MonteCarloEM"): "expected .*discrete",
    ("SemiSupervisedVAE", "ReweightedWakeSleep"): "expected a model that observes one site",
    ("SemiSupervisedVAE", "WakeSleep"): "expected a model that observes one site",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_a_bound_of_it_and_learns_it(program, data, objective):
    """The mean of 30 values is between ELBO and log p̂: at 5 errors, false alarm < 1e-4."""
    build, pathwise = OBJECTIVES[objective]
    loss, train = build(), data.train.head(20)
    if label_use(program) is Labels.PARTIAL:
        train = replace(train, labels=train.labels.where(torch.arange(20) < 10, -1))
    given = program_args(program, train, 0)
    pv.initialize(program, given[0])
    drawn = sample_sites(trace_program(program.model, program.guide, given, {})[0])
    refused = REFUSED.get((type(program).__name__, objective))
    if pathwise and not all(site["fn"].has_rsample for site in drawn.values()):
        refused = "reparameteri"
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            pv.fit(program, train, epochs=1, batch_size=10, objective=loss)
        return
    bounds = pv.evaluate(program, train, num_samples=400)
    program.eval()
    with pyro.validation_enabled(False):  # as in fit: Pyro warns of a class that is not summed out
        values = [-loss.loss(program.model, program.guide, *given) / 20 for _ in range(30)]
    mean, noise = torch.tensor(values).mean(), torch.tensor(values).std() / 30**0.5
    room = 5 * (noise + bounds.estimates["elbo"].se_monte_carlo) + 1e-4
    assert bounds.elbo - room < mean < bounds.log_evidence + room
    before = {n: p.detach().clone() for n, p in program.named_parameters()}
    history = pv.fit(program, train, epochs=1, batch_size=10, objective=loss)
    assert history.epochs[0]["elbo"] < 0
    moved = [n for n, p in program.named_parameters() if not torch.equal(p, before[n])]
    assert moved == list(before)
