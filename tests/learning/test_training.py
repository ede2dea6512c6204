"""``fit``: convergence, reproducibility, resuming, early stopping and error messages."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from linear_gaussian import LinearGaussian
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn

import pyro_vae as pv
from pyro_vae.learning.checkpoint import CheckpointError
from pyro_vae.learning.diagnostics import NonFiniteLossError


@pytest.fixture(scope="module")
def digits():
    return pv.data.load("digits", binarize="dynamic", valid=0.2)


def _vae(seed=0):
    pyro.set_rng_seed(seed)
    return pv.VAE((1, 8, 8), 3, encoder=SMALL, decoder=SMALL)


def _weights(program):
    return {name: tensor.clone() for name, tensor in program.state_dict().items()}


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_converges_to_the_posterior_of_a_linear_gaussian_model():
    truth = LinearGaussian(2, data_dim=3, seed=1)

    class Learner(PyroModule):
        """The true model with a linear encoder."""

        def __init__(self):
            super().__init__()
            self.mean = nn.Linear(3, 2)
            self.tril = PyroParam(torch.eye(2), constraint=dist.constraints.lower_cholesky)

        @pyro_method
        def model(self, x):
            return truth.model(x)

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                fn = dist.MultivariateNormal(self.mean(x), scale_tril=self.tril)
                pyro.sample("z", fn)

    x = truth.sample(500)
    program = Learner().double()
    pv.fit(
        program,
        x,
        # ten particles reduce the remaining noise to a third of the tolerance
        objective=pv.objectives.ELBO(10),
        optimizer=partial(torch.optim.Adam, lr=0.05),
        schedule=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.92),
        epochs=60,
        batch_size=50,
    )
    torch.testing.assert_close(program.tril.detach(), truth.factor, atol=0.02, rtol=0)
    torch.testing.assert_close(
        program.mean.weight.detach(), truth.covariance @ truth.W.T / truth.s**2, atol=0.02, rtol=0
    )
    bounds = pv.evaluate(program, x, num_samples=100)
    assert bounds.elbo == pytest.approx(float(truth.log_evidence(x).mean()), abs=2e-3)


def test_metrics_are_the_bound_per_datum(digits):
    # with a learning rate of 0, every epoch estimates the same ELBO. The number of examples is not
    # a multiple of 100, so an unweighted mean over minibatches would be wrong
    vae = _vae()
    optimizer = partial(torch.optim.SGD, lr=0.0)
    history = pv.fit(vae, digits.train, valid=digits.valid, optimizer=optimizer, epochs=3)
    assert len(digits.train) % 100
    exact = pv.evaluate(vae, digits.train, num_samples=50).estimates["elbo"]
    for value in history["elbo"]:
        assert value == pytest.approx(exact.value, abs=0.5)
    # validation uses the same noise after every epoch
    assert len(set(history["valid_elbo"])) == 1
    expected = pv.evaluate(vae, digits.valid, num_samples=50).elbo
    assert history["valid_elbo"][0] == pytest.approx(expected, abs=1.0)
    assert history["epoch"] == [1, 2, 3]
    assert history["step"] == [13, 26, 39]


def test_seed_determines_the_result(digits):
    results = []
    for seed in (0, 0, 1):
        vae = _vae()
        before = torch.get_rng_state()
        history = pv.fit(vae, digits.train, epochs=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append((history["elbo"], _weights(vae)))
    assert results[0][0] == results[1][0] != results[2][0]
    assert _same(results[0][1], results[1][1])
    assert not _same(results[0][1], results[2][1])


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(digits):
    """A run with everything that a checkpoint restores: arguments, history and weights."""
    arguments = {
        "valid": digits.valid,
        "epochs": 4,
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        "clip_norm": 50.0,
    }
    vae = _vae()
    return arguments, pv.fit(vae, digits.train, **arguments), _weights(vae)


@pytest.mark.parametrize("after", [1, 3])
def test_resumed_run_equals_uninterrupted_run(digits, tmp_path, uninterrupted, after):
    arguments, expected, weights = uninterrupted

    def kill(history):
        if len(history) == after:
            raise Killed

    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        pv.fit(_vae(), digits.train, checkpoint=path, on_epoch=kill, **arguments)
    resumed = _vae(seed=9)  # the initial weights are replaced
    history = pv.fit(resumed, digits.train, checkpoint=path, resume=True, **arguments)
    assert _same(_weights(resumed), weights)
    for column in ("epoch", "step", "elbo", "valid_elbo", "lr"):
        assert history[column] == expected[column]


def test_early_stopping_keeps_the_best_epoch(digits, tmp_path):
    # a large learning rate, with which the validation ELBO soon gets worse
    arguments = {
        "valid": digits.valid,
        "epochs": 60,
        "patience": 3,
        "optimizer": partial(torch.optim.Adam, lr=0.3),
    }
    vae = _vae()
    history = pv.fit(vae, digits.train, checkpoint=tmp_path / "state.pt", **arguments)
    best = max(range(len(history)), key=history["valid_elbo"].__getitem__) + 1
    assert history.best_epoch == best == len(history) - 3 < 57
    best_vae = _vae()
    pv.fit(best_vae, digits.train, **{**arguments, "epochs": best, "patience": None})
    assert _same(_weights(vae), _weights(best_vae))
    # resuming a fit that stopped early adds no epochs
    resumed = pv.fit(vae, digits.train, checkpoint=tmp_path / "state.pt", resume=True, **arguments)
    assert resumed["elbo"] == history["elbo"] and resumed.best_epoch == best
    assert _same(_weights(vae), _weights(best_vae))


def test_checkpoint_without_extension(digits, tmp_path):
    x = digits.train.head(50)
    pv.fit(_vae(), x, epochs=1, checkpoint=tmp_path / "state")
    history = pv.fit(_vae(), x, epochs=2, checkpoint=str(tmp_path / "state"), resume=True)
    assert len(history) == 2 and [file.name for file in tmp_path.iterdir()] == ["state"]


def test_plateau_schedule_monitors_the_validation_elbo(digits):
    schedule = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)
    history = pv.fit(
        _vae(),
        digits.train,
        valid=digits.valid,
        schedule=schedule,
        optimizer=partial(torch.optim.SGD, lr=0.0),
        epochs=4,
    )
    # the validation ELBO never improves, and half of a rate of 0 is 0
    assert history["lr"] == [0.0] * 4
    history = pv.fit(
        _vae(),
        digits.train,
        valid=digits.valid,
        schedule=schedule,
        optimizer=partial(torch.optim.Adam, lr=0.5),
        epochs=8,
    )
    best, rate = -math.inf, 0.5
    for record in history.epochs:
        assert record["lr"] == rate
        improved = record["valid_elbo"] > best + 1e-4 * abs(best) if best > -math.inf else True
        best, rate = (record["valid_elbo"], rate) if improved else (best, rate / 2)


def test_rejects_a_checkpoint_with_other_settings(digits, tmp_path):
    path = tmp_path / "state.pt"
    pv.fit(_vae(), digits.train, epochs=1, checkpoint=path)
    for change, name in (
        ({"batch_size": 50}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=1)}, "schedule"),
        ({"optimizer": partial(torch.optim.Adam, lr=0.1)}, "optimizer"),
        ({"optimizer": torch.optim.SGD}, "optimizer"),
        ({"objective": pv.objectives.ELBO(2)}, "objective"),
        ({"objective": pyro.infer.Trace_ELBO()}, "objective"),
        ({"valid": digits.valid}, "data"),
    ):
        with pytest.raises(CheckpointError, match=f"belongs to a fit with another {name}"):
            pv.fit(_vae(), digits.train, epochs=2, checkpoint=path, resume=True, **change)
    pv.fit(_vae(), digits.train, epochs=2, checkpoint=path, resume=True)
    with pytest.raises(CheckpointError, match="is already at epoch 2: expected epochs to be at le"):
        pv.fit(_vae(), digits.train, epochs=1, checkpoint=path, resume=True)
    other = pv.VAE((1, 8, 8), 4, encoder=SMALL, decoder=SMALL)
    with pytest.raises(CheckpointError, match="another parameters"):
        pv.fit(other, digits.train, epochs=2, checkpoint=path, resume=True)


class Fragile(PyroModule):
    """Becomes non-finite at the given site."""

    def __init__(self, where):
        super().__init__()
        self.where, self.loc, self.steps = where, nn.Parameter(torch.zeros(())), 0

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = torch.where(x > 2, 0.0, 1.0) if self.where == "x" else 1.0
            pyro.sample("x", dist.Normal(z + self.loc, scale), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc = self.loc.log() if self.where == "z" else self.loc
            pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize(
    ("where", "site", "cause"),
    [
        ("x", "x", r"site 'x' \(Normal\) of the model is not finite for 1 of 3 values"),
        ("z", "z", r"site 'z' \(Normal\) of the guide is not finite for \d of \d values"),
    ],
)
def test_non_finite_loss_names_epoch_step_and_site(where, site, cause, tmp_path):
    x = torch.zeros(6)
    x[4] = 3.0
    program = Fragile(where)
    path = tmp_path / "state.pt"
    message = rf"the loss became \S+ in epoch 1, step \d: the log-probability of {cause}; try"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        pv.fit(program, x, epochs=2, batch_size=3, checkpoint=path)
    assert caught.value.site == site
    assert all(p.isfinite().all() for p in program.parameters())
    assert not path.exists()


def test_the_last_good_checkpoint_survives(tmp_path):
    path = tmp_path / "state.pt"
    program = Fragile("nowhere")
    saved = []

    def break_program(history):
        saved.append(path.read_bytes())
        program.where = "x"

    with pytest.raises(NonFiniteLossError, match="in epoch 2, step 1"):
        pv.fit(program, torch.full((6,), 3.0), epochs=3, checkpoint=path, on_epoch=break_program)
    assert path.read_bytes() == saved[0]


def test_overflowed_parameter_is_named():
    program = Fragile("nowhere")
    with pytest.raises(NonFiniteLossError, match="parameter 'loc' is not finite"):
        pv.fit(program, torch.ones(6), epochs=5, optimizer=partial(torch.optim.SGD, lr=1e38))


def test_non_finite_gradient_is_not_applied(tmp_path):
    class Root(Fragile):
        """√|w| at w = 0: a finite loss with a gradient of 0 · ∞."""

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                loc = (self.loc * 0.0).abs().sqrt() if self.where == "root" else self.loc
                pyro.sample("z", dist.Normal(loc, 1.0))

    program, path = Root("nowhere"), tmp_path / "state.pt"
    saved = []

    def break_program(history):
        saved.append((path.read_bytes(), program.loc.item()))
        program.where = "root"

    message = "the gradient is not finite in epoch 2, step 1: that of parameter 'loc' is NaN or"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        pv.fit(program, torch.ones(6), epochs=3, checkpoint=path, on_epoch=break_program)
    assert caught.value.site == "loc"
    assert (path.read_bytes(), program.loc.item()) == saved[0]


def test_gradient_whose_square_overflows_is_named():
    class Steep(Fragile):
        def __init__(self):
            super().__init__("nowhere")
            self.weight = nn.Parameter(torch.zeros(100))

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                # 0 initially, with derivative 1e25
                pyro.sample("z", dist.Normal((1e25 * self.weight).sum(), 1.0))

    message = r"no finite norm in epoch 1, step 1: that of parameter 'weight' is up to \d\.\de\+2\d"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        pv.fit(Steep(), torch.ones(6), epochs=1)
    assert caught.value.site == "weight"


def test_overflowed_weights_are_not_checkpointed(tmp_path):
    program, path = Fragile("nowhere"), tmp_path / "state.pt"
    with pytest.raises(NonFiniteLossError, match="the weights overflowed at the end of epoch 1"):
        pv.fit(
            program,
            torch.full((6,), 1e3),
            epochs=1,
            optimizer=partial(torch.optim.SGD, lr=1e38),
            checkpoint=path,
        )
    assert not path.exists()


def test_resumes_an_autoguide(tmp_path):
    class Auto(PyroModule):
        """The guide creates its parameters, one per example, in the first run."""

        def __init__(self):
            super().__init__()
            self.auto = AutoNormal(self.model)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            return self.auto(x)

    x = torch.randn(10)
    arguments = {"batch_size": 10, "optimizer": partial(torch.optim.Adam, lr=0.1)}
    uninterrupted, interrupted = Auto(), Auto()
    expected = pv.fit(uninterrupted, x, epochs=60, **arguments)
    path = tmp_path / "state.pt"
    pv.fit(interrupted, x, epochs=20, checkpoint=path, checkpoint_every=20, **arguments)
    resumed = Auto()
    settings = {"checkpoint": path, "checkpoint_every": 60, "resume": True}
    history = pv.fit(resumed, x, epochs=60, **settings, **arguments)
    assert history["elbo"] == expected["elbo"]
    assert _same(_weights(resumed), _weights(uninterrupted))
    # can be evaluated, although its parameters do not allow splitting the data
    log_w = pv.log_weights(resumed.model, resumed.guide, x, num_samples=300, chunk_size=4)
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(log_w.logsumexp(0) - math.log(300), truth, atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "expected epochs to be a positive integer; got 0"),
        ({"batch_size": -1}, "expected batch_size to be a positive integer; got -1"),
        (
            {"patience": 2},
            "expected validation data with patience, which monitors their ELBO; got none",
        ),
        ({"seed": -1}, "expected seed to be an integer ≥ 0; got -1"),
        (
            {"optimizer": partial(torch.optim.Adam, lr=-1.0)},
            "arguments of the optimizer: Invalid lear",
        ),
        ({"optimizer": torch.optim.LBFGS}, "loss once per step; got LBFGS, whose evaluations"),
        ({"device": "tpu"}, "expected device to be auto, cpu or cuda; got 'tpu'"),
    ],
)
def test_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        pv.fit(Fragile("nowhere"), torch.zeros(6), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without CUDA")
def test_rejects_missing_cuda():
    with pytest.raises(ValueError, match="expected a CUDA device; torch found none"):
        pv.fit(Fragile("nowhere"), torch.zeros(6), device="cuda")


def test_rejects_empty_data():
    with pytest.raises(ValueError, match="expected at least one training example; got none"):
        pv.fit(Fragile("nowhere"), torch.empty(0))


class Late(PyroModule):
    """Creates a parameter after the first epoch."""

    def __init__(self):
        super().__init__()
        self.calls, self.w = 0, nn.Parameter(torch.zeros(()))

    @pyro_method
    def model(self, x):
        self.calls += 1
        theta = pyro.param("theta", torch.tensor(0.0)) if self.calls > 10 else 0.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.w + theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))


def test_rejects_parameters_that_are_created_late():
    """See test_trained_parameters.py for those that the first run creates."""
    with pytest.raises(ValueError, match=r"got 'theta' of shape \(\), which would not be saved"):
        pv.fit(Late(), torch.zeros(6), epochs=20)


def test_dynamic_binarisation_is_resampled_in_every_step(digits):
    batches = []

    class RecordingVAE(pv.VAE):
        def guide(self, x):
            batches.append(x)
            return super().guide(x)

    pyro.set_rng_seed(0)
    vae = RecordingVAE((1, 8, 8), 2, encoder=SMALL, decoder=SMALL)
    one = pv.data.Split(digits.train.values[:1], peak=16.0, dynamic=True)
    pv.fit(vae, one, epochs=200, optimizer=partial(torch.optim.SGD, lr=0.0))
    samples = torch.cat(batches)
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    grey = digits.train.values[0].double() / 16
    # the means of 64 pixels over 200 samples, at 5 standard errors: false alarm < 1e-4
    error = (grey * (1 - grey) / len(samples)).sqrt()
    assert ((samples.double().mean(0) - grey).abs() <= 5 * error + 1e-12).all()
