"""Likelihoods by name: the meaning of a decoder's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import likelihoods
from ..core.validation import check_choice
from ..likelihoods import Likelihood
from .parts import SCALES, check_output_shape, describe, read_pair

__all__ = ["NAMES", "SCALED", "NamedLikelihood", "named_likelihood", "probs_to_logits"]

#: Lower bound of log probabilities, as in ``torch.nn.functional.binary_cross_entropy``.
_MIN_LOG_PROB = -100.0
#: Added to a decoded σ by our likelihoods; too small to change one.
_NO_MIN_SCALE = 1e-30


class NamedLikelihood(NamedTuple):
    """A likelihood and the outputs of a decoder that it takes.

    Attributes:
        factory: the class, or a partial of it.
        rows: maps the output of the decoder to the rows of the class's network, each of the shape
            of the data.
    """

    factory: Callable[..., Likelihood]
    rows: Callable[[Any], Sequence[Tensor]]


def probs_to_logits(probs: Tensor) -> Tensor:
    """Return log p / (1 − p), with both logarithms at least −100; NaN outside of [0, 1].

    With these logits, the log-probabilities of 0 and 1 are those of torch's binary cross entropy
    also where p is rounded to 0 or 1.
    """

    def log(p: Tensor) -> Tensor:
        # the inner where: the gradient of the logarithm at 0 would be NaN
        return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), -math.inf).clamp(_MIN_LOG_PROB)

    inside = (probs >= 0) & (probs <= 1)
    return torch.where(inside, log(probs) - log(1 - probs), math.nan)


#: Likelihoods of one output for each value: the class, its row as a function of the output, and
#: the interval of the outputs.
_SINGLE: dict[str, tuple[type[Likelihood], Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "bernoulli_logits": (likelihoods.Bernoulli, lambda out: out, (-math.inf, math.inf)),
    "bernoulli_probs": (likelihoods.Bernoulli, probs_to_logits, (0, 1)),
    "continuous_bernoulli_logits": (
        likelihoods.ContinuousBernoulli,
        lambda out: out,
        (-math.inf, math.inf),
    ),
    "continuous_bernoulli_probs": (likelihoods.ContinuousBernoulli, probs_to_logits, (0, 1)),
    "poisson_log_rate": (likelihoods.Poisson, lambda out: out, (-math.inf, math.inf)),
    "poisson_rate": (likelihoods.Poisson, torch.log, (0, math.inf)),
}
#: Likelihoods with a scale, and the power p of its optimum, (mean |x − μ|^p)^(1/p).
SCALED: dict[str, tuple[Callable[..., Likelihood], int]] = {
    "gaussian": (likelihoods.Gaussian, 2),
    "laplace": (likelihoods.Laplace, 1),
}
NAMES = (*_SINGLE, *SCALED)


def named_likelihood(
    name: str, noise: float | str | None, output: Any, shape: tuple[int, ...]
) -> NamedLikelihood:
    """Return a likelihood by name, after checking an output of the decoder.

    Arguments:
        name: one of :data:`NAMES`.
        noise: σ, or one of :data:`SCALES` if it is the second output; for those of :data:`SCALED`.
        output: an output of the decoder.
        shape: the shape of the data that it is an output for.

    Raises:
        ValueError: if the name is not known, if the noise is missing, superfluous or not positive,
            or if the output does not fit.
    """
    check_choice("likelihood", name, NAMES)
    if name in _SINGLE:
        if noise is not None:
            raise ValueError(
                f"expected noise only for likelihood {' or '.join(SCALED)}; got it for {name}: "
                f"leave it out"
            )
        factory, row, interval = _SINGLE[name]
        _check_tensor(name, output)
        _check_interval(name, output, *interval)
        made = NamedLikelihood(factory, lambda out: [row(out)])
    else:
        made = _scaled_likelihood(name, noise, output)
    for part in made.rows(output):
        check_output_shape(tuple(part.shape), shape)
    return made


def _scaled_likelihood(name: str, noise: float | str | None, output: Any) -> NamedLikelihood:
    factory, _ = SCALED[name]
    if isinstance(noise, str):
        check_choice("noise", noise, [*SCALES, "optimal"])
        read_pair("decode", output, "noise", noise)
        decoded = partial(factory, scale="decoded", min_scale=_NO_MIN_SCALE)
        return NamedLikelihood(decoded, lambda out: read_pair("decode", out, "noise", noise))
    if noise is None:
        raise ValueError(
            f"expected noise, the scale of the {name} likelihood, which a mean squared error does "
            f"not state; got None: pass noise=1.0 (for a loss of ½ ‖x − x̂‖²), noise='optimal' (the "
            f"most probable value for the data), or one of {', '.join(SCALES)} if decode returns "
            f"it as its second tensor"
        )
    if isinstance(noise, bool) or not 0 < noise < math.inf:
        raise ValueError(f"expected noise to be a positive number; got {noise!r}")
    _check_tensor(name, output)
    return NamedLikelihood(partial(factory, scale=float(noise)), lambda out: [out])


def _check_tensor(name: str, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"expected decode to return a tensor, for likelihood={name!r}; got {describe(output)}: "
            f"wrap it in a function that returns the tensor"
        )


def _check_interval(name: str, output: Tensor, low: float, high: float) -> None:
    if low == -math.inf or (low <= output.min() and output.max() <= high):
        return
    kind = name.rsplit("_", 1)[0]
    others = [other for other in _SINGLE if other.startswith(kind) and other != name]
    raise ValueError(
        f"expected decode to return values in [{low}, {high}], for likelihood={name!r}; got values "
        f"from {output.min():.4g} to {output.max():.4g}: use likelihood={others[0]!r} if they are "
        f"{others[0].removeprefix(kind + '_').replace('_', ' ')}s"
    )
