"""Semi-supervised variational autoencoder (M2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import pyro_method
from torch import Tensor, nn

from ..core.components import Labels, NetworkFactory, Shape, init_standardization
from ..core.evaluation_mode import eval_mode
from ..core.validation import positive_int
from ..data.containers import Container
from ..data.splits import Split, as_data, materialize
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from .base import OneLayerProgram
from .conditioning import concat_flattened
from .parts import CheckedFactory

__all__ = ["SemiSupervisedVAE"]

#: Batch size of the classifier in :meth:`SemiSupervisedVAE.classify`.
_CLASSIFY_BATCH_SIZE = 1000


class SemiSupervisedVAE(OneLayerProgram):
    """M2: y ~ Cat(π), z ~ p(z), x ~ p(x | y, z), with the guide q(y|x) q(z | x, y).

    With labels, y is observed; without, y is a latent variable. The guide's y is marked for
    enumeration: :class:`~pyro_vae.objectives.EnumeratedELBO` sums it out, and everything else
    (importance weights, the IWAE bound) samples it from q(y|x). The sampled weights are also
    unbiased for p(x), and :func:`~pyro_vae.evaluate` uses them to estimate
    log p(x) = log Σ_y p(x, y). Their variance is higher than with y summed out, especially if
    q(y|x) is confident of a wrong class.

    For labelled examples, log p(x, y) does not depend on q(y|x). The guide has a masked factor
    ``"class"`` with log q(y|x), which does not contribute to any bound or weight, but allows an
    objective to train the classifier on labelled examples.

    Arguments:
        event_shape: shape of one example.
        num_classes: number of classes C.
        latent_dim: number of latent variables D.
        prior: ``prior(latent_dim)``, p(z). It must not depend on the encoder.
        likelihood: ``likelihood(latent_dim + C, event_shape, decoder)``, p(x | y, z), of z
            and the one-hot class concatenated.
        posterior: ``posterior((prod(event_shape) + C,), latent_dim, encoder)``, q(z | x, y), of
            the flattened example and the one-hot class concatenated.
        classifier: ``classifier(event_shape, (C,))``, the network of q(y|x), which outputs logits.
        encoder: ``encoder(in_shape, out_shape)``, the network of q(z | x, y). An image
            encoder receives the one-hot class as constant channels.
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x | y, z).
        class_probs: π, C numbers that sum to 1; uniform by default.

    Raises:
        ValueError: if a number is out of range, or the parts cannot be combined.

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
        super().__init__(event_shape, latent_dim)
        self.num_classes = positive_int("num_classes", num_classes)
        self.condition = (self.num_classes,)
        self.register_buffer("class_logits", _logits(class_probs, self.num_classes))
        self.posterior = self.make_posterior(posterior, encoder)
        classifier = CheckedFactory("classifier", classifier, self.event_shape, reads_data=True)
        self.classifier = classifier(self.event_shape, self.condition)
        self.likelihood = self.make_likelihood(likelihood, decoder)
        self.prior = self.make_prior(prior, self.posterior, self.likelihood)

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, size: int = 1) -> Tensor:
        """Run p(y) p(z) p(x | y, z) on data ``x``, or sample ``size`` new examples.

        Arguments:
            x: data, ``(N, *event_shape)``.
            y: classes, ``(N,)`` integers from 0 to C − 1, if known. Without ``x``, the classes
                of the new examples, ``(size,)``.
            size: number of new examples.
        """
        with pyro.plate("data", size if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.class_logits), obs=y)
            z = pyro.sample("z", self.prior())
            likelihood = self.likelihood(self._append_one_hot(z, (self.latent_dim,), y))
            return pyro.sample("x", likelihood, obs=x)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None, size: int = 1) -> Tensor:
        """Run q(y|x) q(z | x, y), or q(z | x, y) with known classes, and return z.

        Under enumeration z has C values per example, in the dimension that Pyro allocates to y.
        """
        with pyro.plate("data", len(x)):
            q = dist.Categorical(logits=self.classifier(x))
            if y is None:
                y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            else:
                # not an observed site: Pyro would add a score-function term, as for a sampled one
                with poutine.mask(mask=False):
                    pyro.factor("class", q.log_prob(y), has_rsample=True)
            return pyro.sample("z", self.posterior(self._append_one_hot(x, self.event_shape, y)))

    def _append_one_hot(self, x: Tensor, shape: Shape, y: Tensor) -> Tensor:
        """Flatten tensors ``(*batch, *shape)`` and append their one-hot classes."""
        one_hot = nn.functional.one_hot(y.long(), self.num_classes).to(x.dtype)
        return concat_flattened((x, shape), (one_hot, (self.num_classes,)))

    def init_from_data(self, x: Tensor) -> None:
        """Compute the input statistics of the classifier, before training."""
        init_standardization(self.classifier, x)

    @torch.no_grad()
    def classify(self, data: Any, seed: int = 0) -> Tensor:
        """Return the class probabilities q(y|x), in evaluation mode.

        Arguments:
            data: the data, as for :func:`~pyro_vae.data.as_split`.
            seed: seed of the binarisation, for a split with dynamic binarisation.

        Returns:
            Probabilities, ``(N, C)``, on the device of the weights. The predicted class is their
            ``argmax(-1)``.

        Raises:
            ValueError: if the data cannot be scored.
        """
        data, logits = as_data(data), self.class_logits
        blocks = [data]
        if isinstance(data, Split) and isinstance(data.values, Container):
            blocks = (x for _, x in data.iter_materialized(seed, logits.dtype))
        probabilities = []
        for block in blocks:
            x = materialize(block, seed, logits.dtype)
            self.check(x)
            batches = x.to(logits.device).split(_CLASSIFY_BATCH_SIZE)
            with eval_mode(self):
                probabilities += [self.classifier(batch).softmax(-1) for batch in batches]
        return torch.cat(probabilities)

    def accuracy(self, data: Any, y: Tensor | None = None, seed: int = 0) -> float:
        """Return the classification accuracy on the examples with a known class.

        Arguments:
            data, seed: as for :meth:`classify`.
            y: classes, ``(N,)`` integers, −1 if unknown. Default: the labels of the split.

        Raises:
            ValueError: if the data or their classes cannot be scored, or no class is known.
        """
        data = as_data(data, read_labels=y is None)
        x = materialize(data, seed, self.class_logits.dtype)
        if y is None and isinstance(data, Split):
            y = data.labels
        if y is None:
            raise ValueError("expected the classes of the data; got none: pass a Split with labels")
        self.check(x, y)
        known = y >= 0
        if not known.any():
            raise ValueError("expected at least one example with a known class; got none")
        predicted = self.classify(x[known.to(x.device)]).argmax(-1)
        return float((predicted == y[known].to(predicted.device)).double().mean())

    def check(self, x: Tensor, *args: Tensor) -> None:
        """Raise if this program cannot score the data or their classes.

        Raises:
            ValueError: as :meth:`Autoencoder.check`; and if the classes are not ``(N,)`` integers
                from −1 (unknown) to C − 1.
        """
        super().check(x)
        for y in args:
            if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex():
                raise ValueError(
                    f"expected classes as {len(x)} integers; got shape {tuple(y.shape)} of "
                    f"{y.dtype}"
                )
            # compared as Python integers: in uint8, −1 would be 255
            low, high = int(y.min()), int(y.max())
            if not -1 <= low <= high < self.num_classes:
                raise ValueError(
                    f"expected classes from 0 to {self.num_classes - 1}, or −1 if unknown; got "
                    f"{low} to {high}"
                )


def _logits(probs: Sequence[float] | None, num_classes: int) -> Tensor:
    """Return log π, ``(C,)``."""
    if probs is None:
        return torch.full((num_classes,), -math.log(num_classes))
    pi = torch.as_tensor(probs, dtype=torch.float64)
    if pi.shape != (num_classes,) or not (pi > 0).all() or abs(pi.sum() - 1) > 1e-6:
        raise ValueError(
            f"expected class_probs to be {num_classes} numbers > 0 that sum to 1; got {probs!r}"
        )
    return pi.log().to(torch.get_default_dtype())
