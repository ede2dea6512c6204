"""Time series with lengths: programs whose sites depend on the batch, against exact log p(x)."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vae as pv
from pyro_vae.evaluation.latent_diagnostics import activity

#: z_t = 0.9 z_{t−1} + 0.6 ε_t and x_t = z_t + 0.5 η_t for t below the length.
DECAY, NOISE, ERROR = 0.9, 0.6, 0.5
SIZE, STEPS = 12, 4


def _series(order="mixed"):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, STEPS + 1, (SIZE,), generator=generator)
    lengths[SIZE // 2] = STEPS
    # values after the end of a series must not matter
    x = torch.randn(SIZE, STEPS, generator=generator)
    x = torch.where(torch.arange(STEPS) < lengths[:, None], x, 1e3)
    rows = {
        "mixed": torch.arange(SIZE),
        "shortest first": lengths.argsort(),
        "longest first": lengths.argsort(descending=True),
    }[order]
    return x[rows], lengths[rows]


def _log_evidence(x, lengths):
    lags = torch.arange(STEPS)[:, None] - torch.arange(STEPS)
    root = torch.where(lags >= 0, DECAY ** lags.clamp(min=0), 0.0) * NOISE
    covariance = root @ root.T + ERROR**2 * torch.eye(STEPS)
    return torch.stack(
        [
            torch.distributions.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(
                row[:n]
            )
            for row, n in zip(x, lengths.tolist(), strict=True)
        ]
    )


def _posterior(x, lengths):
    """Return precision and shift of p(x_{t:} | z_t), each ``(N,)``, for every t."""
    result, precision, shift = [], torch.zeros(len(x)), torch.zeros(len(x))
    for t in reversed(range(int(lengths.max()))):
        observed = t < lengths
        precision = torch.where(observed, precision + ERROR**-2, 0.0)
        shift = torch.where(observed, shift + x[:, t] / ERROR**2, 0.0)
        result.insert(0, (precision, shift))
        spread = 1 + NOISE**2 * precision
        precision, shift = DECAY**2 * precision / spread, DECAY * shift / spread
    return result


def _program(style="loop", scale=1.1):
    """Return a program whose guide is the posterior, with wider factors."""

    def factor(loc, std, t, lengths):
        if style == "event":
            mask = (t < lengths)[:, None]
            return dist.Normal(loc[..., None], std).mask(mask).to_event(1)
        return dist.Normal(loc, std)

    def run(x, lengths, score):
        steps = range(int(lengths.max()))
        steps = pyro.markov(steps) if style == "markov" else steps
        factors = _posterior(x, lengths)
        with pyro.plate("series", len(x)):
            z = torch.zeros(len(x))
            for t in steps:
                precision, shift = factors[t]
                total = NOISE**-2 + precision
                loc, std = (DECAY * z / NOISE**2 + shift) / total, scale * total**-0.5
                if score:
                    loc, std = DECAY * z, torch.full_like(total, NOISE)
                std = std[:, None] if style == "event" else std
                # 'event': the masks are inside of the distributions
                masked = poutine.mask(mask=True if style == "event" else t < lengths)
                with masked:
                    z = pyro.sample(f"z{t}", factor(loc, std, t, lengths))
                    z = z[..., 0] if style == "event" else z
                    if score:
                        obs = x[:, t, None] if style == "event" else x[:, t]
                        pyro.sample(f"x{t}", factor(z, ERROR, t, lengths), obs=obs)

    return (lambda x, n: run(x, n, True)), (lambda x, n: run(x, n, False))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Evaluate a few series at a time, so that the blocks have different sites."""
    monkeypatch.setattr("pyro_vae.programs.chunking._MAX_PAIRS", 80)
    monkeypatch.setattr("pyro_vae.programs.chunking._MIN_PARTICLES", 4)
    monkeypatch.setattr(activity, "_PAIRS", 320)


ORDERS = ["mixed", "shortest first", "longest first"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("style", ["loop", "markov", "event"])
def test_weights_are_exact(style, order):
    x, lengths = _series(order)
    program, truth = _program(style, scale=1.0), _log_evidence(x, lengths)
    bounds = pv.evaluate(program, x, lengths, num_samples=16)
    np.testing.assert_allclose(bounds.per_datum["elbo"], truth, atol=1e-4)
    log_w = pv.log_weights(*program, x, lengths, num_samples=4, chunk_size=16)
    torch.testing.assert_close(log_w, truth.expand(4, -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("style", "order"),
    [("loop", "mixed"), ("event", "longest first")],
)
def test_proposals_and_annealing(style, order):
    """Masked latents have no density; a proposal for them must not change the weights."""
    x, lengths = _series(order)
    program, truth = _program(style), _log_evidence(x, lengths).numpy()
    settings = pv.Laplace(200, num_steps=4, num_rounds=1)
    bounds = pv.evaluate(program, x, lengths, num_samples=20, estimators=[settings])
    error = (bounds.per_datum["laplace"] - truth) / bounds.per_datum["laplace_variance"] ** 0.5
    # P < 1e-4 for a normal error of each of 12 examples
    assert np.abs(error).max() < 4.9
    assert np.abs(bounds.per_datum["laplace"] - truth).max() < 0.3
    for settings in (pv.Annealing(8, 5, 2), pv.Annealing(8, 12, 2, initial="prior")):
        ais = pv.ais(program, x, lengths, annealing=settings).estimates["ais"]
        assert ais.value == pytest.approx(truth.mean(), abs=5 * ais.se_monte_carlo)


def test_the_ladder_is_right_where_the_guide_is_not():
    x, lengths = _series()
    truth = _log_evidence(x, lengths).numpy()
    # far too narrow
    bounds = pv.evaluate(_program(scale=0.5), x, lengths, num_samples=200, reliable=True)
    assert sum(bounds.proposals.values()) > bounds.proposals["guide"]
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], truth, atol=0.15)


def test_gaps():
    x, lengths = _series()
    truth = float(_log_evidence(x[:6], lengths[:6]).mean())
    settings = {"num_steps": 20, "num_samples": 300, "annealing": pv.Annealing(4, 20, 2)}
    family = pv.posteriors.FullCovarianceNormal
    gaps = pv.gaps(_program(), x[:6], lengths[:6], family=family, richer=None, **settings)
    assert gaps.bounds.estimates["log_evidence"].value == pytest.approx(truth, abs=0.02)
    # the posterior is normal
    assert gaps.bounds.per_datum["refitted"].mean() == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize("order", ORDERS)
def test_latent_diagnostics(order):
    x, lengths = _series(order)
    result = pv.latents(_program(scale=1.0), x, lengths, num_samples=64)
    elbo = result.divergences.estimates["elbo"]
    truth = _log_evidence(x, lengths).mean()
    assert elbo.value == pytest.approx(float(truth), abs=5 * elbo.se_monte_carlo)
    # KL(q ‖ p) is the sum over the sites, also if a block does not have a site
    sites = sum(site.total.value for site in result.divergences.sites.values())
    assert sites == pytest.approx(result.divergences.estimates["rate"].value, rel=1e-5)
    assert result.no_surgery_reason.startswith("expected the same latents for all examples")
    # posterior means of the series that are longer than t: smoothing of the exact posterior
    variance = result.active.variance
    assert list(variance) == [f"z{t}" for t in range(STEPS)]
    means = _smooth(x, lengths)
    for t in range(STEPS):
        exact = means[lengths > t, t].var().item()
        assert variance[f"z{t}"][0] == pytest.approx(exact, rel=0.4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("style", ["loop", "event"])
def test_encode(style, order):
    """Latents after the end of a series are NaN, also if a block has no such series."""
    x, lengths = _series(order)
    columns = pv.queries.encode(_program(style), x, lengths, chunk_size=4)
    assert {name for name in columns if name.endswith(".mean")} == {
        f"z{t}.mean" for t in range(STEPS)
    }
    means = _smooth(x, lengths)
    for t in range(STEPS):
        exact = torch.where(t < lengths, means[:, t], math.nan)
        np.testing.assert_allclose(columns[f"z{t}.mean"].reshape(-1), exact, rtol=1e-4)
        assert (np.isnan(columns[f"z{t}.std"]).reshape(-1) == (t >= lengths).numpy()).all()


def test_ranks_of_masked_latents_are_refused():
    x, lengths = (torch.cat([part, part]) for part in _series())
    with pytest.raises(ValueError, match=r"expected the same latents in all examples, to rank"):
        pv.calibration(_program(), x, lengths, num_simulated=24, num_samples=20)


def _smooth(x, lengths):
    means, z = [], torch.zeros(len(x))
    for precision, shift in _posterior(x, lengths):
        z = (DECAY * z / NOISE**2 + shift) / (NOISE**-2 + precision)
        means.append(z)
    return torch.stack(means, 1)


def _positive(masked_loc=0.0, style="site"):
    """Return a program with z_j ~ Gamma(2, 1) for j < n, and x ~ N(Σ z_j, 1)."""

    def run(x, counts, score):
        with pyro.plate("data", len(x)):
            mask = torch.arange(2) < counts[:, None]
            q = dist.Gamma(torch.tensor([2.0, 2.0]), 1.0).expand([len(x), 2])
            q = q.mask(mask).to_event(1) if style == "event" else q.to_event(1)
            z = pyro.sample("z", q)
            if score:
                total = torch.where(mask, z, masked_loc * z).sum(-1)
                pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    return (lambda x, n: run(x, n, True)), (lambda x, n: run(x, n, False))


def test_densities_that_depend_on_masked_values_are_refused():
    x, counts = torch.randn(6), torch.tensor([1, 2, 1, 2, 1, 2])
    message = r"weights change with those of the site 'z', which no density describes"
    with pytest.raises(ValueError, match=message):
        pv.evaluate(_positive(masked_loc=1.0, style="event"), x, counts, num_samples=5)


def test_masks_inside_an_event_of_positive_values_are_refused_by_proposals():
    x, counts = torch.randn(6), torch.tensor([1, 2, 1, 2, 1, 2])
    program = _positive(style="event")
    found = pv.evaluate(program, x, counts, num_samples=4000).per_datum
    error = np.abs(found["log_evidence"] - _log_gamma_evidence(x, counts).numpy())
    # P < 1e-4 for a normal error of each of 6 examples
    assert (error < 4.8 * np.sqrt(found["log_evidence_variance"])).all() and error.max() < 0.2
    with pytest.raises(ValueError, match=r"expected a mask of whole samples at .* 'z'"):
        pv.ais(program, x, counts, annealing=pv.Annealing(2, 2, 2))


def test_masked_positive_latents():
    """The density of masked values in unconstrained space is normal, not that of the site."""

    def run(x, counts, score):
        with pyro.plate("data", len(x)):
            total = 0.0
            for j in range(2):
                mask = j < counts
                with poutine.mask(mask=mask):
                    z = pyro.sample(f"z{j}", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
                total = total + torch.where(mask, z, 0.0)
            if score:
                pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    program = (lambda x, n: run(x, n, True)), (lambda x, n: run(x, n, False))
    x, counts = torch.linspace(-1, 4, 6), torch.tensor([1, 2, 1, 2, 1, 2])
    truth = _log_gamma_evidence(x, counts)
    bounds = pv.evaluate(program, x, counts, num_samples=100, estimators=[pv.Laplace()])
    np.testing.assert_allclose(bounds.per_datum["laplace"], truth, atol=0.1)
    annealing = pv.Annealing(32, 20, 3)
    ais = pv.ais(program, x, counts, annealing=annealing).estimates["ais"]
    assert ais.value == pytest.approx(float(truth.mean()), abs=5 * ais.se_monte_carlo)


def _log_gamma_evidence(x, counts):
    # the sum of n variables Gamma(2, 1) is Gamma(2 n, 1)
    z = torch.linspace(1e-4, 40, 40_001, dtype=torch.float64)
    prior = torch.distributions.Gamma(2.0 * counts.double(), 1.0).log_prob(z[:, None])
    likelihood = torch.distributions.Normal(z[:, None], 1.0).log_prob(x.double())
    return (prior + likelihood).logsumexp(0) + math.log(float(z[1] - z[0]))
