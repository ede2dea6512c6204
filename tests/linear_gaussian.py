"""Linear-Gaussian Pyro program with log p(x), posterior and ELBO in closed form.

z ~ N(0, I), x | z ~ N(W z + b, s² I). The guide is the exact posterior, or has a known KL
divergence from it.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method


class LinearGaussian(PyroModule):
    """Linear-Gaussian model and guide.

    Arguments:
        latent_dim: the number D of latent variables.
        data_dim: the number P of observed variables.
        shift: offset of the guide's mean, in posterior standard deviations.
        inflate: ratio of the guide's standard deviations to those of the posterior.
        seed: seed of W and b, without the offset of ``PYRO_VAE_TEST_SEED``: it decides how hard the
            problem is, e.g. how far the posterior is from a diagonal normal.
    """

    def __init__(self, latent_dim, data_dim=6, shift=0.0, inflate=1.0, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.W, self.b, self.s = draw(data_dim, latent_dim), draw(data_dim), 0.7
        eye = torch.eye(latent_dim, dtype=torch.float64)
        precision = eye + self.W.T @ self.W / self.s**2
        self.covariance = torch.linalg.inv(precision)
        self.factor = torch.linalg.cholesky(self.covariance)
        self.shift, self.inflate, self.latent_dim = shift, inflate, latent_dim

    @property
    def marginal(self):
        covariance = self.W @ self.W.T + self.s**2 * torch.eye(len(self.b), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.b, covariance)

    def sample(self, size):
        return self.marginal.sample((size,))

    def log_evidence(self, x):
        """Return log p(x), ``(N,)``."""
        return self.marginal.log_prob(x)

    @property
    def divergence(self):
        """KL(q ‖ posterior), which is the same for all examples."""
        d, c = self.latent_dim, self.inflate
        return 0.5 * (d * (c**2 - 1 - 2 * math.log(c)) + d * self.shift**2)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            zero = torch.zeros(self.latent_dim, dtype=x.dtype)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T + self.b, self.s).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean = (x - self.b) @ self.W @ self.covariance / self.s**2
            mean = mean + self.shift * self.factor.sum(1)
            scale_tril = (self.inflate * self.factor).expand(len(x), -1, -1)
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=scale_tril))
