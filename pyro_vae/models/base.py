"""Base class of the programs of this package."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, ClassVar

import torch
from pyro.nn import PyroModule
from torch import nn

from ..core.components import AbstractModule, Labels, NetworkFactory, Shape
from ..core.validation import as_shape, positive_int
from ..data.splits import contains_nan
from ..likelihoods import Likelihood
from ..posteriors import Posterior
from ..priors import Prior
from .compatibility import CONDITIONAL_RULES, RULES, check_compatible
from .conditioning import concat_shape, make_conditional_factory
from .parts import CheckedFactory, make_part

__all__ = ["Autoencoder", "OneLayerProgram"]

_log = logging.getLogger("pyro_vae")


class Autoencoder(PyroModule, ABC, metaclass=AbstractModule):
    """Base class of programs: a Pyro model of the data and its guide, the encoder.

    Subclasses define ``model(x=None, …, size=1)`` and ``guide(x, …)``, each a ``pyro_method``
    with every per-datum site inside one plate over the data. Without ``x`` the model samples
    ``size`` new examples, at the site ``"x"``. The distribution of this site is stored as
    ``self.likelihood``, which decides what data it can score; a program without it scores what its
    sites do. Two class attributes describe how the program uses the data:

    * ``labels``: how it uses labels, a :class:`~pyro_vae.core.components.Labels`;
    * ``from_data``: the arguments of ``__init__`` that are determined by the data, attributes
      of :class:`~pyro_vae.data.Dataset`. They are not set in YAML or on the command line.

    Arguments:
        event_shape: shape of one example.

    Raises:
        ValueError: if an entry of ``event_shape`` is not a positive integer.
    """

    labels: ClassVar[Labels] = Labels.UNUSED
    from_data: ClassVar[tuple[str, ...]] = ("event_shape",)
    likelihood: Likelihood

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        self.event_shape = as_shape("event_shape", event_shape)

    @abstractmethod
    def model(self, x: torch.Tensor | None = None, *args: Any, size: int = 1) -> torch.Tensor:
        """Run p(x, latents) on data ``(N, *event_shape)``, or sample ``size`` new examples.

        Returns:
            x, observed or sampled, of shape ``(*particles, N, *event_shape)``.
        """

    @abstractmethod
    def guide(self, x: torch.Tensor, *args: Any, size: int = 1) -> Any:
        """Run q(latents | x) on data ``(N, *event_shape)``; ``size`` is ignored.

        Returns:
            z, of shape ``(*particles, N, latent_dim)``; in a hierarchy a list of z_1, …, z_L.
        """

    def check(self, x: torch.Tensor, *args: Any) -> None:
        """Raise if this program cannot score the data.

        NaN is an unobserved value. The first data with NaN make the program expect them from then
        on: the likelihood scores the observed values alone, and encoders read 0 in place of the
        others. Until then, NaN is an error.

        Raises:
            ValueError: if the shape is not ``(N, *event_shape)`` with N ≥ 1, if the dtype is
                not that of the weights, or if the likelihood has no density at a value.
        """
        if x.shape[1:] != self.event_shape or not len(x):
            expected = ", ".join(map(str, ("N ≥ 1", *self.event_shape)))
            remedy = f": {self._suggest_shape(tuple(x.shape[1:]))}" if len(x) else ""
            raise ValueError(f"expected x.shape ({expected}); got {tuple(x.shape)}{remedy}")
        # a program of given functions may have no parameters
        dtype = next(self.parameters(), x).dtype
        if x.dtype != dtype:
            scaled = "" if x.is_floating_point() else ", or x / 255 for the bytes of an image"
            raise ValueError(
                f"expected x of {dtype}, like the model's weights; got {x.dtype}: pass "
                f"x.to({dtype}){scaled}"
            )
        likelihood = getattr(self, "likelihood", None)
        if likelihood is None:
            return
        likelihood.check_observed(x)
        if contains_nan(x):
            if not likelihood.expects_missing:
                # once: NaN may also be a mistake in the data
                count = int(x.isnan().sum())
                _log.warning("%d of %d values are NaN, read as unobserved", count, x.numel())
            self.expect_missing()

    def expect_missing(self) -> None:
        """Let likelihood and encoders expect unobserved values (NaN) from now on."""
        modules: Iterator[Any] = self.modules()
        for module in modules:
            if getattr(module, "expects_missing", None) is not None:
                module.expects_missing = True

    def _suggest_shape(self, shape: Shape) -> str:
        # to reshape an image whose channels are elsewhere would scramble its pixels
        for order in ((3, 1, 2), (2, 3, 1)):
            if len(shape) == 3 and tuple(shape[i - 1] for i in order) == self.event_shape:
                return f"pass x.permute(0, {', '.join(map(str, order))})"
        return f"reshape x, or set event_shape to {shape}"

    def __repr__(self) -> str:
        """Return the parts and their numbers of parameters; ``str()`` shows all modules."""
        rows = [f"  {name}: {kind}{size}" for name, kind, size in self._describe_parts()]
        return "\n".join([self._head, *rows])

    def __str__(self) -> str:
        return nn.Module.__repr__(self)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(kind)}{size}</td></tr>"
            for name, kind, size in self._describe_parts()
        )
        modules = f"<details><summary>modules</summary><pre>{escape(str(self))}</pre></details>"
        return f"<div><p>{escape(self._head)}</p><table>{rows}</table>{modules}</div>"

    @property
    def _head(self) -> str:
        dims = {n: getattr(self, n, None) for n in ("latent_dim", "latent_dims")}
        settings = {"event_shape": self.event_shape, **{n: d for n, d in dims.items() if d}}
        text = ", ".join(f"{name}={value}" for name, value in settings.items())
        first = next(self.parameters(), None)
        place = "" if first is None else f" on {first.device}"
        return f"{type(self).__name__}({text}):{_count_parameters(self)[1:]}{place}"

    def _describe_parts(self) -> Iterator[tuple[str, str, str]]:
        for name, part in self.named_children():
            yield name, type(part).__name__, _count_parameters(part)


def _count_parameters(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f", {count:,} parameters" if count else ""


class OneLayerProgram(Autoencoder):
    """Base class of programs with one layer of latents, z ~ p(z), that create their parts here.

    Subclasses call the three methods in this order. In a program that uses labels, decoder and
    encoder have a condition c of shape ``condition``, which is set first: the decoder's inputs are
    z and c, and the encoder's are x and c.

    Arguments:
        event_shape: shape of one example.
        latent_dim: number of latent variables D.
    """

    condition: Shape = ()

    def __init__(self, event_shape: Shape, latent_dim: int) -> None:
        super().__init__(event_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)

    @property
    def _is_conditional(self) -> bool:
        return self.labels is not Labels.UNUSED

    def make_posterior(
        self, posterior: Callable[..., Posterior], encoder: Callable[..., nn.Module]
    ) -> Posterior:
        """Return q(z|x), or q(z | x, c)."""
        shape = self.event_shape
        checked = CheckedFactory("encoder", encoder, shape, reads_data=True)
        network: NetworkFactory = checked
        if self._is_conditional:
            network = make_conditional_factory(checked)
            shape = concat_shape(shape, self.condition)
        call = "posterior(event_shape, latent_dim, encoder)"
        return make_part(call, Posterior, posterior, shape, self.latent_dim, network)

    def make_likelihood(
        self, likelihood: Callable[..., Likelihood], decoder: Callable[..., nn.Module]
    ) -> Likelihood:
        """Return p(x|z), or p(x | z, c)."""
        size = self.latent_dim + (math.prod(self.condition) if self._is_conditional else 0)
        network = CheckedFactory("decoder", decoder, self.event_shape)
        call = "likelihood(latent_dim, event_shape, decoder)"
        return make_part(call, Likelihood, likelihood, size, self.event_shape, network)

    def make_prior(
        self, prior: Callable[..., Prior], posterior: Posterior, likelihood: Likelihood
    ) -> Prior:
        """Return p(z), after checking that the three parts can be combined, and bind them."""
        made = make_part("prior(latent_dim)", Prior, prior, self.latent_dim)
        check_compatible(made, posterior, CONDITIONAL_RULES if self._is_conditional else RULES)
        made.bind(posterior)
        if not self._is_conditional:
            posterior.bind(made, likelihood)
        return made
