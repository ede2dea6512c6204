"""Programs from the autoencoders of Hugging Face diffusers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..models import VAE
from .modules import from_modules

__all__ = ["from_diffusers"]


def from_diffusers(autoencoder: Any, *, noise: float | str, data: Any, prior: Any = None) -> VAE:
    """Return the program of an ``AutoencoderKL`` of diffusers, which shares its weights.

    q(z|x) is its ``latent_dist``, p(z) = N(0, I), as in the KL divergence of its training, and
    p(x|z) = N(decode(z), σ²). Latent diffusion models were trained with a perceptual and an
    adversarial loss, which no likelihood stands for, and with a KL divergence of tiny weight. σ is
    therefore yours to state, and the ELBO under N(0, I) is far below that of another prior, such
    as the diffusion model that was trained on these latents.

    Arguments:
        autoencoder: the ``AutoencoderKL``. Latents are those before its ``scaling_factor``.
        noise: σ, on the scale of the data (images in [−1, 1]); or ``optimal``, the
            maximum-likelihood value σ² = mean squared error for ``data``.
        data: images ``(N, C, H, W)``, as for :func:`~pyro_vae.interop.from_modules`.
        prior: p(z) over latents ``(C, H', W')``, as for :func:`~pyro_vae.interop.from_modules`.

    Raises:
        ValueError: if the model is not an ``AutoencoderKL``, or does not fit the data.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022).
        https://arxiv.org/abs/2112.10752
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021), for the
        optimal noise. https://arxiv.org/abs/2006.13202
    """
    cls = type(autoencoder)
    if cls.__name__ != "AutoencoderKL" or cls.__module__.split(".")[0] != "diffusers":
        raise ValueError(
            f"expected an AutoencoderKL of diffusers, whose encoder returns a normal; got a "
            f"{cls.__name__}: pass its encoder and decoder to pv.interop.from_modules, if it has a "
            f"distribution of latents"
        )
    if noise is None:
        raise ValueError(
            "expected noise, the σ of p(x|z), which the training of an AutoencoderKL does not "
            "state; got None: pass a number, or 'optimal' for the most probable one"
        )

    return from_modules(
        _Encoder(autoencoder),
        _Decoder(autoencoder),
        "gaussian",
        prior,
        data=data,
        scale="log_var",
        noise=noise,
    )


class _Encoder(nn.Module):
    """The mean and log σ² of the latents."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.autoencoder.encode(x).latent_dist
        return latents.mean, latents.logvar


class _Decoder(nn.Module):
    """The mean of the image."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(z).sample
