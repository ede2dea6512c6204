"""Free bits against the explicit formula and finite differences."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import streams
import torch
from components import PRIORS, small_vae
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import nn
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae.config.experiment import load_experiment, parse
from pyro_vae.learning.objectives import ELBO
from pyro_vae.learning.objectives.free_bits import FreeBits

D = torch.float64
X = torch.tensor(
    [[0.3, -1.1, 0.8, 0.2], [-0.4, 0.9, 0.1, 1.2], [1.3, 0.2, -0.7, 0.5]], dtype=D
)  # fmt: skip


class Diagonal(PyroModule):
    """Four latents with KLs of about 0.05, 1.7, 0.4 and 0.1 nats on X."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, 0.8, -0.2, 0.6], dtype=D))
        self.s = nn.Parameter(torch.tensor([0.1, -2.0, -0.8, -0.2], dtype=D))
        self.w = nn.Parameter(torch.tensor([0.5, 1.2, -0.9, 0.7], dtype=D))

    def q(self, x):
        return dist.Normal(self.a * x, self.s.exp().expand(x.shape))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.w * z, 0.7).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x).to_event(1))

    def formula(self, x, nats, groups, beta, particles, analytic):
        """Return the explicit loss, with fixed noise."""
        pyro.set_rng_seed(7)
        q, p = self.q(x), dist.Normal(torch.zeros((), dtype=D), 1.0)
        z = q.rsample((particles,)) if particles > 1 else q.rsample()[None]
        kl = kl_divergence(q, p).expand(z.shape) if analytic else q.log_prob(z) - p.log_prob(z)
        means = kl.mean((0, 1)).reshape(groups or 4, -1).sum(1)
        likelihood = dist.Normal(self.w * z, 0.7).log_prob(x).sum() / particles
        return len(x) * beta * means.clamp_min(nats).sum() - likelihood


def _gradients(objective, program, *args):
    with pyro.get_param_store().scope():
        objective.loss(
            program.model, program.guide, *args
        )  # selecting the estimator uses random numbers
        program.zero_grad()
        pyro.set_rng_seed(7)
        loss = objective.loss_and_grads(program.model, program.guide, *args)
    return loss, {n: p.grad.clone() for n, p in program.named_parameters() if p.grad is not None}


def _finite_differences(program, formula):
    """Return central differences with respect to every parameter."""
    slopes = {}
    for name, parameter in program.named_parameters():
        flat, slope = parameter.data.view(-1), torch.zeros_like(parameter).view(-1)
        for i, value in enumerate(flat.tolist()):
            ends = []
            for step in (1e-6, -1e-6):
                flat[i] = value + step
                ends.append(formula().item())
            flat[i] = value
            slope[i] = (ends[0] - ends[1]) / 2e-6
        slopes[name] = slope.view_as(parameter)
    return slopes


@pytest.mark.parametrize("size", [1, 3])  # the last minibatch may have any size
@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize(("nats", "groups"), [(0.3, None), (0.3, 4), (0.9, 2), (1.0, 1), (4.0, 1)])
def test_gradient_equals_the_formula(size, analytic, particles, beta, nats, groups):
    program, x = Diagonal(), X[:size]
    objective = ELBO(particles, analytic, beta, FreeBits(nats, groups))
    _, ours = _gradients(objective, program, x)
    expected = _finite_differences(
        program, lambda: program.formula(x, nats, groups, beta, particles, analytic)
    )
    for name, slope in expected.items():
        torch.testing.assert_close(ours[name], slope, rtol=1e-6, atol=1e-6)


def test_only_dimensions_above_the_threshold_have_a_kl_gradient():
    program = Diagonal()
    with torch.no_grad():
        program.w.zero_()  # only the KL remains for the guide
    kl = kl_divergence(program.q(X), dist.Normal(torch.zeros((), dtype=D), 1.0)).mean(0)
    above = kl > 0.3
    assert above.tolist() == [False, True, True, False]
    _, plain = _gradients(ELBO(), program, X)
    _, ours = _gradients(ELBO(free_bits=0.3), program, X)
    for name in ("a", "s"):
        assert plain[name].abs().min() > 0.01
        assert torch.equal(ours[name][~above], torch.zeros(2, dtype=D))
        torch.testing.assert_close(ours[name][above], plain[name][above])
    torch.testing.assert_close(ours["w"], plain["w"])


@pytest.mark.parametrize("nats", [0.0, 0.3, 100.0])
def test_loss_is_the_plain_elbo(nats):
    program = Diagonal()
    plain, _ = _gradients(ELBO(3), program, X)
    ours, _ = _gradients(ELBO(3, beta=0.5, free_bits=nats), program, X)
    assert ours == pytest.approx(plain, rel=1e-12)


class TwoLayers(PyroModule):
    """z2 → z1 → x with two and three dimensions, and a top-down or bottom-up guide."""

    def __init__(self, up=False):
        super().__init__()
        generator = streams.generator(3)
        shapes = {"v": (2, 3), "w": (3, 4), "a": (4, 3), "b": (4, 2), "c": (3, 2)}
        for name, shape in shapes.items():
            value = 0.6 * torch.randn(shape, generator=generator, dtype=D)
            setattr(self, name, nn.Parameter(value))
        self.up = up

    def p2(self):
        return dist.Normal(torch.zeros(2, dtype=D), 1.0)

    def p1(self, z2):
        return dist.Normal(z2 @ self.v, 0.8)

    def q1(self, x):
        return dist.Normal(x @ self.a, 0.5)

    def q2(self, x, z1):
        return dist.Normal(z1 @ self.c if self.up else x @ self.b, 0.6)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.p2().to_event(1))
            z1 = pyro.sample("z1", self.p1(z2).to_event(1))
            pyro.sample("x", dist.Normal(z1 @ self.w, 0.7).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.up:
                z1 = pyro.sample("z1", self.q1(x).to_event(1))
                pyro.sample("z2", self.q2(x, z1).to_event(1))
            else:
                pyro.sample("z2", self.q2(x, None).to_event(1))
                pyro.sample("z1", self.q1(x).to_event(1))

    def formula(self, x, nats, groups, analytic):
        pyro.set_rng_seed(7)
        if self.up:
            z1 = self.q1(x).rsample()
            z2 = self.q2(x, z1).rsample()
        else:
            z2 = self.q2(x, None).rsample()
            z1 = self.q1(x).rsample()
        pairs = [(self.q2(x, z1), self.p2(), z2), (self.q1(x), self.p1(z2), z1)]
        loss = -dist.Normal(z1 @ self.w, 0.7).log_prob(x).sum()
        for q, p, z in pairs:
            kl = kl_divergence(q, p) if analytic else q.log_prob(z) - p.log_prob(z)
            means = kl.mean(0) if groups is None else kl.mean(0).sum(0, keepdim=True)
            loss = loss + len(x) * means.clamp_min(nats).sum()
        return loss


@pytest.mark.parametrize(
    ("up", "analytic"), [(False, True), (False, False), (True, False), (True, None)]
)
@pytest.mark.parametrize(("nats", "groups"), [(0.4, None), (1.6, 1)])
def test_groups_are_per_site(up, analytic, nats, groups):
    program = TwoLayers(up)
    _, ours = _gradients(ELBO(analytic_kl=analytic, free_bits=FreeBits(nats, groups)), program, X)
    expected = _finite_differences(
        program, lambda: program.formula(X, nats, groups, bool(analytic))
    )
    _, plain = _gradients(ELBO(analytic_kl=analytic), program, X)
    assert any(not torch.allclose(ours[n], plain[n]) for n in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nats", [0.01, 50.0])
def test_mixture_prior_with_one_group(nats):
    vae = small_vae(PRIORS["VampPrior"]).double()
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=D)
    _, ours = _gradients(ELBO(free_bits=FreeBits(nats, groups=1)), vae, x)
    vae.zero_grad()
    pyro.set_rng_seed(7)
    q = vae.posterior(x)
    z = q.rsample()
    kl = (q.log_prob(z) - vae.prior().log_prob(z)).mean()
    assert 0.01 < kl < 50
    (2 * kl.clamp_min(nats) - vae.likelihood(z).log_prob(x).sum()).backward()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad)


class Units(PyroModule):
    """The latents of :class:`Diagonal` in a separate plate, with some examples masked."""

    def __init__(self):
        super().__init__()
        self.inner = Diagonal()

    mask = torch.tensor([[True], [False], [True]])

    @contextmanager
    def plates(self, x):
        data, units = pyro.plate("data", len(x), dim=-2), pyro.plate("units", 4, dim=-1)
        with data, units, poutine.mask(mask=self.mask):
            yield

    def model(self, x):
        with self.plates(x):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(self.inner.w * z, 0.7), obs=x)

    def guide(self, x):
        with self.plates(x):
            pyro.sample("z", self.inner.q(x))


@pytest.mark.parametrize(("nats", "groups"), [(0.3, None), (0.9, 2), (1.6, 1)])
def test_dimensions_in_a_plate_and_masked_examples(nats, groups):
    program = Units()
    _, ours = _gradients(ELBO(free_bits=FreeBits(nats, groups)), program, X)

    def formula():
        pyro.set_rng_seed(7)
        q = program.inner.q(X)
        z = q.rsample()
        kl = kl_divergence(q, dist.Normal(torch.zeros((), dtype=D), 1.0)) * program.mask
        likelihood = dist.Normal(program.inner.w * z, 0.7).log_prob(X) * program.mask
        means = kl.mean(0).reshape(groups or 4, -1).sum(1)
        return 3 * means.clamp_min(nats).sum() - likelihood.sum()

    for name, slope in _finite_differences(program, formula).items():
        torch.testing.assert_close(ours[name], slope, rtol=1e-6, atol=1e-6)


class Handled(Diagonal):
    """Mask or scale per example, over an event of four dimensions."""

    def __init__(self, handler):
        super().__init__()
        self.handler = handler
        with torch.no_grad():
            self.a.mul_(40.0)  # all KLs, and their estimates from three samples, are far from zero

    @pyro_method
    def model(self, x):
        with self.handler():
            super().model(x)

    @pyro_method
    def guide(self, x):
        with self.handler():
            super().guide(x)


@pytest.mark.parametrize(
    "handler",
    [
        partial(poutine.mask, mask=torch.tensor([True, False, True])),
        partial(poutine.mask, mask=False),
        partial(poutine.scale, scale=torch.tensor([0.5, 2.0, 3.0], dtype=D)),
    ],
)
@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("groups", [None, 2])
def test_masks_and_scales_apply_to_every_dimension(handler, analytic, groups):
    """With all KLs above λ, splitting into dimensions does not change the gradient."""
    program = Handled(handler)
    _, plain = _gradients(ELBO(3, analytic), program, X)
    _, ours = _gradients(ELBO(3, analytic, free_bits=FreeBits(1e-9, groups)), program, X)
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient)


class Discrete:
    """Latent that is not reparameterised."""

    @staticmethod
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3, dtype=D)))
            pyro.sample("x", dist.Normal(2 * c, 1.0), obs=x)

    @staticmethod
    def guide(x):
        logit = pyro.param("logit", torch.tensor(0.8, dtype=D))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=logit))


@pytest.mark.parametrize(("nats", "free"), [(0.02, False), (3.0, True)])
def test_discrete_site_with_one_group_has_the_right_mean_gradient(nats, free):
    x = torch.full((200_000,), 0.5, dtype=D)
    logit = torch.tensor(0.8, dtype=D, requires_grad=True)
    q = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)])
    likelihood = dist.Normal(torch.tensor([0.0, 2.0], dtype=D), 1.0).log_prob(x[0])
    kl = (q * (q / torch.tensor([0.7, 0.3], dtype=D)).log()).sum()
    (kl * (not free) - (q * likelihood).sum()).backward()
    ELBO(free_bits=FreeBits(nats, 1)).loss_and_grads(Discrete.model, Discrete.guide, x)
    ours = pyro.param("logit").unconstrained().grad / len(x)
    # the standard error is at most 0.5 · 2 / √200000 = 0.0022; false alarm at 5 of them < 1e-6
    assert float(ours) == pytest.approx(float(logit.grad), abs=0.011)
    assert abs(float(logit.grad)) > 0.05


class Global:
    """Latent shared by all examples."""

    @staticmethod
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @staticmethod
    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.ones((), dtype=D)), 1.0))


def _vae(prior="StandardNormal", **parts):
    vae = small_vae(PRIORS[prior], **parts).double()
    return vae.model, vae.guide, torch.zeros(2, 3, dtype=D)


def _diagonal():
    program = Diagonal()
    return program.model, program.guide, X


@pytest.mark.parametrize(
    ("make", "free_bits", "message"),
    [
        (_diagonal, FreeBits(0.1, 3), "bits to divide the 4 dimensions of site 'z' evenly; got 3"),
        (lambda: _vae("VampPrior"), 0.1, "of site 'z' to be a sum .* MixtureSameFamily .* to 1"),
        (
            lambda: _vae(posterior=pv.posteriors.FullCovarianceNormal),
            FreeBits(0.1, 2),
            "of site 'z' to be a sum .* MultivariateNormal .* to 1",
        ),
        (
            lambda: (Discrete.model, Discrete.guide, X[0]),
            0.1,
            r"site 'c' \(Bernoulli\) is not: set the groups of free bits to 1",
        ),
        (
            lambda: (Global.model, Global.guide, X[0]),
            0.1,
            'latent sites in the plate "data" for free bits; got none',
        ),
    ],
)
def test_rejects_programs_without_such_groups(make, free_bits, message):
    model, guide, x = make()
    objective = ELBO(free_bits=free_bits)
    for run in (objective.loss_and_grads, objective.differentiable_loss):
        with pytest.raises(ValueError, match=message):
            run(model, guide, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(free_bits=-0.1), "expected free bits with nats ≥ 0 and finite; got -0.1"),
        (lambda: ELBO(free_bits=True), "expected free bits with nats ≥ 0 and finite; got True"),
        (lambda: FreeBits(float("nan")), "expected free bits with nats ≥ 0 and finite; got nan"),
        (lambda: FreeBits(float("inf")), "expected free bits with nats ≥ 0 and finite; got inf"),
        (lambda: FreeBits(0.1, 0), "expected groups to be a positive integer; got 0"),
        (lambda: FreeBits(0.1, 1.5), "expected groups to be a positive integer; got 1.5"),
        (lambda: FreeBits(0.1, True), "expected groups to be a positive integer; got True"),
    ],
)
def test_rejects_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


_REQUIRED_ARGS = ["--data.name=digits", "--data.binarize=none", "--model.latent_dim=2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], FreeBits(0.0)),
        (["--objective.free_bits", "0.1"], FreeBits(0.1)),
        (
            ["--objective.free_bits", "FreeBits", "--objective.free_bits.nats", "0.5"],
            FreeBits(0.5),
        ),
        (
            [
                *("--objective.free_bits", "FreeBits", "--objective.free_bits.nats", "0.5"),
                *("--objective.free_bits.groups", "2"),
            ],
            FreeBits(0.5, 2),
        ),
    ],
)
def test_command_line_options(options, expected):
    assert parse([*_REQUIRED_ARGS, *options]).objective.free_bits == expected


def test_yaml_options(tmp_path):
    file = tmp_path / "free.yaml"
    file.write_text(
        "data: {name: digits, binarize: none}\nmodel: {latent_dim: 2}\n"
        "objective: {class_path: ELBO, init_args: {free_bits: "
        "{class_path: FreeBits, init_args: {nats: 0.5, groups: 1}}}}\n"
    )
    experiment = load_experiment(file)
    assert experiment.objective.free_bits == FreeBits(0.5, 1)
    # round trip
    file.write_text(experiment.to_yaml())
    assert load_experiment(file).objective.free_bits == FreeBits(0.5, 1)


def test_resuming_requires_the_same_free_bits(tmp_path):
    x = torch.bernoulli(torch.rand(20, 3))
    vae, fit = small_vae(), partial(pv.fit, checkpoint=tmp_path / "state.pt", resume=True)
    fit(vae, x, objective=ELBO(free_bits=FreeBits(0.2, 1)), epochs=1)
    assert len(fit(vae, x, objective=ELBO(free_bits=FreeBits(0.2, 1)), epochs=2)) == 2
    with pytest.raises(ValueError, match="another objective"):
        fit(vae, x, objective=ELBO(free_bits=FreeBits(0.3, 1)), epochs=3)
