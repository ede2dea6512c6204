"""Posteriors that start from the encoder's word and are refined for each datum."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor, nn

from ..core.components import Component, NetworkFactory, Shape
from ..core.evaluation_mode import eval_mode
from ..core.random import seeded
from ..core.validation import positive_int
from .base import Posterior
from .encoder import Encoder
from .normal import DiagonalNormal

__all__ = ["SemiAmortized"]

_log = logging.getLogger("pyro_vae")

#: What the noise of the steps is seeded with, so that no seed of a user's gives the same.
_NOISE = 0x5EA1


class SemiAmortized(Posterior):
    """Any family, whose parameters climb from the encoder's word up the ELBO of each datum.

    λ₀ = encoder(x), then T steps of Adam along ∇ ELBO(λ_t; x), for each datum by itself. λ is
    whatever the family asks its network for, so that any family can be refined. In evaluation
    the draws of these steps are the same at every call, so that q(z|x) is a function of x and
    importance weights are exact; in training they are new. The steps are held constant when
    the loss is differentiated: the encoder is taught by the gradient at λ_T, as if λ_T were
    its own word. (The paper uses plain gradient steps and differentiates through them.)

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        family: ``family(event_shape, latent_dim, network)``, the family that is refined.
        steps: the number T of gradient steps.
        step_size: Adam's, which is about how far a number moves in a step.
        num_samples: draws of z in each step.

    Raises:
        ValueError: if a number is out of range.
        RuntimeError: if used before :meth:`bind`.

    References:
        Semi-Amortized Variational Autoencoders (Kim et al., 2018), algorithm 1.
        https://arxiv.org/abs/1802.02550
    """

    self_contained = False

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        network: NetworkFactory,
        family: Callable[[Shape, int, NetworkFactory], Posterior] = DiagonalNormal,
        steps: int = 5,
        step_size: float = 0.03,
        num_samples: int = 4,
    ) -> None:
        super().__init__(event_shape, latent_dim, network)
        if not 0 < step_size < math.inf:
            raise ValueError(f"expected step_size > 0 and finite; got {step_size}")
        made: list[Encoder] = []

        def overruled(in_shape: Shape, out_shape: Shape) -> nn.Module:
            made.append(Encoder(network(in_shape, out_shape)))
            return made[-1]

        self.family = family(self.event_shape, latent_dim, overruled)
        if len(made) != 1 or not self.family.self_contained:
            raise ValueError(
                f"expected a family that asks for one network and needs nothing but x; got "
                f"{type(self.family).__name__}"
            )
        self.space = self.family.space
        self.scores_any_value = self.family.scores_any_value
        self.steps = positive_int("steps", steps)
        self.step_size = step_size
        self.num_samples = positive_int("num_samples", num_samples)
        # in tuples, so that torch registers neither a second time
        self._encoder = tuple(made)
        self._program: tuple[Component, Component] | tuple[()] = ()
        self._vectorizes = True
        self._last: tuple[list, Tensor, Tensor, Tensor] | None = None

    def bind(self, prior: Component, likelihood: Component) -> None:
        self._program = (prior, likelihood)

    def forward(self, x: Tensor) -> Distribution:
        if not self._program:
            raise RuntimeError(
                "SemiAmortized is refined with p(x, z): call bind(prior, likelihood) first"
            )
        (encoder,) = self._encoder
        amortized = encoder.said_to(self.family, x)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        each = x.reshape(-1, *self.event_shape)
        start = amortized.detach().reshape(len(each), *amortized.shape[len(batch) :])
        moved = (self._refined(start, each) - start).reshape(amortized.shape)
        with encoder.overruled(amortized + moved):
            return self.family(x)

    def _refined(self, parameters: Tensor, x: Tensor) -> Tensor:
        """λ_T; in evaluation remembered, because a datum's many draws come in many chunks."""
        if self.training:
            return self._refine(parameters, x)
        weights = [p for module in self._program for p in module.parameters()]
        key = [self.steps, self.step_size, self.num_samples]
        key += [(p.data_ptr(), p._version) for p in weights]
        if self._last is not None:
            seen, data, before, after = self._last
            if seen == key and _equal(data, x) and _equal(before, parameters):
                return after
        after = self._refine(parameters, x)
        self._last = key, x, parameters, after
        return after

    @torch.no_grad()
    def _refine(self, parameters: Tensor, x: Tensor) -> Tensor:
        """λ_T of ``(N, *outputs)`` λ₀ and ``(N, *event_shape)`` data."""
        slopes = self._slope if self.training else self._repeatable_slopes
        with eval_mode(*self._program), pyro.validation_enabled(False), pyro.poutine.block():
            moving = parameters.clone()
            # every number has its own step, so no datum meets another; a slope that is noise of
            # rounding must not become a step
            adam = torch.optim.Adam([moving], lr=self.step_size, eps=1e-4, maximize=True)
            for step in range(self.steps):
                moving.grad = slopes(moving, x, step)
                adam.step()
        return moving

    def _slope(self, parameters: Tensor, x: Tensor, step: int) -> Tensor:
        """∇ ELBO of any number of data."""
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            return torch.autograd.grad(self._elbo(leaf, x).sum(), leaf)[0]

    def _repeatable_slopes(self, parameters: Tensor, x: Tensor, step: int) -> Tensor:
        """:meth:`_slope` with the step's own noise, the same for every datum."""
        with seeded(_NOISE, step):
            # Pyro notes every parameter at its first use, which it cannot under vmap
            first = self._slope(parameters[0], x[0], step)
        if len(x) == 1:
            return first.unsqueeze(0)
        if self._vectorizes:
            gradient = torch.func.vmap(torch.func.grad(self._elbo), randomness="same")
            try:
                with seeded(_NOISE, step):
                    return gradient(parameters, x)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                _log.warning("one datum is refined after the other: torch.vmap says %r", reason)
                self._vectorizes = False
        slopes = [first]
        for each, datum in zip(parameters[1:], x[1:], strict=True):
            with seeded(_NOISE, step):
                slopes.append(self._slope(each, datum, step))
        return torch.stack(slopes)

    def _elbo(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The ELBO in nats, ``batch``, of ``(*batch, *outputs)`` and ``(*batch, *event_shape)``."""
        prior, likelihood = self._program  # type: ignore[misc]
        with self._encoder[0].overruled(parameters):
            q = self.family(x)
        z = q.rsample(torch.Size((self.num_samples,)))
        # as one batch, because not every decoder takes several batch dimensions
        batch = z.shape[:-1]
        data = x.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)
        score = likelihood(z.reshape(-1, self.latent_dim)).log_prob(data).reshape(batch)
        return (score + prior().log_prob(z) - q.log_prob(z)).mean(0)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
