"""Queries of models that observe x reshaped, its columns, or further arguments."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import poutine
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae import queries
from pyro_vae.evaluation.annealing.bidirectional import simulate_data
from pyro_vae.programs.sites import find_data_sites

#: Observed pixels of the imputation tests.
OBSERVED = torch.tensor([True, True, False, True, False, True])


class Idiom(LinearGaussian):
    """The linear-Gaussian model, whose values are observed by several sites.

    Arguments:
        observe: function of the arguments that returns the values of the sites by name; together
            these are the six values of an example, in order.
    """

    def __init__(self, observe, **options):
        super().__init__(2, **options)
        self.observe = observe

    def model(self, *args):
        with pyro.plate("data", len(args[0])):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            loc, start = z @ self.W.T + self.b, 0
            for name, value in self.observe(*args).items():
                width = 1 if value.ndim == 1 else value.shape[1]
                part = loc[..., start] if value.ndim == 1 else loc[..., start : start + width]
                fn = dist.Normal(part, self.s).to_event(value.ndim - 1)
                pyro.sample(name, fn, obs=value)
                start += width

    def guide(self, *args):
        values = [v.reshape(len(args[0]), -1) for v in self.observe(*args).values()]
        super().guide(torch.cat(values, 1))


RESHAPED = {
    "reshape": ((1, 2, 3), lambda x: {"obs": x.reshape(-1, 6)}),
    "view": ((2, 3), lambda x: {"obs": x.view(len(x), 6)}),
    "flatten": ((2, 3), lambda x: {"obs": x.flatten(1)}),
    "squeeze": ((6, 1), lambda x: {"obs": x.squeeze(-1)}),
    "copy": ((3, 2), lambda x: {"obs": x.clone().reshape(-1, 6)}),
}

COLUMNS = {
    "slices": lambda x: {"head": x[:, :2], "tail": x[:, 2:]},
    "columns": lambda x: {f"x{i}": x[:, i] for i in range(6)},
    "unbound": lambda x: dict(zip("abcdef", x.unbind(1), strict=True)),
    "copies": lambda x: {"head": x[:, [0, 1]], "tail": x[:, [2, 3, 4, 5]]},
}


def whole(x):
    return {"obs": x}


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(0)
    return LinearGaussian(2).sample(4)


@pytest.mark.parametrize("name", RESHAPED)
def test_reshaped_data_give_the_results_of_data_as_they_are(name, x):
    """The draws are the same, so all numbers are equal."""
    shape, observe = RESHAPED[name]
    plain, program = Idiom(whole), Idiom(observe)
    images = x.reshape(-1, *shape)

    def check(query, *args, **options):
        expected = query(plain, *(a.reshape(-1, 6) for a in args), **options)
        result = query(program, *args, **options)
        assert torch.equal(result.x, expected.x.reshape(*result.x.shape))
        assert result.x.shape[-1 - len(shape) :] == images.shape
        assert torch.equal(result.mean, expected.mean.reshape(*result.mean.shape))
        return result, expected

    generated, _ = check(queries.reconstruct, images)
    assert generated.sites["obs"].x.shape == (4, 6)
    check(queries.interpolate, images, images.flip(0), steps=3)
    check(queries.traverse, images, values=[-1.0, 1.0], site="obs", latent="z")
    expected = queries.sample(plain, 4, like=x)
    assert torch.equal(queries.sample(program, 4, like=images).x, expected.x.reshape(images.shape))
    codes = (queries.encode(p, d)["z.mean"] for p, d in ((plain, x), (program, images)))
    np.testing.assert_array_equal(*codes)
    options = {"num_samples": 60, "rounds": 1, "refit_steps": 3}
    for noise in (None, queries.AdditiveNormal(0.3)):
        expected = queries.impute(plain, x, observed=OBSERVED, noise=noise, **options)
        observed = OBSERVED.reshape(shape)
        result = queries.impute(program, images, observed=observed, noise=noise, **options)
        assert torch.equal(result.x, expected.x.reshape(result.x.shape))
        assert torch.equal(result.log_evidence, expected.log_evidence)


def test_simulations_of_reshaped_data_are_those_of_data_as_they_are(x):
    plain, program = Idiom(whole), Idiom(RESHAPED["reshape"][1])
    images = x.reshape(-1, 1, 2, 3)
    settings = pv.Annealing(num_temperatures=4, num_chains=2, num_steps=2)
    bounds = [
        pv.bdmc(p, 6, like=like, annealing=settings, num_samples=5)
        for p, like in ((plain, x), (program, images))
    ]
    for name, values in bounds[0].per_datum.items():
        np.testing.assert_array_equal(bounds[1].per_datum[name], values)
    held_out = plain.sample(20)
    results = [
        pv.calibration(
            p, data, num_simulated=20, num_samples=5, num_replicates=5, posteriors=["guide"]
        )
        for p, data in ((plain, held_out), (program, held_out.reshape(-1, 1, 2, 3)))
    ]
    for name, pit in results[0].predictive.pit["posterior"].items():
        np.testing.assert_array_equal(results[1].predictive.pit["posterior"][name], pit)


def posterior_mean(program, x):
    return (x - program.b) @ program.W @ program.covariance / program.s**2


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_agree_with_closed_forms(name, x):
    program = Idiom(COLUMNS[name])
    centres = posterior_mean(program, x) @ program.W.T + program.b

    generated = queries.reconstruct(program, x.repeat(200, 1))
    # E[Wz + b | x], and x has the additional variance s²
    spread = program.W @ program.covariance @ program.W.T
    for values, cov in (
        (generated.mean, spread),
        (generated.x, spread + program.s**2 * torch.eye(6)),
    ):
        error = (cov.diagonal() / 200).sqrt()
        # 48 means at 5 standard errors: false alarm rate 1 in 36,000
        assert ((values.unflatten(0, (200, 4)).mean(0) - centres).abs() < 5 * error).all()
    parts = [site.x.reshape(800, -1) for site in generated.sites.values()]
    assert torch.equal(torch.cat(parts, 1), generated.x)

    path = queries.interpolate(program, x, x.flip(0), steps=3)
    assert torch.allclose(path.mean[0], centres) and torch.allclose(path.mean[-1], centres.flip(0))
    traversal = queries.traverse(program, x, dims=[1], values=[0.5])
    expected = posterior_mean(program, x)
    expected[:, 1] = 0.5
    assert torch.allclose(traversal.mean[0, 0], expected @ program.W.T + program.b)

    new = queries.sample(program, 5000, like=torch.randn(5000, 6).double().numpy())
    assert torch.allclose(new.mean, new.latents["z"] @ program.W.T + program.b)
    # 6 means at 5 standard errors: false alarm rate 1 in 10⁵
    error = program.marginal.stddev / 5000**0.5
    assert ((new.x.mean(0) - program.b).abs() < 5 * error).all()
    assert torch.allclose(new.x.T.cov(), program.marginal.covariance_matrix, atol=0.3)


def test_missing_columns_are_sampled_from_the_conditional(x):
    missing = ~OBSERVED
    program = Idiom(COLUMNS["columns"], inflate=1.2)
    joint = program.marginal.covariance_matrix
    seen = MultivariateNormal(program.b[OBSERVED], joint[OBSERVED][:, OBSERVED])
    gain = joint[missing][:, OBSERVED] @ torch.linalg.inv(seen.covariance_matrix)
    mean = program.b[missing] + (x[:, OBSERVED] - program.b[OBSERVED]) @ gain.T
    cov = joint[missing][:, missing] - gain @ joint[OBSERVED][:, missing]
    for data, observed in (
        (x, OBSERVED),
        (torch.where(OBSERVED, x, torch.nan), None),
    ):
        result = queries.impute(
            program, data, observed=observed, num_samples=2000, draws=1000, refit_steps=20
        )
        assert torch.equal(result.x[..., OBSERVED], x[:, OBSERVED].expand(1000, 4, 4))
        size = 1 / (1 / result.ess + 1 / 1000)
        # 16 means and 4 log densities, twice, at 5 standard errors: false alarm rate 1 in 40,000
        error = (cov.diagonal() / size[:, None]).sqrt()
        assert ((result.x[..., missing].mean(0) - mean).abs() < 5 * error).all()
        error = result.log_evidence_variance.sqrt() + 1e-9
        assert ((result.log_evidence - seen.log_prob(x[:, OBSERVED])).abs() < 5 * error).all()
    score = queries.score_missing(program, x, observed=OBSERVED, num_samples=2000, refit_steps=20)
    truth = MultivariateNormal(mean, cov).log_prob(x[:, missing])
    assert ((score.value - truth).abs() < 5 * score.variance.sqrt() + 1e-9).all()


def test_bdmc_and_anomaly_scores_of_columns(x):
    program = Idiom(COLUMNS["slices"])
    scores = queries.anomaly_scores(program, x, num_samples=3)
    # the guide is exact, so every weight is log p(x)
    np.testing.assert_allclose(scores, program.log_evidence(x).numpy(), rtol=1e-6)
    simulated, _, latents = simulate_data(program, 4000, (), 0, like=x)
    residual = simulated - latents["z"][0] @ program.W.T - program.b
    # 12 moments at 5 standard errors: false alarm rate 1 in 10⁵
    assert (residual.mean(0).abs() < 5 * program.s / 4000**0.5).all()
    assert ((residual.std(0) / program.s - 1).abs() < 5 / 8000**0.5).all()
    settings = pv.Annealing(num_temperatures=4, num_chains=2, num_steps=2)
    bounds = pv.bdmc(program, 5, like=x, annealing=settings, num_samples=3)
    truth = bounds.per_datum["elbo"]  # exact
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], truth, rtol=1e-6)
    assert bounds.estimates["ais"].value <= bounds.estimates["upper"].value + 1e-6


class Modalities(Idiom):
    """x, four values, and y, two values, are two arguments."""

    def __init__(self):
        super().__init__(lambda x, y: {"x": x, "y": y})


def test_two_modalities(x):
    program, image, text = Modalities(), x[:, :4], x[:, 4:]
    centres = posterior_mean(program, x) @ program.W.T + program.b
    path = queries.interpolate(program, image, image, text, steps=2)
    assert torch.allclose(path.mean[0], centres[:, :4])
    assert torch.allclose(path.sites["y"].mean[0], centres[:, 4:])
    assert path.sites["y"].x.shape == (2, 4, 2)
    other = queries.reconstruct(program, image, text, site="y")
    assert other.x.shape == (4, 2) and torch.equal(other.x, other.sites["y"].x)
    both = queries.reconstruct(program, image, text, site=["x", "y"])
    with pytest.raises(ValueError, match=r"parts of x; got 'x', 'y', which observe several arg"):
        _ = both.x

    like = torch.zeros(4000, 4).double(), torch.zeros(4000, 2).double()
    new = queries.sample(program, 4000, like[1], like=like[0], site=("x", "y"))
    joint = torch.cat([new.sites["x"].x, new.sites["y"].x], 1)
    assert torch.allclose(joint.T.cov(), program.marginal.covariance_matrix, atol=0.4)
    given = queries.sample(program, 4000, like[1], like=like[0])  # y has its given values
    assert set(given.sites) == {"x"} and given.x.shape == (4000, 4)

    # the conditional given the observed values of both arguments
    result = queries.impute(
        program, image, text, observed=OBSERVED[:4], num_samples=2000, draws=500, refit_steps=20
    )
    seen = OBSERVED.clone()
    seen[4:] = True
    cov = program.marginal.covariance_matrix
    truth = MultivariateNormal(program.b[seen], cov[seen][:, seen]).log_prob(x[:, seen])
    assert ((result.log_evidence - truth).abs() < 5 * result.log_evidence_variance.sqrt()).all()
    gain = cov[~seen][:, seen] @ torch.linalg.inv(cov[seen][:, seen])
    mean = program.b[~seen] + (x[:, seen] - program.b[seen]) @ gain.T
    assert torch.allclose(result.mean[:, 2:3], mean, atol=0.15)

    simulated, (more,), latents = simulate_data(program, 3000, (text,), 0, like=image)
    residual = torch.cat([simulated, more], 1) - latents["z"][0] @ program.W.T - program.b
    assert ((residual.std(0) / program.s - 1).abs() < 5 / 6000**0.5).all()
    settings = pv.Annealing(num_temperatures=3, num_chains=2, num_steps=1)
    bounds = pv.bdmc(program, 5, text, like=image, annealing=settings, num_samples=3)
    truth = bounds.per_datum["elbo"]
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], truth, rtol=1e-6)


def mixed_table(x):
    """A real column, a class, a one-hot class of two columns, and a covariate."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x[:, 4], 1.0))
        pyro.sample("age", dist.Normal(z, 1.0), obs=x[:, 0])
        logits = torch.stack([z, -z, 0 * z], -1)
        pyro.sample("class", dist.Categorical(logits=logits), obs=x[:, 1].long())
        probs = torch.stack([z.sigmoid(), (-z).sigmoid()], -1)
        pyro.sample("sex", dist.OneHotCategorical(probs), obs=x[:, 2:4])


def mixed_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x[:, 0] + x[:, 4]) / 2, 0.8))


TABLE = torch.tensor([[0.3, 2, 1, 0, 5.0], [-0.1, 1, 0, 1, -5.0], [0.7, 0, 0, 1, 0.0]])


def test_columns_of_several_kinds():
    program = (mixed_table, mixed_guide)
    generated = queries.reconstruct(program, TABLE)
    assert generated.x.dtype == torch.float32
    assert torch.equal(generated.x[:, 4], TABLE[:, 4])  # no site observes it
    assert set(generated.x[:, 1].tolist()) <= {0.0, 1.0, 2.0}
    assert torch.equal(generated.x[:, 2:4].sum(1), torch.ones(3))
    assert generated.mean[:, 1].isnan().all()  # a class has no mean
    z = generated.latents["z"]
    assert torch.allclose(generated.mean[:, 0], z) and torch.allclose(
        generated.mean[:, 2], z.sigmoid(), atol=1e-5
    )
    # the covariate of each example decides about its latent
    new = queries.sample(program, 3000, like=TABLE.repeat(1000, 1))
    means = new.x[:, 0].unflatten(0, (1000, 3)).mean(0)
    assert ((means - TABLE[:, 4]).abs() < 5 * (2 / 1000) ** 0.5).all()


@pytest.mark.parametrize("missing", [[1], [2, 3], [0]])
def test_classes_are_imputed(missing):
    """Bayes' rule on a grid of the latent, against the samples of a missing column."""
    observed = torch.ones(5, dtype=torch.bool)
    observed[missing] = False
    result = queries.impute(
        (mixed_table, mixed_guide),
        TABLE,
        observed=observed,
        num_samples=2000,
        draws=2000,
        refit_steps=30,
        rounds=2,
    )
    z = torch.linspace(-12, 12, 4001)[:, None]
    log_p = dist.Normal(TABLE[:, 4], 1.0).log_prob(z)
    logits = torch.stack([z, -z, 0 * z], -1).log_softmax(-1)
    terms = {
        0: dist.Normal(z, 1.0).log_prob(TABLE[:, 0]),
        1: torch.stack([logits[:, 0, int(c)] for c in TABLE[:, 1]], -1),
        2: torch.where(TABLE[:, 2] == 1, z.sigmoid(), (-z).sigmoid()).log(),
    }
    for column, term in terms.items():
        log_p = log_p if column in missing else log_p + term
    truth = log_p.logsumexp(0) + math.log(24 / 4000)
    error = 5 * result.log_evidence_variance.sqrt().float() + 1e-4
    assert ((result.log_evidence - truth).abs() < error).all()
    weights = log_p.softmax(0)
    moment = {0: z, 1: logits[:, :, 0].exp(), 2: z.sigmoid()}[missing[0]]
    expected = (weights * moment).sum(0)
    samples = result.x[..., missing[0]]
    samples = (samples == 0).float() if missing == [1] else samples
    # 3 means at 5 standard errors of at most ½ or of a normal of variance 2
    width = 1.5 if missing == [0] else 0.5
    size = 1 / (1 / result.ess + 1 / 2000)
    assert ((samples.mean(0) - expected).abs() < 5 * width / size.sqrt() + 1e-3).all()


def test_parts_of_one_categorical_cannot_be_imputed():
    observed = torch.tensor([True, True, True, False, True])
    with pytest.raises(ValueError, match=r"whose pixels are independent .*; got OneHotCategorical"):
        queries.impute((mixed_table, mixed_guide), TABLE, observed=observed)
    observed = torch.tensor([True, True, True, True, False])
    with pytest.raises(ValueError, match=r"'sex'\) observes, .*; got 3 that none of these does"):
        queries.impute((mixed_table, mixed_guide), TABLE, observed=observed)


VIEWS = {
    "as it is": (lambda x: x, None),
    "reshaped": (lambda x: x.reshape(-1, 6), None),
    "transposed": (lambda x: x.transpose(1, 2), [0, 3, 1, 4, 2, 5]),
    "flipped": (lambda x: x.flip(1), [3, 4, 5, 0, 1, 2]),
    "row": (lambda x: x[:, 1], [3, 4, 5]),
    "strided": (lambda x: x[..., ::2], [0, 2, 3, 5]),
    "one": (lambda x: x[:, 1, 2], [5]),
    "selected": (lambda x: x[:, :, [2, 0]], [2, 0, 5, 3]),
    "cast": (lambda x: x[:, 0].double(), [0, 1, 2]),
}


def observe(value):
    def model(x):
        with pyro.plate("data", len(x)):
            fn = dist.Normal(torch.zeros(value(x).shape), 1.0)
            pyro.sample("a", fn.to_event(value(x).ndim - 1), obs=value(x))

    return model


@pytest.mark.parametrize("layout", ["contiguous", "slice", "transposed"])
@pytest.mark.parametrize("name", VIEWS)
def test_observed_parts_are_found(name, layout):
    value, index = VIEWS[name]
    x = torch.randn(5, 2, 3)
    x = {
        "contiguous": x,
        "slice": torch.randn(9, 2, 3)[3:8],
        "transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
    }[layout]
    data, _ = find_data_sites(observe(value), (x,))
    (part,) = data.sites.values()
    assert part.argument == 0
    assert part.index is None if index is None else part.index.tolist() == index
    assert torch.equal(part.take(x), value(x).reshape(5, -1).float())
    assert torch.equal(data.assemble({"a": part.take(x)}, torch.zeros_like(x)) != 0, mask_of(index))


def mask_of(index):
    mask = torch.zeros(6, dtype=torch.bool)
    mask[slice(None) if index is None else index] = True
    return mask.reshape(2, 3).expand(5, 2, 3)


def test_no_part_is_guessed():
    for value in (lambda x: 2 * x, lambda x: x.sum(-1), lambda x: x[:, :, :1].expand(-1, -1, 3)):
        data, _ = find_data_sites(observe(value), (torch.randn(5, 2, 3),))
        assert data.argument is None
    # a copy of one of two equal columns
    x = torch.randn(5, 1, 1).expand(5, 2, 3)
    data, _ = find_data_sites(observe(lambda x: x[:, [0], 0].clone()), (x,))
    assert data.argument is None


def make_program(model):
    def run(x, *args):
        with pyro.plate("data", len(x)):
            model(x, pyro.sample("z", dist.Normal(0.0, 1.0)), *args)

    return run, lambda x, *_: poutine.block(run, expose=["z"])(x.new_zeros(x.shape))


def normal(name, z, value):
    pyro.sample(name, dist.Normal(z, 1.0), obs=value)


def function_of_x(x, z):
    normal("a", z, 2 * x[:, 0])
    normal("b", z, x[:, 1])


def same_column_twice(x, z):
    normal("a", z, x[:, 0])
    normal("b", z, x[:, 0])


def factor_only(x, z):
    pyro.factor("likelihood", dist.Normal(z, 1.0).log_prob(x[:, 0]))


REFUSED = {
    "a function": (
        lambda p, x: queries.impute(p, x, observed=torch.tensor([True, False])),
        function_of_x,
        "expected sites that observe different parts of x, .*; got 'a', which is neither a view",
    ),
    "simulating a function": (
        lambda p, x: pv.bdmc(p, 3, like=x),
        function_of_x,
        "different parts of its arguments, .*; got 'a', which is neither a view of an argument",
    ),
    "x of a function": (
        lambda p, x: queries.sample(p, 4, like=x).x,
        function_of_x,
        r"expected one data site, .*; got 'a', which is neither .*: read sites\['a'\].x, or name",
    ),
    "the same twice": (
        lambda p, x: pv.bdmc(p, 3, like=x),
        same_column_twice,
        "got 'a', 'b', of which two observe the same values",
    ),
    "an unknown site": (
        lambda p, x: queries.reconstruct(p, x, site="c"),
        function_of_x,
        "expected site to be an observed site of the model, 'a', 'b'; got 'c'$",
    ),
    "a latent site": (
        lambda p, x: queries.traverse(p, x, site="z"),
        function_of_x,
        "of the model, 'a', 'b'; got 'z': name a latent site by latent=…",
    ),
    "a factor": (
        lambda p, x: queries.reconstruct(p, x),
        factor_only,
        r"got no observed site but pyro.factor \('likelihood'\), which has no samples",
    ),
    "no data": (
        lambda p, x: pv.bdmc(p, 3),
        function_of_x,
        "expected a model that runs without data, .*pass data of the right shape as like=…",
    ),
    "data and like": (
        lambda p, x: pv.bdmc(p, x, like=x),
        function_of_x,
        "expected the number of examples to simulate, with like=…; got data",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    query, model, message = REFUSED[case]
    x = torch.tensor([[0.3, 1.0], [0.1, 0.5], [-0.4, 0.2], [1.2, 0.9]])
    with pytest.raises(ValueError, match=message):
        query(make_program(model), x)


def test_values_of_a_function_of_x_are_generated():
    x = torch.randn(4, 2)
    program = make_program(lambda x, z: normal("double", z, 2 * x[:, 0]))
    generated = queries.reconstruct(program, x)
    assert torch.equal(generated.mean, generated.latents["z"])  # that of the only site
    one = queries.sample(make_program(function_of_x), 4, like=x, site="b")
    assert torch.equal(one.x[:, 0], x[:, 0]) and not torch.equal(one.x[:, 1], x[:, 1])


def teacher_forcing(x, z):
    normal("a", z, x[:, 0])
    normal("b", x[:, 0], x[:, 1])


def returned_values(x, z):
    a = pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])
    normal("b", a, x[:, 1])


def latent_of_data(x, z):
    normal("a", pyro.sample("w", dist.Normal(x[:, 0], 1.0)), x[:, 0])


@pytest.mark.parametrize("query", ["reconstruct", "impute", "sample"])
def test_teacher_forcing_is_refused(query):
    run = {
        "reconstruct": queries.reconstruct,
        "impute": lambda p, x: queries.impute(p, x, observed=torch.tensor([True, False])),
        "sample": lambda p, x: queries.sample(p, len(x), like=x),
    }[query]
    for x in (torch.randn(1, 2), torch.randn(4, 2)):
        with pytest.raises(ValueError, match=r"on the data .* computes that of 'b' from"):
            run(make_program(teacher_forcing), x)
    # the values that pyro.sample returns are samples, unless they are observed
    if query != "sample":
        with pytest.raises(ValueError, match="computes that of 'b' from them"):
            run(make_program(returned_values), torch.randn(4, 2))


def test_returned_values_are_sampled_in_turn():
    x = torch.zeros(20_000, 2)
    generated = queries.sample(make_program(returned_values), 20_000, like=x)
    # z, a and b are a random walk; 3 moments at 5 standard errors: false alarm rate 1 in 500,000
    truth = torch.tensor([[2.0, 2.0], [2.0, 3.0]])
    variance = truth.diagonal().outer(truth.diagonal()) + truth**2
    assert ((generated.x.T.cov() - truth).abs() < 5 * (variance / 20_000).sqrt()).all()
    bounds, x = [], torch.zeros(3, 2)
    for model in (returned_values, teacher_forcing):
        bdmc = lambda model=model: pv.bdmc(  # noqa: E731
            make_program(model),
            3,
            like=x,
            annealing=pv.Annealing(num_temperatures=3, num_chains=2, num_steps=1),
            num_samples=0,
        )
        if model is teacher_forcing:
            with pytest.raises(ValueError, match="got a density of 'b' that depends on the data"):
                bdmc()
        else:
            bounds.append(bdmc())
    assert len(bounds[0]) == 3


def test_function_of_x_beside_a_covariate_is_not_guessed():
    program = make_program(lambda x, z: normal("double", z + x[:, 1], 2 * x[:, 0]))
    with pytest.raises(ValueError, match=r"changes with x, and 'double', which is neither a view"):
        queries.reconstruct(program, torch.randn(4, 2))


def test_prior_that_reads_the_observed_data_is_refused():
    run, _ = make_program(latent_of_data)
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="computes that of 'w' from them"):
        queries.sample((run, None), 4, like=x)


def test_masked_values_are_not_observed():
    """A masked column is missing, and p(x_obs) does not have its values."""
    program, x = Idiom(COLUMNS["columns"]), LinearGaussian(2).sample(5)
    mask = torch.rand(5, 6) > 0.3
    mask[0] = True

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            loc = z @ program.W.T + program.b
            for i in range(6):
                with poutine.mask(mask=mask[:, i]):
                    pyro.sample(f"x{i}", dist.Normal(loc[..., i], program.s), obs=x[:, i])

    def guide(x, mask):
        program.guide(x)

    observed = torch.ones(6, dtype=torch.bool)
    observed[2] = False
    result = queries.impute(
        (model, guide), x, mask, observed=observed, num_samples=2000, refit_steps=20, fills=2
    )
    cov = program.marginal.covariance_matrix
    for n in range(5):
        seen = mask[n] & observed
        truth = MultivariateNormal(program.b[seen], cov[seen][:, seen]).log_prob(x[n, seen])
        error = 5 * float(result.log_evidence_variance[n].sqrt())
        assert abs(float(result.log_evidence[n] - truth)) < error


def test_arguments_of_a_split(x):
    """A split has the second modality as an argument of each example."""
    program = Modalities()
    splits = [pv.data.Split(part[:, :4], arguments={"y": part[:, 4:]}) for part in (x, x.flip(0))]
    named = (lambda x, y: program.model(x, y)), (lambda x, y: program.guide(x, y))
    path = queries.interpolate(named, *splits, steps=2)
    centres = posterior_mean(program, x) @ program.W.T + program.b
    assert torch.allclose(path.mean[0], centres[:, :4])
    assert torch.allclose(path.mean[-1], centres[:, :4].flip(0))
    new = queries.sample(named, 4, like=splits[0], site=["x", "y"])
    assert torch.allclose(new.sites["y"].mean, (new.latents["z"] @ program.W.T + program.b)[:, 4:])


def test_encoding_needs_only_the_guide():
    x = LinearGaussian(2).sample(7)
    program = LinearGaussian(2)
    expected = queries.encode(program, x)
    alone = queries.encode((None, program.guide), x, chunk_size=3)
    for name, values in expected.items():
        np.testing.assert_allclose(alone[name], values, rtol=1e-12)
    other, guide = make_program(lambda x, z: normal("sum", z, x.sum(1)))
    assert queries.encode((other, guide), x.float())["z.mean"].shape == (7,)
    rows = torch.randn(7, 2).double()

    def by_index(x):
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(rows[i], 1.0).to_event(1))

    codes = queries.encode((None, by_index), x, chunk_size=3)
    np.testing.assert_array_equal(codes["z.mean"], rows.numpy())

    factor, guide = make_program(factor_only)
    assert queries.encode((factor, guide), x.float())["z.mean"].shape == (7,)

    def centred(x):
        with pyro.plate("cells", len(x)):
            pyro.sample("z", dist.Normal(x - x.mean(0), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"each example on its own; got .* 'z' changes"):
        queries.encode((None, centred), x)
    with pytest.raises(ValueError, match="expected all sample sites inside the plate"):
        queries.encode((None, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0))), x)


def test_inner_plate_left_of_the_data():
    """The data are the last batch dimension, and pixels another plate."""
    program = LinearGaussian(2)

    def model(x):
        pixels = pyro.plate("pixels", 6, dim=-2)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            loc = z @ program.W.T + program.b
            loc = loc[..., 0, :, :] if loc.ndim > 3 else loc
            with pixels:
                pyro.sample("x", dist.Normal(loc.transpose(-1, -2), program.s), obs=x.T)

    x = program.sample(5)
    generated = queries.interpolate((model, program.guide), x, x, steps=2)
    centres = posterior_mean(program, x) @ program.W.T + program.b
    assert generated.x.shape == (2, 5, 6) and torch.allclose(generated.mean[0], centres)
    result = queries.impute(
        (model, program.guide), x, observed=OBSERVED, num_samples=2000, refit_steps=20
    )
    cov = program.marginal.covariance_matrix[OBSERVED][:, OBSERVED]
    truth = MultivariateNormal(program.b[OBSERVED], cov).log_prob(x[:, OBSERVED])
    assert ((result.log_evidence - truth).abs() < 5 * result.log_evidence_variance.sqrt()).all()
