"""Conditional variational autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pyro
from pyro.nn import pyro_method
from torch import Tensor, nn

from ..core.components import Labels, NetworkFactory, Shape
from ..core.validation import as_shape, positive_int
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from .base import OneLayerProgram
from .conditioning import concat_flattened

__all__ = ["ConditionalVAE"]


class ConditionalVAE(OneLayerProgram):
    """z ~ p(z), x ~ p(x | z, c), with the encoder q(z | x, c) as the guide, given a condition c.

    c is a class or a tensor, and is always observed, not modelled. It is concatenated (a class
    as a one-hot vector) with the latents as the decoder's input, and with the flattened example
    as the encoder's. An image encoder receives each number of c as a constant channel.

    Arguments:
        event_shape: shape of one example.
        condition: number of classes C, for integer c in 0 … C − 1 of shape ``(N,)``; or the
            shape of one condition, for c of shape ``(N, *condition)``, where C is its number of
            elements. Tensors are not rescaled: scale them to about 1.
        latent_dim: number of latent variables D.
        prior: ``prior(latent_dim)``, p(z). It must not depend on the encoder, which needs a
            condition here.
        likelihood: ``likelihood(latent_dim + C, event_shape, decoder)``, p(x | z, c), of z
            and c concatenated.
        posterior: ``posterior((prod(event_shape) + C,), latent_dim, encoder)``, q(z | x, c), of
            the flattened example and c concatenated.
        encoder: ``encoder(in_shape, out_shape)``, the network of q(z | x, c).
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x | z, c).

    Raises:
        ValueError: if a number is not a positive integer or the parts cannot be combined; if
            model or guide is called without one condition per example.

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
        super().__init__(event_shape, latent_dim)
        self.num_classes: int | None = None
        if isinstance(condition, int):
            self.num_classes = positive_int("condition, a number of classes,", condition)
            self.condition = (self.num_classes,)
        else:
            self.condition = as_shape("condition", condition)
        self.posterior = self.make_posterior(posterior, encoder)
        self.likelihood = self.make_likelihood(likelihood, decoder)
        self.prior = self.make_prior(prior, self.posterior, self.likelihood)

    @pyro_method
    def model(self, x: Tensor | None = None, c: Tensor | None = None, size: int = 1) -> Tensor:
        """Run p(z) p(x | z, c) on data ``x``, or sample new examples.

        Arguments:
            x: data, ``(N, *event_shape)``.
            c: conditions, ``(N,)`` integers or ``(N, *condition)``. Without ``x`` the model
                samples one new example for each condition, or ``size`` for a single condition.
            size: number of new examples for a single condition.
        """
        code = self._encode(c)
        if x is None and len(code) == 1:
            code = code.expand(size, *self.condition)
        size = len(code) if x is None else len(x)
        self._check_size(code, size)
        with pyro.plate("data", size):
            z = pyro.sample("z", self.prior())
            inputs = concat_flattened((z, (self.latent_dim,)), (code, self.condition))
            return pyro.sample("x", self.likelihood(inputs), obs=x)

    @pyro_method
    def guide(self, x: Tensor, c: Tensor | None = None, size: int = 1) -> Tensor:
        """Run q(z | x, c) on data ``x`` of shape ``(N, *event_shape)``."""
        code = self._encode(c)
        self._check_size(code, len(x))
        with pyro.plate("data", len(x)):
            inputs = concat_flattened((x, self.event_shape), (code, self.condition))
            return pyro.sample("z", self.posterior(inputs))

    def check(self, x: Tensor, *args: Tensor) -> None:
        """Raise if this program cannot score the data or their conditions ``args[0]``.

        Raises:
            ValueError: as :meth:`Autoencoder.check`; and if conditions are missing, not one per
                example, classes out of range, NaN or infinite.
        """
        super().check(x)
        code = self._encode(args[0] if args else None, check_range=True)
        self._check_size(code, len(x))
        if not code.isfinite().all():
            raise ValueError(self._error_message("NaN or infinite values"))

    def _check_size(self, code: Tensor, size: int) -> None:
        if len(code) != size:
            raise ValueError(self._error_message(f"{len(code)} for {size} examples"))

    def _encode(self, c: Tensor | None, check_range: bool = False) -> Tensor:
        """Return conditions as numbers, ``(N, *condition)``, with classes as one-hot vectors."""
        if c is None:
            raise ValueError(self._error_message("none"))
        dtype = next(self.parameters()).dtype
        if self.num_classes is None:
            if c.ndim != 1 + len(self.condition) or c.shape[1:] != self.condition:
                raise ValueError(self._error_message(f"shape {tuple(c.shape)}"))
            return c.to(dtype)
        if c.ndim != 1 or c.is_floating_point() or c.is_complex():
            raise ValueError(self._error_message(f"shape {tuple(c.shape)} of {c.dtype}"))
        # reading the values synchronises with the device, so only `check` does
        if check_range and len(c):
            low, high = int(c.min()), int(c.max())  # as int: C may overflow the dtype of c
            if not 0 <= low <= high < self.num_classes:
                raise ValueError(self._error_message(f"{low} to {high}"))
        return nn.functional.one_hot(c.long(), self.num_classes).to(dtype)

    def _error_message(self, got: str) -> str:
        if self.num_classes is not None:
            expected = f"a class from 0 to {self.num_classes - 1}"
        else:
            expected = f"numbers of shape {self.condition}"
        return (
            f"expected {expected} as the condition of each example; got {got}: pass the labels "
            f"with the data"
        )
