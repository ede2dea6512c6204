"""VAE with a posterior over the decoder's weights."""

from __future__ import annotations

import copy
import math
from functools import partial

import pyro
import pytest
import streams
import torch
from components import SMALL
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import integrate, stats
from torch.distributions import Normal, kl_divergence

import pyro_vae as pv
from pyro_vae.models.bayesian import BayesianVAE, GaussianLinear

LINEAR = partial(pv.networks.MLP, hidden=())
X = torch.bernoulli(torch.full((6, 3), 0.5), generator=streams.generator(0)).double()


def _vae(event_shape=(3,), latent_dim=2, scale=0.2, **parts):
    pyro.set_rng_seed(2)
    parts = {"encoder": SMALL, "decoder": SMALL, **parts}
    vae = BayesianVAE(event_shape, latent_dim, initial_scale=scale, **parts).double()
    for layer in _layers(vae):
        for name in layer.param_names:
            torch.nn.init.normal_(getattr(layer, f"{name}_log_scale"), math.log(scale), 0.3)
    return vae


def _layers(vae):
    return [m for m in vae.likelihood.modules() if isinstance(m, GaussianLinear)]


def _kl_of_weights(vae):
    """Return KL(q(θ) ‖ p(θ)) in closed form."""
    return sum(
        kl_divergence(layer.posterior(name).base_dist, layer.prior(name).base_dist).sum()
        for layer in _layers(vae)
        for name in layer.param_names
    )


def _linear_gaussian():
    """Return a program x | z ~ N(W z + b, 0.6²) with two pixels, one latent and known q(W) q(b)."""
    likelihood = partial(pv.likelihoods.Gaussian, scale=0.6)
    return _vae((2,), 1, 0.4, likelihood=likelihood, decoder=LINEAR)


def test_log_evidence_of_a_linear_decoder_equals_the_integral_over_z():
    vae = _linear_gaussian()
    with torch.no_grad():  # q(z|x) is the prior: an untrained encoder may miss the posterior
        for parameter in vae.posterior.parameters():
            parameter.zero_()
    x = torch.tensor([[0.4, -1.0], [1.5, 0.2]], dtype=torch.float64)
    (layer,) = _layers(vae)
    w, b = layer.weight.detach()[:, 0].numpy(), layer.bias.detach().numpy()
    var_w = layer.weight_log_scale.detach().exp().square()[:, 0].numpy()
    var_b = layer.bias_log_scale.detach().exp().square().numpy()

    def density(z, datum):
        # the weights are integrated out, which adds their variance times the squared input
        scale = (z**2 * var_w + var_b + 0.36) ** 0.5
        return stats.norm(z * w + b, scale).pdf(datum).prod() * stats.norm.pdf(z)

    truth = [math.log(integrate.quad(density, -9, 9, args=(datum,))[0]) for datum in x.numpy()]
    bounds = pv.evaluate(vae, x, num_samples=20_000)
    error = bounds.per_datum["log_evidence_variance"] ** 0.5
    assert (error < 0.05).all()
    # two estimates within 5 standard errors: false alarm < 2e-6
    assert (abs(bounds.per_datum["log_evidence"] - truth) < 5 * error).all()
    # the mean weights alone give another density
    with_means = [
        math.log(
            integrate.quad(
                lambda z, d: stats.norm(z * w + b, 0.6).pdf(d).prod() * stats.norm.pdf(z),
                -9,
                9,
                args=(datum,),
            )[0]
        )
        for datum in x.numpy()
    ]
    assert (abs(bounds.per_datum["log_evidence"] - with_means) > 10 * error).any()


def test_output_noise_is_equivalent_to_weights_per_example():
    torch.manual_seed(0)
    layer = GaussianLinear(torch.nn.Linear(3, 2), 0.5).double()
    a = torch.randn(3, dtype=torch.float64).expand(200_000, 3)
    weight = layer.posterior("weight").sample((len(a),))
    bias = layer.posterior("bias").sample((len(a),))
    sampled = torch.einsum("noi,ni->no", weight, a) + bias
    layer.noise = torch.randn(len(a), 2, dtype=torch.float64)
    local = layer(a).detach()
    for actual, expected in zip(local.T, sampled.T, strict=True):
        # two Kolmogorov–Smirnov tests: false alarm 2e-6
        assert stats.ks_2samp(actual.numpy(), expected.numpy()).pvalue > 1e-6


@pytest.mark.parametrize("particles", [1, 4])
def test_one_epoch_contains_the_kl_of_the_weights_once(particles):
    vae = _vae()
    pv.initialize(vae, X)
    objective = pv.objectives.ELBO(num_particles=particles, analytic_kl=True)
    batches = X.split((3, 2, 1))
    values = []
    for scale in (0.0, 1.0):
        # the same samples, with and without the terms of the weights
        def scaled(program, scale=scale):
            return _scale_global_sites(program, scale)

        pyro.set_rng_seed(4)
        values.append(
            sum(objective.loss(scaled(vae.model), scaled(vae.guide), batch) for batch in batches)
        )
    assert values[1] - values[0] == pytest.approx(float(_kl_of_weights(vae).detach()), rel=1e-9)


def _scale_global_sites(program, scale):
    """Multiply the log-densities of a program's sites outside the plate by ``scale``."""

    class Scale(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if not any(f.name == "data" for f in msg["cond_indep_stack"]):
                msg["scale"] = msg["scale"] * scale

    return Scale()(program)


def test_training_bound_is_that_of_the_joint_evidence():
    vae = _linear_gaussian()
    x = torch.randn(4, 2, dtype=torch.float64)
    pv.initialize(vae, x)
    estimates = [
        torch.tensor([-objective.loss(vae.model, vae.guide, x) for _ in range(30)])
        for objective in (
            pv.objectives.ELBO(num_particles=100, analytic_kl=True),
            Trace_ELBO(num_particles=100, vectorize_particles=True),
        )
    ]
    # reference: E_q(θ) in closed form for independent weights, E_q(z) by sampling
    (layer,) = _layers(vae)
    q = vae.posterior(x)
    z = q.sample((100_000,))
    mean = z * layer.weight[:, 0] + layer.bias
    spread = (z * layer.weight_log_scale.exp()[:, 0]) ** 2 + layer.bias_log_scale.exp() ** 2
    score = Normal(mean, 0.6).log_prob(x).sum(-1) - spread.sum(-1) / (2 * 0.36)
    prior = kl_divergence(q.base_dist, Normal(torch.zeros(1), 1.0)).sum()
    samples = (score.sum(1) - prior).detach()
    truth = float((samples.mean() - _kl_of_weights(vae)).detach())
    for values in estimates:
        error = (values.var() / 30 + samples.var() / len(samples)).sqrt()
        # 5 standard errors: false alarm < 1e-5 each
        assert abs(float(values.mean()) - truth) < 5 * float(error)


def test_particles_have_independent_weights():
    vae = _vae()
    pv.initialize(vae, X)
    with pyro.plate("particles", 4, dim=-2):
        guide = poutine.trace(vae.guide).get_trace(X)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(X)
    names = [n for n in guide.nodes if n.endswith((".weight", ".bias"))]
    weights = {n: guide.nodes[n]["value"] for n in names if guide.nodes[n]["type"] == "sample"}
    assert len(weights) == 4 and all(v.shape[:2] == (4, 1) for v in weights.values())
    z = guide.nodes["z"]["value"]
    fn = model.nodes["x"]["fn"].base_dist
    for k in range(4):
        h = z[k]
        for i in (0, 2):
            w, b = (weights[f"network.layers.{i}.{part}"][k, 0] for part in ("weight", "bias"))
            h = torch.tanh(h @ w.T + b) if i == 0 else h @ w.T + b
        torch.testing.assert_close(fn.logits[k], h)


def test_tiny_scales_equal_the_vae_with_mean_weights():
    vae = _vae(scale=0.1)
    for layer in _layers(vae):
        for name in layer.param_names:
            torch.nn.init.constant_(getattr(layer, f"{name}_log_scale"), -30.0)
    plain = pv.VAE((3,), 2, encoder=SMALL, decoder=SMALL).double()
    means = {n: v for n, v in vae.state_dict().items() if "scale" not in n and n != "num_data"}
    plain.load_state_dict(means)
    z = torch.randn(5, 6, 2, dtype=torch.float64)
    with vae._use_samples(
        {}, {n: torch.randn(5, 6, m.out_features) for n, m in vae._gaussian_layers().items()}
    ):
        noisy = vae.likelihood(z)
    torch.testing.assert_close(noisy.base_dist.logits, plain.likelihood(z).base_dist.logits)
    torch.testing.assert_close(
        vae.likelihood(z).base_dist.logits, plain.likelihood(z).base_dist.logits
    )


def test_weights_stay_closer_to_the_prior_with_fewer_examples():
    def trained(size):
        vae = _vae((3,), 1, 0.1).float()
        x = X.float()[:1].expand(size, 3)
        optimizer = partial(torch.optim.Adam, lr=0.05)
        pv.fit(vae, x, epochs=100 if size == 1 else 20, batch_size=50, optimizer=optimizer)
        return vae

    few, many = trained(1), trained(400)
    assert few.num_data == 1 and many.num_data == 400
    assert _kl_of_weights(few) < 0.3 * _kl_of_weights(many)


def test_resuming_with_other_data_updates_their_number():
    vae = _vae().float()
    for size in (3, 6):
        pv.fit(vae, X[:size].float(), epochs=1, batch_size=2)
        assert vae.num_data == size
        trace = poutine.trace(vae.train().guide).get_trace(X[:2].float())
        sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
        scales = [s["scale"] for s in sites if s["name"].startswith("network.layers")]
        assert scales == [2 / size] * 4


def test_samples_from_the_posterior_predictive_in_both_modes():
    vae = _vae((1,), 1, decoder=LINEAR, likelihood=partial(pv.likelihoods.Gaussian, scale=0.1))
    (layer,) = _layers(vae)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.weight_log_scale, -20.0)
    torch.nn.init.constant_(layer.bias, 3.0)
    torch.nn.init.constant_(layer.bias_log_scale, math.log(0.5))
    for mode in (True, False):
        x = vae.train(mode).model(size=20_000).detach()[:, 0]
        expected = stats.norm(3.0, (0.25 + 0.01) ** 0.5)
        assert stats.kstest(x.numpy(), expected.cdf).pvalue > 1e-6  # the false-alarm rate


def test_state_dict_contains_the_number_of_data():
    vae = _vae()
    pv.initialize(vae, X)
    loaded = BayesianVAE((3,), 2, encoder=SMALL, decoder=SMALL).double()
    loaded.load_state_dict(vae.state_dict())
    assert loaded.num_data == 6
    copied = copy.deepcopy(vae)
    losses = []
    for program in (vae, loaded, copied):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        losses.append(pv.objectives.ELBO().loss(program.model, program.guide, X))
    assert losses[0] == losses[1] == losses[2]


def test_gradients_reach_every_mean_and_every_scale():
    vae = _vae(decoder=partial(pv.networks.GatedMLP, hidden=(4,)))
    pv.initialize(vae, X)
    pv.objectives.ELBO().loss_and_grads(vae.model, vae.guide, X)
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_single_layer_decoder_without_bias():
    vae = _vae(decoder=lambda i, o: torch.nn.Linear(i[0], o[0], bias=False))
    assert [layer.param_names for layer in _layers(vae)] == [["weight"]]
    assert pv.log_weights(vae.model, vae.guide, X, num_samples=3).shape == (3, 6)
    invalid = _vae(decoder=lambda i, o: torch.nn.Linear(i[0], o[0] + 1))
    with pytest.raises(ValueError, match="expected network outputs of shape"):
        invalid.likelihood(torch.zeros(5, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("decoder", "got"),
    [
        (partial(pv.networks.MLP, norm="layer"), "weights of a GroupNorm"),
        (partial(pv.networks.MLP, norm="batch"), "weights of a BatchNorm1d"),
        (lambda i, o: torch.nn.Bilinear(2, 2, 3), "weights of a Bilinear"),
        (lambda i, o: torch.nn.ReLU(), "no linear layer"),
    ],
)
def test_decoders_with_other_weights_raise(decoder, got):
    with pytest.raises(ValueError, match=f"in linear layers only; got {got}: use an MLP"):
        BayesianVAE((3,), 2, decoder=decoder)


def test_layer_used_several_times_per_example_raises():
    class Rows(torch.nn.Module):
        def __init__(self, in_shape, out_shape):
            super().__init__()
            self.row = torch.nn.Linear(in_shape[0], 2)

        def forward(self, z):
            return torch.stack([self.row(torch.stack([z, -z], -2))], -3).flatten(-3)

    vae = _vae((4,), decoder=Rows)
    with pytest.raises(ValueError, match="uses each linear layer once per example; got 24 outputs"):
        vae.eval().model(torch.zeros(6, 4, dtype=torch.float64))


class Tied(torch.nn.Module):
    """A layer applied twice, registered under two names."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.first = torch.nn.Linear(in_shape[0], out_shape[0])
        self.again = torch.nn.Sequential(torch.nn.Tanh(), self.first)

    def forward(self, z):
        return self.again(self.first(z))


def test_tied_layer_has_one_sample_in_training_and_raises_in_evaluation():
    vae = _vae((3,), 3, decoder=Tied)
    assert len(_layers(vae)) == 1
    pv.initialize(vae, X)
    trace = poutine.trace(vae.guide).get_trace(X)
    trace = poutine.trace(poutine.replay(vae.model, trace=trace)).get_trace(X)
    w, b, z = (trace.nodes[n]["value"] for n in ("network.first.weight", "network.first.bias", "z"))
    logits = torch.tanh(z @ w.T + b) @ w.T + b
    torch.testing.assert_close(trace.nodes["x"]["fn"].base_dist.logits, logits)
    # both outputs are correlated, which independent output noise cannot represent
    with pytest.raises(
        ValueError, match="once per example; got 36 outputs of one layer instead of 18"
    ):
        vae.eval().model(X)


def test_weight_noise_is_not_counted_as_a_latent_unit():
    units = pv.evaluation.active_units(_vae(), X)
    assert list(units.variance) == ["z"] and len(units.variance["z"]) == 2


def test_resumed_training_keeps_the_number_of_data(tmp_path):
    x, expected = X.float(), None
    for resume in (False, True):
        vae, path = _vae().float(), tmp_path / "state.pt"
        pv.fit(vae, x, epochs=2 if resume else 1, batch_size=4, checkpoint=path, resume=resume)
        assert vae.num_data == 6
    uninterrupted = _vae().float()
    pv.fit(uninterrupted, x, epochs=2, batch_size=4)
    for name, expected in uninterrupted.state_dict().items():
        assert torch.equal(expected, vae.state_dict()[name]), name


@pytest.mark.parametrize(
    "likelihood",
    [
        partial(pv.likelihoods.Gaussian, scale="decoded", mean="sigmoid"),
        partial(pv.likelihoods.Gaussian, scale="per_pixel"),
        partial(pv.likelihoods.Gaussian, scale="optimal"),
        partial(pv.likelihoods.MixtureOfDiscretizedLogistics, levels=16, components=2),
        partial(pv.likelihoods.ZeroInflatedNegativeBinomial, library="decoded"),
        partial(pv.likelihoods.Poisson, library="observed"),
        # σ of the part is a parameter outside the decoder, without a posterior
        partial(
            pv.likelihoods.Columns,
            parts=[partial(pv.likelihoods.Gaussian, scale="per_pixel"), pv.likelihoods.Bernoulli],
            columns=[[1], [0]],
        ),
    ],
)
def test_predictive_with_output_noise_equals_that_with_sampled_weights(likelihood):
    """log E p(x | z, θ) with output noise and with sampled weights; false alarm < 1e-5."""
    vae = _vae((2,), 1, 0.5, likelihood=likelihood).eval()
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    pv.initialize(vae, x)
    z, count = torch.tensor([[0.7]], dtype=torch.float64).expand(40_000, 1), 40_000
    noise = {
        n: torch.randn(count, m.out_features).double() for n, m in vae._gaussian_layers().items()
    }
    with torch.no_grad():
        with vae._use_samples({}, noise):
            local = vae.likelihood(z).log_prob(x)
        with pyro.plate("particles", count, dim=-2):
            weights = vae._sample_weights(x, GaussianLinear.posterior)
        with vae._use_samples(weights, {}):
            full = vae.likelihood(z[:, None]).log_prob(x)[:, 0]
    values = [log_p.exp() for log_p in (local, full)]
    error = sum(v.var() / count for v in values).sqrt()
    assert (values[0].mean() - values[1].mean()).abs() < 5 * error
    assert error < 0.03 * values[1].mean()


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected initial_scale > 0 and finite; got 0"):
        BayesianVAE((3,), 2, initial_scale=0)
    vae = _vae()
    with pytest.raises(ValueError, match=r"call pyro_vae.initialize\(program, x\) with all of"):
        pv.objectives.ELBO().loss(vae.model, vae.guide, X)
