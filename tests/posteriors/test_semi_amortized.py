"""Posteriors that are refined for each datum."""

from __future__ import annotations

import copy
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, SMALL, small_vae

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors


class TestSemiAmortized:
    def _vae(self, **options):
        torch.manual_seed(1)
        return small_vae(
            posterior=partial(posteriors.SemiAmortized, **options),
            likelihood=partial(likelihoods.Gaussian, scale=0.5),
            decoder=partial(networks.MLP, hidden=()),
        ).eval()

    def test_many_steps_reach_the_best_of_the_family(self):
        # a linear decoder: the best full-covariance normal is the posterior itself
        vae = self._vae(
            family=posteriors.FullCovarianceNormal, steps=200, step_size=0.1, num_samples=500
        )
        x = torch.randn(3, 3)
        decoder = vae.likelihood.network.layers[0]
        covariance = decoder.weight @ decoder.weight.T + 0.25 * torch.eye(3)
        truth = dist.MultivariateNormal(decoder.bias, covariance).log_prob(x).mean().detach()
        refined = pv.evaluate(vae, x, num_samples=2000).estimates["elbo"]
        assert refined.value == pytest.approx(float(truth), abs=0.03)
        assert refined.value < float(truth) + 5 * refined.se_monte_carlo

    def test_more_steps_are_better(self):
        x = torch.randn(20, 3)
        elbos = []
        for steps in (1, 5, 30):
            vae = self._vae(steps=steps, num_samples=16)
            elbos.append(pv.evaluate(vae, x, num_samples=500).elbo)
        assert elbos[0] + 0.05 < elbos[1] < elbos[2] - 0.05

    @pytest.mark.parametrize("family", [posteriors.DiagonalNormal, posteriors.SplineFlow])
    def test_a_datum_does_not_meet_the_others(self, family, caplog):
        # one that torch.vmap can run, and one that it cannot
        vae = small_vae(
            posterior=partial(posteriors.SemiAmortized, family=family, num_samples=3)
        ).eval()
        x = torch.bernoulli(torch.full((6, 3), 0.5))
        z = vae.posterior(x).sample()
        together = vae.posterior(x).log_prob(z)
        apart = torch.stack(
            [vae.posterior(x[i : i + 1]).log_prob(z[i : i + 1])[0] for i in range(6)]
        )
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
        assert ("torch.vmap says" in caplog.text) == (family is posteriors.SplineFlow)

    def test_the_loop_gives_what_vmap_gives(self):
        vae = self._vae(num_samples=3)
        x = torch.randn(4, 3)
        quick = vae.posterior(x)
        vae.posterior._vectorizes = False
        z = quick.sample()
        torch.testing.assert_close(vae.posterior(x).log_prob(z), quick.log_prob(z))

    def test_in_training_the_noise_is_new_and_gradients_reach_the_encoder(self):
        vae = self._vae().train()
        x = torch.randn(4, 3)
        means = [vae.posterior(x).mean for _ in range(2)]
        assert not torch.equal(*means)
        means[0].sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in vae.posterior.parameters())
        assert all(p.grad is None for p in vae.likelihood.parameters())

    def test_the_encoder_s_gradient_is_that_of_the_refined_parameters(self):
        # d mean / d bias of the last layer is one: steps are held constant
        vae = self._vae().train()
        vae.posterior(torch.randn(1, 3)).mean.sum().backward()
        bias = [p for n, p in vae.posterior.named_parameters() if n.endswith("bias")][-1]
        torch.testing.assert_close(bias.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]))

    def test_a_step_is_as_long_as_it_says(self):
        # Adam's first step has the gradient's sign and the length that was asked for
        vae = self._vae(steps=1, step_size=0.1)
        x = 5 * torch.randn(4, 3)
        amortized, refined = vae.posterior.family(x), vae.posterior(x)
        for moved in (refined.mean - amortized.mean, (refined.stddev / amortized.stddev).log()):
            torch.testing.assert_close(moved.abs(), torch.full((4, 2), 0.1), atol=1e-3, rtol=0)

    def test_new_noise_at_every_step(self):
        # with one draw, the same at every step, q would collapse onto that draw's likes
        vae = self._vae(steps=60, num_samples=1)
        x = torch.randn(20, 3)
        refined = pv.evaluate(vae, x, num_samples=500).elbo
        vae.posterior.steps = 1
        assert refined > pv.evaluate(vae, x, num_samples=500).elbo

    def test_what_is_refined_is_the_family_s_own_word(self):
        class Centred(posteriors.DiagonalNormal):
            def forward(self, x):
                return super().forward(2 * x - 1)

        vae = self._vae(family=Centred, steps=1, step_size=1e-9)
        x = torch.randn(4, 3)
        torch.testing.assert_close(vae.posterior(x).mean, vae.posterior.family(x).mean)

    def test_a_decoder_of_a_single_batch_dimension(self):
        class Flat(torch.nn.Module):
            def __init__(self, in_shape, out_shape):
                super().__init__()
                self.layer = torch.nn.Linear(in_shape[0], out_shape[0])

            def forward(self, z):
                assert z.ndim == 2
                return self.layer(z)

        vae = small_vae(posterior=POSTERIORS["SemiAmortized"], decoder=Flat)
        history = pv.fit(vae, torch.bernoulli(torch.rand(6, 3)), epochs=2)
        assert -6 < history["elbo"][-1] < 0

    def test_refining_leaves_the_decoder_s_statistics_alone(self):
        decoder = partial(networks.MLP, hidden=(5,), norm="batch")
        vae = small_vae(posterior=POSTERIORS["SemiAmortized"], decoder=decoder).train()
        before = copy.deepcopy(dict(vae.named_buffers()))
        vae.posterior(torch.rand(5, 3)).rsample()
        for name, buffer in vae.named_buffers():
            assert torch.equal(buffer, before[name]), name
        assert all(module.training for module in vae.modules())

    def test_its_noise_is_no_user_s(self):
        vae = self._vae(steps=1)
        x = torch.randn(4, 3)
        torch.manual_seed(0)
        state = torch.get_rng_state()
        refined = vae.posterior(x).mean
        # it neither moves the generator nor follows it
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert torch.equal(vae.posterior(x).mean, refined)

    def test_in_evaluation_a_datum_is_refined_once(self, monkeypatch):
        vae = self._vae()
        x = torch.randn(6, 3)
        refine, calls = vae.posterior._refine, []
        monkeypatch.setattr(
            posteriors.SemiAmortized,
            "_refine",
            lambda self, start, data: calls.append(len(data)) or refine(start, data),
        )
        # four chunks of draws for each datum
        pv.log_weights(vae.model, vae.guide, x, num_samples=40, chunk_size=12)
        assert calls == [1] * 6
        vae.posterior(x)
        count = len(calls)
        first = vae.posterior(x).mean
        assert len(calls) == count
        # other weights or other data are other parameters
        with torch.no_grad():
            vae.likelihood.network.layers[0].bias.add_(1.0)
        assert not torch.equal(vae.posterior(x).mean, first)
        assert not torch.equal(vae.posterior(x + 1).mean, first) and len(calls) == count + 2

    def test_a_copy_of_one_in_use(self):
        vae = self._vae().train()
        vae.posterior(torch.randn(4, 3)).rsample()
        copy.deepcopy(vae)

    def test_unused_before_it_is_bound(self):
        q = posteriors.SemiAmortized((3,), 2, SMALL)
        with pytest.raises(RuntimeError, match=r"call bind\(prior, likelihood\) first"):
            q(torch.zeros(1, 3))
