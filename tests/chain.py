"""Pyro program with two latent sites, sampled in opposite order by model and guide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import nn

D = torch.float64


class Chain(PyroModule):
    """Model z2 → z1 → x with guide x → z1 → z2, whose second site depends on the first."""

    def __init__(self):
        super().__init__()
        values = {"w": 1.3, "v": 0.8, "a": 0.4, "b": 0.5, "s": -0.3, "t": -0.5}
        for name, value in values.items():
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=D)))

    model_parameters, guide_parameters = ("w", "v"), ("a", "b", "s", "t")

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros((), dtype=D), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.v * z2, 0.6))
            pyro.sample("x", dist.Normal(self.w * z1, 0.7), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.a * x, self.s.exp()))
            pyro.sample("z2", dist.Normal(self.b * z1, self.t.exp()))
