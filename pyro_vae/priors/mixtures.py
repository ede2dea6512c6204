"""Mixture priors: mixtures of normals and the VampPrior."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from ..core.components import Encoder
from ..core.evaluation_mode import eval_mode
from ..core.validation import positive_int
from .base import Prior

__all__ = ["MixtureOfNormals", "VampPrior"]


class MixtureOfNormals(Prior):
    """p(z) = Σ_c π_c N(z; μ_c, diag σ_c²) with learned weights, means and scales.

    Arguments:
        components: number of components C.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), section 2, "MoG".
        https://arxiv.org/abs/1705.07120
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__(latent_dim)
        positive_int("components", components)
        self.logits = nn.Parameter(torch.zeros(components))
        # near N(0, I), but with distinct means: identical components would keep receiving
        # identical gradients. Two log-densities at z ~ N(0, I) differ by about 1 nat for any D.
        self.loc = nn.Parameter(torch.randn(components, latent_dim) / latent_dim**0.5)
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> Distribution:
        normals = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)


class VampPrior(Prior):
    """p(z) = 1/C Σ_c q(z | u_c), the posterior averaged over learned pseudo-inputs u.

    The prior does not fix the scale of the latents. With a decoder that starts far from the
    data, the encoder can collapse to a point, which removes the noise from the decoder's input,
    and stay there. Set ``output_bias: data`` on the decoder to prevent this.

    The encoder's weights belong to the posterior. The prior only owns the pseudo-inputs,
    ``(components, *event_shape)``, which are created when it is bound to a posterior.

    Arguments:
        components: number of pseudo-inputs C.
        interval: pseudo-inputs are clamped to this interval, as in the authors' code for images
            in [0, 1]. Use ``None`` for real-valued data, to leave them unconstrained.
        start: ``random`` starts from pseudo-inputs uniform in the interval; ``data`` starts from
            random training examples when :func:`~pyro_vae.fit` begins (with plain ``SVI``,
            call :func:`~pyro_vae.initialize`).

    Raises:
        ValueError: if a number is out of range, or ``start`` is unknown.
        RuntimeError: if used before :meth:`bind`.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), equation 9.
        https://arxiv.org/abs/1705.07120
    """

    uses_posterior = True
    pseudo_inputs: nn.Parameter

    def __init__(
        self,
        latent_dim: int,
        components: int = 500,
        interval: tuple[float, float] | None = (0.0, 1.0),
        start: Literal["random", "data"] = "random",
    ) -> None:
        super().__init__(latent_dim)
        self.components = positive_int("components", components)
        if interval is not None and not -math.inf < interval[0] < interval[1] < math.inf:
            raise ValueError(f"expected interval to be (low, high) with low < high; got {interval}")
        if start not in ("random", "data"):
            raise ValueError(f"expected start to be random or data; got {start!r}")
        self.interval = interval
        self.start = start
        if start == "data":
            # part of the state, so that resumed training keeps the learned pseudo-inputs
            self.register_buffer("started", torch.tensor(False))
        self._posterior: tuple[Encoder, ...] = ()

    def bind(self, posterior: Encoder) -> None:
        # a tuple keeps torch from registering the posterior as a submodule of the prior
        self._posterior = (posterior,)
        low, high = self.interval or (-1.0, 1.0)
        start = low + (high - low) * torch.rand(self.components, *posterior.event_shape)
        self.pseudo_inputs = nn.Parameter(start)

    @torch.no_grad()
    def init_from_data(self, x: torch.Tensor) -> None:
        """Replace the pseudo-inputs with random rows of ``x``, once, if ``start`` is ``data``.

        Raises:
            ValueError: if data lie outside the interval that pseudo-inputs are clamped to.
        """
        if (
            self.interval is not None
            and not self.interval[0] <= x.min() <= x.max() <= self.interval[1]
        ):
            raise ValueError(
                f"expected data in the interval {self.interval} of VampPrior's pseudo-inputs; got "
                f"values from {x.min():.4g} to {x.max():.4g}: set its interval to contain them, "
                f"or to null"
            )
        if self.start == "random" or bool(self.started):
            return
        # with more components than examples some start as copies; training noise separates them
        rows = torch.randint(len(x), (self.components,))
        if len(x) >= self.components:
            rows = torch.randperm(len(x))[: self.components]
        self.pseudo_inputs.copy_(x[rows.to(x.device)])
        self.started.fill_(True)

    def forward(self) -> Distribution:
        if not self._posterior:
            raise RuntimeError("VampPrior depends on q(z|x): call bind(posterior) first")
        u = self.pseudo_inputs
        if self.interval is not None:
            u = u.clamp(*self.interval)
        weights = dist.Categorical(logits=u.new_zeros(len(u)))
        # evaluation mode keeps pseudo-inputs out of the statistics of batch norm
        with eval_mode(self._posterior[0]):
            return dist.MixtureSameFamily(weights, self._posterior[0](u))
