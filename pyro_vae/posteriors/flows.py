"""Flow posteriors: a diagonal normal followed by transforms conditioned on x by the encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints, transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.distributions.transforms.householder import ConditionedHouseholder
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor, nn

from ..core.components import Heads, NetworkFactory, Shape
from ..core.validation import positive_int
from ..distributions.autoregressive import (
    AffineAutoregressive,
    SplineAutoregressive,
    autoregressive_network,
    check_spline,
)
from ..distributions.flow import Flow
from ..distributions.zuko_flows import ZukoNetwork, ZukoTransform
from .base import Posterior

__all__ = [
    "HouseholderFlow",
    "InverseAutoregressiveFlow",
    "PlanarFlow",
    "RadialFlow",
    "SplineFlow",
    "SylvesterFlow",
    "ZukoFlow",
]


class FlowPosterior(Posterior):
    """Base class of flow posteriors: the network outputs μ, log σ and the flow's parameters.

    Subclasses define :meth:`transforms`, and pass the number of parameters that it needs to
    ``__init__``. If a transform has no inverse, the flow can only score its own samples.

    Arguments:
        num_params: number of network outputs that condition the flow.
    """

    #: Whether the flow acts on standard normal noise, before the scale σ and the shift μ.
    transforms_noise: ClassVar[bool] = False

    def __init__(
        self, event_shape: Shape, latent_dim: int, network: NetworkFactory, num_params: int
    ) -> None:
        super().__init__(event_shape, latent_dim, network)
        sizes = [latent_dim, latent_dim, num_params]
        self.network = network(self.event_shape, Heads((sum(sizes),), sizes))

    def forward(self, x: Tensor) -> Distribution:
        out = self.network(x)
        return Flow(
            *self._noise_and_steps(out),
            lambda: dist.TransformedDistribution(*self._noise_and_steps(out.double())),
        )

    def _noise_and_steps(self, out: Tensor) -> tuple[Distribution, list[transforms.Transform]]:
        """Return the distribution of the noise and all transforms for network outputs."""
        loc, log_scale = out[..., : 2 * self.latent_dim].unflatten(-1, (2, -1)).unbind(-2)
        steps = list(self.transforms(out[..., 2 * self.latent_dim :]))
        scale = log_scale.exp()
        if self.transforms_noise:
            steps.append(transforms.AffineTransform(loc, scale, event_dim=1, cache_size=1))
            loc, scale = torch.zeros_like(loc), torch.ones_like(scale)
        return dist.Normal(loc, scale).to_event(1), steps

    @abstractmethod
    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        """Return the flow's transforms for the parameters ``(*batch, num_params)``."""


class RepeatedFlow(FlowPosterior):
    """Base class of flows that repeat the same kind of step.

    Subclasses define :meth:`transforms`, and the numbers of parameters of one step.

    Arguments:
        flows: number of steps.

    Raises:
        ValueError: if ``flows`` is not a positive integer.
    """

    #: Parameters of a step: vectors of length ``latent_dim``, and further numbers.
    vectors_per_step: ClassVar[int]
    scalars_per_step: ClassVar[int] = 0

    def __init__(
        self, event_shape: Shape, latent_dim: int, network: NetworkFactory, flows: int = 8
    ) -> None:
        per_step = self.vectors_per_step * latent_dim + self.scalars_per_step
        num_params = positive_int("flows", flows) * per_step
        super().__init__(event_shape, latent_dim, network, num_params)
        self.flows = flows


class PlanarFlow(RepeatedFlow):
    """z_t = z_{t−1} + û tanh(wᵀz_{t−1} + b), where the encoder outputs û, w, b of each step.

    The inverse has no closed form.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), equation 10.
        https://arxiv.org/abs/1505.05770
    """

    scores_any_value = False
    vectors_per_step, scalars_per_step = 2, 1

    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        step_params = params.unflatten(-1, (self.flows, -1))
        bias, u, w = step_params.split((1, self.latent_dim, self.latent_dim), -1)
        steps = zip(bias.unbind(-2), u.unbind(-2), _avoid_zero(w).unbind(-2), strict=True)
        return [ConditionedPlanar(step) for step in steps]


class RadialFlow(RepeatedFlow):
    """z_t = z_{t−1} + β (z_{t−1} − z₀)/(α + |z_{t−1} − z₀|), where the encoder outputs z₀, α, β.

    The inverse has no closed form.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), equation 14.
        https://arxiv.org/abs/1505.05770
    """

    scores_any_value = False
    vectors_per_step, scalars_per_step = 1, 2

    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        steps = params.unflatten(-1, (self.flows, -1)).unbind(-2)
        sizes = (self.latent_dim, 1, 1)
        return [ConditionedRadial(step.split(sizes, -1)) for step in steps]


class HouseholderFlow(RepeatedFlow):
    """z = H_T … H_1 (μ + σ ε), a normal with full covariance by reflections H_t from the encoder.

    The reflections preserve volume. The inverse applies them in reverse order.

    Arguments:
        flows: number of reflections T. D reflections can represent any orthogonal matrix.

    References:
        Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016),
        equation 8. https://arxiv.org/abs/1611.09630
    """

    vectors_per_step = 1

    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        normals = params.unflatten(-1, (self.flows, self.latent_dim))
        return [ConditionedHouseholder(_avoid_zero(normals))]


class SylvesterFlow(FlowPosterior):
    """z_t = z_{t−1} + Q R tanh(R̃ Qᵀ z_{t−1} + b), where the encoder outputs Q, R, R̃, b.

    Q is a product of Householder reflections ("H-SNF"); R and R̃ are upper triangular. The
    inverse has no closed form.

    Arguments:
        flows: number of steps.
        reflections: number of reflections in Q.

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
        # R and R̃ are the two triangles of one square matrix; then two diagonals and b
        rows = latent_dim + 3 + positive_int("reflections", reflections)
        num_params = positive_int("flows", flows) * rows * latent_dim
        super().__init__(event_shape, latent_dim, network, num_params)
        self.flows = flows

    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        steps = params.unflatten(-1, (self.flows, -1, self.latent_dim)).unbind(-3)
        return [_Sylvester(step) for step in steps]


class InverseAutoregressiveFlow(FlowPosterior):
    """z_t = σ_t ⊙ z_{t−1} + (1 − σ_t) ⊙ m_t, with m_t, σ_t autoregressive in z_{t−1} and h(x).

    The order of the variables is reversed between steps. A sample and its density take one
    pass; the density at any other z takes D passes.

    Arguments:
        flows: number of steps.
        hidden: hidden widths of each step's autoregressive network, each at least D.
        context: size of h(x), the encoder's additional output.

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

    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        return [AffineAutoregressive(step, params, stable=True) for step in self.steps]


class SplineFlow(FlowPosterior):
    """z = μ + σ g(ε), with autoregressive monotonic rational-quadratic splines g.

    The knots of each variable's spline depend on h(x) and on the preceding variables. The
    splines act on [−bound, bound] and are the identity outside, so they are applied to the
    noise, before μ and σ. A sample takes one pass; the density at any other z takes D passes.

    Arguments:
        flows: number of spline layers.
        bins: number of segments of each spline.
        bound: half-width of the splines' interval, in standard deviations.
        hidden: hidden widths of each layer's autoregressive network, each at least D.
        context: size of h(x), the encoder's additional output.

    Raises:
        ValueError: if a number is not a positive integer, ``bound`` is not positive, or a
            width is below D.

    References:
        Neural Spline Flows (Durkan et al., 2019). https://arxiv.org/abs/1906.04032
    """

    transforms_noise = True

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

    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        return [
            SplineAutoregressive(step, self.latent_dim, self.bins, self.bound, params)
            for step in self.steps
        ]


class ZukoFlow(FlowPosterior):
    """z = μ + σ f(ε; h(x)), with a flow f of the package ``zuko`` by name.

    A sample and its density take one pass. For an autoregressive flow (all but ``NICE``,
    ``RealNVP``, ``GF`` and ``CNF``) the density at any other z takes D passes. f acts on the
    noise, before μ and σ: splines are the identity outside [−5, 5]. ``GF``, ``NAF``, ``SOSPF`` and
    ``UNAF`` are inverted by bisection in [−10, 10]; the density of z beyond is NaN.

    Arguments:
        flow: name of a class of ``zuko.flows``: ``NSF`` (splines), ``MAF`` (affine), ``NICE``,
            ``RealNVP`` (coupling), ``NAF``, ``UNAF`` (neural), ``BPF``, ``SOSPF`` (polynomials),
            ``GF`` (Gaussianization) or ``CNF`` (continuous).
        options: further arguments of that class, such as
            ``{"transforms": 2, "hidden_features": (64, 64)}``.
        context: size of h(x), the encoder's additional output.

    Raises:
        ModuleNotFoundError: if zuko is not installed.
        ValueError: if there is no such flow, if it does not accept an option, or if ``context`` is
            not a positive integer.

    References:
        Zuko (Rozet et al., 2022). https://zuko.readthedocs.io
        Neural Spline Flows (Durkan et al., 2019). https://arxiv.org/abs/1906.04032
        Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021).
        https://arxiv.org/abs/1912.02762
    """

    transforms_noise = True

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        network: NetworkFactory,
        flow: str = "NSF",
        options: dict[str, Any] | None = None,
        context: int = 50,
    ) -> None:
        super().__init__(event_shape, latent_dim, network, positive_int("context", context))
        self.flow = ZukoNetwork(flow, latent_dim, context, options)

    def transforms(self, params: Tensor) -> Sequence[transforms.Transform]:
        is_double = params.dtype == torch.float64
        return [ZukoTransform(self.flow, params, True, torch.float64 if is_double else None)]


class _Sylvester(transforms.Transform):
    """One step of :class:`SylvesterFlow`, with parameters ``(*batch, D + 3 + reflections, D)``.

    Pyro's ``Sylvester`` computes x + Rᵀ Qᵀ tanh(Q Sᵀ x + b). The determinant of this step is not
    the product of diagonals that it returns (see the test of Pyro's determinant).
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, params: Tensor) -> None:
        super().__init__(cache_size=1)
        size = params.shape[-1]
        square, diagonals = params[..., :size, :], params[..., size : size + 2, :].tanh()
        # diagonals in (−1, 1) keep 1 + tanh′ r r̃ positive, and the step invertible
        self.diagonal = diagonals.prod(-2)
        r_diagonal, s_diagonal = diagonals.unbind(-2)
        # nearly diagonal before training, for any D
        square = square / size**0.5
        self.r = square.triu(1) + r_diagonal.diag_embed()
        self.s = square.tril(-1).mT + s_diagonal.diag_embed()
        self.bias = params[..., size + 2, :]
        self.q: Any = ConditionedHouseholder(_avoid_zero(params[..., size + 3 :, :]))
        self._log_det = torch.empty(0)

    def _call(self, x: Tensor) -> Tensor:
        rotated = self.q.inv(x)
        hidden = (_matvec(self.s, rotated) + self.bias).tanh()
        self._log_det = ((1 - hidden.square()) * self.diagonal).log1p().sum(-1)
        return x + self.q(_matvec(self.r, hidden))

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError(
            "a Sylvester step has no inverse: it can only score its own samples"
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._cached_x_y[0] is not x or self._cached_x_y[1] is not y:
            self(x)
        return self._log_det


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _avoid_zero(x: Tensor) -> Tensor:
    """Replace zero vectors with short ones, because the vectors are divided by their norm."""
    zero = x.square().sum(-1, keepdim=True) < torch.finfo(x.dtype).tiny
    return torch.where(zero, 1e-3, x)
