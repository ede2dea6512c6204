"""Bottom-up and top-down inference for hierarchies of latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from pyro.nn.module import PyroModuleList
from torch import Tensor, nn

from ..core.components import (
    AbstractModule,
    Heads,
    NetworkFactory,
    Shape,
    Space,
    init_standardization,
)
from ..core.validation import as_shape
from ..likelihoods import Likelihood
from ..networks import MLP
from ..networks.base import Init
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior
from .compatibility import check_compatible

__all__ = ["BottomUp", "Inference", "TopDown"]


class Inference(PyroModule, ABC, metaclass=AbstractModule):
    """Base class of inference for z_1, …, z_L, where z_1 is the layer closest to the data.

    Subclasses define :meth:`forward`, which samples the sites "z1" … "zL", and :meth:`bind`,
    which checks that they can be combined with the parts of the model.
    """

    @abstractmethod
    def forward(self, x: Tensor, conditionals: Sequence[Posterior]) -> list[Tensor]:
        """Sample all latents of data ``x``, inside the plate of the owning program.

        Arguments:
            x: data, ``(N, *event_shape)``.
            conditionals: the model's p(z_1 | z_2), …, p(z_{L−1} | z_L).

        Returns:
            z_1, …, z_L, each of shape ``(*particles, N, latent_dims[i])``.
        """

    @abstractmethod
    def bind(self, prior: Prior, likelihood: Likelihood) -> None:
        """Receive the other parts of the model; the program calls this once, in its ``__init__``.

        Raises:
            ValueError: if the parts cannot be combined.
        """

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)


class BottomUp(Inference):
    """q(z_1|x) q(z_2|z_1) … q(z_L|z_{L−1}), each conditioned on the layer below.

    The model samples in the opposite order, so KL(q ‖ p) is not analytic and the ELBO is
    estimated by sampling.

    Arguments:
        event_shape: shape of one example.
        latent_dims: number of latents in each layer, from the data upward.
        encoders: factories of the networks, in the same order.
        posterior: ``posterior(event_shape, latent_dim, encoder)``, the posterior of every layer.
            Above the first layer, its event is the latents of the layer below.

    Raises:
        ValueError: with more than one layer, if the posterior depends on the model, or if a
            layer below the top lies on a sphere.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 2 and section 5.
        https://arxiv.org/abs/1509.00519
    """

    def __init__(
        self,
        event_shape: Shape,
        latent_dims: Shape,
        encoders: Sequence[NetworkFactory],
        posterior: Callable[[Shape, int, NetworkFactory], Posterior] = DiagonalNormal,
    ) -> None:
        super().__init__()
        inputs = (tuple(event_shape), *((n,) for n in latent_dims))
        layers = [posterior(*args) for args in zip(inputs, latent_dims, encoders, strict=False)]
        for layer in layers[:-1]:
            _check_inner_layer(layer)
        self.layers = PyroModuleList(layers)

    def forward(self, x: Tensor, conditionals: Sequence[Posterior]) -> list[Tensor]:
        latents: list[Tensor] = []
        for i, layer in enumerate(self.layers, 1):
            latents.append(pyro.sample(f"z{i}", layer(latents[-1] if latents else x)))
        return latents

    def bind(self, prior: Prior, likelihood: Likelihood) -> None:
        top = cast("Posterior", self.layers[-1])
        if len(self.layers) == 1:
            check_compatible(prior, top)
            prior.bind(top)
            top.bind(prior, likelihood)
            return
        _check_top_prior(prior)
        check_compatible(prior, top)


class TopDown(Inference):
    """Ladder VAE inference: a deterministic upward pass, then q(z_L|x) and q(z_i | z_{i+1}, x).

    The upward pass computes d_i = f(encoder_i(d_{i−1})) with d_0 = x. Linear heads map d_i to
    the mean μ̂_i and log scale log σ̂_i of a bottom-up estimate of layer i. The downward pass
    combines them with the model's p(z_i | z_{i+1}) = N(μ_p, σ_p²), weighted by precision:
    q(z_i | z_{i+1}, x) = N(μ_q, σ_q²) with

        1/σ_q² = 1/σ̂_i² + 1/σ_p²,    μ_q = σ_q² (μ̂_i / σ̂_i² + μ_p / σ_p²).

    The latents are sampled in the model's order, so KL(q ‖ p) of each layer is analytic. The
    heads of the paper parametrize σ̂² with a softplus; here they output log σ̂, like all other
    encoders of this package.

    Arguments:
        event_shape: shape of one example.
        latent_dims: number of latents in each layer, from the data upward.
        encoders: factories of the networks, in the same order.
        features: sizes of d_1, …, d_L, or a single number for all layers.
        activation: factory of the nonlinearity f.
        init: initialisation of the heads: ``torch`` for the default of torch; ``glorot`` for
            Xavier-uniform weights and zero biases; a number for normal weights and biases with
            that standard deviation.

    Raises:
        ValueError: if ``features`` are not positive integers, one per layer, or ``init`` is
            unknown.

    References:
        Ladder Variational Autoencoders (Sønderby et al., 2016), equations 14 to 19.
        https://arxiv.org/abs/1602.02282
    """

    def __init__(
        self,
        event_shape: Shape,
        latent_dims: Shape,
        encoders: Sequence[NetworkFactory],
        features: int | Shape = 200,
        activation: Callable[[], nn.Module] = nn.Tanh,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        if isinstance(features, int):
            features = (features,) * len(latent_dims)
        widths = as_shape("features", features)
        if len(widths) != len(latent_dims):
            raise ValueError(
                f"expected features to be one number, or one for each of the {len(latent_dims)} "
                f"layers; got {features}"
            )
        shapes = [tuple(event_shape), *((n,) for n in widths)]
        self.upward = nn.ModuleList(
            [factory(*sizes) for factory, *sizes in zip(encoders, shapes, shapes[1:], strict=False)]
        )
        # MLPs without hidden layers, used for their initialisation
        heads = [
            MLP((w,), Heads((2, n)), (), init=init)
            for w, n in zip(widths, latent_dims, strict=True)
        ]
        self.heads = nn.ModuleList([head.layers[-1] for head in heads])
        self.activation = activation()

    def forward(self, x: Tensor, conditionals: Sequence[Posterior]) -> list[Tensor]:
        estimates: list[tuple[Tensor, Tensor]] = []
        for network, head in zip(self.upward, self.heads, strict=True):
            x = self.activation(network(x))
            loc, log_scale = head(x).chunk(2, -1)
            estimates.append((loc, log_scale.exp()))
        z = pyro.sample(f"z{len(estimates)}", dist.Normal(*estimates.pop()).to_event(1))
        latents = [z]
        while estimates:
            p = conditionals[len(estimates) - 1](latents[0]).base_dist
            q = _multiply_normals(*estimates.pop(), p.loc, p.scale)
            latents.insert(0, pyro.sample(f"z{len(estimates) + 1}", q.to_event(1)))
        return latents

    def bind(self, prior: Prior, likelihood: Likelihood) -> None:
        _check_top_prior(prior)
        if prior.space is not Space.REAL:
            raise ValueError(
                f"expected a prior on {Space.REAL} for TopDown; got {type(prior).__name__} on "
                f"{prior.space}: choose another"
            )

    def init_from_data(self, x: Tensor) -> None:
        """Compute the input statistics of the first network, before training."""
        init_standardization(self.upward[0], x)


def _multiply_normals(
    loc: Tensor, scale: Tensor, other_loc: Tensor, other_scale: Tensor
) -> dist.Normal:
    """Return the normal with density proportional to the product of two normal densities."""
    # avoids 1/σ², which overflows for small σ
    root = (scale.square() + other_scale.square()).sqrt()
    weight = (other_scale / root).square()
    return dist.Normal(weight * loc + (1 - weight) * other_loc, scale * other_scale / root)


def _check_inner_layer(posterior: Posterior) -> None:
    if not posterior.self_contained:
        raise ValueError(
            f"expected a posterior that depends on the layer below alone; got "
            f"{type(posterior).__name__}, which is refined with a single-layer model: choose "
            f"another"
        )
    if posterior.space is not Space.REAL:
        raise ValueError(
            f"expected a posterior on {Space.REAL}, the space of p(z_i | z_{{i+1}}); got "
            f"{type(posterior).__name__} on {posterior.space}: choose another"
        )


def _check_top_prior(prior: Prior) -> None:
    if prior.uses_posterior:
        raise ValueError(
            f"expected a prior that does not depend on q(z|x), which has no closed form in a "
            f"hierarchy; got {type(prior).__name__}: use MixtureOfNormals or FlowPrior"
        )
