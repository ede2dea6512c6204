"""Likelihoods of real values, with a location and a scale per pixel."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import nn

from .. import distributions
from ..core.components import Heads, NetworkFactory, Shape
from .base import Likelihood, clamped_logit

__all__ = ["Gaussian", "Laplace", "LogNormal", "StudentT"]

#: Decoder output in units of log σ, for each scale that is decoded.
_DECODED: dict[object, int] = {"decoded": 1, "decoded_variance": 2}
#: Weight of a minibatch in the running average of the optimal scale, as in batch norm.
_MOMENTUM = 0.1


class LocationScale(Likelihood):
    """Base class of likelihoods with a location μ_i(z) and a scale σ_i.

    A subclass defines :meth:`pixel_distribution`.

    Arguments:
        scale: σ. A number fixes it; ``"learned"`` is one learned parameter for all pixels,
            ``"per_pixel"`` one per pixel. With ``"decoded"`` the decoder outputs log σ_i(z), with
            ``"decoded_variance"`` log σ_i(z)², as in AEVB: the same density, but the gradient of
            the output is half as large.
            ``"optimal"`` is one value for all pixels, without gradient descent: in training,
            the maximum-likelihood scale of the minibatch (for a normal, σ² is the mean of
            (x − μ)² over pixels, examples and particles); in evaluation, a constant from the
            running average over minibatches, so that p(x|z) is a density.
        mean: ``"identity"``, or ``"sigmoid"`` to restrict μ to (0, 1), as in AEVB for faces.
        min_scale: added to every σ that is not fixed; lower bound for ``"optimal"``. The density
            of a constant pixel is unbounded as σ → 0; this bounds it, for a normal by
            −log(√(2π) ``min_scale``) nats.

    Raises:
        ValueError: if a fixed ``scale`` or ``min_scale`` is not positive and finite, if ``mean``
            is invalid, or if ``scale`` is ``"optimal"`` and the optimal scale has no closed form.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021),
        section 3.2 ("optimal"). https://arxiv.org/abs/2006.13202
    """

    hint = "clean the data first"
    #: The optimal σ is (mean |x − μ|^power)^(1 / power); ``None`` without a closed form.
    power: ClassVar[int | None] = None

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        scale: float
        | Literal["learned", "per_pixel", "decoded", "decoded_variance", "optimal"] = "learned",
        mean: Literal["identity", "sigmoid"] = "identity",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(latent_dim, event_shape, network)
        if not 0 < min_scale < math.inf:
            raise ValueError(f"expected min_scale > 0 and finite; got {min_scale}")
        if mean not in _MEANS:
            raise ValueError(f"expected mean to be 'identity' or 'sigmoid'; got {mean!r}")
        rows = 2 if scale in _DECODED else 1
        self.network = network((latent_dim,), Heads((rows, *self.event_shape)))
        self.squash, self.unsquash = _MEANS[mean][0](), _MEANS[mean][1]
        self.min_scale = min_scale
        self.scale = scale
        self.log_scale: torch.Tensor | None = None
        if scale in ("learned", "per_pixel"):
            shape = self.event_shape if scale == "per_pixel" else ()
            self.log_scale = nn.Parameter(torch.zeros(shape))
        elif scale == "optimal":
            if self.power is None:
                raise ValueError(
                    f"{type(self).__name__} does not support scale 'optimal', because its optimal "
                    f"scale has no closed form: choose 'learned'"
                )
            self.register_buffer("average_moment", torch.ones(()))
            self.register_buffer("batches_averaged", torch.zeros((), dtype=torch.long))
        elif scale not in _DECODED:
            if isinstance(scale, str | bool) or not 0 < scale < math.inf:
                raise ValueError(
                    "expected scale to be a positive number, 'learned', 'per_pixel', 'decoded', "
                    f"'decoded_variance' or 'optimal'; got {scale!r}"
                )
            self.min_scale = 0.0
            del self.log_scale
            self.register_buffer("log_scale", torch.tensor(float(scale)).log(), persistent=False)

    def forward(self, z: torch.Tensor) -> Distribution:
        loc, *decoded = self.network(z).unbind(-1 - len(self.event_shape))
        loc = self.squash(loc)
        if self.scale == "optimal":
            fn = self.pixel_distribution(loc, self._scale_from_moment(self.average_moment))
            fn = distributions.OptimalScale(fn, self._optimal_scale) if self.training else fn
        else:
            if self.log_scale is not None:
                log_scale = self.log_scale
            else:
                log_scale = decoded[0] / _DECODED[self.scale]
            fn = self.pixel_distribution(loc, self.min_scale + log_scale.exp())
        return fn.to_event(len(self.event_shape))

    @abstractmethod
    def pixel_distribution(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        """Return the distribution of single pixels, of batch shape ``(*batch, *event_shape)``."""

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        rows = [self.unsquash(x.mean(0))]
        if self.scale in _DECODED:
            log_scale = x.std(0, correction=0).clamp(min=self.min_scale).log()
            rows.append(_DECODED[self.scale] * log_scale)
        return torch.stack(rows)

    # Detached: at the optimal σ the derivative of the likelihood with respect to σ is zero, so
    # the gradient for μ is that of −N D / power · log(mean |x − μ|^power) (envelope theorem).
    @torch.no_grad()
    def _optimal_scale(self, residual: torch.Tensor) -> torch.Tensor:
        assert self.power is not None
        moments = residual.abs().pow(self.power)
        # the residual of an unobserved value is NaN
        moment = moments.nanmean() if self.expects_missing else moments.mean()
        weight = torch.where(self.batches_averaged == 0, 1.0, _MOMENTUM).to(moment)
        self.average_moment.lerp_(moment, weight)
        self.batches_averaged.add_(1)
        return self._scale_from_moment(moment)

    def _scale_from_moment(self, moment: torch.Tensor) -> torch.Tensor:
        assert self.power is not None
        return moment.pow(1 / self.power).clamp(min=self.min_scale)


class Gaussian(LocationScale):
    """p(x|z) = Π_i N(x_i; μ_i(z), σ_i²), for real data; σ fixed, learned, decoded or optimal.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix C.2; Simple and
        Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021).
        https://arxiv.org/abs/1312.6114 https://arxiv.org/abs/2006.13202
    """

    power = 2

    def pixel_distribution(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        return dist.Normal(loc, scale)


class Laplace(LocationScale):
    """p(x|z) = Π_i Laplace(x_i; μ_i(z), σ_i), for real data: the L1 loss as a likelihood.

    References:
        Regression Quantiles (Koenker & Bassett, 1978), for the median.
        https://doi.org/10.2307/1913643
    """

    power = 1

    def pixel_distribution(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        return dist.Laplace(loc, scale)


class LogNormal(LocationScale):
    """p(x|z) = Π_i LogNormal(x_i; μ_i(z), σ_i), for positive data: log x_i is N(μ_i(z), σ_i²).

    Arguments:
        scale: σ of log x, a number, or one of ``"learned"``, ``"per_pixel"``, ``"decoded"`` and
            ``"decoded_variance"``, as for :class:`Gaussian`.
        min_scale: added to every σ that is not fixed.

    Raises:
        ValueError: if a scale is not positive and finite.

    References:
        Handling Incomplete Heterogeneous Data using VAEs (Nazábal et al., 2018), section 3.
        https://arxiv.org/abs/1807.03653
    """

    hint = "use Gaussian for data that may be zero or negative"
    placeholder = 1.0

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        scale: float | Literal["learned", "per_pixel", "decoded", "decoded_variance"] = "learned",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(latent_dim, event_shape, network, scale, "identity", min_scale)

    def pixel_distribution(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        return distributions.LogNormal(loc, scale)

    def initial_outputs(self, x: torch.Tensor) -> torch.Tensor:
        # E[x] = exp(μ + σ²/2)
        if self.log_scale is None:
            scale = x.log().std(0, correction=0).clamp(min=self.min_scale)
            log_scale = _DECODED[self.scale] * scale.log()
            return torch.stack([x.mean(0).log() - scale.square() / 2, log_scale])
        scale = self.min_scale + self.log_scale.detach().exp()
        return (x.mean(0).log() - scale.square() / 2).unsqueeze(0)

    def check(self, x: torch.Tensor) -> None:
        super().check(x)
        if x.min() <= 0:
            raise ValueError(f"LogNormal scores only x > 0; got {float(x.min()):.4g}: {self.hint}")


class StudentT(LocationScale):
    """p(x|z) = Π_i t_ν(x_i; μ_i(z), σ_i), for real data with outliers.

    Arguments:
        df: ν, the degrees of freedom; above 1, so that the mean exists.
        scale: σ, a number, or one of ``"learned"``, ``"per_pixel"``, ``"decoded"`` and
            ``"decoded_variance"``, as for :class:`Gaussian`.
        mean: ``"identity"`` or ``"sigmoid"``.
        min_scale: added to every σ that is not fixed.

    Raises:
        ValueError: if ``df`` is not above 1 and finite, if a scale is not positive and finite,
            or if ``mean`` is invalid.

    References:
        Student-t Variational Autoencoder for Robust Density Estimation (Takahashi et al.,
        2018). https://www.ijcai.org/proceedings/2018/374
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        df: float = 5.0,
        scale: float | Literal["learned", "per_pixel", "decoded", "decoded_variance"] = "learned",
        mean: Literal["identity", "sigmoid"] = "identity",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(latent_dim, event_shape, network, scale, mean, min_scale)
        if not 1 < df < math.inf:
            raise ValueError(f"expected df > 1 and finite; got {df}: use Gaussian for df → ∞")
        self.df = df

    def pixel_distribution(self, loc: torch.Tensor, scale: torch.Tensor) -> Distribution:
        return distributions.StudentT(self.df, loc, scale)


#: Map from decoder output to μ, and its inverse.
_MEANS = {"identity": (nn.Identity, torch.clone), "sigmoid": (nn.Sigmoid, clamped_logit)}
