"""Programs from the networks of any torch code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.components import Shape
from ..core.evaluation_mode import eval_mode
from ..core.random import Stream, seeded
from ..data.splits import Split, as_data, materialize
from ..likelihoods import Likelihood
from ..models import VAE
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from .given_distributions import as_event, total_shape
from .named_likelihoods import NAMES, SCALED, named_likelihood
from .owners import find_owners
from .parts import (
    CallableDecoder,
    CallableEncoder,
    GivenLikelihood,
    GivenPosterior,
    GivenPrior,
    check_output_shape,
    describe,
    is_distribution,
    read_pair,
)

__all__ = ["from_modules"]

#: Examples on which the callables run once, to find the shapes.
_NUM_EXAMPLES = 64
#: Examples for which the optimal noise is computed at once.
_BLOCK = 256


def from_modules(
    encode: Callable[..., Any],
    decode: Callable[..., Any],
    likelihood: str | Callable[..., Any] | None,
    prior: Any = None,
    *,
    data: Any = None,
    scale: str | None = None,
    noise: float | str | None = None,
) -> VAE:
    """Return the program of any encoder and decoder: z ~ p(z), x ~ p(x | decode(z)), q(z|x).

    The callables run on a batch, in evaluation mode, and keep their weights: nothing is copied.
    Modules that they are, belong to, or refer to (in a closure, or as a global name) are parts of
    the program, so that its mode, its device and its training include them. ::

        program = pv.interop.from_modules(
            net.encode, net.decode, "bernoulli_logits", scale="log_var", data=x_test
        )
        print(pv.evaluate(program, x_test))

    The latents of the program are vectors of length D. A latent of shape ``(4, 8, 8)`` is the
    vector of its elements, D = 256.

    Arguments:
        encode: maps data ``(B, *event)`` to the mean and the scale of a diagonal normal q(z|x), two
            tensors ``(B, *latent)``, or to a distribution over these.
        decode: maps latents ``(B, *latent)`` to the parameters of p(x|z), of the shape of the data
            or flat, or to a distribution over ``(B, *event)``.
        likelihood: the meaning of the output of ``decode``:

            * a name: ``bernoulli_logits``, ``bernoulli_probs``, ``gaussian`` or ``laplace`` (the
              mean, see ``noise``), ``poisson_log_rate``, ``poisson_rate``,
              ``continuous_bernoulli_logits``, ``continuous_bernoulli_probs``;
            * a function of the output that returns a distribution over ``(B, *event)``;
            * a class of :mod:`pyro_vae.likelihoods`, or a partial of one, for its outputs;
            * ``None`` if ``decode`` returns a distribution.
        prior: p(z): a distribution over ``latent``, a module or function without arguments that
            returns one, or a class of :mod:`pyro_vae.priors`; by default N(0, I). A distribution
            stays on its device; a module moves with the program.
        data: examples ``(N, *event)``, of any type that :func:`~pyro_vae.data.as_split` accepts.
            Both callables run once on some of them, to find and check the shapes.
        scale: what the second tensor of ``encode`` is: ``log_var`` (log σ²), ``log_std`` (log σ),
            ``std`` (σ) or ``var`` (σ²). Their values do not tell, so it is never guessed.
        noise: the scale of ``gaussian`` (σ) or ``laplace``: a number; ``optimal``, which is the
            maximum-likelihood value for ``data`` (for a normal σ² is the mean squared error, with
            one z ~ q(z|x) per example); or, if ``decode`` returns the mean and a scale, what its
            second tensor is, as for ``scale``.

    Returns:
        A :class:`~pyro_vae.VAE`, whose ``posterior``, ``likelihood`` and ``prior`` are the given
        parts.

    Raises:
        ValueError: if a callable fails on the data or returns another type or shape than stated,
            or if the likelihood has no density at the data.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013). https://arxiv.org/abs/1312.6114
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021), for the
        optimal noise. https://arxiv.org/abs/2006.13202
    """
    for name, value in (("encode", encode), ("decode", decode)):
        if not callable(value):
            raise ValueError(f"expected {name} to be a callable; got a {type(value).__name__}")
    if data is None:
        raise ValueError(
            "expected data, some examples on which encode and decode run once, to find the shapes; "
            "got None: pass data=x"
        )
    modules, parameters = find_owners(encode, decode, likelihood, prior)
    weights = [p for module in modules for p in module.parameters()] + parameters
    weights = [p for p in weights if p.is_floating_point()]
    examples = _read_examples(data, weights)
    x = examples.first
    with torch.no_grad(), eval_mode(*modules), seeded(0, Stream.GIVEN_MODEL):
        z, posterior, encoder = _inspect_encoder(encode, scale, x)
        output = _call("decode", decode, z)
        _check_output(likelihood, output)
        _check_deterministic("encode", encode, x)
        _check_deterministic("decode", decode, z)
        if noise == "optimal":
            noise = _find_optimal_noise(encode, decode, likelihood, scale, examples)
        made, decoder = _inspect_decoder(decode, likelihood, noise, output, z, x)
    latent_shape = tuple(z.shape[1:])
    program = VAE(
        tuple(x.shape[1:]),
        z[0].numel(),
        prior=_choose_prior(prior, latent_shape),
        likelihood=made,
        posterior=posterior,
        encoder=encoder,
        decoder=decoder,
    )
    # new buffers follow the weights; weights of several types keep them
    program.to(device=x.device)
    if all(p.dtype == x.dtype for p in weights):
        program.to(dtype=x.dtype)
    program.check(examples.observed)
    return program


class _Examples(NamedTuple):
    """Some examples, as they are and as the encoder reads them; and all examples in blocks."""

    observed: Tensor
    first: Tensor
    blocks: Callable[[], Iterator[Tensor]]


def _read_examples(data: Any, weights: list[Any]) -> _Examples:
    dtypes = {tensor.dtype for tensor in weights}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    read = as_data(data, "data")
    if not len(read):
        raise ValueError("expected data of at least one example; got none")
    if isinstance(read, Tensor) and dtype not in (None, read.dtype):
        raise ValueError(
            f"expected data of {dtype}, like the weights of the modules; got {read.dtype}: pass "
            f"data.to({dtype})"
        )

    def move(x: Tensor) -> Tensor:
        return x.to(weights[0].device) if weights else x

    def blocks() -> Iterator[Tensor]:
        if isinstance(read, Split):
            parts = (block for _, block in read.iter_materialized(0, dtype))
        else:
            parts = iter(read.split(_BLOCK))
        return map(move, parts)

    head = read[:_NUM_EXAMPLES] if isinstance(read, Tensor) else read.head(_NUM_EXAMPLES)
    observed = move(materialize(head, 0, dtype))
    return _Examples(observed, _fill_unobserved(observed), blocks)


def _fill_unobserved(x: Tensor) -> Tensor:
    """Replace NaN, an unobserved value, as the program does for encoders."""
    return torch.where(x.isnan(), 0.0, x) if x.is_floating_point() else x


def _call(name: str, function: Callable[..., Any], value: Tensor) -> Any:
    try:
        return function(value)
    except Exception as error:
        raise ValueError(
            f"expected {name} to accept a tensor of shape {tuple(value.shape)}; it failed with "
            f"{type(error).__name__}: {error}"
        ) from error


def _check_deterministic(name: str, function: Callable[..., Any], value: Tensor) -> None:
    """Raise if two calls on the same input have other outputs."""
    first, second = (_read_tensors(_call(name, function, value)) for _ in range(2))
    same = (torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(first, second, strict=True))
    if not all(same):
        raise ValueError(
            f"expected {name} to return the same for the same input, in evaluation mode; got other "
            f"values in a second call: let it return the parameters of a distribution, and not a "
            f"sample or a random prediction"
        )


def _read_tensors(output: Any) -> list[Tensor]:
    """Return the tensors of an output: of a distribution its parameters."""
    if is_distribution(output):
        output = [*vars(output).values()]
    parts = output if isinstance(output, tuple | list) else [output]
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]


def _inspect_encoder(
    encode: Callable[..., Any], scale: str | None, x: Tensor
) -> tuple[Tensor, Callable[..., Posterior], Any]:
    """Return z ~ q(z|x), the posterior and its network, for a VAE."""
    output = _call("encode", encode, x)
    if not is_distribution(output):
        mean, log_std = read_pair("encode", output, "scale", scale)
        _check_batch("encode", tuple(mean.shape), len(x))
        if not (mean.isfinite() & log_std.isfinite()).all():
            raise ValueError(
                f"expected encode to return a finite mean and a scale with a finite logarithm; got "
                f"scales from {output[1].min():.4g} to {output[1].max():.4g} for scale={scale!r}: "
                f"check that this is what the second tensor is"
            )
        return _draw(output, scale), DiagonalNormal, CallableEncoder(encode, scale, x)
    if scale is not None:
        raise ValueError(
            f"expected scale only if encode returns a mean and a scale; got {scale!r} and "
            f"{describe(output)}: leave it out"
        )
    shape = total_shape(output)
    _check_batch("encode", shape, len(x))
    fn = as_event(output, shape[:1], (torch.Size(shape[1:]).numel(),))
    scores_any_value = _scores_any_value(fn)

    def posterior(event_shape: Shape, latent_dim: int, _: Any) -> Posterior:
        return GivenPosterior(event_shape, latent_dim, encode, scores_any_value)

    return output.sample(), posterior, MLP


def _check_batch(name: str, shape: Shape, size: int) -> None:
    if len(shape) < 2 or shape[0] != size:
        raise ValueError(
            f"expected {name} to return one row for each of {size} examples, ({size}, …); got "
            f"shape {shape}: keep the batch as the first dimension"
        )


def _scores_any_value(fn: Any) -> bool:
    """Whether a distribution has a density at values other than its own samples."""
    try:
        # a copy is not in the cache of a flow
        fn.log_prob(fn.sample().clone())
    except (NotImplementedError, KeyError):
        return False
    return True


def _draw(output: Any, scale: str | None) -> Tensor:
    """Sample z ~ q(z|x), given the output of the encoder."""
    if is_distribution(output):
        return output.sample()
    mean, log_std = read_pair("encode", output, "scale", scale)
    return mean + log_std.exp() * torch.randn_like(mean)


def _check_output(likelihood: Any, output: Any) -> None:
    if is_distribution(output) != (likelihood is None):
        remedy = "leave likelihood None" if is_distribution(output) else f"name one of {_names()}"
        raise ValueError(
            f"expected either a likelihood or a decode that returns a distribution; got "
            f"{describe(output)} and likelihood {likelihood!r}: {remedy}, or pass a function of "
            f"the output"
        )


def _names() -> str:
    return ", ".join(NAMES)


def _find_optimal_noise(
    encode: Callable[..., Any],
    decode: Callable[..., Any],
    likelihood: Any,
    scale: str | None,
    examples: _Examples,
) -> float:
    """Return the scale that maximises E_q[log p(x|z)] over the data, (mean |x − μ|^p)^(1/p)."""
    if likelihood not in SCALED:
        raise ValueError(
            f"expected noise only for likelihood {' or '.join(SCALED)}; got it for {likelihood!r}"
        )
    _, power = SCALED[likelihood]
    total, count = 0.0, 0
    for x in examples.blocks():
        mean = _call("decode", decode, _draw(encode(_fill_unobserved(x)), scale))
        named_likelihood(likelihood, 1.0, mean, tuple(x.shape))
        errors = (x - mean.reshape(x.shape)).abs().double().pow(power)
        total += float(errors.nansum())
        count += int((~errors.isnan()).sum())
    if not 0 < total < math.inf:
        raise ValueError(
            f"expected reconstructions with a positive, finite error; got a total of {total}, for "
            f"which there is no optimal noise: state it as a number"
        )
    return (total / count) ** (1 / power)


def _inspect_decoder(
    decode: Callable[..., Any],
    likelihood: Any,
    noise: float | str | None,
    output: Any,
    z: Tensor,
    x: Tensor,
) -> tuple[Callable[..., Likelihood], Any]:
    """Return the likelihood and its network, for a VAE."""
    latent_shape, event_shape = tuple(z.shape[1:]), tuple(x.shape[1:])
    if isinstance(likelihood, str):
        named = named_likelihood(likelihood, noise, output, tuple(x.shape))
        return named.factory, CallableDecoder(decode, latent_shape, event_shape, named.rows, x)
    if noise is not None:
        raise ValueError(
            f"expected noise only for likelihood {' or '.join(SCALED)}; got noise={noise!r}: leave "
            f"it out, because the distribution has its own scale"
        )
    cls = likelihood.func if isinstance(likelihood, partial) else likelihood
    if isinstance(cls, type) and issubclass(cls, Likelihood):
        return likelihood, CallableDecoder(decode, latent_shape, event_shape, None, x)
    function = decode if likelihood is None else _Composition(likelihood, decode)
    fn = output if likelihood is None else _call("likelihood", likelihood, output)
    if not is_distribution(fn):
        raise ValueError(
            f"expected likelihood to return a distribution; got {describe(fn)}: return p(x|z), or "
            f"name one of {_names()}"
        )
    check_output_shape(total_shape(fn), tuple(x.shape))
    try:
        is_discrete = bool(fn.support.is_discrete)
    except NotImplementedError:  # a distribution without a support
        is_discrete = False

    def make(latent_dim: int, event_shape: Shape, _: Any) -> Likelihood:
        return GivenLikelihood(latent_dim, event_shape, function, latent_shape, is_discrete)

    return make, MLP


class _Composition:
    """The likelihood of a decoder's output."""

    def __init__(self, likelihood: Callable[..., Any], decode: Callable[..., Any]) -> None:
        self.likelihood, self.decode = likelihood, decode

    def __call__(self, z: Tensor) -> Any:
        return self.likelihood(self.decode(z))


def _choose_prior(prior: Any, latent_shape: Shape) -> Callable[[int], Prior]:
    if prior is None:
        return StandardNormal
    cls = prior.func if isinstance(prior, partial) else prior
    if isinstance(cls, type) and issubclass(cls, Prior):
        return prior
    if not is_distribution(prior) and not callable(prior):
        raise ValueError(
            f"expected prior to be a distribution, a callable that returns one or a class of "
            f"pv.priors; got {describe(prior)}"
        )
    return lambda latent_dim: GivenPrior(latent_dim, prior, latent_shape)
