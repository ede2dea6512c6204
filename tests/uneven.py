"""Linear-Gaussian program whose guide has a different error for each example."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from linear_gaussian import LinearGaussian
from pyro.nn import pyro_method


class Uneven(LinearGaussian):
    """``model(x, shift)``: the guide's mean is off by ``shift``, ``(N,)``, standard deviations."""

    @pyro_method
    def model(self, x, shift):
        super().model(x)

    @pyro_method
    def guide(self, x, shift):
        with pyro.plate("data", len(x)):
            mean = (x - self.b) @ self.W @ self.covariance / self.s**2
            mean = mean + shift[:, None] * self.factor.sum(1)
            scale_tril = (self.inflate * self.factor).expand(len(x), -1, -1)
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=scale_tril))
