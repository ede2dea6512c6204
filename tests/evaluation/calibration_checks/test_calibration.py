"""Calibration checks against exact posteriors and known deviations from them."""

from __future__ import annotations

import math
import re

import arviz_plots
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from linear_gaussian import LinearGaussian
from pyro.nn import PyroModule, pyro_method
from scipy import stats

import pyro_vae as pv
from pyro_vae import likelihoods, posteriors
from pyro_vae.evaluation.calibration_checks.simulated_ranks import (
    normalize_weights,
    weighted_ranks,
)
from pyro_vae.evaluation.calibration_checks.uniformity import describe_shape, make_band

#: Simulated examples of most tests.
SIZE = 200
#: False-alarm rate of each posterior approximation and predictive distribution in most tests.
RATE = 0.01
#: Options of tests that do not depend on verdicts: bands with few false alarms take a second.
ANY_BAND = {"false_alarm_rate": 0.5}


def check(program, data=SIZE, *args, **options):
    """Check with few samples, without a Laplace approximation, and with few false alarms."""
    few = {"num_simulated": SIZE, "num_samples": 200, "num_replicates": 50}
    options = {**few, "false_alarm_rate": RATE, **options}
    options.setdefault("posteriors", ("guide", "resampled"))
    return pv.calibration(program, data, *args, **options)


def linear_gaussian(**options):
    program = LinearGaussian(2, **options)
    return program, program.sample(SIZE)


# ranks


def unweighted(values, truth):
    """Return the ranks of truths ``(1, n)`` among samples ``(K, n)``."""
    weights = torch.full(values.shape, 1 / len(values), dtype=torch.float64)
    return weighted_ranks(values, truth, weights, weights[0])


def test_rank_among_equally_weighted_samples_counts_those_below():
    values = torch.tensor([[0.0, 0.0], [1.0, 5.0], [2.0, 5.0], [3.0, 6.0]]).repeat(1, 1000)
    ranks = unweighted(values, torch.tensor([[2.5, 5.0]]).repeat(1, 1000)).reshape(1000, 2)
    # (3 + u) / 5, and (1 + 3 u) / 5 with a tie of two
    expected = torch.tensor([[0.6, 0.2], [0.8, 0.8]]).double()
    found = torch.stack([ranks.amin(0), ranks.amax(0)])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_weight_of_the_truth_is_limited():
    log_w = torch.tensor([[1.0, 0.0], [3.0, 0.0], [4.0, 0.0], [0.0, 0.0]]).log()
    truth = torch.tensor([2.0, 5.0]).log()
    weights, own = normalize_weights(log_w.double(), truth.double())
    torch.testing.assert_close(weights[:, 0], torch.tensor([1.0, 3.0, 4.0, 0.0]).double() / 8)
    # without any weight, the samples count as unweighted
    torch.testing.assert_close(weights[:, 1], torch.full((4,), 0.25).double())
    torch.testing.assert_close(own, torch.tensor([2 / 8, 1 / 4]).double())
    large, unknown = torch.tensor([99.0, 1.0]).log(), torch.full((2,), math.nan)
    one = (1 + 9 + 16) / 64
    _, own = normalize_weights(log_w.double(), large.double())
    assert own[0] == pytest.approx(4 * one)
    _, own = normalize_weights(log_w.double(), unknown.double())
    assert own[0] == pytest.approx(one)


@pytest.mark.parametrize(("scale", "dim", "ess"), [(1.3, 1, 0.9), (1.5, 10, 0.2), (3.0, 1, 0.4)])
def test_weighted_ranks_are_uniform_even_with_few_effective_samples(scale, dim, ess):
    """The posterior is N(0, I), the proposal wider. False-alarm rate of each assertion: 1e-3."""
    count, size = 60, 4000
    values, truth = scale * torch.randn(count, size, dim).double(), torch.randn(1, size, dim)
    squares, own = values.square().sum(-1), truth.double().square().sum(-1)
    factor = -0.5 * (1 - scale**-2)
    weights, own_weight = normalize_weights(factor * squares, factor * own[0])
    assert float((1 / weights.square().sum(0)).median()) == pytest.approx(ess * count, rel=0.25)
    for quantity, exact in ((values[..., 0], truth[..., 0]), (-squares, -own)):
        ranks = weighted_ranks(quantity, exact, weights, own_weight)
        assert stats.kstest(ranks.numpy(), "uniform").pvalue > 1e-3
        assert stats.kstest(unweighted(quantity, exact).numpy(), "uniform").pvalue < 1e-6


def test_weighted_ranks_show_that_a_narrow_proposal_misses_the_truth():
    values, truth = 0.4 * torch.randn(200, 300, 2).double(), torch.randn(1, 300, 2).double()
    squares, own = values.square().sum(-1), truth.square().sum(-1)
    factor = -0.5 * (1 - 0.4**-2)
    ranks = weighted_ranks(-squares, -own, *normalize_weights(factor * squares, factor * own[0]))
    assert make_band(300, 0.01).excludes(ranks.numpy()) and (ranks < 0.2).double().mean() > 0.3


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_uniform_ranks_leave_the_band_at_the_stated_rate(rate):
    band = make_band(100, rate)
    random = np.random.default_rng(1)
    outside = np.mean([band.excludes(random.uniform(size=100)) for _ in range(4000)])
    # the band is simulated with an error of about a fifth
    assert 0.5 * rate < outside < 1.6 * rate
    extreme = np.mean([band.excludes_extremes(random.uniform(size=100)) for _ in range(1000)])
    assert extreme < rate


@pytest.mark.parametrize(
    ("shift", "scale", "expected"),
    [
        (0.0, 0.5, r"too narrow ×0\.[45]\d*"),
        (0.0, 2.0, r"too wide ×(1\.[89]|2)\d*\.?\d*"),
        (0.7, 1.0, r"too high 0\.[678]\d*"),
        (-0.7, 1.0, r"too low 0\.[678]\d*"),
        (0.8, 0.5, r"too narrow ×0\.[45]\d*, too high 0\.[789]\d*"),
        (3.0, 0.5, r"too high \d\.?\d*"),
    ],
)
def test_deviation_has_its_name_and_size(shift, scale, expected):
    samples, truth = shift + scale * torch.randn(500, 1000), torch.randn(1, 1000)
    ranks = unweighted(samples, truth).numpy()
    assert make_band(1000, 0.01).excludes(ranks)
    assert re.fullmatch(expected, describe_shape(ranks)), describe_shape(ranks)


def test_power():
    """300 examples and 24 quantities, as in docs/how-to/calibration.md."""
    band, random = make_band(300, 0.05 / 24), np.random.default_rng(0)

    def power(shift, scale):
        scores = (random.normal(-shift / scale, 1 / scale, size=300) for _ in range(200))
        return np.mean([band.excludes(stats.norm.cdf(part)) for part in scores])

    for shift, scale in ((0.3, 1.0), (0.0, 0.75), (0.0, 1.35)):
        assert power(shift, scale) > 0.83
    for shift, scale in ((0.15, 1.0), (0.0, 0.89), (0.0, 1.15)):
        assert power(shift, scale) < 0.28


def test_light_tails_have_a_name():
    """Half of the truth is far outside of the samples, at both ends, for 14 % of the examples."""
    random = np.random.default_rng(0)
    ranks = random.uniform(size=1000)
    ranks[:60], ranks[60:120] = 1e-3, 1 - 1e-3
    ranks[120:] = random.uniform(0.05, 0.95, size=880)
    assert describe_shape(ranks) == "tails too light"


# posterior approximations


def test_exact_posterior_is_calibrated():
    program, x = linear_gaussian()
    result = check(program, x, posteriors=("guide", "resampled", "laplace"))
    assert all(result.is_calibrated.values()), str(result)
    assert set(result.verdicts["guide"]) == {
        *("z[0]", "z[1]", "log_likelihood", "log_joint", "log_q", "tarp")
    }
    assert result.verdicts["resampled"].keys() == result.verdicts["laplace"].keys()
    np.testing.assert_allclose(result.posteriors["resampled"].ess, 200, rtol=1e-4)
    assert not result.skipped and len(result) == result.num_simulated == SIZE


def test_exact_posterior_is_flagged_at_the_stated_rate():
    """40 groups of 100 examples, false-alarm rate 10 % of each."""
    program = LinearGaussian(2)
    ranks = check(
        program, program.sample(20), num_simulated=4000, num_samples=100, **ANY_BAND
    ).posteriors
    columns = ranks["guide"].columns.values()
    band = make_band(100, 0.1 / len(columns))
    flags = [
        any(band.excludes(column[start : start + 100]) for column in columns)
        for start in range(0, 4000, 100)
    ]
    # 4 expected; correlated quantities have fewer. P(more than 10) < 1e-3
    assert sum(flags) <= 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"inflate": 0.5}, r"too narrow ×0\.\d+"),
        ({"inflate": 2.0}, r"too wide ×\d\.?\d*"),
        ({"shift": 1.0}, r"too high \d\.?\d*.*"),
    ],
)
def test_wrong_guide_is_flagged_and_repaired(options, expected):
    program, x = linear_gaussian(**options)
    result = check(program, x, posteriors=("guide", "resampled", "laplace"))
    for name in ("z[0]", "z[1]"):
        assert re.fullmatch(expected, result.verdicts["guide"][name]), result.verdicts["guide"]
    # weights repair a wide or a shifted guide, and a Laplace approximation is exact here
    assert result.is_calibrated["laplace"], str(result)
    if "inflate" not in options or options["inflate"] > 1:
        assert result.is_calibrated["resampled"], str(result)
    else:
        assert "k̂ bad for" in str(result) and "mass that q hardly ever draws" in str(result)


def test_few_effective_samples_have_no_verdict():
    program = LinearGaussian(6, data_dim=8, shift=2.0)
    result = check(program, program.sample(20), num_simulated=40, **ANY_BAND)
    assert np.median(result.posteriors["resampled"].ess) < 20
    assert set(result.verdicts["resampled"].values()) == {"too few samples"}
    assert result.is_calibrated["resampled"] is False
    assert result.summary()["posteriors"]["resampled"]["outside"] == 0


@pytest.mark.parametrize("inflate", [0.6, 1.5])
def test_coverage_of_a_scaled_guide_is_that_of_the_chi_squared_distribution(inflate):
    """In standard deviations of q, the truth is N(0, 1 / c²) in both dimensions."""
    program, x = linear_gaussian(inflate=inflate)
    coverage = check(program, x, num_simulated=600, **ANY_BAND).coverage["guide"]["hpd"]
    for nominal, actual, se in coverage:
        expected = stats.chi2.cdf(inflate**2 * stats.chi2.ppf(nominal, 2), 2)
        error = math.sqrt(expected * (1 - expected) / 600)
        assert abs(actual - expected) < 4 * error
        assert se == pytest.approx(math.sqrt(nominal * (1 - nominal) / 600))


def test_joint_quantities_find_a_wrong_covariance_with_right_marginals():
    """The guide has the posterior's marginals, but no correlation."""

    class Uncorrelated(LinearGaussian):
        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                mean = (x - self.b) @ self.W @ self.covariance / self.s**2
                scale = self.covariance.diagonal().sqrt()
                pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    program = Uncorrelated(2)
    # posteriors of correlation −0.9
    program.W = torch.tensor([[1.0, 1.0]], dtype=torch.float64).repeat(4, 1)
    program.b = program.b[:4]
    program.covariance = torch.linalg.inv(
        torch.eye(2, dtype=torch.float64) + program.W.T @ program.W / program.s**2
    )
    verdicts = check(program, program.marginal.sample((SIZE,)), num_simulated=400).verdicts["guide"]
    assert verdicts["z[0]"] == verdicts["z[1]"] == "ok"
    assert verdicts["log_likelihood"] != "ok" and verdicts["log_joint"] != "ok"


class Classes(PyroModule):
    """y ~ Cat(0.8, 0.1, 0.1), x | y ~ N(y, 0.5²); the guide is exact or the prior."""

    def __init__(self, exact=True):
        super().__init__()
        self.exact, self.probs = exact, torch.tensor([0.8, 0.1, 0.1])

    @pyro_method
    def model(self, x=None, size=1):
        with pyro.plate("data", size if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(self.probs))
            return pyro.sample("x", dist.Normal(y.float(), 0.5), obs=x)

    @pyro_method
    def guide(self, x, size=1):
        with pyro.plate("data", len(x)):
            logits = dist.Normal(torch.arange(3.0), 0.5).log_prob(x[:, None]) + self.probs.log()
            pyro.sample("y", dist.Categorical(logits=logits if self.exact else self.probs.log()))


def test_discrete_latents_have_random_ties_and_no_laplace():
    result = check(Classes(), 400, posteriors=("guide", "resampled", "laplace"))
    assert result.is_calibrated == {"guide": True, "resampled": True}, str(result)
    assert "discrete" in result.skipped["laplace"]
    assert "no Laplace, weighted: expected continuous latent sites" in str(result)
    assert result.predictive is None and len(result) == 400
    wrong = check(Classes(exact=False), 400)
    assert wrong.verdicts["guide"]["log_likelihood"] != "ok"
    assert wrong.is_calibrated["resampled"], str(wrong)


def test_guide_that_only_scores_its_own_samples_has_no_density_row():
    vae = pv.VAE(
        (4,), 2, encoder=SMALL, decoder=SMALL, posterior=lambda *a: posteriors.PlanarFlow(*a, 2)
    )
    result = check(vae, torch.rand(30, 4).round(), num_simulated=30, num_samples=50, **ANY_BAND)
    assert "log_q" not in result.verdicts["guide"]
    assert result.coverage["guide"].keys() == {"tarp"}


def test_programs_of_the_package():
    x = torch.rand(24, 4).round()
    options = {"num_simulated": 25, "num_samples": 30, "num_replicates": 20, **ANY_BAND}
    small = {"encoder": SMALL, "decoder": SMALL}
    deep = pv.HierarchicalVAE((4,), (3, 2), encoders=SMALL, decoders=SMALL)
    result = pv.calibration(deep, x, **options)
    assert {"z1[0]", "z1[2]", "z2[0]", "z2[1]"} < result.verdicts["laplace"].keys()
    labelled = pv.data.Split(x, labels=torch.arange(24) % 3)
    conditional = pv.ConditionalVAE((4,), 3, 2, **small)
    # one more simulated example than there are labels
    assert check(conditional, labelled, **options).num_simulated == 25
    bayesian = pv.BayesianVAE((4,), 2, **small)
    result = pv.calibration(bayesian, x, **options)
    assert set(result.verdicts["guide"]) == {
        *("z[0]", "z[1]", "log_likelihood", "log_joint", "log_q", "tarp")
    }
    assert "noise of sampled weights" in result.skipped["laplace"]
    semi = pv.SemiSupervisedVAE((4,), 3, 2, classifier=SMALL, **small)
    result = pv.calibration(semi, x, **options)
    assert {"y", "z[0]"} < result.verdicts["guide"].keys() and "laplace" in result.skipped


# predictive distributions


class Counts(PyroModule):
    """z ~ N(0, 0.3²), x | z ~ Poisson(2 exp z)^12, with the prior as guide."""

    @pyro_method
    def model(self, x=None, size=1):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 0.3))
            rate = 2 * z.exp()[..., None].expand(*z.shape, 12)
            return pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    @pyro_method
    def guide(self, x, size=1):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 0.3))

    def simulate(self, size, dispersion=None):
        rate = 2 * (0.3 * torch.randn(size, 1)).exp().expand(size, 12)
        if dispersion is not None:
            rate = rate * dist.Gamma(1 / dispersion, 1 / dispersion).sample((size, 12))
        return torch.poisson(rate)


def test_statistics_of_data_from_the_model_are_uniform():
    result = check(Counts(), Counts().simulate(SIZE), num_simulated=0)
    verdicts = result.predictive_verdicts
    assert verdicts["loo"].keys() == {*("mean", "sd", "min", "max", "zero_fraction", "dispersion")}
    # this guide is the prior, so that both are the same distribution
    assert set(verdicts["loo"].values()) == set(verdicts["posterior"].values()) == {"ok"}
    assert result.posteriors == {} and result.coverage == {}


def test_overdispersed_counts_are_flagged():
    x = Counts().simulate(SIZE, dispersion=torch.tensor(0.8))
    verdicts = check(Counts(), x, num_simulated=0).predictive_verdicts
    for name in ("loo", "posterior"):
        assert verdicts[name]["dispersion"].startswith("too low")
        assert verdicts[name]["zero_fraction"].startswith("too low")


def test_ranks_of_a_statistic_are_its_distribution_function():
    program = LinearGaussian(2)
    x = program.sample(50)
    result = check(
        program,
        x,
        num_simulated=0,
        num_replicates=2000,
        statistics={"first": lambda x: x[..., 0]},
        **ANY_BAND,
    )
    assert result.predictive is not None
    cdf = dist.Normal(program.b[0], program.marginal.covariance_matrix[0, 0].sqrt()).cdf(x[:, 0])
    np.testing.assert_allclose(result.predictive.pit["loo"]["first"], cdf, atol=0.05)
    # replicates given the example itself are closer to it
    mean = (x - program.b) @ program.W @ program.covariance / program.s**2 @ program.W[0]
    variance = program.W[0] @ program.covariance @ program.W[0] + program.s**2
    cdf = dist.Normal(program.b[0] + mean, variance.sqrt()).cdf(x[:, 0])
    np.testing.assert_allclose(result.predictive.pit["posterior"]["first"], cdf, atol=0.05)


def test_statistics_are_those_of_numpy():
    x = torch.poisson(torch.full((40, 2, 3), 1.5))
    vae = pv.VAE((2, 3), 2, likelihood=likelihoods.Poisson, encoder=SMALL, decoder=SMALL)
    observed = check(vae, x, num_simulated=0, num_replicates=5, **ANY_BAND).predictive.observed
    rows = x.numpy().reshape(40, 6).astype(np.float64)
    mean = rows.mean(1)
    expected = {
        "mean": mean,
        "sd": rows.std(1),
        "min": rows.min(1),
        "max": rows.max(1),
        "zero_fraction": (rows == 0).mean(1),
        "dispersion": np.divide(rows.var(1), mean, out=np.zeros(40), where=mean > 0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(observed[name], value, rtol=1e-6)


def test_constant_statistics_are_named():
    vae = pv.VAE((30,), 2, encoder=SMALL, decoder=SMALL)
    result = check(vae, torch.rand(30, 30).round(), num_simulated=0, **ANY_BAND)
    assert result.predictive_verdicts["loo"]["min"] == "constant"
    assert "dispersion" not in result.predictive_verdicts["loo"]


def test_density_given_the_total_of_counts():
    likelihood = likelihoods.Poisson
    vae = pv.VAE(
        (5,),
        2,
        likelihood=lambda *a: likelihood(*a, library="observed"),
        encoder=SMALL,
        decoder=SMALL,
    )
    x = torch.poisson(torch.linspace(1, 30, 30)[:, None].expand(30, 5))
    pv.initialize(vae, x)
    with pytest.raises(ValueError, match=r"density of 'x' .* depends on the data"):
        check(vae, x)
    predictive = check(vae, x, num_simulated=0, **ANY_BAND).predictive
    # replicates have the totals of the examples
    means = predictive.replicated["loo"]["mean"].mean(0)
    np.testing.assert_allclose(means, predictive.observed["mean"], rtol=0.25)


# invalid input


def test_invalid_input():
    program, x = linear_gaussian()
    for options, message in {
        "few simulated": ({"num_simulated": 5}, "expected at least 20 simulated examples.*; got 5"),
        "posterior": (
            {"posteriors": ("guides",)},
            "expected posteriors among guide, .*; got 'guides'; did you mean guide\\?",
        ),
        "statistic": (
            {"statistics": ("means",)},
            "expected statistics among mean, .*; got 'means'; did you mean mean\\?",
        ),
        "one string": ({"statistics": "mean"}, r"expected a list .*: write \['mean'\]"),
        "no statistic": ({"statistics": ()}, "expected at least one statistic; got none"),
        "vector": (
            {"statistics": {"both": lambda x: x[..., :2]}},
            r"expected the statistic 'both' to return a number for each example.*got \(.*2\)",
        ),
        "rate": ({"false_alarm_rate": 1.0}, "expected false_alarm_rate between 0 and 1; got 1.0"),
        "samples": ({"num_samples": 0}, "expected num_samples to be a positive integer; got 0"),
        "seed": ({"seed": -1}, "expected seed to be an integer ≥ 0; got -1"),
    }.values():
        with pytest.raises(ValueError, match=message):
            check(program, x, **options)
    with pytest.raises(ValueError, match=r"expected at least 20 held-out examples.*; got 7"):
        check(program, x[:7])
    with pytest.raises(ValueError, match=r"expected at least 20 simulated examples.*; got 0"):
        check(Classes(), 0)
    with pytest.raises(ValueError, match="expected continuous latent sites"):
        check(Classes(), 30, posteriors=("laplace",))


def test_program_without_a_simulation_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="improper prior"), pytest.warns(UserWarning):
        check((model, guide), torch.randn(30))


def test_guide_with_parameters_per_example_is_refused():
    loc = torch.zeros(30)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def by_index(x):
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(loc[i], 1.0))

    def whole(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    for guide in (by_index, whole):
        with pytest.raises(ValueError, match=r"expected a guide that computes q\(z\|x\) from x"):
            check((model, guide), torch.randn(30))


# results


def test_result_is_reproducible_and_survives_a_file(tmp_path):
    program, x = linear_gaussian(inflate=0.7)
    options = {"posteriors": ("guide", "resampled", "laplace"), "num_simulated": 60, **ANY_BAND}
    result = check(program, x[:30], seed=3, **options)
    np.random.seed(1)
    torch.manual_seed(5)
    assert str(check(program, x[:30], seed=3, **options)) == str(result)
    assert str(check(program, x[:30], seed=4, **options)) != str(result)
    result.to_netcdf(tmp_path / "calibration.nc")
    stored = pv.Calibration.from_netcdf(tmp_path / "calibration.nc")
    assert str(stored) == str(result) and stored.summary() == result.summary()
    assert stored.seed == 3 and len(stored) == 30
    for name, ranks in result.posteriors.items():
        for label, column in ranks.columns.items():
            np.testing.assert_array_equal(stored.posteriors[name].columns[label], column)


def test_arviz_reads_the_file(tmp_path):
    import xarray

    program, x = linear_gaussian()
    result = check(program, x[:30], num_simulated=40, statistics=("mean", "sd"), **ANY_BAND)
    result.to_netcdf(tmp_path / "calibration.nc")
    with xarray.open_datatree(tmp_path / "calibration.nc", engine="h5netcdf") as tree:
        options = {"backend": "none", "stats": {"ecdf_pit": {"n_simulations": 20}}}
        plot = arviz_plots.plot_ecdf_pit(tree, group="guide", **options)
        assert {"z", "log_joint", "log_q", "tarp"} <= set(plot.viz["ecdf_lines"].data_vars)
        plot = arviz_plots.plot_ecdf_pit(tree, group="loo_pit", **options)
        assert {"mean", "sd"} <= set(plot.viz["ecdf_lines"].data_vars)
        plot = arviz_plots.plot_ppc_pit(tree, **options)
        assert {"mean", "sd"} <= set(plot.viz["ecdf_lines"].data_vars)


def test_long_tables_show_what_deviates_most():
    program = LinearGaussian(30, data_dim=40)
    program.factor[7] *= 0.2  # a single latent is too narrow
    result = check(program, program.sample(20), num_simulated=100, **ANY_BAND)
    table = str(result.make_rank_table(10))
    assert "z[7] " in table and "24 more, which deviate less" in table
    assert str(result.make_rank_table()).count("z[") == 30


def test_plot_draws_the_ranks_of_the_named_distribution():
    program, x = linear_gaussian(inflate=0.4)
    result = check(program, x, statistics={"mean": lambda x: x.mean(-1)})
    axes = result.plot()
    assert axes.get_xlabel() == "rank of simulated latents, guide"
    named = {t.get_text() for t in axes.get_legend().get_texts()[1:]}
    flagged = {n for n, v in result.verdicts["guide"].items() if v.startswith("too")}
    assert {"z[0]", "z[1]"} <= flagged and {"z[0]", "z[1]", "HPD"} & named == {"z[0]", "z[1]"}
    (line,) = (line for line in axes.lines if line.get_label() == "z[0]")
    ranks = result.posteriors["guide"].columns["z[0]"]
    # too narrow a guide: the ECDF rises first
    assert np.interp(0.1, *line.get_data()) == pytest.approx((ranks < 0.1).mean() - 0.1, abs=0.02)
    assert np.interp(0.1, *line.get_data()) > 0.1
    ax = axes.figure.add_subplot()
    assert result.plot("loo", ax=ax) is ax and len(ax.lines) == 2
    assert ax.get_xlabel() == "rank of statistics, left out"
    with pytest.raises(ValueError, match=r"\(guide, resampled, loo, posterior\); got 'guid'; did"):
        result.plot("guid")
    constant = check(program, x, num_simulated=0, statistics={"one": lambda x: 0 * x.sum(-1)})
    with pytest.raises(ValueError, match="those of 'loo' are all constant"):
        constant.plot()
