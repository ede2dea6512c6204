"""Normalising flows of the package zuko, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ..core.validation import did_you_mean

__all__ = ["ZukoNetwork", "ZukoTransform", "zuko_flow_names"]

#: Flows on angles in [−π, π), not on real numbers.
_CIRCULAR = ("NCSF",)
#: Flows that transform one half of the variables given the other half.
_COUPLING = ("NICE", "RealNVP")
#: Flows whose inverse is found by bisection in [−10, 10] only.
_BISECTED = ("GF", "NAF", "SOSPF", "UNAF")
#: Flows whose log|det| zuko computes by automatic differentiation with respect to x.
_DIFFERENTIATED = ("BPF", "GF", "NAF", "SOSPF")
#: Flows whose layers map all numbers to [−4.9, 4.9]: a density of several layers integrates to 0.6
#: to 1 in the direction from value to noise.
_SATURATED = ("GF",)
#: Maximum relative error of a bisected inverse; beyond the interval it is of order one.
_TOLERANCE = 1e-2


def _import_flows() -> Any:
    """Import ``zuko.flows``, and keep the validation of arguments, which zuko turns off."""
    validate = Distribution._validate_args
    try:
        import zuko.flows
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"flows by name need the package {error.name}: pip install pyro-vae[zuko]",
            name=error.name,
        ) from None
    finally:
        Distribution.set_default_validate_args(validate)
    return zuko.flows


def zuko_flow_names() -> list[str]:
    """Return the names of the flows on real vectors in ``zuko.flows``.

    Raises:
        ModuleNotFoundError: if zuko is not installed.
    """
    flows = _import_flows()
    return [
        name
        for name, flow in sorted(vars(flows).items())
        if inspect.isclass(flow)
        and issubclass(flow, flows.Flow)
        and flow is not flows.Flow
        and name not in _CIRCULAR
    ]


class ZukoNetwork(nn.Module):
    """A flow of ``zuko.flows``, y = f(x; context), with log|det ∂y/∂x|.

    Arguments:
        name: the name of the flow, in upper or lower case.
        features: number of variables D.
        context: size of the context; 0 for none.
        options: further arguments of the flow.

    Raises:
        ModuleNotFoundError: if zuko is not installed.
        ValueError: if there is no such flow, if it does not accept an option, or for a coupling
            flow of a single variable.
    """

    def __init__(
        self, name: str, features: int, context: int, options: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        names = zuko_flow_names()
        name = next((known for known in names if known.lower() == name.lower()), name)
        if name not in names:
            circular = " (flows on angles are not supported)" if name in _CIRCULAR else ""
            raise ValueError(
                f"expected flow to be {', '.join(names)} (of zuko.flows); got {name!r}"
                f"{circular}{did_you_mean(name, names)}"
            )
        if name in _COUPLING and features < 2:
            raise ValueError(
                f"expected latent_dim ≥ 2 for {name}, which splits the variables; got {features}: "
                f"use MAF or NSF"
            )
        try:
            flow = getattr(_import_flows(), name)(features, context, **(options or {}))
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"expected options that zuko.flows.{name} accepts; got {dict(options or {})} "
                f"({error})"
            ) from error
        self.name = name
        self.transform = flow.transform

    @property
    def is_bisected(self) -> bool:
        """Whether the inverse is found by bisection, and may fail far from 0."""
        return self.name in _BISECTED

    @property
    def saturates(self) -> bool:
        """Whether f(x) is bounded, so that not all noise has a value x = f⁻¹(noise)."""
        return self.name in _SATURATED

    def forward(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return f(x), or f⁻¹(x), and the log|det| of the Jacobian of that function.

        ``x`` is ``(*batch, D)``, the context ``(*batch, C)``, and the second result ``batch``.
        """
        if self.name in _DIFFERENTIATED and torch.is_grad_enabled() and not x.requires_grad:
            # zuko makes x require a gradient: not as a leaf, which would be a parameter of others
            parameter = next(self.parameters()).reshape(-1)[0]
            x = torch.where(torch.ones_like(x, dtype=torch.bool), x, parameter)
        transform = self.transform(context)
        transform = transform.inv if inverse else transform
        return transform.call_and_ladj(x)


class ZukoTransform(Transform):
    """The map from noise to value of a :class:`ZukoNetwork` f, as a transform with a cache.

    Arguments:
        network: the flow.
        context: the context, ``(*batch, C)``, or ``None``.
        samples_fast: whether the value is f(noise), or f⁻¹(noise). f takes one pass, and the
            inverse of an autoregressive flow D passes.
        dtype: the dtype of the computation; by default that of the parameters.

    Raises:
        ValueError: if noise has no inverse that zuko can find. A value without one has the density
            NaN.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        network: ZukoNetwork,
        context: Tensor | None,
        samples_fast: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(cache_size=1)
        self.network, self.context = network, context
        self.samples_fast, self.dtype = samples_fast, dtype
        self._log_det = torch.empty(0)

    def _evaluate(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        arguments = x, self.context, inverse
        if self.dtype is None:
            return self.network(*arguments)
        tensors = (*self.network.named_parameters(), *self.network.named_buffers())
        cast = {n: t.to(self.dtype) for n, t in tensors if t.is_floating_point()}
        return torch.func.functional_call(self.network, cast, arguments)

    def _invert(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return f⁻¹(y), its log|det|, and whether each element was found."""
        x, log_det = self._evaluate(y, inverse=True)
        if not self.network.is_bisected:
            return x, log_det, None
        with torch.no_grad():
            error = (self._evaluate(x, inverse=False)[0] - y).abs()
            return x, log_det, (error <= _TOLERANCE * (1 + y.abs())).all(-1)

    def _call(self, x: Tensor) -> Tensor:
        if self.samples_fast:
            y, self._log_det = self._evaluate(x, inverse=False)
            return y
        y, self._log_det, found = self._invert(x)
        if found is not None and not found.all():
            raise ValueError(
                f"expected samples of {self.network.name} in [-10, 10], where zuko inverts it; got "
                f"others for {int((~found).sum())} of {found.numel()} samples: use NSF or MAF"
            )
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        if not self.samples_fast:
            x, log_det = self._evaluate(y, inverse=False)
        else:
            x, log_det, found = self._invert(y)
            if found is not None:
                log_det = torch.where(found, log_det, torch.nan)
        self._log_det = -log_det
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._cached_x_y[0] is x and self._cached_x_y[1] is y:
            return self._log_det
        if self.samples_fast:
            return self._evaluate(x, inverse=False)[1]
        return -self._evaluate(y, inverse=False)[1]
