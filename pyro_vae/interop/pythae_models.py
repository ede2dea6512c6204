"""Programs from the models of pythae, a library of autoencoders.

References:
    Pythae: Unifying Generative Autoencoders in Python (Chadebec et al., 2022).
    https://arxiv.org/abs/2206.08309
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor, nn

from ..core.components import Shape
from ..data.splits import Split, as_data, materialize
from ..models import VAE
from .modules import from_modules
from .pythae_flows import InverseAutoregressiveFlow, PlanarFlow, RadialFlow, check_invertible

__all__ = ["from_pythae"]

_CROSS_ENTROPY = (
    "reconstruction_loss 'bce' of other values is a cross entropy and no log-likelihood: binarise "
    "the data (data.binarize, or x.bernoulli()), or train with a likelihood of such values"
)
#: Models with q(z|x) = N(μ(x), diag σ²(x)) and p(z) = N(0, I), whatever loss trained them.
_PLAIN = (
    *("VAE", "BetaVAE", "DisentangledBetaVAE", "FactorVAE", "BetaTCVAE", "INFOVAE_MMD"),
    *("IWAE", "MIWAE", "PIWAE", "CIWAE", "Adversarial_AE"),
)
_SUPPORTED = (*_PLAIN, "VAE_LinNF", "VAE_IAF", "VAMP")

_DETERMINISTIC = "its encoder returns a point, so that it has no q(z|x)"
#: Why the other models are refused.
_REASONS = {
    "AE": _DETERMINISTIC,
    "RAE_L2": _DETERMINISTIC,
    "RAE_GP": _DETERMINISTIC,
    "WAE_MMD": _DETERMINISTIC,
    "VQVAE": "its encoder returns the nearest code, so that it has no q(z|x)",
    "VAEGAN": "it compares features of a discriminator, so that it has no likelihood p(x|z)",
    "MSSSIM_VAE": "its loss is a similarity of images, so that it has no likelihood p(x|z)",
    "HVAE": "its q(z|x) has auxiliary momenta, which are not supported",
    "RHVAE": "its q(z|x) has auxiliary momenta, which are not supported",
    "SVAE": "its q(z|x) is a von Mises–Fisher distribution, which is not supported",
    "PoincareVAE": "its latents are points of a hyperbolic space, which is not supported",
}


def from_pythae(model: Any, data: Any = None) -> VAE:
    """Return the program of a trained model of pythae 0.1.2, which shares its weights.

    The likelihood is the one that its ``reconstruction_loss`` implies:

    * ``mse``, ½ ‖x − x̂‖²: normals with σ = 1. Its loss leaves out the constant ½ P log 2π of P
      values, so that the ELBO is −loss − ½ P log 2π;
    * ``bce``: Bernoulli distributions, for binary data. The cross entropy of grey values is no
      log-likelihood, so that such data are refused; binarise them.

    The ELBO of the program has β = 1 and no further penalty, whatever loss trained the model.
    pythae's ``IWAE`` models report −Σ_k w̃_k log w_k with normalised weights w̃, which has the
    gradient of the bound −L_K but is smaller by as much as log K.

    Arguments:
        model: a ``VAE``, ``BetaVAE``, ``DisentangledBetaVAE``, ``FactorVAE``, ``BetaTCVAE``,
            ``INFOVAE_MMD``, ``IWAE``, ``MIWAE``, ``PIWAE``, ``CIWAE``, ``VAE_LinNF``, ``VAE_IAF``,
            ``VAMP``, or an ``Adversarial_AE`` with a random encoder.
        data: examples ``(N, *event)``, see :func:`~pyro_vae.interop.from_modules`; needed if the
            configuration of the model has no ``input_dim``.

    Raises:
        ValueError: if the model is of another class, or has no likelihood or no q(z|x); if a
            planar flow of its posterior is not invertible; or if the likelihood has no density at
            the data.
    """
    name, config = _check_class(model), model.model_config
    if config.reconstruction_loss not in ("mse", "bce"):
        raise ValueError(
            f"expected reconstruction_loss to be 'mse' or 'bce'; got "
            f"{config.reconstruction_loss!r}, whose likelihood is not known"
        )
    if data is None and config.input_dim is None:
        raise ValueError(
            "expected data, because the configuration of the model has no input_dim; got None: "
            "pass some examples, data=x"
        )
    examples = None if data is None else as_data(data, "data")
    shape = config.input_dim if examples is None else _event_shape(examples)
    parameter = next(model.parameters())
    is_normal = config.reconstruction_loss == "mse"
    flow = _find_flow(name, model)
    if isinstance(flow, nn.ModuleList):
        check_invertible(flow)
    program = from_modules(
        _NormalEncoder(model.encoder) if flow is None else _FlowEncoder(model.encoder, flow),
        _Decoder(model.decoder),
        "gaussian" if is_normal else "bernoulli_probs",
        _PseudoInputPrior(model) if name == "VAMP" else None,
        # zeros have a density under both likelihoods
        data=parameter.new_zeros(2, *shape),
        scale="log_var" if flow is None else None,
        noise=1.0 if is_normal else None,
    )
    if not is_normal:
        program.likelihood.hint = _CROSS_ENTROPY  # type: ignore[misc]
    if examples is not None:
        first = examples[:100] if isinstance(examples, Tensor) else examples.head(100)
        program.check(materialize(first, 0, parameter.dtype).to(parameter.device))
    return program


def _event_shape(data: Split | Tensor) -> Shape:
    return tuple(data.shape[1:]) if isinstance(data, Tensor) else data.event_shape


def _check_class(model: Any) -> str:
    """Return the name of a model's class."""
    cls = type(model)
    names = [c.__name__ for c in cls.__mro__ if c.__module__.split(".")[0] == "pythae"]
    if not names:
        raise ValueError(
            f"expected a model of pythae; got a {cls.__name__}: pass its encoder and decoder to "
            f"pv.interop.from_modules"
        )
    if cls.__module__.split(".")[0] != "pythae":
        raise ValueError(
            f"expected a class of pythae; got {cls.__name__}, a subclass of {names[0]} that may "
            f"define another model: pass its encoder and decoder to pv.interop.from_modules"
        )
    name = cls.__name__
    if name == "Adversarial_AE" and model.model_config.deterministic_posterior:
        reason: str | None = _DETERMINISTIC
    else:
        reason = _REASONS.get(name)
    if reason:
        raise ValueError(
            f"expected a model with a likelihood p(x|z) and a posterior q(z|x), e.g. VAE; got "
            f"{name}, which cannot be evaluated: {reason}"
        )
    if name not in _SUPPORTED:
        raise ValueError(
            f"expected one of {', '.join(_SUPPORTED)}; got {name}: pass its encoder and decoder to "
            f"pv.interop.from_modules"
        )
    return name


def _find_flow(name: str, model: Any) -> nn.Module | None:
    if name == "VAE_IAF":
        return model.iaf_flow
    return model.net if name == "VAE_LinNF" else None


class _NormalEncoder(nn.Module):
    """The mean and log σ² of a diagonal normal."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encoder(x)
        return output.embedding, output.log_covariance


class _Decoder(nn.Module):
    """The reconstruction of a latent."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z).reconstruction


class _FlowEncoder(nn.Module):
    """q(z|x) of ``VAE_LinNF`` and ``VAE_IAF``: a diagonal normal that a flow transforms."""

    def __init__(self, encoder: nn.Module, flow: Any) -> None:
        super().__init__()
        self.encoder, self.flow = encoder, flow

    def forward(self, x: Tensor) -> Distribution:
        output = self.encoder(x)
        scale = (output.log_covariance / 2).exp()
        noise = dist.Normal(output.embedding, scale).to_event(1)
        return dist.TransformedDistribution(noise, self._transforms())

    def _transforms(self) -> list[Any]:
        if not isinstance(self.flow, nn.ModuleList):
            return [InverseAutoregressiveFlow(self.flow)]
        kinds: dict[Any, Any] = {"PlanarFlow": PlanarFlow, "RadialFlow": RadialFlow}
        return [kinds[layer.model_name](layer) for layer in self.flow]


class _PseudoInputPrior(nn.Module):
    """p(z) of ``VAMP``: the mean of q(z | u_c) over the model's pseudo-inputs u."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.pseudo_inputs = model.encoder, model.pseudo_inputs
        self.input_dim = tuple(model.model_config.input_dim)

    def forward(self) -> Distribution:
        parameter = next(self.pseudo_inputs.parameters())
        one_hot = torch.eye(parameter.shape[1], dtype=parameter.dtype, device=parameter.device)
        output = self.encoder(self.pseudo_inputs(one_hot).reshape(-1, *self.input_dim))
        scale = (output.log_covariance / 2).exp()
        weights = dist.Categorical(logits=torch.zeros_like(one_hot[0]))
        normals = dist.Normal(output.embedding, scale).to_event(1)
        return dist.MixtureSameFamily(weights, normals)
