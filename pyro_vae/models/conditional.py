"""The variational autoencoder of data given a condition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import pyro
from pyro.nn import pyro_method
from torch import Tensor, nn

from ..core.components import Labels, NetworkFactory, Shape, checked_factory
from ..core.validation import positive_int
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..networks.base import several
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from . import compatibility
from .base import Autoencoder
from .conditioning import beside, check_conditioned, joined, joint_shape

__all__ = ["ConditionalVAE"]


class ConditionalVAE(Autoencoder):
    """z ~ p(z), x ~ p(x | z, c), with the encoder q(z | x, c) as the guide; c is always given.

    c is a class or any tensor; nothing models it. Its numbers, a class as a one-hot vector, go
    beside the latents into the decoder and beside the datum into the encoder: an encoder of
    images sees each as one more channel that is constant.

    Arguments:
        event_shape: the shape of one datum.
        condition: the number C of classes, c then being integers 0 … C − 1 of shape ``(N,)``;
            or the shape of one condition, c being ``(N, *condition)`` numbers, of which C is
            then the count. They enter the networks as they are: scale them to about 1.
        latent_dim: the number of latent variables D.
        prior: ``prior(latent_dim)``, p(z); not one that is written with the encoder, which
            here needs a condition.
        likelihood: ``likelihood(latent_dim + C, event_shape, decoder)``, p(x | z, c), of z
            beside c.
        posterior: ``posterior((prod(event_shape) + C,), latent_dim, encoder)``, q(z | x, c), of
            the datum as one vector beside c.
        encoder: ``encoder(in_shape, out_shape)``, the network of q(z | x, c).
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x | z, c).

    Raises:
        ValueError: if a number is not a positive integer or the parts do not combine; if model
            or guide are called without a condition for each datum.

    References:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn
        et al., 2015), equation 4, with p(z) for p(z|c).
        https://papers.nips.cc/paper/5775-learning-structured-output-representation-using-deep-conditional-generative-models
    """

    labels: ClassVar[Labels] = Labels.CONDITION
    from_data: ClassVar[tuple[str, ...]] = ("event_shape", "condition")

    def __init__(
        self,
        event_shape: Shape,
        condition: int | Shape,
        latent_dim: int,
        prior: Callable[[int], Prior] = StandardNormal,
        likelihood: Callable[[int, Shape, NetworkFactory], Likelihood] = Bernoulli,
        posterior: Callable[[Shape, int, NetworkFactory], Posterior] = DiagonalNormal,
        encoder: Callable[[Shape, Shape], nn.Module] = MLP,
        decoder: Callable[[Shape, Shape], nn.Module] = MLP,
    ) -> None:
        super().__init__(event_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.num_classes: int | None = None
        if isinstance(condition, int):
            self.num_classes = positive_int("condition, a number of classes,", condition)
            self.condition: Shape = (self.num_classes,)
        else:
            sizes = several("condition", "sizes, or a number of classes", condition)
            self.condition = tuple(positive_int("every size in condition", n) for n in sizes)
        joint = joint_shape(self.event_shape, self.condition)
        checked = checked_factory(encoder, self.event_shape)
        self.posterior = posterior(joint, latent_dim, beside(checked, self.event_shape))
        self.likelihood = likelihood(
            latent_dim + math.prod(self.condition),
            self.event_shape,
            checked_factory(decoder, self.event_shape),
        )
        self.prior = prior(latent_dim)
        check_conditioned(self.prior, self.posterior)
        compatibility.check(self.prior, self.posterior)
        self.prior.bind(self.posterior)

    @pyro_method
    def model(self, x: Tensor | None = None, c: Tensor | None = None, size: int = 1) -> Tensor:
        """p(z) p(x | z, c) for data ``x``, or for new data.

        Arguments:
            x: the data, ``(N, *event_shape)``.
            c: their conditions, ``(N,)`` integers or ``(N, *condition)``. Without ``x`` there
                is a new datum for each of them, or ``size`` of a single one.
            size: the number of new data of a single condition.

        Returns:
            x, given or sampled, of shape ``(*particles, N, *event_shape)``.
        """
        code = self._coded(c)
        if x is None and len(code) == 1:
            code = code.expand(size, *self.condition)
        with self._plate(len(code) if x is None else len(x), code):
            z = pyro.sample("z", self.prior())
            both = joined((z, (self.latent_dim,)), (code, self.condition))
            return pyro.sample("x", self.likelihood(both), obs=x)

    @pyro_method
    def guide(self, x: Tensor, c: Tensor | None = None, size: int = 1) -> Tensor:
        """q(z | x, c) for data ``x`` of shape ``(N, *event_shape)``.

        Arguments:
            x: the data.
            c: their conditions, ``(N,)`` integers or ``(N, *condition)``.
            size: not looked at; for the model.

        Returns:
            z, of shape ``(*particles, N, latent_dim)``.
        """
        code = self._coded(c)
        with self._plate(len(x), code):
            both = joined((x, self.event_shape), (code, self.condition))
            return pyro.sample("z", self.posterior(both))

    def check(self, x: Tensor, *args: Tensor) -> None:
        """Refuses data, or conditions of them, that this program cannot score.

        Arguments:
            x: the data, ``(N, *event_shape)``.
            *args: their conditions, c.

        Raises:
            ValueError: as every program; and if the conditions are missing, are not one for
                each datum, are classes out of range, or are NaN or infinite.
        """
        super().check(x)
        c = args[0] if args else None
        code = self._coded(c, ranged=True)
        if len(code) != len(x):
            raise ValueError(self._expected(f"{len(code)} for {len(x)} data"))
        if not code.isfinite().all():
            raise ValueError(self._expected("NaN or infinite ones"))

    def _plate(self, size: int, code: Tensor) -> pyro.plate:
        if len(code) != size:
            raise ValueError(self._expected(f"{len(code)} for {size} data"))
        return pyro.plate("data", size)

    def _coded(self, c: Tensor | None, ranged: bool = False) -> Tensor:
        """Conditions as numbers, ``(N, *condition)``: classes as one-hot vectors."""
        if c is None:
            raise ValueError(self._expected("none"))
        dtype = next(self.parameters()).dtype
        if self.num_classes is None:
            if c.ndim != 1 + len(self.condition) or c.shape[1:] != self.condition:
                raise ValueError(self._expected(f"shape {tuple(c.shape)}"))
            return c.to(dtype)
        if c.ndim != 1 or c.is_floating_point() or c.is_complex():
            raise ValueError(self._expected(f"shape {tuple(c.shape)} of {c.dtype}"))
        # looking at the values waits for the device, so only the public entries do
        if ranged and len(c):
            least, most = int(c.min()), int(c.max())  # of c's type, C might not be itself
            if not 0 <= least <= most < self.num_classes:
                raise ValueError(self._expected(f"{least} to {most}"))
        return nn.functional.one_hot(c.long(), self.num_classes).to(dtype)

    def _expected(self, got: str) -> str:
        if self.num_classes is not None:
            expected = f"a class from 0 to {self.num_classes - 1}"
        else:
            expected = f"numbers of shape {self.condition}"
        return (
            f"expected as the condition of each datum {expected}; got {got}: give the labels "
            f"beside the data"
        )
