"""Parts of a VAE around the callables of another model: its encoder, its decoder, its prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor, nn
from torch.distributions import constraints

from ..core.components import Shape
from ..core.validation import check_choice
from ..likelihoods import Likelihood
from ..posteriors import Posterior
from ..priors import Prior
from .given_distributions import as_event, total_shape
from .owners import CallableModule

__all__ = [
    "SCALES",
    "CallableDecoder",
    "CallableEncoder",
    "GivenLikelihood",
    "GivenPosterior",
    "GivenPrior",
    "check_output_shape",
    "describe",
    "is_distribution",
    "read_pair",
]

#: log σ as a function of a network's output, by the meaning of the output.
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_var": lambda output: output / 2,
    "log_std": lambda output: output,
    "std": torch.log,
    "var": lambda output: output.log() / 2,
}


def is_distribution(value: Any) -> bool:
    """Whether a value is a distribution of torch or of Pyro."""
    return isinstance(value, torch.distributions.Distribution | Distribution)


def describe(value: Any) -> str:
    """Describe the output of a callable for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(describe, value))})"
    if is_distribution(value):
        return f"a {type(value).__name__} of shape {total_shape(value)}"
    return f"a {type(value).__name__}"


def read_pair(name: str, output: Any, argument: str, kind: str | None) -> tuple[Tensor, Tensor]:
    """Return the mean and log σ of a network that returns a mean and a scale.

    Arguments:
        name: the callable, for messages.
        output: its output.
        argument: the argument that states the meaning of the second tensor, for messages.
        kind: its value, one of :data:`SCALES`.

    Raises:
        ValueError: if the output is not a pair of tensors of one shape, or ``kind`` is not known.
    """
    if (
        not isinstance(output, tuple | list)
        or len(output) != 2
        or not all(isinstance(part, Tensor) for part in output)
    ):
        hint = ", e.g. by .chunk(2, 1)" if isinstance(output, Tensor) else ""
        raise ValueError(
            f"expected {name} to return a mean and a scale (two tensors), or a distribution; got "
            f"{describe(output)}: wrap it in a function that returns one of these{hint}"
        )
    mean, scale = output
    if mean.shape != scale.shape:
        raise ValueError(
            f"expected {name} to return a mean and a scale of one shape; got {tuple(mean.shape)} "
            f"and {tuple(scale.shape)}: expand the second, or return a distribution"
        )
    if kind is None:
        raise ValueError(
            f"expected {argument} to state what the second tensor of {name} is, one of "
            f"{', '.join(SCALES)}; got None, and its values do not tell: e.g. {argument}='log_var'"
        )
    check_choice(argument, kind, [*SCALES])
    return mean, SCALES[kind](scale)


class CallableEncoder(CallableModule):
    """An encoder that returns a mean and a scale, as a network ``(B, *event)`` to ``(B, 2, D)``.

    Arguments:
        function: maps ``(B, *event_shape)`` to the two tensors.
        scale: the meaning of the second, one of :data:`SCALES`.
        like: a tensor of the dtype of the data, on their device.
    """

    def __init__(self, function: Callable[..., Any], scale: str | None, like: Tensor) -> None:
        super().__init__(function, like)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        mean, log_std = read_pair("encode", self.function(x), "scale", self.scale)
        return torch.stack([mean.flatten(1), log_std.flatten(1)], 1)


class CallableDecoder(CallableModule):
    """A decoder as a network ``(B, D)`` to ``(B, *out_shape)``.

    Arguments:
        function: maps ``(B, *latent_shape)`` to its outputs.
        latent_shape: the shape of one latent.
        event_shape: the shape of one example.
        transform: maps the outputs to one tensor of the shape of the data for each row of
            ``out_shape``; ``None`` for outputs in this shape already.
        like: a tensor of the dtype of the data, on their device.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        latent_shape: Shape,
        event_shape: Shape,
        transform: Callable[[Any], Sequence[Tensor]] | None,
        like: Tensor,
    ) -> None:
        super().__init__(function, like)
        self.latent_shape, self.event_shape = latent_shape, event_shape
        self.transform = transform

    def forward(self, z: Tensor) -> Tensor:
        outputs = self.function(z.reshape(-1, *self.latent_shape))
        if self.transform is None:
            return outputs
        rows = self.transform(outputs)
        for row in rows:
            check_output_shape(tuple(row.shape), (len(z), *self.event_shape))
        return torch.stack([row.reshape(len(z), -1) for row in rows], 1)


def check_output_shape(got: Shape, expected: Shape) -> None:
    """Raise unless an output has the shape of the data, or is flat where these are not."""
    flat = len(got) == 2 or len(expected) == 2
    if got == expected or (flat and got[:1] == expected[:1] and _size(got) == _size(expected)):
        return
    raise ValueError(
        f"expected decode to return the shape of the data, {expected}, or flat vectors of as many "
        f"elements; got {got}: reshape or permute its output to that of the data"
    )


def _size(shape: Shape) -> int:
    return torch.Size(shape).numel()


class GivenPosterior(Posterior):
    """q(z|x), a distribution that an encoder returns.

    Arguments:
        function: maps ``(B, *event_shape)`` to a distribution over ``(B, *latent_shape)``.
        scores_any_value: whether it has a density at any z.
    """

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        function: Callable[..., Any],
        scores_any_value: bool,
    ) -> None:
        super().__init__(event_shape, latent_dim, lambda *_: nn.Identity())
        self.encoder = CallableModule(function)
        self.scores_any_value = scores_any_value

    #: Whether x may be NaN (unobserved); set by the ``check`` of the program.
    expects_missing: bool = False

    def forward(self, x: Tensor) -> Distribution:
        if self.expects_missing:
            x = torch.where(x.isnan(), 0.0, x)
        batch = tuple(x.shape[: x.ndim - len(self.event_shape)])
        fn = self.encoder.function(x.reshape(-1, *self.event_shape))
        return as_event(fn, batch, (self.latent_dim,))


class GivenLikelihood(Likelihood):
    """p(x|z), a distribution that a decoder returns, or that a function makes of its output.

    Arguments:
        function: maps ``(B, *latent_shape)`` to a distribution over ``(B, *event_shape)``.
        latent_shape: the shape of one latent.
        is_discrete: whether the distribution has probabilities rather than a density.
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        function: Callable[..., Any],
        latent_shape: Shape,
        is_discrete: bool,
    ) -> None:
        super().__init__(latent_dim, event_shape, lambda *_: nn.Identity())
        self.decoder = CallableModule(function)
        self.latent_shape, self.is_discrete = latent_shape, is_discrete

    def forward(self, z: Tensor) -> Distribution:
        fn = self.decoder.function(z.reshape(-1, *self.latent_shape))
        return as_event(fn, tuple(z.shape[:-1]), self.event_shape)

    @property
    def has_code_length(self) -> bool:
        return self.is_discrete

    @torch.no_grad()
    def check(self, x: Tensor) -> None:
        if x.isinf().any():
            raise ValueError(f"expected finite values; got {int(x.isinf().sum())} infinite")
        device = next(self.parameters(), x).device
        fn: Any = self.forward(torch.zeros(1, self.latent_dim, dtype=x.dtype, device=device))
        try:
            support = fn.support
        except NotImplementedError:  # a distribution without a support
            return
        base = support
        while isinstance(base, constraints.independent):
            base = base.base_constraint
        if any(isinstance(bound, Tensor) for bound in vars(base).values()):
            return  # another z may have another support
        inside = support.check(x.to(device))
        if not inside.all():
            raise ValueError(
                f"expected data in the support of the likelihood, {_name(fn)}; got "
                f"{int((~inside).sum())} of {len(x)} examples with values outside, between "
                f"{x.min():.4g} and {x.max():.4g}: transform or binarise the data as for the "
                f"training of the model, or choose a likelihood of such values"
            )


def _name(fn: Any) -> str:
    while True:
        inner = getattr(fn, "base_dist", None) or getattr(fn, "base", None)
        if inner is None:
            return type(fn).__name__
        fn = inner


class GivenPrior(Prior):
    """p(z), a distribution, or what a module or function without arguments returns.

    Arguments:
        source: the distribution, or the callable.
        latent_shape: the shape of one latent.

    Raises:
        ValueError: if it is over latents of another shape.
    """

    source: Any

    def __init__(self, latent_dim: int, source: Any, latent_shape: Shape) -> None:
        super().__init__(latent_dim)
        self.source = source if is_distribution(source) else CallableModule(source)
        fn = self._distribution()
        if not is_distribution(fn):
            raise ValueError(
                f"expected prior to be a distribution, a class of pv.priors, or to return a "
                f"distribution; got {describe(fn)}: return p(z)"
            )
        if total_shape(fn) != latent_shape:
            raise ValueError(
                f"expected a prior over latents of shape {latent_shape}, like those of encode; got "
                f"{total_shape(fn)}: expand it, or change one of them"
            )

    def _distribution(self) -> Any:
        is_callable = isinstance(self.source, CallableModule)
        return self.source.function() if is_callable else self.source

    def forward(self) -> Distribution:
        return as_event(self._distribution(), None, (self.latent_dim,))
