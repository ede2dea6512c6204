"""What the networks here have in common: batch dimensions, initial weights, the output bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.components import Shape

__all__ = ["Bias", "GatedLinear", "Init", "Network", "Norm", "OutputBias", "between", "several"]

#: How weights and biases start.
Init = Literal["torch", "glorot"] | float
#: What a hidden layer is normalised over.
Norm = Literal["layer", "batch"] | None
#: Where the output bias starts.
OutputBias = Literal["data"] | None


class Network(nn.Module):
    """The base of all networks here: ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``.

    A new network hands its layers to ``__init__``. Together they map ``(B, prod(in_shape))``
    to B outputs of any shape with as many numbers as ``out_shape``; the last has a ``bias``
    of one output's size if the output bias is ``"data"``. One whose data must be images says
    so by ``images_only``: the shapes do not, those of ``(2, latent_dim)`` outputs look like one.

    Arguments:
        in_shape: the shape of one input.
        out_shape: the shape of one output.
        layers: the layers, in order.
        init: ``"torch"`` leaves the layers as torch makes them; ``"glorot"`` draws weights
            from U(±√(6 / (fan_in + fan_out))), biases are zero; a number σ > 0 draws weights
            and biases from N(0, σ²), σ being the standard deviation. Norms stay as they are.
        output_bias: ``None`` leaves the output bias as ``init`` has it; ``"data"`` sets it
            before training such that p(x|z) has about the mean of the training data.
        standardize: subtract from inputs the mean of the training data and divide by their
            standard deviation, both over all numbers of all data, measured before training.

    Raises:
        ValueError: if ``init`` or ``output_bias`` is another; if called on an input whose
            trailing dimensions are not ``in_shape``, or, with batch norm, in training on
            fewer than two inputs.

    References:
        Understanding the difficulty of training deep feedforward neural networks (Glorot &
        Bengio, 2010), equation 16. https://proceedings.mlr.press/v9/glorot10a.html
    """

    images_only: ClassVar[bool] = False

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        layers: Sequence[nn.Module],
        init: Init = "torch",
        output_bias: OutputBias = None,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.layers = nn.Sequential(*layers)
        self.mixes = any(isinstance(module, _BatchNorm) for module in self.layers.modules())
        _initialise(self.layers, init)
        if output_bias not in (None, "data"):
            raise ValueError(f"expected output_bias to be 'data' or None; got {output_bias!r}")
        self.output_bias = output_bias
        if output_bias == "data":
            # saved with the weights: a model that was trained is not reset when it is read
            self.register_buffer("started", torch.tensor(False))
        self.standardize = standardize
        if standardize:
            # a scale of zero: not measured yet
            self.register_buffer("input_mean", torch.zeros(()))
            self.register_buffer("input_scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.in_shape)]
        if x.shape[len(batch) :] != self.in_shape:
            expected = ", ".join(map(str, ("…", *self.in_shape)))
            raise ValueError(f"expected an input of shape ({expected}); got {tuple(x.shape)}")
        if self.standardize:
            # not measured yet, inputs pass as they are
            scale = torch.where(self.input_scale > 0, self.input_scale, 1.0)
            x = (x - self.input_mean) / scale
        size = math.prod(batch)
        if self.mixes and self.training and size < 2:
            raise ValueError(
                f"batch norm needs statistics over a minibatch: expected at least 2 inputs in "
                f"training; got {size}: choose a batch_size that leaves no single datum over, or "
                f"norm 'layer'"
            )
        return self.layers(x.reshape(size, math.prod(self.in_shape))).reshape(
            *batch, *self.out_shape
        )

    @property
    def waits(self) -> str | None:
        """The option that still waits for training data: "output_bias", "standardize" or none."""
        if self.output_bias == "data" and not self.started:
            return "output_bias"
        return "standardize" if self.standardize and not self.input_scale > 0 else None

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Notes the mean and the standard deviation of data, once, if inputs are standardised.

        Arguments:
            x: the training data, ``(N, *in_shape)``.
        """
        if self.standardize and not self.input_scale > 0:
            scale, mean = torch.std_mean(x.double(), correction=0)
            self.input_mean = mean.to(self.input_mean)
            # constant data have no scale
            self.input_scale = torch.where(scale > 0, scale, 1.0).to(self.input_scale)

    @torch.no_grad()
    def start_at(self, outputs: Callable[[], Tensor]) -> None:
        """Sets the output bias to ``outputs()``, once in the network's life, if it is "data".

        The weights still add what they add: the smaller they start, the nearer is the output
        to the one given.

        Arguments:
            outputs: gives one output, of shape ``out_shape``; not called if there is no use.

        Raises:
            ValueError: if it gives another shape, or a number that is not finite.
        """
        if self.output_bias != "data" or self.started:
            return
        value = outputs()
        if value.shape != self.out_shape or not value.isfinite().all():
            finite = "finite " if value.shape == self.out_shape else ""
            raise ValueError(
                f"expected {finite}outputs of shape {self.out_shape} to start at; got "
                f"{'NaN or infinite ones' if finite else tuple(value.shape)}"
            )
        bias = cast(Tensor, self.layers[-1].bias)
        bias.copy_(value.reshape(bias.shape))
        self.started = torch.ones_like(self.started)


class Bias(nn.Module):
    """Adds one learned number to each output.

    Arguments:
        shape: the shape of one output.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class GatedLinear(nn.Linear):
    """Two matrices stacked to one, for ``nn.GLU`` to multiply A x · sigmoid(G x)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, 2 * width_out)


def between(
    shape: Shape, activation: Callable[[], nn.Module], norm: Norm, dropout: float
) -> list[nn.Module]:
    """What stands between two layers: norm, activation and dropout, of those asked for.

    A layer before batch norm has no bias, which the norm would take away again.

    Arguments:
        shape: what the first layer gives for one datum, ``(channels, …)``.
        activation: makes the nonlinearity.
        norm: ``"layer"`` normalises each datum by itself, over channels and pixels;
            ``"batch"`` each channel over the minibatch, and over pixels.
        dropout: the probability with which a number is left out in training.

    Raises:
        ValueError: if ``norm`` is another or has nothing to normalise over, or if ``dropout``
            is not in [0, 1).
    """
    number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    if not number or not 0 <= dropout < 1:
        raise ValueError(f"expected dropout in [0, 1); got {dropout!r}")
    return [
        *_normalised(shape, norm),
        activation(),
        *([nn.Dropout(dropout)] if dropout else []),
    ]


def several(name: str, what: str, values: Shape) -> Shape:
    """``values`` as a tuple if they are a list, else a ``ValueError`` that names the argument."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"expected {name} to be a list of {what}; got {values!r}")
    return tuple(values)


def _normalised(shape: Shape, norm: Norm) -> list[nn.Module]:
    if norm is None:
        return []
    channels, *pixels = shape
    if norm == "batch":
        return [nn.BatchNorm2d(channels) if pixels else nn.BatchNorm1d(channels)]
    if norm != "layer":
        raise ValueError(f"expected norm to be 'batch', 'layer' or None; got {norm!r}")
    if math.prod(shape) < 2:
        raise ValueError("norm 'layer' needs at least 2 numbers for each datum; got a layer of 1")
    return [nn.GroupNorm(1, channels)]  # of one group: the whole layer


@torch.no_grad()
def _initialise(layers: nn.Module, init: Init) -> None:
    sigma = float(init) if isinstance(init, int | float) and not isinstance(init, bool) else None
    if not (init in ("torch", "glorot") if sigma is None else 0 < sigma < math.inf):
        raise ValueError(
            f"expected init to be 'torch', 'glorot' or a standard deviation > 0; got {init!r}"
        )
    if init == "torch":
        return
    for layer in layers.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | Bias):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            if sigma is not None:
                nn.init.normal_(parameter, std=sigma)
            elif name == "bias":
                nn.init.zeros_(parameter)
            else:
                for matrix in parameter.chunk(2 if isinstance(layer, GatedLinear) else 1):
                    nn.init.xavier_uniform_(matrix)
