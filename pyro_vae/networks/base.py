"""Base class and helpers of the networks: batch dimensions, initialisation, output bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.components import Factory, Heads, Shape

__all__ = [
    "Bias",
    "GatedLinear",
    "Init",
    "Network",
    "Norm",
    "OutputBias",
    "add_mask",
    "norm_activation_dropout",
    "weight_matrices",
]

#: Initialisation of weights and biases.
Init = Literal["torch", "glorot"] | float
#: Normalisation of hidden layers.
Norm = Literal["layer", "batch"] | None
#: Initialisation of the output bias.
OutputBias = Literal["data"] | None
#: Layers with a weight matrix or a convolution kernel.
_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Network(nn.Module, metaclass=Factory):
    """Base class of networks mapping ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``.

    A subclass passes its layers to ``__init__``. Together they map ``(B, prod(in_shape))`` to B
    outputs with ``prod(out_shape)`` elements each, of any shape. With ``output_bias="data"``, the
    last layer must have a ``bias`` with one element per output element. A network that requires
    images sets ``images_only = True``, because shapes alone are ambiguous: outputs of shape
    ``(2, latent_dim)`` look like an image.

    Arguments:
        in_shape: the shape of one input.
        out_shape: the shape of one output.
        layers: the layers, in order.
        init: initialisation of the weights: ``torch`` for torch's defaults, ``glorot`` for weights
            from U(±√(6 / (fan_in + fan_out))) and zero biases, or the standard deviation of normal
            weights and biases. Normalisation layers keep their defaults. Heads (``out_shape`` is
            :class:`~pyro_vae.core.components.Heads`) are separate matrices.
        output_bias: ``data`` initialises the output bias such that the mean of p(x|z) is close to
            the mean of the training data; ``None`` as in ``init``.
        standardize: standardise the inputs by the mean and standard deviation of the training
            data (scalars over all elements), for encoders of integer levels or counts.
        mask: append the mask of unobserved inputs (NaN), 1 where unobserved, to the inputs: an
            image has further channels. Only for encoders. The layers then map twice as many
            inputs, see :func:`add_mask`.

    Unobserved inputs are replaced by 0, after standardisation, if ``mask`` or ``expects_missing``
    is set.

    Raises:
        ValueError: if ``init`` or ``output_bias`` is invalid; if the trailing dimensions of an
            input are not ``in_shape``; or, with batch norm, if a training batch has fewer than
            two inputs.

    References:
        Understanding the difficulty of training deep feedforward neural networks (Glorot &
        Bengio, 2010), equation 16. https://proceedings.mlr.press/v9/glorot10a.html
    """

    images_only: ClassVar[bool] = False
    #: Whether inputs may be NaN (unobserved). ``None`` for a network that does not read data, in
    #: which NaN is an error; the ``check`` of the program sets it for the others.
    expects_missing: bool | None = None

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        layers: Sequence[nn.Module],
        init: Init = "torch",
        output_bias: OutputBias = None,
        standardize: bool = False,
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.mask = mask
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.layers = nn.Sequential(*layers)
        self.has_batch_norm = any(isinstance(m, _BatchNorm) for m in self.layers.modules())
        _init_weights(self.layers, init, Heads.sizes_of(out_shape))
        if output_bias not in (None, "data"):
            raise ValueError(f"expected output_bias to be 'data' or None; got {output_bias!r}")
        self.output_bias = output_bias
        if output_bias == "data":
            # saved with the weights, so that loading a trained model does not reset its bias
            self.register_buffer("started", torch.tensor(False))
        self.standardize = standardize
        if standardize:
            # a scale of zero marks statistics that are not computed yet
            self.register_buffer("input_mean", torch.zeros(()))
            self.register_buffer("input_scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.in_shape)]
        if x.shape[len(batch) :] != self.in_shape:
            expected = ", ".join(map(str, ("…", *self.in_shape)))
            raise ValueError(f"expected an input of shape ({expected}); got {tuple(x.shape)}")
        missing = x.isnan() if self.mask or self.expects_missing else None
        if self.standardize:
            # without statistics, inputs are unchanged
            scale = torch.where(self.input_scale > 0, self.input_scale, 1.0)
            x = (x - self.input_mean) / scale
        if missing is not None:
            x = torch.where(missing, 0.0, x)
        size = math.prod(batch)
        if self.has_batch_norm and self.training and size < 2:
            raise ValueError(
                f"expected at least 2 inputs in training with batch norm; got {size}: choose a "
                f"batch_size whose last minibatch has more than one example, or norm 'layer'"
            )
        inputs = x.reshape(size, math.prod(self.in_shape))
        if self.mask and missing is not None:
            inputs = torch.cat([inputs, missing.reshape(inputs.shape).to(x.dtype)], -1)
        outputs = self.layers(inputs)
        return outputs.reshape(*batch, *self.out_shape)

    @property
    def uninitialized_option(self) -> str | None:
        """Option not yet initialised from data: ``"output_bias"``, ``"standardize"`` or None."""
        if self.output_bias == "data" and not self.started:
            return "output_bias"
        return "standardize" if self.standardize and not self.input_scale > 0 else None

    @torch.no_grad()
    def fit_standardization(self, x: Tensor) -> None:
        """Compute the mean and standard deviation of the inputs, if ``standardize`` is set.

        Only the first call, with the training data ``(N, *in_shape)``, has an effect.
        """
        if self.standardize and not self.input_scale > 0:
            scale, mean = torch.std_mean(x.double(), correction=0)
            self.input_mean = mean.to(self.input_mean)
            # constant data have scale zero
            self.input_scale = torch.where(scale > 0, scale, 1.0).to(self.input_scale)

    @torch.no_grad()
    def init_output_bias(self, outputs: Callable[[], Tensor]) -> None:
        """Set the output bias to ``outputs()``, if ``output_bias`` is ``"data"``.

        Only the first call has an effect. The weights still contribute to the output: the smaller
        they are, the closer the output is to ``outputs()``, which has shape ``out_shape``.

        Raises:
            ValueError: if the output has another shape or non-finite values.
        """
        if self.output_bias != "data" or self.started:
            return
        value = outputs()
        if value.shape != self.out_shape or not value.isfinite().all():
            finite = "finite " if value.shape == self.out_shape else ""
            raise ValueError(
                f"expected {finite}initial outputs of shape {self.out_shape}; got "
                f"{'NaN or infinite values' if finite else tuple(value.shape)}"
            )
        bias = cast(Tensor, self.layers[-1].bias)
        bias.copy_(value.reshape(bias.shape))
        self.started = torch.ones_like(self.started)


def add_mask(in_shape: Shape, mask: bool) -> Shape:
    """Return the shape of an input with its mask, if ``mask``: twice as many elements.

    The mask of an image ``(*channels, H, W)`` is as many further channels.
    """
    if not mask:
        return in_shape
    channels, pixels = in_shape[:-2], in_shape[-2:]
    return (2 * math.prod(channels), *pixels) if len(pixels) == 2 else (2 * math.prod(in_shape),)


class Bias(nn.Module):
    """Learned additive bias for each output element."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class GatedLinear(nn.Linear):
    """Stacked linear layers A and G, for ``nn.GLU`` to compute A x · sigmoid(G x)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, 2 * width_out)


def norm_activation_dropout(
    shape: Shape, activation: Callable[[], nn.Module], norm: Norm, dropout: float
) -> list[nn.Module]:
    """Return the layers between two linear layers: optional norm, activation, optional dropout.

    ``shape`` is that of one hidden output, ``(channels, …)``. Norm ``"layer"`` normalises each
    example over channels and pixels; ``"batch"`` each channel over the minibatch and pixels. A
    layer before batch norm needs no bias, because the norm subtracts the mean.

    Raises:
        ValueError: if ``norm`` is invalid or has fewer than two values to normalise over, or if
            ``dropout`` is not in [0, 1).
    """
    is_number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    if not is_number or not 0 <= dropout < 1:
        raise ValueError(f"expected dropout in [0, 1); got {dropout!r}")
    return [*_norm_layers(shape, norm), activation(), *([nn.Dropout(dropout)] if dropout else [])]


def _norm_layers(shape: Shape, norm: Norm) -> list[nn.Module]:
    if norm is None:
        return []
    channels, *pixels = shape
    if norm == "batch":
        return [nn.BatchNorm2d(channels) if pixels else nn.BatchNorm1d(channels)]
    if norm != "layer":
        raise ValueError(f"expected norm to be 'batch', 'layer' or None; got {norm!r}")
    if math.prod(shape) < 2:
        raise ValueError("expected at least 2 units per layer for norm 'layer'; got 1")
    return [nn.GroupNorm(1, channels)]  # one group: the whole layer


@torch.no_grad()
def _init_weights(layers: nn.Module, init: Init, heads: Sequence[int]) -> None:
    sigma = float(init) if isinstance(init, int | float) and not isinstance(init, bool) else None
    if not (init in ("torch", "glorot") if sigma is None else 0 < sigma < math.inf):
        raise ValueError(
            f"expected init to be 'torch', 'glorot' or a standard deviation > 0; got {init!r}"
        )
    if init == "torch":
        return
    if sigma is not None:
        for layer in layers.modules():
            if isinstance(layer, (*_WEIGHTED, Bias)):
                for parameter in layer.parameters(recurse=False):
                    nn.init.normal_(parameter, std=sigma)
        return
    for matrix in weight_matrices(layers, heads):
        nn.init.xavier_uniform_(matrix)
    for layer in layers.modules():
        if isinstance(layer, (*_WEIGHTED, Bias)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def weight_matrices(layers: nn.Module, heads: Sequence[int]) -> Iterator[Tensor]:
    """Yield every weight matrix; the gates and the output heads are matrices of their own.

    Arguments:
        layers: the layers of a network.
        heads: the number of output elements of each head.
    """
    weights = [layer for layer in layers.modules() if isinstance(layer, _WEIGHTED)]
    for layer in weights:
        dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # that of the outputs
        if isinstance(layer, GatedLinear):
            yield from layer.weight.chunk(2, dim)
            continue
        # of an image, the channels of each head
        outputs, total = layer.weight.shape[dim], sum(heads)
        if layer is weights[-1] and all(size * outputs % total == 0 for size in heads):
            yield from layer.weight.split([size * outputs // total for size in heads if size], dim)
        else:
            yield layer.weight
