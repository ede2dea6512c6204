"""Programs from any encoder and decoder: closed forms, every likelihood, ownership, refusals."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
import torch.distributions as td
from linear_gaussian import LinearGaussian
from torch import nn

import pyro_vae as pv
from pyro_vae.interop import from_modules
from pyro_vae.interop.named_likelihoods import probs_to_logits
from pyro_vae.interop.owners import find_owners
from pyro_vae.programs.particles import run_particles


def linear_gaussian(orthogonal=False):
    """A linear-Gaussian model, data of it, and its decoder; log p(x) has a closed form."""
    truth = LinearGaussian(2)
    if orthogonal:
        # the exact posterior is then a diagonal normal
        truth.W = torch.linalg.qr(truth.W)[0] * torch.tensor([2.0, 0.5], dtype=torch.float64)
        truth.covariance = torch.linalg.inv(
            torch.eye(2, dtype=torch.float64) + truth.W.T @ truth.W / truth.s**2
        )
    torch.manual_seed(0)
    return truth, truth.sample(20), lambda z: z @ truth.W.T + truth.b


def posterior_mean(truth, x):
    return (x - truth.b) @ truth.W @ truth.covariance / truth.s**2


#: The second output of an encoder, given σ.
OUTPUTS = {
    "log_var": lambda std: 2 * std.log(),
    "log_std": torch.log,
    "std": lambda std: std,
    "var": torch.square,
}


@pytest.mark.parametrize("scale", OUTPUTS)
def test_exact_diagonal_posterior(scale):
    truth, x, decode = linear_gaussian(orthogonal=True)
    std = truth.covariance.diagonal().sqrt()

    def encode(x):
        mean = posterior_mean(truth, x)
        return mean, OUTPUTS[scale](std).expand_as(mean)

    program = from_modules(encode, decode, "gaussian", data=x, scale=scale, noise=truth.s)
    log_w = pv.log_weights(program.model, program.guide, x, num_samples=5)
    torch.testing.assert_close(log_w, truth.log_evidence(x).expand(5, -1))
    bounds = pv.evaluate(program, x, num_samples=60, ks=(5,))
    assert bounds.elbo == pytest.approx(float(truth.log_evidence(x).mean()), abs=1e-6)


@pytest.mark.parametrize("given", ["likelihood", "decode"])
def test_exact_posterior_as_distributions(given):
    truth, x, decode = linear_gaussian()
    covariance, noise = truth.covariance, truth.s
    latents = torch.zeros(2, dtype=torch.float64)

    def encode(x):
        return td.MultivariateNormal(posterior_mean(truth, x), covariance)

    def normal(mean):
        return td.Normal(mean, noise)

    if given == "likelihood":
        parts = decode, normal
    else:
        parts = (lambda z: td.Independent(normal(decode(z)), 1)), None
    prior = td.MultivariateNormal(latents, torch.eye(2, dtype=torch.float64))
    program = from_modules(encode, *parts, prior, data=x)
    log_w = pv.log_weights(program.model, program.guide, x, num_samples=5)
    torch.testing.assert_close(log_w, truth.log_evidence(x).expand(5, -1))


def test_elbo_of_an_inexact_posterior():
    """ELBO = log p(x) − KL(q ‖ p(z|x)), with a divergence in closed form."""
    truth, x, decode = linear_gaussian(orthogonal=True)
    std = truth.covariance.diagonal().sqrt()

    def encode(x):
        mean = posterior_mean(truth, x) + 0.3 * std
        return mean, (1.2 * std).expand_as(mean)

    program = from_modules(encode, decode, "gaussian", data=x, scale="std", noise=truth.s)
    divergence = 0.5 * 2 * (1.2**2 - 1 - 2 * math.log(1.2) + 0.3**2)
    bounds = pv.evaluate(program, x, num_samples=4000, ks=(5,))
    error = bounds.estimates["elbo"].se_monte_carlo
    expected = float(truth.log_evidence(x).mean()) - divergence
    # false alarms: 6e-5
    assert bounds.elbo == pytest.approx(expected, abs=4 * error) and error < 0.01
    assert bounds.log_evidence == pytest.approx(float(truth.log_evidence(x).mean()), abs=0.01)


def probabilities(out):
    return out.sigmoid()


#: By name: the output of the decoder as a function of real numbers, p(x|z), and data.
LIKELIHOODS = {
    "bernoulli_logits": (None, lambda o: td.Bernoulli(logits=o), lambda u: (u < 0.4).float()),
    "bernoulli_probs": (
        probabilities,
        lambda o: td.Bernoulli(logits=o),
        lambda u: (u < 0.4).float(),
    ),
    "continuous_bernoulli_logits": (
        None,
        lambda o: td.ContinuousBernoulli(logits=o),
        lambda u: u,
    ),
    "continuous_bernoulli_probs": (
        probabilities,
        lambda o: td.ContinuousBernoulli(logits=o),
        lambda u: u,
    ),
    "poisson_log_rate": (None, lambda o: td.Poisson(o.exp()), lambda u: (9 * u).round()),
    "poisson_rate": (torch.exp, lambda o: td.Poisson(o.exp()), lambda u: (9 * u).round()),
    "gaussian": (None, lambda o: td.Normal(o, 0.5), lambda u: u),
    "laplace": (None, lambda o: td.Laplace(o, 0.5), lambda u: u),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(1, 2, 3), (6,)])
def test_every_named_likelihood(name, shape):
    """log p(x, z) − log q(z|x) is that of torch's distribution, with K particles of N data."""
    transform, make, values = LIKELIHOODS[name]
    torch.manual_seed(0)
    network, encoder = nn.Linear(2, 6), nn.Linear(6, 4)
    with torch.no_grad():  # moderate z, for rates that are exponentials of it
        encoder.weight.mul_(0.1)
    x = values(torch.rand(7, *shape))

    def decode(z):
        out = network(z)
        return out if transform is None else transform(out)

    def encode(x):
        return encoder(x.flatten(1)).chunk(2, 1)

    noise = 0.5 if name in ("gaussian", "laplace") else None
    named = from_modules(encode, decode, name, data=x, scale="log_std", noise=noise)
    own = from_modules(
        encode, network, lambda o: make(o.reshape(len(o), *shape)), data=x, scale="log_std"
    )
    for program in (named, own):
        with torch.no_grad():
            run = run_particles(program.model, program.guide, x, num_samples=2)
            z = run.latents["z"]
            mean, log_std = encode(x)
            log_p = make(network(z)).log_prob(x.flatten(1)).sum(-1)
            log_q = td.Normal(mean, log_std.exp()).log_prob(z)
            expected = log_p + (td.Normal(0.0, 1.0).log_prob(z) - log_q).sum(-1)
        assert z.shape == (2, 7, 2)
        torch.testing.assert_close(run.log_weights, expected, atol=2e-4, rtol=1e-5)
    assert named.likelihood.has_code_length == own.likelihood.has_code_length
    sampled = pv.queries.sample(named, 3)
    assert sampled.x.shape == sampled.mean.shape == (3, *shape)
    assert pv.queries.reconstruct(own, x).x.shape == (7, *shape)


def test_saturated_probabilities_are_scored_as_by_binary_cross_entropy():
    probs = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.3, 1e-30]])
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 1.0]])
    program = from_modules(
        lambda x: (x[:, :1], x[:, :1]),
        lambda z: probs.expand(len(z), -1),
        "bernoulli_probs",
        data=x,
        scale="log_std",
    )
    fn = program.likelihood(torch.zeros(1, 1))
    expected = -nn.functional.binary_cross_entropy(probs, x, reduction="none")
    torch.testing.assert_close(fn.log_prob(x), expected.sum(1))
    # gradients at probabilities of 0 and 1 exist
    logits = probs_to_logits(probs.requires_grad_())
    (gradient,) = torch.autograd.grad(logits[:, :5].sum(), probs)
    assert gradient.isfinite().all() and gradient[0, 4] == pytest.approx(1 / 0.21)


@pytest.mark.parametrize("noise", ["log_var", "log_std", "std", "var"])
def test_decoded_noise(noise):
    torch.manual_seed(0)
    network = nn.Linear(2, 6)
    x = torch.randn(5, 3)

    def decode(z):
        mean, log_std = network(z).chunk(2, 1)
        return mean, OUTPUTS[noise](log_std.exp())

    program = from_modules(
        lambda x: (x[:, :2], x[:, :2]), decode, "gaussian", data=x, scale="log_std", noise=noise
    )
    z = torch.randn(4, 5, 2)
    mean, log_std = network(z).chunk(2, -1)
    expected = td.Normal(mean, log_std.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(program.likelihood(z).log_prob(x), expected)


@pytest.mark.parametrize(("name", "power"), [("gaussian", 2), ("laplace", 1)])
def test_optimal_noise(name, power):
    """For a posterior of zero width it is the closed form, and no other noise has a higher ELBO."""
    torch.manual_seed(0)
    x = 3 * torch.randn(500, 4)
    network = nn.Linear(2, 4)

    def encode(x):
        return x[:, :2], torch.full((len(x), 2), 1e-9)

    def build(noise):
        return from_modules(encode, network, name, data=x, scale="std", noise=noise)

    program = build("optimal")
    scale = float(program.likelihood.log_scale.exp())
    with torch.no_grad():
        error = (x - network(x[:, :2])).abs().pow(power).mean() ** (1 / power)
    assert scale == pytest.approx(float(error), rel=1e-5)
    # unobserved values have no error
    hidden = torch.cat([x, torch.full_like(x, math.nan)])
    hidden[len(x) :, 0] = x[:, 0]
    with torch.no_grad():
        filled = hidden.nan_to_num(0.0)
        seen = (filled - network(filled[:, :2])).abs().pow(power)[~hidden.isnan()]
    masked = from_modules(
        encode, network, name, data=hidden, scale="std", noise="optimal"
    ).likelihood.log_scale.exp()
    assert float(masked) == pytest.approx(float(seen.mean() ** (1 / power)), rel=1e-5)
    elbo = [
        pv.evaluate(build(s), x, num_samples=2, ks=(2,)).elbo
        for s in (0.9 * scale, scale, 1.1 * scale)
    ]
    assert max(elbo) == elbo[1]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)
        )
        self.decoder = nn.Linear(2, 4)
        self.bias = nn.Parameter(torch.zeros(4))

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z) + self.bias


GLOBAL = Net()


def encode_globally(x):
    return GLOBAL.encode(x)


def helper(z):
    return GLOBAL.decode(z)


class Trainer:
    """Not a module, but it has one."""

    def __init__(self, net):
        self.net = net

    def encode(self, x):
        return self.net.encode(x)


def test_owners_of_callables():
    net, bias = Net(), nn.Parameter(torch.zeros(2))
    for function in (
        *(net, net.encode, lambda x: net.encode(x), partial(Net.encode, net)),
        *(Trainer(net).encode, lambda x, net=net: net(x)),
        lambda x: [net.encode(part) for part in x],
    ):
        assert find_owners(function) == ([net], [])
    for function in (encode_globally, helper, lambda z: helper(z)):
        assert find_owners(function) == ([GLOBAL], [])
    assert find_owners([net, net.encoder], {"other": net.decoder}) == ([net], [])
    modules, parameters = find_owners(lambda x: net.encoder(x) + bias + net.bias)
    assert modules == [net] and [id(p) for p in parameters] == [id(bias)]
    assert find_owners(torch.sigmoid) == find_owners(nn.functional.softplus) == ([], [])


@pytest.mark.parametrize("style", ["methods", "functions", "globals"])
def test_the_program_owns_the_modules(style):
    torch.manual_seed(0)
    net = GLOBAL if style == "globals" else Net()
    net.train()
    encode, decode = {
        "methods": (net.encode, net.decode),
        "functions": (lambda x: net.encode(x), lambda z: net.decode(z)),
        "globals": (encode_globally, helper),
    }[style]
    x = (torch.rand(30, 4) < 0.1).float()
    program = from_modules(encode, decode, "bernoulli_logits", scale="log_var", data=x)
    assert {id(p) for p in program.parameters()} == {id(p) for p in net.parameters()}
    # dropout and batch statistics are off in an evaluation, and the mode is restored
    statistics = net.encoder[1].running_mean.clone()
    first, second = (pv.evaluate(program, x, num_samples=60, ks=(5,)) for _ in range(2))
    assert first.elbo == second.elbo
    assert torch.equal(statistics, net.encoder[1].running_mean)
    assert net.training and net.encoder[2].training
    # training changes the weights of the given modules
    before = [p.clone() for p in net.parameters()]
    pv.fit(program, x, epochs=20, optimizer=partial(torch.optim.Adam, lr=0.03))
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert pv.evaluate(program, x, num_samples=60, ks=(5,)).elbo > first.elbo
    program.double()
    assert net.bias.dtype is torch.float64


def test_copies():
    """A copy has weights of its own; a function cannot be copied, because it refers to others."""
    torch.manual_seed(0)
    net = Net().eval()
    x = (torch.rand(5, 4) < 0.5).float()
    build = partial(from_modules, likelihood="bernoulli_logits", scale="log_var", data=x)
    program = build(net.encode, net.decode)
    copied = copy.deepcopy(program)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        z = torch.ones(1, 2)
        assert not program.likelihood.network(z).any() and copied.likelihood.network(z).all()
    with pytest.raises(ValueError, match=r"callables that can be copied, .* got a function, which"):
        copy.deepcopy(build(lambda x: net.encode(x), net.decode))


def test_a_learned_noise_is_a_part_of_the_program():
    torch.manual_seed(0)
    net, log_scale = Net(), nn.Parameter(torch.zeros(()))
    x = 3 * torch.randn(200, 4)
    program = from_modules(
        *(net.encode, net.decode, lambda mean: td.Normal(mean, log_scale.exp())),
        scale="log_var",
        data=x,
    )
    assert any(p is log_scale for p in program.parameters())
    pv.fit(program, x, epochs=60, optimizer=partial(torch.optim.Adam, lr=0.02))
    assert 1.5 < log_scale.exp().item() < 3.5
    # the support of a uniform depends on z: it is not checked at one of them
    noise = from_modules(
        *(net.encode, net.decode, lambda mean: td.Uniform(mean - 90, mean + 90)),
        scale="log_var",
        data=x,
    )
    assert noise.likelihood.check(x + 100) is None


def test_latents_of_any_shape_are_vectors():
    torch.manual_seed(0)
    down, up = nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(2, 1, 2, 2)
    x = torch.randn(6, 1, 4, 4)

    def encode(x):
        return down(x).chunk(2, 1)

    program = from_modules(encode, up, "gaussian", data=x, scale="log_std", noise=1.0)
    assert program.latent_dim == 8
    same = from_modules(
        lambda x: td.Normal(encode(x)[0], encode(x)[1].exp()),
        lambda z: td.Normal(up(z), 1.0),
        None,
        td.Normal(torch.zeros(2, 2, 2), 1.0),
        data=x,
    )
    results = [pv.evaluate(p, x, num_samples=60, ks=(5,), seed=1) for p in (program, same)]
    assert results[0].log_evidence == pytest.approx(results[1].log_evidence, abs=1e-4)
    assert program.guide(x).shape == same.guide(x).shape == (6, 8)


def test_priors():
    torch.manual_seed(0)
    net = Net()
    x = (torch.rand(20, 4) < 0.5).float()
    build = partial(
        from_modules, net.encode, net.decode, "bernoulli_logits", scale="log_var", data=x
    )

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.ones(2))

        def forward(self):
            return td.Independent(td.Normal(self.loc, 2.0), 1)

    z = torch.randn(3, 2)
    expected = td.Normal(1.0, 2.0).log_prob(z).sum(1)
    learned = Learned()
    for prior in (td.Normal(torch.ones(2), 2.0), learned, learned.forward):
        torch.testing.assert_close(build(prior).prior().log_prob(z), expected)
    program = build(learned)
    assert any(p is learned.loc for p in program.parameters())
    mixture = build(partial(pv.priors.VampPrior, components=3))
    assert mixture.prior.pseudo_inputs.shape == (3, 4)
    assert build().prior().log_prob(torch.zeros(2)) == pytest.approx(-math.log(2 * math.pi))
    with pytest.raises(ValueError, match=r"a prior over latents of shape \(2,\), .*; got \(3,\)"):
        build(td.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match=r"prior to be a distribution, .* got a int"):
        build(3)
    with pytest.raises(ValueError, match="or to return a distribution; got a tensor of shape"):
        build(lambda: torch.zeros(2))


def test_queries_and_unobserved_values_with_a_given_distribution():
    """A likelihood that the caller writes has single pixels, like the named one."""
    torch.manual_seed(0)
    net = Net().eval()
    x = (torch.rand(5, 4) < 0.5).float()
    named, own = (
        from_modules(net.encode, net.decode, likelihood, scale="log_var", data=x)
        for likelihood in ("bernoulli_logits", lambda out: td.Bernoulli(logits=out))
    )
    observed = torch.tensor([True, False, True, True]).expand(5, 4)
    means = [pv.queries.impute(p, x, observed, num_samples=20).mean for p in (named, own)]
    torch.testing.assert_close(*means)
    hidden = x.masked_fill(~observed, math.nan)
    elbo = [pv.evaluate(p, hidden, num_samples=60, ks=(5,)).elbo for p in (named, own)]
    assert elbo[0] == pytest.approx(elbo[1], abs=1e-5)


def fails(x):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


X = (torch.arange(24).reshape(6, 4) % 2).float()
IMAGES = torch.rand(6, 3, 4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scale": None},
            "expected scale to state what the second tensor of encode is, one",
        ),
        ({"scale": "logvar"}, "expected scale to be one of .*; got 'logvar'; did you mean log_var"),
        ({"encode": lambda x: x}, r"got a tensor of shape \(6, 4\): wrap it in .*chunk\(2, 1\)"),
        (
            {"encode": lambda x: {"mu": x}},
            "expected encode to return a mean and a.*got a dict",
        ),
        ({"encode": lambda x: (x, x, x)}, "got a tuple of 3"),
        ({"encode": lambda x: (x, x[:, :1])}, r"of one shape; got \(6, 4\) and \(6, 1\): expand"),
        (
            {"encode": lambda x: (x.sum(0), x.sum(0))},
            r"one row for each of 6 .*got.*\(4,\)",
        ),
        ({"encode": fails}, "expected encode to accept a tensor of .*RuntimeError: mat1 and mat2"),
        ({"encode": lambda x: (x, x - 1), "scale": "std"}, "scales from -1 to 0 for scale='std'"),
        (
            {"encode": lambda x: (x, x.exp() * torch.rand(4))},
            "encode to return the same for the same",
        ),
        ({"decode": lambda z: z + torch.randn(4)}, "decode to return the same for the same input"),
        ({"encode": 3}, "expected encode to be a callable; got a int"),
        ({"encode": lambda x: td.Normal(x, 1.0)}, "expected scale only if encode returns a mean"),
        ({"decode": lambda z: z[:, :3]}, r"shape of the data, \(6, 4\), or flat.*got \(6, 3\)"),
        ({"decode": lambda z: (z, z)}, "decode to return a tensor, .*; got a tuple of 2"),
        (
            {"decode": lambda z: 3 * z + 2, "likelihood": "bernoulli_probs"},
            r"values in \[0, 1\].*; got values from .* use likelihood='bernoulli_logits' if they",
        ),
        (
            {"decode": lambda z: -z.square() - 1, "likelihood": "poisson_rate"},
            "use likelihood='poisson_log_rate' if they are log rates",
        ),
        (
            {"likelihood": "bernouli_logits"},
            "likelihood to be one of .*; did you mean bernoulli",
        ),
        ({"likelihood": None}, "expected either a likelihood or a decode that returns a distrib"),
        ({"likelihood": lambda out: out}, "expected likelihood to return a distribution; got a te"),
        ({"likelihood": lambda out: td.Normal(out[0], 1.0)}, r"\(6, 4\), or flat .*; got \(4,\)"),
        ({"likelihood": "gaussian"}, "expected noise, the scale of the gaussian .*got None"),
        ({"likelihood": "gaussian", "noise": 0.0}, "noise to be a positive number; got 0.0"),
        ({"likelihood": "gaussian", "noise": "best"}, "noise to be one of .*optimal; got 'best'"),
        ({"noise": 1.0}, "expected noise only for likelihood gaussian or laplace; got it for bern"),
        ({"noise": "optimal"}, "expected noise only for likelihood gaussian or laplace"),
        ({"likelihood": td.Normal, "noise": 1.0}, "because the distribution has its own scale"),
        ({"data": None}, "expected data, some examples .* got None: pass data=x"),
        ({"data": X[:0]}, "expected data of at least one example"),
        ({"data": X / 2}, "Bernoulli scores only 0/1; got 2 levels"),
        (
            {"likelihood": lambda out: td.Bernoulli(logits=out), "data": X / 2},
            "data in the support of the likelihood, Bernoulli; got 6 of 6 examples with values out",
        ),
    ],
)
def test_refusals(change, message):
    parts = {"encode": lambda x: (x, x), "decode": lambda z: z, "likelihood": "bernoulli_logits"}
    with pytest.raises(ValueError, match=message):
        from_modules(**{**parts, "scale": "log_var", "data": X, **change})


def test_images_are_not_reshaped_in_silence():
    network = nn.Linear(2, 60)

    def build(decode):
        return from_modules(
            *(lambda x: (x[:, 0, 0, :2], x[:, 0, 0, :2]), decode, "gaussian"),
            data=IMAGES,
            scale="log_std",
            noise=1.0,
        )

    assert build(network).event_shape == (3, 4, 5)
    with pytest.raises(ValueError, match=r"\(6, 3, 4, 5\), or flat .*; got \(6, 4, 5, 3\): resh"):
        build(lambda z: network(z).reshape(-1, 4, 5, 3))
    with pytest.raises(ValueError, match=r"data of torch.float32, like the weights.*torch.float64"):
        from_modules(
            *(lambda x: (x, x), network, "gaussian"), data=X.double(), scale="std", noise=1.0
        )
