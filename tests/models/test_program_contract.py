"""Contract of all programs with fit, log_weights, evaluate and the objectives."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial

import pyro
import pytest
import torch
from components import PROGRAMS, component_class, program_for
from pyro.poutine.messenger import Messenger

import pyro_vae as pv
from pyro_vae import models, objectives
from pyro_vae.config.classes import component_names
from pyro_vae.core.components import Labels
from pyro_vae.programs import importance_weights, particles
from pyro_vae.programs.base import attach_noise, label_use, sample_sites, trace_program
from pyro_vae.programs.inputs import program_args

#: All objectives by name, and whether they need reparameterised samples.
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
    """8 × 8 digits with their classes."""
    return pv.data.load("digits", binarize="threshold")


@pytest.fixture(params=PROGRAMS)
def make(request):
    return PROGRAMS[request.param]


@pytest.fixture
def program(make, data):
    return program_for(make, data)


class UseMeans(Messenger):
    """Replace every sample with the mean or mode of its distribution."""

    def _pyro_sample(self, msg):
        if msg["value"] is None and hasattr(msg["fn"], "batch_shape"):
            fn = msg["fn"]
            msg["value"] = fn.probs.argmax(-1) if hasattr(fn, "probs") else fn.mean


def _noiseless_weights(program, args, **kwargs):
    with UseMeans():
        return pv.log_weights(program.model, program.guide, *args, num_samples=4, **kwargs)


def test_every_program_and_every_objective_is_listed():
    programs = {
        n for n in component_names(models) if issubclass(getattr(models, n), models.Autoencoder)
    }
    assert programs == {name.split(",")[0] for name in PROGRAMS}
    assert programs <= {*dir(pv)}
    listed = {name.split(",")[0].split(" ")[0] for name in OBJECTIVES}
    assert listed == set(component_names(objectives)) - {"Objective"}


def test_declares_its_use_of_the_data(make, data):
    cls = component_class(make)
    assert isinstance(cls.labels, Labels) and cls.from_data[0] == "event_shape"
    assert set(cls.from_data) <= set(inspect.signature(cls).parameters)
    for method in (cls.model, cls.guide):
        assert {"x", "size"} <= set(inspect.signature(method).parameters)


def test_training_improves_the_elbo(program, data):
    train = data.train.head(300)
    before = pv.evaluate(program, train, num_samples=10)
    objective = objectives.EnumeratedELBO()  # sums out discrete latents
    fast = partial(torch.optim.Adam, lr=0.02)
    valid = data.valid.head(50)
    settings = {"epochs": 4, "batch_size": 30, "optimizer": fast, "objective": objective}
    history = pv.fit(program, train, valid=valid, **settings)
    after = pv.evaluate(program, train, num_samples=10)
    assert len(history) == 4 and after.elbo > before.elbo + 5
    assert before.elbo < before.log_evidence < 0 and after.elbo < after.log_evidence < 0


def test_log_weights_are_per_example_and_reproducible(program, data):
    args = program_args(program, data.train.head(6), 0)
    log_ws = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        log_ws.append(pv.log_weights(program.model, program.guide, *args, num_samples=4))
    assert log_ws[0].shape == (4, 6) and log_ws[0].isfinite().all()
    assert torch.equal(*log_ws)
    # distinct for each example and sample
    assert len(log_ws[0].unique()) == 24


def test_chunked_equals_unchunked(program, data):
    args = program_args(program, data.train.head(6), 0)
    expected = _noiseless_weights(program, args)
    assert len(expected[0].unique()) == 6
    for chunk_size in (1, 5, 7, 24):
        chunked = _noiseless_weights(program, args, chunk_size=chunk_size)
        torch.testing.assert_close(chunked, expected, rtol=1e-5, atol=1e-4)


def test_broadcast_particles_equal_tiled_ones(program, data):
    args = program_args(program.eval(), data.train.head(6), 0)
    layout = importance_weights.find_layout(program.model, program.guide, *args)
    assert not layout.tiled and layout.nesting == 1
    draws = attach_noise(trace_program(program.model, program.guide, args, {})[0])
    broadcast, tiled = (
        particles.run_particles(
            program.model,
            program.guide,
            *args,
            num_samples=3,
            layout=particles.Layout(1, tiled=tiled),
            draws=draws,
        )
        for tiled in (False, True)
    )
    for actual, expected in ((broadcast.log_p, tiled.log_p), (broadcast.log_q, tiled.log_q)):
        assert actual.keys() == expected.keys()
        for name in actual:
            assert actual[name].shape == (3, 6)
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-4)


def test_state_dict_reproduces_the_weights(make, program, data):
    loaded = program_for(make, data)
    train = data.train.head(40)
    pv.fit(program, train, epochs=1, batch_size=20)
    args = program_args(program, train.head(6), 0)
    expected = _noiseless_weights(program, args)
    assert not torch.allclose(_noiseless_weights(loaded, args), expected)
    loaded.load_state_dict(program.state_dict())
    torch.testing.assert_close(_noiseless_weights(loaded, args), expected, rtol=0, atol=0)


def test_dtypes(program, data):
    x, *labels = program_args(program, data.train.head(6), 0)
    single = _noiseless_weights(program, (x, *labels))
    double = _noiseless_weights(program.double(), (x.double(), *labels))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"expected x of torch.float64"):
        program.check(x, *labels)


def test_model_samples_new_examples(program, data):
    labels = data.train.labels[:5]
    conditions = label_use(program) is Labels.CONDITION
    with torch.no_grad():
        x = program.model(None, labels) if conditions else program.model(size=5)
    assert x.shape == (5, *data.event_shape)
    args = (x, labels) if conditions else (x,)
    program.check(*args)
    assert pv.log_weights(program.model, program.guide, *args, num_samples=3).isfinite().all()


def test_gradients_reach_every_parameter(program, data):
    program.double()
    x, *labels = program_args(program, data.train.head(30), 0)
    pv.initialize(program, x.double())
    objective = objectives.EnumeratedELBO(2)
    objective.loss_and_grads(program.model, program.guide, x.double(), *labels)
    for name, parameter in program.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 1e-10, name


def test_invalid_data_raise(program, data):
    x, *labels = program_args(program, data.train.head(6), 0)
    program.check(x, *labels)
    with pytest.raises(ValueError, match=r"expected x.shape \(N ≥ 1, "):
        program.check(x[..., :-1], *labels)
    with pytest.raises(ValueError, match="Bernoulli scores only 0/1; got"):
        program.check(x + 0.5, *labels)
    if label_use(program) is not Labels.UNUSED:
        with pytest.raises(ValueError, match=r"expected .*class.* from 0 to 9"):
            program.check(x, torch.tensor([0, 1, 2, 3, 4, 10]))


#: Errors of objectives that do not support discrete latents, observed labels or global weights.
UNSUPPORTED = {
    **{
        ("BayesianVAE", name): "every site in the plate .* outside of it: use ELBO with gradient"
        for name, (_, pathwise) in OBJECTIVES.items()
        if pathwise or "ELBO" not in name
    },
    ("BayesianVAE", "MonteCarloEM"): "expected a value for each latent site; .*not for 'network",
    ("SemiSupervisedVAE", "MonteCarloEM"): "expected .*discrete",
    ("SemiSupervisedVAE", "ReweightedWakeSleep"): "expected a model with one observed site",
    ("SemiSupervisedVAE", "WakeSleep"): "expected a model with one observed site",
}
#: All objectives with one program of continuous latents, one with a discrete latent and one with
#: latents outside the plate; the other programs with objectives that run them differently.
PAIRS = [
    (p, o) for p in ("HierarchicalVAE", "SemiSupervisedVAE", "BayesianVAE") for o in OBJECTIVES
]
DIFFERENT = ("ELBO of particles", "IWAE, dreg", "MonteCarloEM", "ReweightedWakeSleep")
PAIRS += [(p, o) for p in PROGRAMS for o in DIFFERENT if (p, o) not in PAIRS]


@pytest.mark.parametrize(("make", "objective"), PAIRS, indirect=["make"])
def test_every_objective_is_a_bound_and_trains(program, data, objective):
    """The mean of 30 values lies between ELBO and log p̂: 5 errors, false alarm < 1e-4."""
    build, pathwise = OBJECTIVES[objective]
    loss, train = build(), data.train.head(20)
    if label_use(program) is Labels.PARTIAL:
        train = replace(train, labels=train.labels.where(torch.arange(20) < 10, -1))
    args = program_args(program, train, 0)
    pv.initialize(program, args[0])
    sites = sample_sites(trace_program(program.model, program.guide, args, {})[0])
    error = UNSUPPORTED.get((type(program).__name__, objective))
    if pathwise and not all(site["fn"].has_rsample for site in sites.values()):
        error = "reparameteri"
    if error is not None:
        with pytest.raises(ValueError, match=error):
            pv.fit(program, train, epochs=1, batch_size=10, objective=loss)
        return
    bounds = pv.evaluate(program, train, num_samples=400)
    program.eval()
    with pyro.validation_enabled(False):  # as in fit: Pyro warns about y without enumeration
        values = [-loss.loss(program.model, program.guide, *args) / 20 for _ in range(30)]
    mean, noise = torch.tensor(values).mean(), torch.tensor(values).std() / 30**0.5
    tolerance = 5 * (noise + bounds.estimates["elbo"].se_monte_carlo) + 1e-4
    assert bounds.elbo - tolerance < mean < bounds.log_evidence + tolerance
    before = {n: p.detach().clone() for n, p in program.named_parameters()}
    history = pv.fit(program, train, epochs=1, batch_size=10, objective=loss)
    assert history.epochs[0]["elbo"] < 0
    changed = [n for n, p in program.named_parameters() if not torch.equal(p, before[n])]
    assert changed == list(before)
