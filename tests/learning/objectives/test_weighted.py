"""Values and gradients of objectives based on importance weights."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from linear_gaussian import LinearGaussian
from pyro.infer import SVI, RenyiELBO
from pyro.nn import PyroModule, pyro_method

import pyro_vae as pv
from pyro_vae.learning.objectives import CIWAE, IWAE, MIWAE, Renyi

D = torch.float64


def _gradients(program, objective, x, repeats):
    """Return gradients per datum, ``(repeats, parameters)``, of independent minibatches."""
    rows = []
    for _ in range(repeats):
        program.zero_grad()
        objective.loss_and_grads(program.model, program.guide, x)
        rows.append(torch.stack([p.grad for p in program.parameters()]) / len(x))
    return torch.stack(rows)


def _agree(ours, theirs):
    """Compare the means of two sets of rows at 5 standard errors: false alarm < 1e-5 per entry."""
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    return bool(((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all())


X = torch.full((3000,), 1.4, dtype=D)


class TestGradients:
    def test_standard_gradient_equals_finite_differences(self):
        """In float64, with the same noise on both sides."""
        program, objective = Chain(), IWAE(k=5)
        x = X[:50]
        objective.loss(program.model, program.guide, x)
        pyro.set_rng_seed(1)
        program.zero_grad()
        objective.loss_and_grads(program.model, program.guide, x)
        for parameter in program.parameters():
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.add_(step)
                pyro.set_rng_seed(1)
                values.append(objective.loss(program.model, program.guide, x))
                with torch.no_grad():
                    parameter.sub_(step)
            slope = (values[0] - values[1]) / 2e-5
            assert float(parameter.grad) == pytest.approx(slope, rel=1e-6, abs=1e-6)

    @pytest.mark.parametrize(
        "make", [partial(IWAE, 1), partial(IWAE, 4), partial(IWAE, 20), partial(MIWAE, 3, 4)]
    )
    def test_dreg_has_the_same_mean(self, make):
        program = Chain()
        standard, dreg = (
            _gradients(program, make(gradient=gradient), X, 30) for gradient in ("standard", "dreg")
        )
        assert _agree(standard, dreg)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
    def test_renyi_equals_pyro(self, alpha):
        program, (ours, theirs) = (
            Chain(),
            (
                Renyi(alpha, k=6),
                RenyiELBO(alpha, num_particles=6, vectorize_particles=True, max_plate_nesting=1),
            ),
        )
        rows = [_gradients(program, objective, X, 30) for objective in (ours, theirs)]
        assert _agree(*rows)

    def test_stl_is_biased_for_more_than_one_sample(self):
        program = Chain()
        one_sample, four_samples = (
            [_gradients(program, IWAE(k, gradient), X, 30) for gradient in ("standard", "stl")]
            for k in (1, 4)
        )
        assert _agree(*one_sample)
        # dropping the score of an IWAE is biased (DReG paper)
        assert not _agree(*four_samples)

    @pytest.mark.parametrize("gradient", ["stl", "dreg"])
    def test_guide_gradient_vanishes_at_the_posterior(self, gradient):
        """Sticking the landing: if q is the posterior, every sample has zero gradient."""
        program = Chain()
        v, w = 0.8, 1.3
        prior = v**2 + 0.36
        precision = 1 / prior + w**2 / 0.49
        with torch.no_grad():
            program.a.fill_(w / 0.49 / precision)
            program.s.fill_(-0.5 * math.log(precision))
            program.b.fill_(v / prior)
            program.t.fill_(0.5 * math.log(0.36 / prior))
        rows = _gradients(program, IWAE(3, gradient), X[:5], 4)
        names = [name for name, _ in program.named_parameters()]
        guide = [names.index(name) for name in Chain.guide_parameters]
        assert rows[:, guide].abs().max() < 1e-12
        standard = _gradients(program, IWAE(3), X[:5], 4)
        assert standard[:, guide].abs().max() > 1e-2

    def test_signal_to_noise_ratio_of_dreg_does_not_fall_with_k(self):
        # Rainforth et al.: the standard signal-to-noise ratio falls with k, that of DReG does not
        program, ratios = Chain(), {}
        guide = [list(dict(program.named_parameters())).index("a")]
        for gradient in ("standard", "dreg"):
            for k in (2, 64):
                rows = _gradients(program, IWAE(k, gradient), X[:40], 150)[:, guide]
                ratios[gradient, k] = float(rows.mean().abs() / rows.std())
        assert ratios["standard", 64] < 0.7 * ratios["standard", 2]
        assert ratios["dreg", 64] > 0.9 * ratios["dreg", 2] > ratios["standard", 2]


class TestValues:
    @pytest.mark.parametrize("gradient", ["standard", "stl", "dreg"])
    def test_mean_equals_l_k(self, gradient):
        program = LinearGaussian(2, shift=0.7, inflate=1.2)
        x = program.sample(400)
        objective = IWAE(7, gradient)
        pyro.set_rng_seed(0)
        values = torch.tensor(
            [
                float(objective.differentiable_loss(program.model, program.guide, x))
                for _ in range(20)
            ]
        )
        bounds = pv.evaluate(program, x, num_samples=7_000, ks=[7])
        expected = bounds.estimates["iwae_7"]
        error = math.hypot(float(values.std()) / 20**0.5 / 400, expected.se_monte_carlo)
        # 5 standard errors
        assert abs(-float(values.mean()) / 400 - expected.value) < 5 * error
        assert bounds.elbo + 0.1 < expected.value < float(program.log_evidence(x).mean()) - 0.01

    def test_relations_between_bounds(self):
        log_w = torch.randn(12, 5, dtype=D)
        mean, tight = log_w.mean(0), log_w.logsumexp(0) - math.log(12)
        equal = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
        equal(IWAE(12).bound(log_w), tight)
        equal(MIWAE(12, 1).bound(log_w), mean)
        equal(MIWAE(1, 12).bound(log_w), tight)
        groups = [log_w[i : i + 4].logsumexp(0) - math.log(4) for i in (0, 4, 8)]
        equal(MIWAE(3, 4).bound(log_w), torch.stack(groups).mean(0))
        equal(CIWAE(12, 0.0).bound(log_w), tight)
        equal(CIWAE(12, 1.0).bound(log_w), mean)
        equal(CIWAE(12, 0.3).bound(log_w), 0.3 * mean + 0.7 * tight)
        equal(Renyi(0.0, 12).bound(log_w), tight)
        equal(Renyi(1.0, 12).bound(log_w), mean)
        # continuous and decreasing in α
        torch.testing.assert_close(Renyi(1.0001, 12).bound(log_w), mean, rtol=0, atol=1e-3)
        values = [Renyi(alpha, 12).bound(log_w) for alpha in (-1.0, 0.0, 0.5, 1.0, 3.0)]
        assert all(bool((a > b).all()) for a, b in pairwise(values))

    def test_one_sample_gives_the_elbo(self):
        program = LinearGaussian(2, shift=0.7)
        x = program.sample(5)
        values = []
        for objective in (IWAE(1), pv.objectives.ELBO(analytic_kl=False)):
            objective.loss(program.model, program.guide, x)
            pyro.set_rng_seed(2)
            values.append(objective.loss(program.model, program.guide, x))
        assert values[0] == pytest.approx(values[1])


def test_layout_depends_on_the_arguments():
    """This program indexes dimensions by position only if it gets a condition."""

    def model(x, c=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            weights = z.softmax(1) if c is not None else z
            pyro.sample("x", dist.Normal(weights.sum(-1) + weights[..., 0], 1.0), obs=x)

    def guide(x, c=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    objective, x, c = IWAE(3), torch.randn(5), torch.ones(5)
    with pytest.warns(UserWarning, match="each particle runs as an additional example"):
        tiled = [objective.layout(model, guide, args, {}).tiled for args in ((x,), (x, c), (x,))]
    assert tiled == [False, True, False]


def _shared(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)


def _shared_guide(x):
    pyro.sample("w", dist.Normal(pyro.param("mean", torch.zeros(())), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_two_plates_of_the_size_of_the_data():
    def program(x, observed=True):
        with pyro.plate("cells", len(x), dim=-2), pyro.plate("genes", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4, 4), 1.0))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    message = r"got 'z' only in 'cells', 'genes': .* if several plates have the size of the data"
    with pytest.raises(ValueError, match=message):
        IWAE(3).loss(program, partial(program, observed=False), torch.randn(4, 4))


@pytest.mark.parametrize(
    "make",
    [
        partial(IWAE, 3),
        partial(IWAE, 3, "stl"),
        partial(IWAE, 3, "dreg"),
        CIWAE,
        pv.objectives.PIWAE,
        pv.objectives.WakeSleep,
        partial(pv.objectives.ELBO, gradient="stl"),
    ],
)
def test_rejects_latents_outside_the_data_plate(make):
    """Including latents of training mode only, which the layout does not contain."""
    message = r"expected every site in the plate .* got 'w' outside of it: use ELBO with gradient"

    class Program(PyroModule):
        @pyro_method
        def model(self, x):
            return (_shared if self.training else _private)(x)

        @pyro_method
        def guide(self, x):
            return (_shared_guide if self.training else _private_guide)(x)

    def _private(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def _private_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    program, objective, x = Program().eval(), make(), torch.zeros(3)
    objective.loss(program.model, program.guide, x)
    program.train()
    with pytest.raises(ValueError, match=message):
        objective.differentiable_loss(program.model, program.guide, x)


@pytest.mark.parametrize("gradient", ["standard", "stl", "dreg"])
def test_trains_a_vae(gradient):
    small = partial(pv.networks.MLP, hidden=(5,))
    vae = pv.VAE((4,), 2, encoder=small, decoder=small)
    x = torch.bernoulli(torch.rand(1, 4)).expand(50, 4)
    adam = partial(torch.optim.Adam, lr=0.02)
    history = pv.fit(vae, x, objective=IWAE(5, gradient), epochs=80, optimizer=adam)
    # for 50 copies of one example log p(x) → 0
    assert history["elbo"][0] < -1.5 and history["elbo"][-1] > -0.3


def test_plain_svi():
    program = Chain()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.02}), IWAE(8))
    losses = [svi.step(X[:100]) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IWAE(0), "expected k to be a positive integer; got 0"),
        (lambda: MIWAE(0, 3), "expected m to be a positive integer; got 0"),
        (lambda: CIWAE(3, 1.5), r"expected beta in \[0, 1\]; got 1.5"),
        (lambda: CIWAE(0), "expected k to be a positive integer; got 0"),
        (lambda: Renyi(math.nan), "expected alpha to be a finite number; got nan"),
        (lambda: Renyi(0.5, 0), "expected k to be a positive integer; got 0"),
        (lambda: IWAE(5, "path"), "expected gradient to be standard, stl or dreg; got 'path'"),
    ],
)
def test_rejects_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_rejects_programs_without_the_gradient_estimator(gradient):
    small = partial(pv.networks.MLP, hidden=(5,))
    parts = {"encoder": small, "decoder": small, "posterior": pv.posteriors.PlanarFlow}
    vae = pv.VAE((4,), 2, **parts)
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"without an inverse.*use gradient 'standard'"):
        IWAE(3, gradient).differentiable_loss(vae.model, vae.guide, x)
    assert IWAE(3).loss(vae.model, vae.guide, x) > 0

    noisy = partial(pv.networks.MLP, hidden=(50,), dropout=0.5)
    vae = pv.VAE((4,), 2, encoder=noisy, decoder=noisy)
    message = "the same density for a sample in each run; got different"
    with pytest.raises(ValueError, match=message):
        IWAE(3, gradient).differentiable_loss(vae.model, vae.guide, x)
    vae = pv.VAE((4,), 2, encoder=small, decoder=noisy)
    assert IWAE(3, gradient).differentiable_loss(vae.model, vae.guide, x).item() > 0

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(0.4))

    message = r"site 'c' .Bernoulli., which is not: use gradient 'standard'"
    with pytest.raises(ValueError, match=message):
        IWAE(3, gradient).differentiable_loss(model, guide, torch.zeros(3))
