"""How a hierarchy of latents is inferred: from the data upward, or upward and down again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from pyro.nn.module import PyroModuleList
from torch import Tensor, nn

from ..core.components import AbstractModule, NetworkFactory, Shape, Space
from ..core.validation import positive_int
from ..likelihoods import Likelihood
from ..networks import MLP
from ..networks.base import Init, several
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior
from . import compatibility
from .base import measure_inputs

__all__ = ["BottomUp", "Inference", "TopDown"]


class Inference(PyroModule, ABC, metaclass=AbstractModule):
    """The base of all ways to infer z_1, …, z_L, of which z_1 is the one nearest the data.

    A new one defines :meth:`forward`, which samples the sites "z1" … "zL", and says in
    :meth:`bind` which parts of the model it goes with.
    """

    @abstractmethod
    def forward(self, x: Tensor, conditionals: Sequence[Posterior]) -> list[Tensor]:
        """Draws all latents of data ``x``, inside the plate of the program that owns this.

        Arguments:
            x: the data, ``(N, *event_shape)``.
            conditionals: the model's p(z_1 | z_2), …, p(z_{L−1} | z_L).

        Returns:
            z_1, …, z_L, each of shape ``(*particles, N, latent_dims[i])``.
        """

    @abstractmethod
    def bind(self, prior: Prior, likelihood: Likelihood) -> None:
        """Called once, by the program that owns all three, when it is built.

        Raises:
            ValueError: if they do not combine, in one sentence.
        """

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)


class BottomUp(Inference):
    """q(z_1|x) q(z_2|z_1) … q(z_L|z_{L−1}), each of any family, conditioned on the one below.

    The model draws the other way round, so that KL(q ‖ p) has no closed form: an ELBO samples.

    Arguments:
        event_shape: the shape of one datum.
        latent_dims: the number of latents in each layer, from the data upward.
        encoders: the factories of the networks, likewise.
        posterior: ``posterior(event_shape, latent_dim, encoder)``, the family of every layer;
            what is an event to a layer are the latents of the one below.

    Raises:
        ValueError: in a hierarchy of more than one layer, if the posterior is refined with the
            model, or lives on a sphere below the top.

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
        below = (tuple(event_shape), *((n,) for n in latent_dims))
        layers = [posterior(*each) for each in zip(below, latent_dims, encoders, strict=False)]
        for layer in layers[:-1]:
            _check_inner(layer)
        self.layers = PyroModuleList(layers)

    def forward(self, x: Tensor, conditionals: Sequence[Posterior]) -> list[Tensor]:
        latents: list[Tensor] = []
        for i, layer in enumerate(self.layers, 1):
            latents.append(pyro.sample(f"z{i}", layer(latents[-1] if latents else x)))
        return latents

    def bind(self, prior: Prior, likelihood: Likelihood) -> None:
        top = cast("Posterior", self.layers[-1])
        if len(self.layers) == 1:
            compatibility.check(prior, top)
            prior.bind(top)
            top.bind(prior, likelihood)
            return
        _check_prior(prior)
        compatibility.check(prior, top)


class TopDown(Inference):
    """The ladder: upward without noise, then q(z_L|x) and q(z_i | z_{i+1}, x) downward.

    On the way up d_i = f(encoder_i(d_{i−1})) with d_0 = x, and linear maps of d_i are the mean
    μ̂_i and the log scale log σ̂_i that the data propose for layer i. On the way down a layer
    joins them with the model's own p(z_i | z_{i+1}) = N(μ_p, σ_p²), each weighted by its
    precision: q(z_i | z_{i+1}, x) = N(μ_q, σ_q²) with

        1/σ_q² = 1/σ̂_i² + 1/σ_p²,    μ_q = σ_q² (μ̂_i / σ̂_i² + μ_p / σ_p²).

    The latents are drawn in the model's order, so that KL(q ‖ p) of each layer is analytic. The
    paper's heads say the softplus of σ̂²; log σ̂ is what all encoders of this package say.

    Arguments:
        event_shape: the shape of one datum.
        latent_dims: the number of latents in each layer, from the data upward.
        encoders: the factories of the networks, likewise.
        features: the numbers in each d_i, likewise; one number is that of all layers.
        activation: makes the nonlinearity f.
        init: how the linear maps to μ̂_i and log σ̂_i start: ``torch`` for torch's own initial
            weights; ``glorot`` for Xavier-uniform weights and zero biases; a number for the
            standard deviation of all weights and biases.

    Raises:
        ValueError: if ``features`` are not positive integers, one for each layer, or ``init`` is
            another.

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
        widths = several("features", "numbers, one for each layer, or one number", features)
        if len(widths) != len(latent_dims):
            raise ValueError(
                f"expected features to be one number, or one for each of the {len(latent_dims)} "
                f"layers; got {features}"
            )
        shapes = [tuple(event_shape), *((positive_int("features", n),) for n in widths)]
        self.upward = nn.ModuleList(
            [make(*ends) for make, *ends in zip(encoders, shapes, shapes[1:], strict=False)]
        )
        # perceptrons without a hidden layer, for their initial weights
        heads = [
            MLP((w,), (2 * n,), (), init=init) for w, n in zip(widths, latent_dims, strict=True)
        ]
        self.heads = nn.ModuleList([head.layers[-1] for head in heads])
        self.activation = activation()

    def forward(self, x: Tensor, conditionals: Sequence[Posterior]) -> list[Tensor]:
        proposed: list[tuple[Tensor, Tensor]] = []
        for network, head in zip(self.upward, self.heads, strict=True):
            x = self.activation(network(x))
            loc, log_scale = head(x).chunk(2, -1)
            proposed.append((loc, log_scale.exp()))
        z = pyro.sample(f"z{len(proposed)}", dist.Normal(*proposed.pop()).to_event(1))
        latents = [z]
        while proposed:
            p = conditionals[len(proposed) - 1](latents[0]).base_dist
            q = _product(*proposed.pop(), p.loc, p.scale)
            latents.insert(0, pyro.sample(f"z{len(proposed) + 1}", q.to_event(1)))
        return latents

    def bind(self, prior: Prior, likelihood: Likelihood) -> None:
        _check_prior(prior)
        if prior.space is not Space.REAL:
            raise ValueError(
                f"expected a prior of latents in {Space.REAL}, where TopDown infers; got "
                f"{type(prior).__name__}, of {prior.space}: choose another"
            )

    def init_from_data(self, x: Tensor) -> None:
        """Called once before training: a network that standardises its inputs measures them."""
        measure_inputs(self.upward[0], x)


def _product(loc: Tensor, scale: Tensor, other_loc: Tensor, other_scale: Tensor) -> dist.Normal:
    """The normal whose density is proportional to the product of two."""
    # as one scale over the root of the sum, where 1/σ² would overflow for small σ
    root = (scale.square() + other_scale.square()).sqrt()
    weight = (other_scale / root).square()
    return dist.Normal(weight * loc + (1 - weight) * other_loc, scale * other_scale / root)


def _check_inner(posterior: Posterior) -> None:
    """Refuses a posterior that cannot be one of several layers, and not the top one."""
    if not posterior.self_contained:
        raise ValueError(
            f"expected a posterior that needs nothing but the layer below; got "
            f"{type(posterior).__name__}, refined with a model of one layer: choose another"
        )
    if posterior.space is not Space.REAL:
        raise ValueError(
            f"expected a posterior of latents in {Space.REAL}, where p(z_i | z_{{i+1}}) lives; got "
            f"{type(posterior).__name__}, of {posterior.space}: choose another"
        )


def _check_prior(prior: Prior) -> None:
    """Refuses a prior that is written with q(z_L|x)."""
    if prior.uses_posterior:
        raise ValueError(
            f"expected a prior that is not made of q(z|x), which a hierarchy does not have in "
            f"closed form; got {type(prior).__name__}: choose MixtureOfNormals or FlowPrior"
        )
