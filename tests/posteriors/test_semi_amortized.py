"""Semi-amortized posteriors."""

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

    def test_many_steps_reach_the_optimum_of_the_family(self):
        # linear decoder: the exact posterior is a full-covariance normal
        vae = self._vae(
            family=posteriors.FullCovarianceNormal, steps=100, step_size=0.1, num_samples=100
        )
        x = torch.randn(3, 3)
        decoder = vae.likelihood.network.layers[0]
        covariance = decoder.weight @ decoder.weight.T + 0.25 * torch.eye(3)
        truth = dist.MultivariateNormal(decoder.bias, covariance).log_prob(x).mean().detach()
        refined = pv.evaluate(vae, x, num_samples=2000).estimates["elbo"]
        assert refined.value == pytest.approx(float(truth), abs=0.03)
        assert refined.value < float(truth) + 5 * refined.se_monte_carlo

    def test_more_steps_increase_the_elbo(self):
        x = torch.randn(20, 3)
        elbos = []
        for steps in (1, 5, 30):
            vae = self._vae(steps=steps, num_samples=16)
            elbos.append(pv.evaluate(vae, x, num_samples=500).elbo)
        assert elbos[0] + 0.05 < elbos[1] < elbos[2] - 0.05

    @pytest.mark.parametrize("family", [posteriors.DiagonalNormal, posteriors.SplineFlow])
    def test_examples_are_independent(self, family, caplog):
        # one family that supports torch.vmap, and one that does not
        vae = small_vae(
            posterior=partial(posteriors.SemiAmortized, family=family, num_samples=3)
        ).eval()
        x = torch.bernoulli(torch.full((6, 3), 0.5))
        z = vae.posterior(x).sample()
        batched = vae.posterior(x).log_prob(z)
        separate = torch.stack(
            [vae.posterior(x[i : i + 1]).log_prob(z[i : i + 1])[0] for i in range(6)]
        )
        torch.testing.assert_close(batched, separate, atol=1e-4, rtol=1e-4)
        assert ("torch.vmap failed" in caplog.text) == (family is posteriors.SplineFlow)

    def test_loop_matches_vmap(self):
        vae = self._vae(num_samples=3)
        x = torch.randn(4, 3)
        vectorized = vae.posterior(x)
        vae.posterior._use_vmap = False
        z = vectorized.sample()
        torch.testing.assert_close(vae.posterior(x).log_prob(z), vectorized.log_prob(z))

    def test_training_uses_fresh_noise_and_gradients_reach_the_encoder(self):
        vae = self._vae().train()
        x = torch.randn(4, 3)
        means = [vae.posterior(x).mean for _ in range(2)]
        assert not torch.equal(*means)
        means[0].sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in vae.posterior.parameters())
        assert all(p.grad is None for p in vae.likelihood.parameters())

    def test_encoder_gradient_is_taken_at_the_refined_parameters(self):
        # d mean / d bias of the last layer is 1, because steps are treated as constants
        vae = self._vae().train()
        vae.posterior(torch.randn(1, 3)).mean.sum().backward()
        bias = [p for n, p in vae.posterior.named_parameters() if n.endswith("bias")][-1]
        torch.testing.assert_close(bias.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]))

    def test_step_size_is_the_length_of_a_step(self):
        # Adam's first step is the sign of the gradient times the learning rate
        vae = self._vae(steps=1, step_size=0.1)
        x = 5 * torch.randn(4, 3)
        amortized, refined = vae.posterior.family(x), vae.posterior(x)
        for change in (refined.mean - amortized.mean, (refined.stddev / amortized.stddev).log()):
            torch.testing.assert_close(change.abs(), torch.full((4, 2), 0.1), atol=1e-3, rtol=0)

    def test_fresh_noise_at_every_step(self):
        # with the same single sample at every step, q would collapse onto it
        vae = self._vae(steps=60, num_samples=1)
        x = torch.randn(20, 3)
        refined = pv.evaluate(vae, x, num_samples=500).elbo
        vae.posterior.steps = 1
        assert refined > pv.evaluate(vae, x, num_samples=500).elbo

    def test_refinement_starts_from_the_output_for_the_family_s_input(self):
        class Centred(posteriors.DiagonalNormal):
            def forward(self, x):
                return super().forward(2 * x - 1)

        vae = self._vae(family=Centred, steps=1, step_size=1e-9)
        x = torch.randn(4, 3)
        torch.testing.assert_close(vae.posterior(x).mean, vae.posterior.family(x).mean)

    def test_decoder_with_a_single_batch_dimension(self):
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

    def test_refinement_does_not_change_batch_norm_statistics(self):
        decoder = partial(networks.MLP, hidden=(5,), norm="batch")
        vae = small_vae(posterior=POSTERIORS["SemiAmortized"], decoder=decoder).train()
        before = copy.deepcopy(dict(vae.named_buffers()))
        vae.posterior(torch.rand(5, 3)).rsample()
        for name, buffer in vae.named_buffers():
            assert torch.equal(buffer, before[name]), name
        assert all(module.training for module in vae.modules())

    def test_noise_is_independent_of_the_user_s_seed(self):
        vae = self._vae(steps=1)
        x = torch.randn(4, 3)
        torch.manual_seed(0)
        state = torch.get_rng_state()
        refined = vae.posterior(x).mean
        # the global generator is neither advanced nor used
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert torch.equal(vae.posterior(x).mean, refined)

    def test_evaluation_refines_each_example_once(self, monkeypatch):
        vae = self._vae()
        x = torch.randn(6, 3)
        refine, calls = vae.posterior._refine, []
        monkeypatch.setattr(
            posteriors.SemiAmortized,
            "_refine",
            lambda self, start, data: calls.append(len(data)) or refine(start, data),
        )
        # four chunks of samples per example; the audit runs on several examples
        pv.log_weights(vae.model, vae.guide, x, num_samples=40, chunk_size=12)
        assert [size for size in calls if size == 1] == [1] * 6 and calls[-6:] == [1] * 6
        vae.posterior(x)
        count = len(calls)
        first = vae.posterior(x).mean
        assert len(calls) == count
        # changed weights or data invalidate the cache
        with torch.no_grad():
            vae.likelihood.network.layers[0].bias.add_(1.0)
        assert not torch.equal(vae.posterior(x).mean, first)
        assert not torch.equal(vae.posterior(x + 1).mean, first) and len(calls) == count + 2

    def test_deepcopy_after_use(self):
        vae = self._vae().train()
        vae.posterior(torch.randn(4, 3)).rsample()
        copy.deepcopy(vae)

    def test_use_before_bind_raises(self):
        q = posteriors.SemiAmortized((3,), 2, SMALL)
        with pytest.raises(RuntimeError, match=r"call bind\(prior, likelihood\) first"):
            q(torch.zeros(1, 3))
