"""Semi-amortized posteriors: encoder outputs refined per example by gradient ascent."""

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
from .normal import DiagonalNormal
from .overridable import OverridableNetwork

__all__ = ["SemiAmortized"]

_log = logging.getLogger("pyro_vae")

#: Extra seed entropy for the noise of the steps, so that no user seed gives the same stream.
_SEED = 0x5EA1


class SemiAmortized(Posterior):
    """Any variational family, with parameters refined by gradient ascent on each example's ELBO.

    λ₀ = encoder(x), followed by T Adam steps along ∇ ELBO(λ_t; x), independently for each
    example. λ is the output of the family's network, so any family can be refined. In
    evaluation mode the steps use the same random numbers at every call, which makes q(z|x) a
    function of x and importance weights exact; in training mode they use fresh ones. The steps
    are treated as constants in the gradient of the loss: the encoder receives the gradient at
    λ_T, as if λ_T were its output. (The paper uses plain gradient steps and differentiates
    through them.)

    Arguments:
        family: ``family(event_shape, latent_dim, network)``, the refined variational family.
        steps: number of gradient steps T.
        step_size: learning rate of Adam, roughly the change of a parameter per step.
        num_samples: number of samples of z in each step.

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
        encoders: list[OverridableNetwork] = []

        def make_overridable(in_shape: Shape, out_shape: Shape) -> nn.Module:
            encoders.append(OverridableNetwork(network(in_shape, out_shape)))
            return encoders[-1]

        self.family = family(self.event_shape, latent_dim, make_overridable)
        if len(encoders) != 1 or not self.family.self_contained:
            raise ValueError(
                f"expected a family with a single network that depends on x alone; got "
                f"{type(self.family).__name__}"
            )
        self.space = self.family.space
        self.scores_any_value = self.family.scores_any_value
        self.steps = positive_int("steps", steps)
        self.step_size = step_size
        self.num_samples = positive_int("num_samples", num_samples)
        # tuples keep torch from registering these modules a second time
        self._encoder = tuple(encoders)
        self._program: tuple[Component, Component] | tuple[()] = ()
        self._use_vmap = True
        self._cache: tuple[list, Tensor, Tensor, Tensor] | None = None

    def bind(self, prior: Component, likelihood: Component) -> None:
        self._program = (prior, likelihood)

    def forward(self, x: Tensor) -> Distribution:
        if not self._program:
            raise RuntimeError(
                "SemiAmortized depends on p(x, z): call bind(prior, likelihood) first"
            )
        (encoder,) = self._encoder
        amortized = encoder.output_for(self.family, x)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        flat_x = x.reshape(-1, *self.event_shape)
        start = amortized.detach().reshape(len(flat_x), *amortized.shape[len(batch) :])
        change = (self._refine_cached(start, flat_x) - start).reshape(amortized.shape)
        with encoder.override(amortized + change):
            return self.family(x)

    def _refine_cached(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return λ_T, cached in evaluation mode: an example's samples are computed in chunks."""
        if self.training:
            return self._refine(parameters, x)
        weights = [p for module in self._program for p in module.parameters()]
        key = [self.steps, self.step_size, self.num_samples]
        key += [(p.data_ptr(), p._version) for p in weights]
        if self._cache is not None:
            cached_key, cached_x, cached_start, refined = self._cache
            if cached_key == key and _equal(cached_x, x) and _equal(cached_start, parameters):
                return refined
        refined = self._refine(parameters, x)
        self._cache = key, x, parameters, refined
        return refined

    @torch.no_grad()
    def _refine(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return λ_T, ``(N, *outputs)``, for λ₀ of that shape and ``(N, *event_shape)`` data."""
        compute_gradients = self._gradient if self.training else self._seeded_gradients
        with eval_mode(*self._program), pyro.validation_enabled(False), pyro.poutine.block():
            refined = parameters.clone()
            # Adam is elementwise, so examples stay independent; the large eps keeps gradients
            # that are only rounding noise from turning into full steps
            adam = torch.optim.Adam([refined], lr=self.step_size, eps=1e-4, maximize=True)
            for step in range(self.steps):
                refined.grad = compute_gradients(refined, x, step)
                adam.step()
        return refined

    def _gradient(self, parameters: Tensor, x: Tensor, step: int) -> Tensor:
        """Return ∇ ELBO for any batch of examples."""
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            return torch.autograd.grad(self._elbo(leaf, x).sum(), leaf)[0]

    def _seeded_gradients(self, parameters: Tensor, x: Tensor, step: int) -> Tensor:
        """Return the gradients with fixed noise per step, the same for every example."""
        with seeded(_SEED, step):
            # outside vmap, where Pyro can register parameters at their first use
            first = self._gradient(parameters[0], x[0], step)
        if len(x) == 1:
            return first.unsqueeze(0)
        if self._use_vmap:
            gradient = torch.func.vmap(torch.func.grad(self._elbo), randomness="same")
            try:
                with seeded(_SEED, step):
                    return gradient(parameters, x)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                _log.warning(
                    "refining one example at a time, because torch.vmap failed: %s", reason
                )
                self._use_vmap = False
        gradients = [first]
        for row, example in zip(parameters[1:], x[1:], strict=True):
            with seeded(_SEED, step):
                gradients.append(self._gradient(row, example, step))
        return torch.stack(gradients)

    def _elbo(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return the ELBO in nats, ``batch``.

        ``parameters`` are ``(*batch, *outputs)`` and ``x`` is ``(*batch, *event_shape)``.
        """
        prior, likelihood = self._program  # type: ignore[misc]
        with self._encoder[0].override(parameters):
            q = self.family(x)
        z = q.rsample(torch.Size((self.num_samples,)))
        # flattened, because not every decoder takes several batch dimensions
        batch = z.shape[:-1]
        data = x.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)
        score = likelihood(z.reshape(-1, self.latent_dim)).log_prob(data).reshape(batch)
        return (score + prior().log_prob(z) - q.log_prob(z)).mean(0)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, also with NaN (unobserved values) at the same places."""
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
