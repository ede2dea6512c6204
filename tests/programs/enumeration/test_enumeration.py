"""Enumerated sites of a model are summed out exactly."""

from __future__ import annotations

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.programs.arguments import ProgramInputs
from pyro_vae.programs.audit import audit_inputs
from pyro_vae.programs.base import site_log_prob
from pyro_vae.programs.enumeration.posterior import with_enumerated_posterior
from pyro_vae.programs.importance_weights import find_layout
from pyro_vae.programs.particles import Layout, log_probs_at, particles_at, run_particles

PARALLEL = {"enumerate": "parallel"}
LOCS, WEIGHTS = torch.tensor([-2.0, 0.5, 2.0]), torch.tensor([0.2, 0.5, 0.3])


@config_enumerate
def mixture(x):
    """p(x) is a mixture of three normals of variance 2."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS.to(x)))
        z = pyro.sample("z", dist.Normal(LOCS.to(x)[y], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def narrow(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def mixture_log_prob(x, scale):
    parts = dist.Normal(LOCS.to(x), scale).log_prob(x[..., None]) + WEIGHTS.to(x).log()
    return parts.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tiled", [False, True])
def test_terms_of_a_mixture_prior(dtype, tiled):
    x, z = torch.randn(4, dtype=dtype), 2 * torch.randn(6, 4, dtype=dtype)
    run = particles_at(mixture, narrow, {"z": z}, x, layout=Layout(tiled=tiled))
    assert run.log_p.keys() == {"z", "x"} and run.latents.keys() == {"z"}
    torch.testing.assert_close(run.log_p["z"], mixture_log_prob(z, 1.0))
    torch.testing.assert_close(run.log_p["x"], dist.Normal(z, 1.0).log_prob(x))
    assert run.log_p["z"].dtype == dtype


def test_evaluate_gives_the_closed_form():
    x = torch.tensor([-3.0, -1.0, 0.0, 2.5])
    truth = mixture_log_prob(x, math.sqrt(2)).double().numpy()
    bounds = pv.evaluate((mixture, narrow), x, num_samples=20_000, seed=0)
    data = bounds.per_datum
    assert (abs(data["log_evidence"] - truth) < 0.03).all()
    assert (data["elbo"] < truth).all()
    # the same in blocks of examples and of particles
    log_w = pv.log_weights(mixture, narrow, x, num_samples=4000, chunk_size=501)
    log_p = log_w.logsumexp(0) - math.log(4000)
    assert (log_p.double().numpy() - truth).__abs__().max() < 0.08


def brute_force(model, latents, sizes, *args):
    """Return log p(x, z), ``(N,)``, as the sum over all joint values of the enumerated sites.

    ``sizes`` has the number of values and the shape of the plates inside the data plate of each.
    """
    terms = []
    axes = {}
    for name, (count, shape) in sizes.items():
        axes[name] = list(itertools.product(range(count), repeat=math.prod(shape)))
    for values in itertools.product(*axes.values()):
        fixed = {}
        for (name, value), (_, shape) in zip(
            zip(axes, values, strict=True), sizes.values(), strict=True
        ):
            dtype = torch.float32 if name == "a" else torch.int64
            full = torch.tensor(value, dtype=dtype).reshape(*shape, 1)
            fixed[name] = full.expand(*shape, len(args[0]))
        conditioned = poutine.condition(model, data={**latents, **fixed})
        trace = poutine.trace(conditioned).get_trace(*args)
        trace.compute_log_prob()
        sites = (
            site["fn"].log_prob(site["value"]) if name in sizes else site_log_prob(site)
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
        )
        terms.append(sum(log_p.reshape(-1, len(args[0])).sum(0) for log_p in sites))
    return torch.stack(terms).logsumexp(0)


@config_enumerate
def two_classes(x):
    """Two classes, the second given the first; latent and data depend on both."""
    table = torch.tensor([[0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.3))
        b = pyro.sample("b", dist.Categorical(table[a.long()]))
        z = pyro.sample("z", dist.Normal(LOCS[b] * a, 1.0 + a))
        pyro.sample("x", dist.Normal(z + LOCS[b], 0.5 + a), obs=x)


@config_enumerate
def class_per_pixel(x):
    """A class in an inner plate: a product of sums."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("pixels", x.shape[1]):
            y = pyro.sample("y", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(z + LOCS[y], 0.7), obs=x.mT)


@config_enumerate
def class_of_pixels(x):
    """A class of the example and one of each pixel: sums of products of sums, and a mask."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])))
        z = pyro.sample("z", dist.Normal(c.float(), 1.0))
        with pyro.plate("pixels", x.shape[1]), poutine.mask(mask=x.mT > -1):
            y = pyro.sample("y", dist.Categorical(torch.stack([WEIGHTS, WEIGHTS.flip(0)])[c]))
            pyro.sample("x", dist.Normal(z + LOCS[y], 1.0 + c), obs=x.mT)


@config_enumerate
def latents_per_pixel(x):
    """A latent in the inner plate of the class, which the guide samples."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])))
        with pyro.plate("pixels", x.shape[1]):
            y = pyro.sample("y", dist.Categorical(torch.stack([WEIGHTS, WEIGHTS.flip(0)])[c]))
            z = pyro.sample("z", dist.Normal(LOCS[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 + c), obs=x.mT)


@config_enumerate
def outer_plate(x):
    """A plate of time steps to the left of the data, sampled outside of it."""
    with pyro.plate("steps", x.shape[1], dim=-2), pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(LOCS[y], 1.0))
        pyro.sample("x", dist.Normal(z - LOCS[y], 1.0), obs=x.mT)


@config_enumerate
def observed_first(x):
    """An observed site that depends on the class comes before the latent."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        pyro.sample("label", dist.Normal(LOCS[y], 0.5), obs=x[:, 0])
        z = pyro.sample("z", dist.Normal(LOCS[y], 1.0))
        pyro.sample("x", dist.Normal(z + LOCS[y], 1.0), obs=x[:, 1])


PROGRAMS = {
    "mixture": (mixture, (), (), {"y": (3, ())}),
    "two_classes": (two_classes, (), (), {"a": (2, ()), "b": (3, ())}),
    "class_per_pixel": (class_per_pixel, (3,), (), {"y": (3, (3,))}),
    "class_of_pixels": (class_of_pixels, (3,), (), {"c": (2, ()), "y": (3, (3,))}),
    "latents_per_pixel": (latents_per_pixel, (2,), (2,), {"c": (2, ()), "y": (3, (2,))}),
    "outer_plate": (outer_plate, (2,), (2,), {"y": (3, (2,))}),
    "observed_first": (observed_first, (2,), (), {"y": (3, ())}),
}


def guide_of(shape):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            if not shape:
                pyro.sample("z", dist.Normal(0.0, 1.5))
                return
            for name in ("pixels", "steps"):
                if name == guide.plate:
                    with pyro.plate(name, shape[0], dim=-2):
                        pyro.sample("z", dist.Normal(0.0, 1.5))

    guide.plate = "pixels"
    return guide


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_joint_density_by_brute_force(name, tiled):
    model, shape, latent_shape, sizes = PROGRAMS[name]
    guide = guide_of(latent_shape)
    guide.plate = "steps" if name == "outer_plate" else "pixels"
    x = torch.randn(4, *shape)
    nesting = 2 if shape and name != "observed_first" else 1
    inputs = audit_inputs(ProgramInputs(model, guide, x, (), {}))
    assert find_layout(inputs.model, guide, x).tiled is False
    layout = Layout(nesting, tiled)
    run = run_particles(model, guide, x, num_samples=3, layout=layout)
    again = log_probs_at(inputs.model, run.latents, x, layout=layout)
    for k in range(3):
        z = run.latents["z"][k]
        truth = brute_force(model, {"z": z.movedim(0, -1)}, sizes, x)
        for terms in (run.log_p, again):
            torch.testing.assert_close(sum(term[k] for term in terms.values()), truth)
    assert all(torch.equal(run.log_p[site], again[site]) for site in run.log_p)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_exact_posterior_leaves_the_weights_of_the_sum(name, tiled):
    """p(x, z, y) / (q(z) p(y|z, x)) is p(x, z) / q(z) for every y."""
    model, shape, latent_shape, sizes = PROGRAMS[name]
    guide = guide_of(latent_shape)
    guide.plate = "steps" if name == "outer_plate" else "pixels"
    x = torch.randn(4, *shape)
    layout = Layout(2 if shape and name != "observed_first" else 1, tiled)
    inputs = with_enumerated_posterior(audit_inputs(ProgramInputs(model, guide, x, (), {})))
    assert find_layout(*inputs[:3]).tiled is False
    run = run_particles(inputs.model, inputs.guide, x, num_samples=5, layout=layout)
    assert run.latents.keys() == {"z", *sizes}
    summed = particles_at(model, guide, {"z": run.latents["z"]}, x, layout=layout)
    torch.testing.assert_close(run.log_weights, summed.log_weights)
    # also for values from elsewhere
    other = {n: v.flip(0) if n != "z" else v for n, v in run.latents.items()}
    again = particles_at(inputs.model, inputs.guide, other, x, layout=layout)
    torch.testing.assert_close(again.log_weights, summed.log_weights)


def test_posterior_samples_of_a_class_have_its_frequencies():
    x = torch.tensor([-2.0, 0.0, 2.0])
    inputs = audit_inputs(ProgramInputs(mixture, narrow, x, (), {}))
    extended = with_enumerated_posterior(inputs)
    run = run_particles(extended.model, extended.guide, x, num_samples=40_000)
    z, y = run.latents["z"], run.latents["y"]
    log_p = dist.Normal(LOCS, 1.0).log_prob(z[..., None]) + WEIGHTS.log()
    for value in range(3):
        # four standard errors of a share of 40,000 samples are at most 0.01
        share = (y == value).float().mean(0)
        torch.testing.assert_close(share, log_p.softmax(-1)[..., value].mean(0), atol=0.01, rtol=0)


def test_prior_of_a_latent_ignores_observed_sites():
    x, z = torch.randn(4, 2), torch.randn(5, 4)
    run = particles_at(observed_first, narrow_first, {"z": z}, x)
    torch.testing.assert_close(run.log_p["z"], mixture_log_prob(z, 1.0))
    # the two observed sites have one term together
    assert (run.log_p["label"] == 0).sum() + (run.log_p["x"] == 0).sum() == z.numel()


def narrow_first(x):
    return narrow(x[:, 0])


TRANSITION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])


def hidden_markov(x, lengths):
    """Pyro's hidden Markov model in one plate over sequences."""
    with pyro.plate("data", len(x)):
        y = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                y = pyro.sample(f"y_{t}", dist.Categorical(TRANSITION[y]), infer=PARALLEL)
                pyro.sample(f"x_{t}", dist.Normal(LOCS[y], 1.0), obs=x[:, t])


def nothing(x, lengths):
    pass


def test_hidden_markov_model_is_exact():
    x, lengths = 2 * torch.randn(5, 20), torch.tensor([20, 1, 17, 19, 0])
    # forward algorithm
    log_alpha = torch.tensor([0.0, -math.inf, -math.inf]).expand(5, 3)
    for t in range(20):
        step = torch.logsumexp(log_alpha[..., None] + TRANSITION.log(), 1)
        step = step + dist.Normal(LOCS, 1.0).log_prob(x[:, t, None])
        log_alpha = torch.where((t < lengths)[:, None], step, log_alpha)
    truth = log_alpha.logsumexp(1)
    log_w = pv.log_weights(hidden_markov, nothing, x, lengths, num_samples=3)
    torch.testing.assert_close(log_w, truth.expand(3, 5))
    # paths from the posterior have the same weights: forward filtering, backward sampling
    inputs = ProgramInputs(hidden_markov, nothing, x[:, :9], (lengths.clamp(9, 9),), {})
    extended = with_enumerated_posterior(audit_inputs(inputs))
    log_w = run_particles(*extended[:3], *extended.args, num_samples=3).log_weights
    torch.testing.assert_close(log_w, log_w[:1].expand(3, 5))
    again = pv.log_weights(hidden_markov, nothing, x[:, :9], lengths.clamp(9, 9), num_samples=3)
    torch.testing.assert_close(log_w, again)
    bounds = pv.evaluate((hidden_markov, nothing), x, lengths, num_samples=100)
    assert abs(bounds.log_evidence - float(truth.mean())) < 1e-4


def test_improbable_values_do_not_underflow():
    """The product of both factors is e^−600 for either class."""

    def model(x):
        with pyro.plate("data", len(x)):
            logits = torch.tensor([0.0, -600.0])
            y = pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = torch.tensor([1.0, 1.0])[y]
            pyro.sample("x", dist.Normal(z + 35.0 * (1 - y.float()), scale), obs=x)

    z = torch.zeros(1, 2)
    terms = log_probs_at(audited(model), {"z": z}, torch.zeros(2))
    normal = dist.Normal(0.0, 1.0).log_prob
    parts = [normal(torch.tensor(35.0)), normal(torch.tensor(0.0)) - 600.0]
    torch.testing.assert_close(terms["x"][0], torch.stack(parts).logsumexp(0).expand(2))


def audited(model, guide=narrow, x=None):
    x = torch.randn(4) if x is None else x
    return audit_inputs(ProgramInputs(model, guide, x, (), {})).model


class Mixture(nn.Module):
    """A mixture prior with learned weights, means and decoder; by hand or by enumeration."""

    def __init__(self, by_hand, global_scale=1.0):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.3, 0.5]))
        self.locs = nn.Parameter(torch.tensor([-2.0, 0.5, 2.0]))
        self.slope = nn.Parameter(torch.tensor(0.7))
        self.loc = nn.Parameter(torch.tensor(0.4))
        self.by_hand, self.scale = by_hand, global_scale

    def model(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale):
            if self.by_hand:
                components = dist.Normal(self.locs, 1.0)
                prior = dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
                z = pyro.sample("z", prior)
            else:
                weights = dist.Categorical(logits=self.logits)
                y = pyro.sample("y", weights, infer=PARALLEL)
                z = pyro.sample("z", dist.Normal(self.locs[y], 1.0))
            pyro.sample("x", dist.Normal(self.slope * z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc * x, 0.8))


OBJECTIVES = {
    "ELBO": objectives.ELBO(),
    "ELBO(beta)": objectives.ELBO(num_particles=3, beta=0.3),
    "ELBO(A)": objectives.ELBO(analytic_kl=False),
    "ELBO(stl)": objectives.ELBO(num_particles=2, gradient="stl"),
    "IWAE": objectives.IWAE(k=5),
    "IWAE(dreg)": objectives.IWAE(k=5, gradient="dreg"),
    "Renyi": objectives.Renyi(alpha=0.5, k=4),
    "RWS": objectives.ReweightedWakeSleep(k=4, wake=1.0),
    "EnumeratedELBO": objectives.EnumeratedELBO(num_particles=2),
}


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_sum_by_hand(name, scale):
    x = torch.tensor([-2.0, 0.3, 1.5])
    results = []
    for by_hand in (True, False):
        program, objective = Mixture(by_hand, scale), copy.deepcopy(OBJECTIVES[name])
        objective.loss(program.model, program.guide, x)  # the first step audits the program
        pyro.set_rng_seed(0)  # the guide draws first
        loss = objective.loss_and_grads(program.model, program.guide, x)
        results.append((loss, {n: p.grad for n, p in program.named_parameters()}))
    (expected, gradients), (loss, found) = results
    assert loss == pytest.approx(expected, abs=1e-4)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5)


def test_elbo_agrees_with_pyro():
    program, x = Mixture(by_hand=False), torch.tensor([-2.0, 0.3, 1.5])
    ours = [objectives.ELBO(num_particles=2000), objectives.EnumeratedELBO(num_particles=2000)]
    theirs = TraceEnum_ELBO(2000, max_plate_nesting=1, vectorize_particles=True)
    values = []
    for objective in (*ours, theirs):
        pyro.set_rng_seed(0)
        program.zero_grad()
        loss = objective.differentiable_loss(program.model, program.guide, x)
        loss.backward()
        values.append(torch.stack([loss.detach(), program.locs.grad.sum(), program.loc.grad]))
    for value in values[:2]:
        torch.testing.assert_close(value, values[2], rtol=0.02, atol=0.03)


def test_independent_enumerated_sites_have_scales_of_their_own():
    """Terms of sites that share no enumerated site are separate, and scaled separately."""

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                a = pyro.sample("a", dist.Categorical(WEIGHTS), infer=PARALLEL)
                z = pyro.sample("z", dist.Normal(LOCS[a], 1.0))
            b = pyro.sample("b", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(z + LOCS[b], 1.0), obs=x)

    x, z = torch.randn(4), torch.randn(3, 4, requires_grad=True)
    run = particles_at(model, narrow, {"z": z}, x)
    torch.testing.assert_close(run.log_p["z"], mixture_log_prob(z, 1.0))
    torch.testing.assert_close(run.log_p["x"], mixture_log_prob(x - z, 1.0))
    torch.testing.assert_close(run.scaled_log_p["z"], 0.1 * run.log_p["z"])
    torch.testing.assert_close(run.scaled_log_p["x"], run.log_p["x"])


def test_scales_of_an_enumerated_site_must_agree():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(slope * x, 1.0))
            with poutine.scale(scale=0.1):
                pyro.sample("x", dist.Normal(z + LOCS[y], 1.0), obs=x)

    slope, x = torch.tensor(0.5, requires_grad=True), torch.randn(4)
    with pytest.raises(ValueError, match=r"expected one scale .* 'x'"):
        objectives.IWAE(k=3).loss_and_grads(model, narrow, x)
    # an evaluation ignores scales
    pv.log_weights(model, narrow, x, num_samples=3)


def discrete_prior(prior, infer=PARALLEL):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", prior, infer=infer)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x",
                dist.Normal(z + y.reshape(*y.shape[: y.ndim - prior.event_dim], -1).sum(-1), 1.0),
                obs=x,
            )

    return model


def branching(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        locs = torch.stack([z[..., i] if c > 0 else -z[..., i] for i, c in enumerate(y)], -1)
        pyro.sample("x", dist.Normal(locs, 1.0), obs=x)


def sum_of_plate(x):
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("parts", 3, dim=-2):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + y.sum(-2), 1.0), obs=x)


def mixing(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + y - y.mean(0), 1.0), obs=x)


def shared(x):
    y = pyro.sample("y", dist.Bernoulli(0.5), infer=PARALLEL)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)


REFUSED = {
    "unmarked": (discrete_prior(dist.Bernoulli(0.5), {}), "or sum it out by infer="),
    "infinite": (discrete_prior(dist.Poisson(1.0)), "which has infinitely many values"),
    "infinite, unmarked": (
        config_enumerate(discrete_prior(dist.Poisson(1.0), {})),
        "cannot be summed out: it has infinitely many values",
    ),
    "continuous": (discrete_prior(dist.Normal(0.0, 1.0)), "which is continuous"),
    "event": (
        discrete_prior(dist.Bernoulli(torch.ones(2) / 2).to_event(1)),
        "has all combinations of several dimensions",
    ),
    "branching": (branching, "expected a model that runs with all values of 'y' at once"),
    "sum of a plate": (sum_of_plate, "sites outside of a plate not to depend on"),
    "mixing": (mixing, "computes each value of 'y' on its own"),
    "shared": (shared, "outside of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_true_reason(name):
    model, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        pv.log_weights(model, narrow, torch.randn(4), num_samples=2)


@pytest.mark.parametrize("name", ["ELBO", "ELBO(A)", "EnumeratedELBO"])
def test_training_refuses_latents_that_only_the_model_samples(name):
    """Pyro warns, and adds log p of a sample of the prior to the ELBO."""
    model = discrete_prior(dist.Bernoulli(0.5), {})
    with pytest.raises(ValueError, match=r"got 'y' in the model only: .* or sum it out"):
        copy.deepcopy(OBJECTIVES[name]).loss(model, narrow, torch.randn(4))


def test_sequential_enumeration_is_the_same_sum():
    def model(x):
        with pyro.plate("data", len(x)):
            infer = {"enumerate": "sequential"}
            y = pyro.sample("y", dist.Categorical(WEIGHTS), infer=infer)
            z = pyro.sample("z", dist.Normal(LOCS[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    z = torch.randn(3, 4)
    terms = log_probs_at(audited(model), {"z": z}, torch.randn(4))
    torch.testing.assert_close(terms["z"], mixture_log_prob(z, 1.0))


def test_site_in_the_guide_is_a_latent():
    @config_enumerate
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    run = run_particles(mixture, guide, torch.randn(4), num_samples=3)
    assert run.log_p.keys() == {"y", "z", "x"} == {*run.latents, "x"}


def test_partly_observed_class():
    """``obs_mask`` leaves the class of some examples to be summed out."""

    @config_enumerate  # pyro.sample drops infer if it has an obs_mask
    def model(x, label, known):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS), obs=label, obs_mask=known)
            pyro.sample("x", dist.Normal(LOCS[y], 1.0), obs=x)

    def guide(x, label, known):
        pass

    x, label = torch.randn(5), torch.tensor([0, 1, 2, 0, 1])
    known = torch.tensor([True, False, True, False, True])
    joint = dist.Normal(LOCS[label], 1.0).log_prob(x) + WEIGHTS[label].log()
    truth = torch.where(known, joint, mixture_log_prob(x, 1.0))
    log_w = pv.log_weights(model, guide, x, label, known, num_samples=2)
    torch.testing.assert_close(log_w, truth.expand(2, 5))


def test_global_latents_need_pyros_estimator():
    @config_enumerate
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(loc + LOCS[y], 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(0.3, 0.01))

    x = torch.randn(5)
    with pytest.raises(ValueError, match="use EnumeratedELBO, which needs none"):
        objectives.ELBO().loss(model, guide, x)
    loss = objectives.EnumeratedELBO(num_particles=500).loss(model, guide, x)
    kl = torch.distributions.kl_divergence(dist.Normal(0.3, 0.01), dist.Normal(0.0, 1.0))
    expected = kl - mixture_log_prob(x - 0.3, 1.0).sum()
    assert loss == pytest.approx(float(expected), abs=0.1)


def test_beta_of_the_enumerated_elbo():
    program = Mixture(by_hand=False)
    with pytest.raises(ValueError, match=r"expected beta 1 .* 'y': use ELBO"):
        objectives.EnumeratedELBO(beta=0.5).loss_and_grads(
            program.model, program.guide, torch.randn(3)
        )


def test_model_without_other_latents():
    """A finite mixture: the weight of every sample is p(x)."""

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[y], 1.0), obs=x)

    def guide(x):
        pass

    x = torch.randn(30)
    truth = mixture_log_prob(x, 1.0)
    bounds = pv.evaluate((model, guide), x, num_samples=10)
    torch.testing.assert_close(torch.tensor(bounds.per_datum["elbo"]), truth.double())
    posterior = dist.Normal(LOCS, 1.0).log_prob(x[:, None]) + WEIGHTS.log()
    found = pv.queries.encode((model, guide), x)["y.mode"]
    assert (torch.tensor(found) == posterior.argmax(1)).all()
    for needs_latents in (pv.ais, pv.latents, pv.gaps, pv.calibration):
        with pytest.raises(ValueError, match="in which all are summed out"):
            needs_latents((model, guide), x)
