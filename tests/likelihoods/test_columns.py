"""Likelihoods of mixed columns, ordinal levels and positive values."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods
from pyro_vae.config import experiment
from pyro_vae.data import Dataset, Kind, Split

NAN = math.nan
PARTS = [
    partial(likelihoods.Gaussian, scale=0.5),
    likelihoods.Bernoulli,
    partial(likelihoods.Categorical, levels=2),
    partial(likelihoods.LogNormal, scale=0.8),
    likelihoods.Poisson,
]
#: Interleaved on purpose: the parts are not in the order of the columns.
COLUMNS = [[3, 0], [5], [1], [4], [2]]
ROW = [0.3, 2.0, 4.0, -1.2, 1.7, 1.0]


class Table(nn.Module):
    """A decoder whose outputs are a fixed function of a scalar z."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.start, self.slope = torch.randn(2, *out_shape, generator=generator).double()
        self.scale = nn.Parameter(torch.ones(()).double())

    def forward(self, z):
        return self.start + self.scale * self.slope * z


def make(**options):
    options = {"parts": PARTS, "columns": COLUMNS, **options}
    return likelihoods.Columns(1, (6,), Table, **options).double().eval()


def column_terms(likelihood, z, row):
    """Return the terms of log p(row | z) by SciPy, in the order of the columns."""
    out = likelihood.network(torch.tensor([z]).double()).detach().numpy()
    gauss, bern, categorical, log_normal, poisson = out[:2], out[2], out[3:6], out[6], out[7]
    p = 1 / (1 + math.exp(-bern))
    return [
        stats.norm(gauss[1], 0.5).logpdf(row[0]),
        float(torch.tensor(categorical).log_softmax(0)[int(row[1])]),
        stats.poisson(math.exp(poisson)).logpmf(row[2]),
        stats.norm(gauss[0], 0.5).logpdf(row[3]),
        stats.lognorm(0.8, scale=math.exp(log_normal)).logpdf(row[4]),
        math.log(p if row[5] else 1 - p),
    ]


def test_log_prob_is_the_sum_over_columns():
    likelihood = make()
    terms = column_terms(likelihood, 0.7, ROW)
    fn = likelihood(torch.tensor([0.7]).double())
    x = torch.tensor(ROW).double()
    assert fn.log_prob(x).item() == pytest.approx(sum(terms))
    likelihood.parts.apply(lambda part: setattr(part, "expects_missing", True))
    for hidden in ([0], [1, 4], [2, 3, 5], list(range(6))):
        holes = x.index_fill(0, torch.tensor(hidden), NAN)
        expected = sum(term for i, term in enumerate(terms) if i not in hidden)
        observed = likelihood(torch.tensor([0.7]).double()).log_prob(holes)
        assert float(observed.detach()) == pytest.approx(expected)


def test_samples_have_the_moments_of_their_columns():
    fn = make()(torch.tensor([0.2]).double())
    samples = fn.sample((20000,))
    error = (samples.mean(0) - fn.mean).abs() / (fn.variance / 20000).sqrt()
    assert error.max() < 5  # a false alarm in 10⁵ runs
    assert fn.support.check(samples[:100]).all()
    assert not fn.support.check(torch.tensor([0.0, 0.0, -1.0, 0.0, 1.0, 0.0]).double())


def test_imputing_a_column_given_the_others():
    """One latent: the conditional of a column is a sum over a grid of z."""
    vae = pv.VAE(
        (6,), 1,
        likelihood=partial(likelihoods.Columns, parts=PARTS, columns=COLUMNS),
        encoder=partial(pv.networks.MLP, hidden=(4,)),
        decoder=Table,
    ).double()  # fmt: skip
    x = torch.tensor([ROW, ROW]).double()
    x[0, 1] = x[1, 0] = NAN  # a category and a real number
    grid = torch.linspace(-6, 6, 401).double()
    prior = -(grid**2) / 2
    terms = torch.tensor([column_terms(vae.likelihood, float(z), ROW) for z in grid]).double()
    draws = 4000
    result = pv.queries.impute(vae, x, draws=draws, num_samples=4000, refit_steps=0, rounds=1)
    weights = (prior + terms[:, [0, 2, 3, 4, 5]].sum(1)).softmax(0)
    for category in range(3):
        row = [*ROW[:1], float(category), *ROW[2:]]
        given_z = torch.tensor([column_terms(vae.likelihood, float(z), row)[1] for z in grid])
        expected = float(weights @ given_z.double().exp())
        share = float((result.x[:, 0, 1] == category).double().mean())
        # 5 standard errors of at least 1000 effective samples
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 1000) + 1e-3
    weights = (prior + terms[:, 1:].sum(1)).softmax(0)
    loc = torch.stack([vae.likelihood.network(z[None])[1] for z in grid]).detach()
    mean = float(weights @ loc)
    assert float(result.mean[1, 0]) == pytest.approx(mean, abs=0.05)


def test_training_on_mixed_columns_with_holes():
    generator = torch.Generator().manual_seed(0)
    likelihood = make()
    x = likelihood(torch.randn(64, 1, generator=generator).double()).sample().float()
    x[torch.rand(x.shape, generator=generator) < 0.2] = NAN
    small = partial(pv.networks.MLP, hidden=(4,), init=0.01, output_bias="data")
    part = partial(likelihoods.Columns, parts=PARTS, columns=COLUMNS)
    vae = pv.VAE((6,), 1, likelihood=part, decoder=small)
    pv.fit(vae, x, epochs=1, batch_size=32, compile=False)
    # the decoder starts at the mean of each column, whichever part scores it
    mean = vae.likelihood(torch.zeros(1)).base_dist.mean.detach()
    torch.testing.assert_close(mean, x.nanmean(0), rtol=0.2, atol=0.2)
    assert pv.evaluate(vae, x, num_samples=5, compile=False).elbo < 0


def test_the_measure_says_what_is_a_density():
    assert make().measure == "density of 3 and probability of 3 columns"
    assert not make().has_code_length
    discrete = make(
        parts=[likelihoods.Poisson, likelihoods.Bernoulli], columns=[[0, 1, 2], [3, 4, 5]]
    )
    assert discrete.measure == "probability"
    assert discrete.has_code_length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": [[0, 1], [2], [3], [4], [4]]}, r"every column from 0 to 5 in one group; got"),
        ({"columns": [[0, 1, 2, 3, 4, 5]]}, r"one group of columns for each part; got 5 parts"),
        (
            {"parts": [partial(likelihoods.Poisson, library="observed")], "columns": [[*range(6)]]},
            r"independent given z; got Poisson, because library 'observed' needs the total",
        ),
    ],
)
def test_wrong_groups_raise(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_errors_name_the_columns():
    likelihood = make()
    x = torch.tensor([ROW, ROW])
    x[1, 4] = -1.0
    with pytest.raises(ValueError, match=r"columns 4: LogNormal scores only x > 0; got -1"):
        likelihood.check(x)
    with pytest.raises(ValueError, match=r"vectors, the rows of a table, for Columns; got .*2, 3"):
        likelihoods.Columns(1, (2, 3), Table, parts=PARTS, columns=COLUMNS)


def test_likelihoods_of_the_columns_of_a_table():
    values = torch.tensor([[0.5, 3.0, 1.0, 2.0, -1.0], [NAN, 0.0, 0.0, 0.0, 2.5]])
    types = ("real", "count", "binary", "categorical", "real")
    columns = tuple(SimpleNamespace(type=t, categories=None) for t in types)
    split = Split(values)
    data = SimpleNamespace(columns=columns, train=split, valid=split, test=split.head(1))
    likelihood = likelihoods.Columns.from_table(data)(2, (5,), pv.networks.MLP)
    names = [type(part).__name__.removeprefix("Pyro") for part in likelihood.parts]
    assert names == ["Gaussian", "NegativeBinomial", "Bernoulli", "Categorical"]
    assert likelihood.parts[3].levels == 2
    likelihood.check_observed(values)
    plain = Dataset("x", split, split, split, kind=Kind.REAL, binarize="none", checksum="")
    with pytest.raises(ValueError, match="loaded from a table, with the types of its columns"):
        likelihoods.Columns.from_table(plain)


def test_ordinal_probabilities_are_differences_of_sigmoids():
    likelihood = likelihoods.Ordinal(1, (2,), Table, levels=3).double()
    with torch.no_grad():
        likelihood.first_threshold.copy_(torch.tensor([-1.0, 2.0]))
        likelihood.log_gaps.copy_(torch.tensor([[0.1, -1.0], [0.5, 0.2]]))
    z = torch.tensor([0.4]).double()
    cumulative = (likelihood.thresholds - likelihood.network(z)[:, None]).sigmoid()
    edges = torch.cat([torch.zeros(2, 1), cumulative, torch.ones(2, 1)], 1)
    assert (likelihood.thresholds.diff() > 0).all()
    for level in range(4):
        x = torch.full((2,), float(level)).double()
        expected = edges.diff()[:, level].log().sum()
        torch.testing.assert_close(likelihood(z).log_prob(x), expected)
    with pytest.raises(ValueError, match="levels of at least 2 for Ordinal; got 1: use Bern"):
        likelihoods.Ordinal(1, (2,), Table, levels=1)
    # far in a tail, a difference of sigmoids is 0
    with torch.no_grad():
        likelihood.first_threshold.fill_(-60.0)
    assert likelihood(z).log_prob(torch.zeros(2).double()).isfinite()


def test_columns_by_name(tmp_path):
    text = """
    data: {name: digits, binarize: none, values: integer}
    model:
      latent_dim: 2
      likelihood:
        class_path: Columns
        init_args:
          parts: [Poisson, {class_path: Ordinal, init_args: {levels: 16}}]
          columns: [[0, 2], [1]]
    """
    (tmp_path / "x.yaml").write_text(text)
    loaded = experiment.load_experiment(tmp_path / "x.yaml")
    (tmp_path / "again.yaml").write_text(loaded.to_yaml())
    again = experiment.load_experiment(tmp_path / "again.yaml")
    assert again.to_yaml() == loaded.to_yaml()
    vae = again.build_model(SimpleNamespace(event_shape=(3,)))
    assert vae.likelihood.parts[1].levels == 16
    assert vae.likelihood.network.out_shape == (3,)
