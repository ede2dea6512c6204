"""Flow posteriors: a diagonal normal, bent by transforms that one encoder conditions on x."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints, transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.distributions.transforms.householder import ConditionedHouseholder
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor, nn

from ..core.components import NetworkFactory, Shape
from ..core.validation import positive_int
from ..distributions.autoregressive import (
    AffineAutoregressive,
    SplineAutoregressive,
    autoregressive_network,
    check_spline,
)
from .base import Posterior

__all__ = [
    "HouseholderFlow",
    "InverseAutoregressiveFlow",
    "PlanarFlow",
    "RadialFlow",
    "SplineFlow",
    "SylvesterFlow",
]


class FlowPosterior(Posterior):
    """The base of flow posteriors: the network gives μ, log σ and what conditions the flow.

    A new one defines :meth:`transforms` and says how many outputs that needs. Where a
    transform has no inverse, only the flow's own draws can be scored.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        conditions: how many outputs of the network condition the flow.
    """

    #: Whether the steps come before μ and σ, and not after.
    bends_noise: ClassVar[bool] = False

    def __init__(
        self, event_shape: Shape, latent_dim: int, network: NetworkFactory, conditions: int
    ) -> None:
        super().__init__(event_shape, latent_dim, network)
        self.network = network(self.event_shape, (2 * latent_dim + conditions,))

    def forward(self, x: Tensor) -> Distribution:
        out = self.network(x)
        loc, log_scale = out[..., : 2 * self.latent_dim].unflatten(-1, (2, -1)).unbind(-2)
        steps = list(self.transforms(out[..., 2 * self.latent_dim :]))
        scale = log_scale.exp()
        if self.bends_noise:
            steps.append(transforms.AffineTransform(loc, scale, event_dim=1, cache_size=1))
            loc, scale = torch.zeros_like(loc), torch.ones_like(scale)
        return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), steps)

    @abstractmethod
    def transforms(self, conditions: Tensor) -> Sequence[transforms.Transform]:
        """The steps from the normal's draw to z, of the conditions ``(*batch, conditions)``."""


class RepeatedFlow(FlowPosterior):
    """The base of flows of so many like steps.

    A new one defines :meth:`numbers` besides :meth:`transforms`.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        flows: the number of steps.

    Raises:
        ValueError: if ``flows`` is not a positive integer.
    """

    def __init__(
        self, event_shape: Shape, latent_dim: int, network: NetworkFactory, flows: int = 8
    ) -> None:
        conditions = positive_int("flows", flows) * self.numbers(latent_dim)
        super().__init__(event_shape, latent_dim, network, conditions)
        self.flows = flows

    @staticmethod
    @abstractmethod
    def numbers(latent_dim: int) -> int:
        """How many numbers condition one step."""


class PlanarFlow(RepeatedFlow):
    """z_t = z_{t−1} + û tanh(wᵀz_{t−1} + b), with û, w, b of every step given by the encoder.

    Has no inverse in closed form.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        flows: the number of steps.

    Raises:
        ValueError: if ``flows`` is not a positive integer.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), equation 10.
        https://arxiv.org/abs/1505.05770
    """

    scores_any_value = False

    @staticmethod
    def numbers(latent_dim: int) -> int:
        return 1 + 2 * latent_dim

    def transforms(self, conditions: Tensor) -> Sequence[transforms.Transform]:
        numbers = conditions.unflatten(-1, (self.flows, -1))
        bias, u, w = numbers.split((1, self.latent_dim, self.latent_dim), -1)
        steps = zip(bias.unbind(-2), u.unbind(-2), _not_zero(w).unbind(-2), strict=True)
        return [ConditionedPlanar(step) for step in steps]


class RadialFlow(RepeatedFlow):
    """z_t = z_{t−1} + β (z_{t−1} − z₀)/(α + |z_{t−1} − z₀|), with z₀, α, β given by the encoder.

    Has no inverse in closed form.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        flows: the number of steps.

    Raises:
        ValueError: if ``flows`` is not a positive integer.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), equation 14.
        https://arxiv.org/abs/1505.05770
    """

    scores_any_value = False

    @staticmethod
    def numbers(latent_dim: int) -> int:
        return latent_dim + 2

    def transforms(self, conditions: Tensor) -> Sequence[transforms.Transform]:
        steps = conditions.unflatten(-1, (self.flows, -1)).unbind(-2)
        sizes = (self.latent_dim, 1, 1)
        return [ConditionedRadial(step.split(sizes, -1)) for step in steps]


class HouseholderFlow(RepeatedFlow):
    """z = H_T … H_1 (μ + σ ε): reflections given by the encoder make the covariance a full one.

    Preserves volume, and is its own inverse in reverse.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        flows: the number T of reflections; D of them reach every orthogonal matrix.

    Raises:
        ValueError: if ``flows`` is not a positive integer.

    References:
        Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016),
        equation 8. https://arxiv.org/abs/1611.09630
    """

    @staticmethod
    def numbers(latent_dim: int) -> int:
        return latent_dim

    def transforms(self, conditions: Tensor) -> Sequence[transforms.Transform]:
        normals = conditions.unflatten(-1, (self.flows, self.latent_dim))
        return [ConditionedHouseholder(_not_zero(normals))]


class SylvesterFlow(FlowPosterior):
    """z_t = z_{t−1} + Q R tanh(R̃ Qᵀ z_{t−1} + b), all of it given by the encoder.

    Q is a product of reflections ("H-SNF"), R and R̃ are upper triangular. Has no inverse in
    closed form.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        flows: the number of steps.
        reflections: how many of them make up Q.

    Raises:
        ValueError: if ``flows`` or ``reflections`` is not a positive integer.

    References:
        Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018),
        equations 9 and 13. https://arxiv.org/abs/1803.05649
    """

    scores_any_value = False

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        network: NetworkFactory,
        flows: int = 4,
        reflections: int = 8,
    ) -> None:
        # R and R̃ share a square: its upper and its lower triangle; two diagonals and b
        rows = latent_dim + 3 + positive_int("reflections", reflections)
        conditions = positive_int("flows", flows) * rows * latent_dim
        super().__init__(event_shape, latent_dim, network, conditions)
        self.flows = flows

    def transforms(self, conditions: Tensor) -> Sequence[transforms.Transform]:
        steps = conditions.unflatten(-1, (self.flows, -1, self.latent_dim)).unbind(-3)
        return [_Sylvester(step) for step in steps]


class InverseAutoregressiveFlow(FlowPosterior):
    """z_t = σ_t ⊙ z_{t−1} + (1 − σ_t) ⊙ m_t, with m_t, σ_t autoregressive in z_{t−1} and h(x).

    The order of the variables is reversed from one step to the next. Draws and their density
    take one pass; the density at any other z takes D.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        flows: the number of steps.
        hidden: the widths of each step's autoregressive network, each at least D.
        context: the size of h(x), the encoder's extra output.

    Raises:
        ValueError: if a number is not a positive integer, or a width is below D.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al.,
        2016), equations 13 and 14. https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        network: NetworkFactory,
        flows: int = 2,
        hidden: Shape = (200,),
        context: int = 50,
    ) -> None:
        super().__init__(event_shape, latent_dim, network, positive_int("context", context))
        self.steps = nn.ModuleList(
            autoregressive_network(latent_dim, hidden, [1, 1], context, reverse=bool(step % 2))
            for step in range(positive_int("flows", flows))
        )

    def transforms(self, conditions: Tensor) -> Sequence[transforms.Transform]:
        return [AffineAutoregressive(step, conditions, stable=True) for step in self.steps]


class SplineFlow(FlowPosterior):
    """z = μ + σ g(ε): noise bent by monotonic rational-quadratic splines, autoregressively.

    The knots of each variable's spline depend on h(x) and on the variables before it. The
    splines act on [−bound, bound] and leave noise beyond as it is, which is why they come
    before μ and σ and not after. Draws take one pass; the density at any other z takes D.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        network: the factory of the encoder.
        flows: the number of layers of splines.
        bins: the number of segments of each spline.
        bound: where the splines end, in standard deviations.
        hidden: the widths of each layer's autoregressive network, each at least D.
        context: the size of h(x), the encoder's extra output.

    Raises:
        ValueError: if a number is not a positive integer, ``bound`` is not positive, or a
            width is below D.

    References:
        Neural Spline Flows (Durkan et al., 2019). https://arxiv.org/abs/1906.04032
    """

    bends_noise = True

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        network: NetworkFactory,
        flows: int = 1,
        bins: int = 8,
        bound: float = 4.0,
        hidden: Shape = (200,),
        context: int = 50,
    ) -> None:
        super().__init__(event_shape, latent_dim, network, positive_int("context", context))
        self.bins, self.bound = check_spline(bins, bound)
        parameters = [bins, bins, bins - 1]
        self.steps = nn.ModuleList(
            autoregressive_network(latent_dim, hidden, parameters, context, reverse=bool(step % 2))
            for step in range(positive_int("flows", flows))
        )

    def transforms(self, conditions: Tensor) -> Sequence[transforms.Transform]:
        return [
            SplineAutoregressive(step, self.latent_dim, self.bins, self.bound, conditions)
            for step in self.steps
        ]


class _Sylvester(transforms.Transform):
    """One step of :class:`SylvesterFlow`, from ``(*batch, D + 3 + reflections, D)`` numbers.

    Pyro's ``Sylvester`` is not used: its step is x + Rᵀ Qᵀ tanh(Q Sᵀ x + b), whose determinant
    is not the product of the diagonals that it returns (a test shows it).
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, numbers: Tensor) -> None:
        super().__init__(cache_size=1)
        size = numbers.shape[-1]
        square, diagonals = numbers[..., :size, :], numbers[..., size : size + 2, :].tanh()
        # the diagonals lie in (−1, 1), so that 1 + tanh′ r r̃ is positive and the step invertible
        self.diagonal = diagonals.prod(-2)
        r_diagonal, s_diagonal = diagonals.unbind(-2)
        # near diagonal before training, however large D
        square = square / size**0.5
        self.r = square.triu(1) + r_diagonal.diag_embed()
        self.s = square.tril(-1).mT + s_diagonal.diag_embed()
        self.bias = numbers[..., size + 2, :]
        self.q = ConditionedHouseholder(_not_zero(numbers[..., size + 3 :, :]))
        self._log_det = torch.empty(0)

    def _call(self, x: Tensor) -> Tensor:
        rotated = self.q._inverse(x)
        hidden = (_times(self.s, rotated) + self.bias).tanh()
        self._log_det = ((1 - hidden.square()) * self.diagonal).log1p().sum(-1)
        return x + self.q._call(_times(self.r, hidden))

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError("a Sylvester step has no inverse: it scores its own draws only")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._cached_x_y[0] is not x or self._cached_x_y[1] is not y:
            self(x)
        return self._log_det


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _not_zero(x: Tensor) -> Tensor:
    """Vectors that will be divided by their length: one of no length is made a short one."""
    zero = x.square().sum(-1, keepdim=True) < torch.finfo(x.dtype).tiny
    return torch.where(zero, 1e-3, x)
