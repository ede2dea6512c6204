"""Errors of estimates from a few chains, on weights with a known mean."""

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian

from pyro_vae.evaluation import Annealing, ais
from pyro_vae.evaluation.annealing.sampler import estimate_log_mean_weight
from pyro_vae.evaluation.chain_errors import (
    add_chain_errors,
    are_chains_good,
    moderate_variances,
    student_interval,
)


def make_columns(log_w):
    """Return the columns of ``ais`` for log weights ``(N, C)``."""
    value, variance, ess = estimate_log_mean_weight(torch.from_numpy(log_w.T), slice(0, None))
    columns = {"ais": value, "ais_variance": variance, "ais_ess": ess}
    columns = {name: column.numpy() for name, column in columns.items()}
    return add_chain_errors({**columns, "ais_log_weights": log_w}, "ais")


def lognormal_weights(size, count, scale, seed=0):
    """Return log weights whose mean is 1, with another scale for each example."""
    generator = np.random.default_rng(seed)
    scales = scale * np.exp(0.3 * generator.normal(size=(size, 1)))
    return scales * generator.normal(size=(size, count)) - scales**2 / 2


def test_moderation_recovers_degrees_of_freedom_and_keeps_the_mean():
    generator = np.random.default_rng(1)
    size, dof, prior = 4000, 5.0, 8.0
    truth = 0.3 * prior / generator.chisquare(prior, size)
    observed = truth * generator.chisquare(dof, size) / dof
    moderated, total = moderate_variances(observed, np.full(size, dof))
    assert total[0] == pytest.approx(dof + prior, abs=1.5)
    assert moderated.mean() == pytest.approx(observed.mean())
    log_error = [np.log(v / truth).std() for v in (observed, moderated)]
    assert log_error[1] < 0.75 * log_error[0]


def test_equal_variances_are_pooled_completely():
    generator = np.random.default_rng(2)
    observed = generator.chisquare(3, 400) / 3
    moderated, total = moderate_variances(observed, np.full(400, 3.0))
    assert (total > 15).all()
    assert moderated.std() < observed.std() / 4


def test_few_unknown_or_zero_variances_are_unchanged():
    few = np.array([1.0, 2.0]), np.array([3.0, 3.0])
    assert all(map(np.array_equal, moderate_variances(*few), few))
    zero = np.zeros(10), np.full(10, 3.0)
    assert all(map(np.array_equal, moderate_variances(*zero), zero))
    partly = np.array([np.nan, *np.linspace(1, 2, 9), 0.0])
    moderated, total = moderate_variances(partly, np.full(11, 3.0))
    assert np.isnan(moderated[0]) and total[0] == 3
    assert np.isfinite(moderated[1:]).all() and moderated[-1] > 0


@pytest.mark.parametrize("count", [2, 4, 8, 16])
@pytest.mark.parametrize("scale", [0.2, 0.8])
def test_intervals_cover_log_mean_weight(count, scale):
    # 2000 examples: the standard error of a share of 95 % is 0.5 %
    data = make_columns(lognormal_weights(2000, count, scale))
    low, high = student_interval(
        data["ais"], data["ais_variance"], data["ais_dof"], data["ais_bias"]
    )
    assert 0.93 < ((low < 0) & (high > 0)).mean() < 0.975
    # the bias is not underestimated, nor overestimated by more than a factor of two
    bias, error = data["ais"].mean(), data["ais"].std() / 2000**0.5
    assert 2.1 * bias - 3 * error < data["ais_bias"].mean() < 0.9 * bias + 3 * error
    if count <= 4:  # what the intervals correct
        half = 1.96 * np.sqrt(data["ais_variance"] - data["ais_bias"] ** 2)
        assert (abs(data["ais"]) < half).mean() < 0.9


def test_level_and_single_example():
    data = make_columns(lognormal_weights(1, 4, 0.5))
    options = [data[f"ais{s}"] for s in ("", "_variance", "_dof")]
    # three degrees of freedom
    for level, quantile in ((0.95, 3.18245), (0.8, 1.63774)):
        low, high = student_interval(*options, level=level)
        assert (high - low)[0] == pytest.approx(2 * quantile * options[1][0] ** 0.5, rel=1e-5)


def test_bias_extends_one_side():
    value, variance, dof = np.zeros(1), np.array([0.05]), np.array([7.0])
    low, high = student_interval(value, variance, dof, np.array([-0.1]))
    assert high[0] == pytest.approx(0.1 - low[0])
    above = student_interval(value, variance, dof, np.array([0.1]))
    assert (above[0][0], above[1][0]) == pytest.approx((-high[0], -low[0]))


def test_heavy_tailed_weights_are_not_good():
    generator = np.random.default_rng(3)
    heavy = 0.9 * generator.exponential(size=(500, 8))  # Pareto with k = 0.9
    light = lognormal_weights(100, 8, 0.4)
    assert make_columns(heavy)["ais_khat"][0] > 0.6 > make_columns(light)["ais_khat"][0]
    assert not are_chains_good(make_columns(heavy)).any()
    assert are_chains_good(make_columns(light)).all()
    # too few weights for k̂
    few = make_columns(light[:3])
    assert np.isnan(few["ais_khat"]).all() and are_chains_good(few).all()


def test_good_chains_need_effective_chains_and_a_small_error():
    log_w = lognormal_weights(100, 8, 0.4)
    log_w[5, 2] += 3.0
    data = make_columns(log_w)
    assert np.flatnonzero(~are_chains_good(data)).tolist() == [5]
    error = np.sqrt(data["ais_variance"][0])
    assert are_chains_good(data, max_error=3 * error)[0]
    assert not are_chains_good(data, max_error=error / 3).any()
    missing = {name: np.append(values, np.nan) for name, values in data.items()}
    assert not are_chains_good(missing)[-1]


def test_zero_weights_and_single_chains():
    log_w = lognormal_weights(50, 4, 0.3)
    log_w[3, 1:] = -np.inf  # one chain alone
    data = make_columns(log_w)
    assert np.isfinite(data["ais_khat"]).all() and not are_chains_good(data)[3]
    single = add_chain_errors(
        {"ais_variance": np.full(3, np.nan), "ais_log_weights": log_w[:3, :1]}, "ais"
    )
    assert np.isnan(single["ais_bias"]).all() and (single["ais_dof"] == 0).all()


@pytest.mark.parametrize(("num_chains", "num_temperatures"), [(4, 40), (8, 10)])
def test_intervals_of_ais_cover_log_evidence(num_chains, num_temperatures):
    torch.manual_seed(1)
    program = LinearGaussian(3, 5, shift=0.7)
    x = program.sample(300)
    truth = program.log_evidence(x).numpy()
    annealing = Annealing(num_chains=num_chains, num_temperatures=num_temperatures, num_steps=4)
    bounds = ais(program, x, annealing=annealing, seed=1)
    data = bounds.per_datum
    low, high = student_interval(
        data["ais"], data["ais_variance"], data["ais_dof"], data["ais_bias"]
    )
    # three standard errors of a share of 300 examples
    assert 0.91 < ((low < truth) & (truth < high)).mean() < 0.985
    assert are_chains_good(data).mean() > 0.9
    assert "k̂ of all chains" in str(bounds)


def test_short_path_from_a_narrow_guide_is_reported():
    torch.manual_seed(1)
    program = LinearGaussian(10, 20, inflate=0.4)
    x = program.sample(60)
    bounds = ais(program, x, annealing=Annealing(num_temperatures=5, num_steps=3), seed=1)
    error = bounds.per_datum["ais"] - program.log_evidence(x).numpy()
    assert (error < -2 * np.sqrt(bounds.per_datum["ais_variance"])).mean() > 0.1
    assert not are_chains_good(bounds.per_datum).any()
    assert "the weights of the chains are too heavy-tailed (k̂ ≥ 0.6)" in str(bounds)
    assert bounds.summary()["ais_unreliable"] == 60
