"""The semi-supervised variational autoencoder, M2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import pyro_method
from torch import Tensor, nn

from ..core.components import Labels, NetworkFactory, Shape, checked_factory
from ..core.evaluation_mode import eval_mode
from ..core.validation import positive_int
from ..data.splits import Split, materialize
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from . import compatibility
from .base import Autoencoder, measure_inputs
from .conditioning import beside, check_conditioned, joined, joint_shape

__all__ = ["SemiSupervisedVAE"]

#: Data that the classifier sees at once.
_AT_ONCE = 1000


class SemiSupervisedVAE(Autoencoder):
    """M2: y ~ Cat(π), z ~ p(z), x ~ p(x | y, z), with the guide q(y|x) q(z | x, y).

    A datum whose class is known is called with it, and then y is observed; without, y is one
    more latent. The guide's y is marked for enumeration:
    :class:`~pyro_vae.objectives.EnumeratedELBO` sums it out, and whatever does not (importance
    weights, the IWAE's bound) draws it from q(y|x). Weights of draws are unbiased for p(x) too,
    and :func:`~pyro_vae.evaluate` estimates log p(x) = log Σ_y p(x, y) by them; they vary more
    than if y were summed out, most where q(y|x) is sure of a wrong class.

    Where the class is known, log p(x, y) says nothing of q(y|x). So that an objective may
    learn the classifier there too, the guide has a factor ``"class"`` that is masked: it holds
    log q(y|x), and adds nothing to any bound or weight.

    Arguments:
        event_shape: the shape of one datum.
        num_classes: the number C of classes.
        latent_dim: the number of latent variables D.
        prior: ``prior(latent_dim)``, p(z), one that is not written with the encoder.
        likelihood: ``likelihood(latent_dim + C, event_shape, decoder)``, p(x | y, z), of z
            beside the one-hot class.
        posterior: ``posterior((prod(event_shape) + C,), latent_dim, encoder)``, q(z | x, y), of
            the datum as one vector beside the one-hot class.
        classifier: ``classifier(event_shape, (C,))``, the network of q(y|x), which gives logits.
        encoder: ``encoder(in_shape, out_shape)``, the network of q(z | x, y); one of images sees
            the one-hot class as channels that are constant.
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x | y, z).
        class_probs: π, C numbers that sum to 1; 1/C each if not given.

    Raises:
        ValueError: if a number is out of range, or the parts do not combine.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014), equations 2
        and 6 to 9. https://arxiv.org/abs/1406.5298
    """

    labels: ClassVar[Labels] = Labels.PARTIAL
    from_data: ClassVar[tuple[str, ...]] = ("event_shape", "num_classes")
    class_logits: Tensor

    def __init__(
        self,
        event_shape: Shape,
        num_classes: int,
        latent_dim: int,
        prior: Callable[[int], Prior] = StandardNormal,
        likelihood: Callable[[int, Shape, NetworkFactory], Likelihood] = Bernoulli,
        posterior: Callable[[Shape, int, NetworkFactory], Posterior] = DiagonalNormal,
        classifier: Callable[[Shape, Shape], nn.Module] = MLP,
        encoder: Callable[[Shape, Shape], nn.Module] = MLP,
        decoder: Callable[[Shape, Shape], nn.Module] = MLP,
        class_probs: Sequence[float] | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.num_classes = positive_int("num_classes", num_classes)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.register_buffer("class_logits", _logits(class_probs, self.num_classes))
        classes = (self.num_classes,)
        checked = checked_factory(encoder, self.event_shape)
        joint = joint_shape(self.event_shape, classes)
        self.posterior = posterior(joint, latent_dim, beside(checked, self.event_shape))
        self.classifier = checked_factory(classifier, self.event_shape)(self.event_shape, classes)
        self.likelihood = likelihood(
            latent_dim + self.num_classes,
            self.event_shape,
            checked_factory(decoder, self.event_shape),
        )
        self.prior = prior(latent_dim)
        check_conditioned(self.prior, self.posterior)
        compatibility.check(self.prior, self.posterior)
        self.prior.bind(self.posterior)

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, size: int = 1) -> Tensor:
        """p(y) p(z) p(x | y, z) for data ``x``, or for ``size`` new data.

        Arguments:
            x: the data, ``(N, *event_shape)``.
            y: their classes, ``(N,)`` integers from 0 to C − 1, if they are known. Without
                ``x``, the classes of the new data, ``(size,)``.
            size: the number of new data.

        Returns:
            x, given or sampled, of shape ``(*particles, N, *event_shape)``.
        """
        with pyro.plate("data", size if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.class_logits), obs=y)
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(self._coded(z, (self.latent_dim,), y)), obs=x)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None, size: int = 1) -> Tensor:
        """q(y|x) q(z | x, y) for data ``x`` of shape ``(N, *event_shape)``.

        Arguments:
            x: the data.
            y: their classes, ``(N,)`` integers from 0 to C − 1, if they are known.
            size: not looked at; for the model.

        Returns:
            z, of shape ``(*particles, N, latent_dim)``; under enumeration C of them for each
            datum, in the dimension that Pyro gives to y.
        """
        with pyro.plate("data", len(x)):
            q = dist.Categorical(logits=self.classifier(x))
            if y is None:
                y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            else:
                # not an observed site, which Pyro would give a score function as if it were drawn
                with poutine.mask(mask=False):
                    pyro.factor("class", q.log_prob(y), has_rsample=True)
            return pyro.sample("z", self.posterior(self._coded(x, self.event_shape, y)))

    def _coded(self, x: Tensor, shape: Shape, y: Tensor) -> Tensor:
        """Tensors ``(*batch, *shape)`` beside their one-hot classes."""
        one_hot = nn.functional.one_hot(y.long(), self.num_classes).to(x.dtype)
        return joined((x, shape), (one_hot, (self.num_classes,)))

    def init_from_data(self, x: Tensor) -> None:
        """Called once before training: a classifier that standardises its inputs measures them."""
        measure_inputs(self.classifier, x)

    @torch.no_grad()
    def classify(self, data: Split | Tensor, seed: int = 0) -> Tensor:
        """The classes' probabilities q(y|x), in evaluation mode.

        Arguments:
            data: the data, a tensor ``(N, *event_shape)`` or a split.
            seed: of the binarisation of a split whose pixels are drawn anew at every use.

        Returns:
            The probabilities, ``(N, C)``, on the device of the weights; their ``argmax(-1)`` is
            the predicted class.

        Raises:
            ValueError: if the data cannot be scored.
        """
        x = materialize(data, seed)
        self.check(x)
        parts = x.to(self.class_logits.device).split(_AT_ONCE)
        with eval_mode(self):
            return torch.cat([self.classifier(part).softmax(-1) for part in parts])

    def accuracy(self, data: Split | Tensor, y: Tensor | None = None, seed: int = 0) -> float:
        """The fraction of data with a known class whose most probable class it is.

        Arguments:
            data: the data, a tensor ``(N, *event_shape)`` or a split.
            y: their classes, ``(N,)`` integers; −1 where it is not known. Those of the split if
                not given.
            seed: of the binarisation of a split whose pixels are drawn anew at every use.

        Raises:
            ValueError: if the data or their classes cannot be scored, or no class is known.
        """
        x = materialize(data, seed)
        if y is None and isinstance(data, Split):
            y = data.labels
        if y is None:
            raise ValueError("expected the classes of the data; got none: give a Split with labels")
        self.check(x, y)
        known = y >= 0
        if not known.any():
            raise ValueError("expected at least one datum whose class is known; got none")
        guess = self.classify(x[known.to(x.device)]).argmax(-1)
        return float((guess == y[known].to(guess.device)).double().mean())

    def check(self, x: Tensor, *args: Tensor) -> None:
        """Refuses data, or classes beside them, that this program cannot score.

        Raises:
            ValueError: as every program; and if the classes are not ``(N,)`` integers from
                −1 (not known) to C − 1.
        """
        super().check(x)
        for y in args:
            if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex():
                raise ValueError(
                    f"expected classes as {len(x)} integers; got shape {tuple(y.shape)} of "
                    f"{y.dtype}"
                )
            # compared as Python's integers: as a byte, −1 would be 255
            least, most = int(y.min()), int(y.max())
            if not -1 <= least <= most < self.num_classes:
                raise ValueError(
                    f"expected classes from 0 to {self.num_classes - 1}, or −1 where not known; "
                    f"got {least} to {most}"
                )


def _logits(probs: Sequence[float] | None, num_classes: int) -> Tensor:
    """log π, ``(C,)``."""
    if probs is None:
        return torch.full((num_classes,), -math.log(num_classes))
    given = torch.as_tensor(probs, dtype=torch.float64)
    if given.shape != (num_classes,) or not (given > 0).all() or abs(given.sum() - 1) > 1e-6:
        raise ValueError(
            f"expected class_probs to be {num_classes} numbers > 0 that sum to 1; got {probs!r}"
        )
    return given.log().to(torch.get_default_dtype())
