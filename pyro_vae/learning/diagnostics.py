"""Diagnose NaN and infinite losses, gradients and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..programs.base import sample_sites, trace_program

__all__ = [
    "NonFiniteLossError",
    "check_epoch",
    "find_non_finite_parameter",
    "make_checked_loss_and_grads",
]


class NonFiniteLossError(RuntimeError):
    """The loss, its gradient or a weight became NaN or infinite.

    Non-finite losses and gradients are detected before the weights are updated.

    Attributes:
        what: the quantity that is not finite.
        site: the first sample site whose log-probability is not finite, or the first parameter
            that is not finite or has a non-finite gradient.
    """

    def __init__(
        self, what: str, site: str, cause: str, where: str = "", remedy: str | None = None
    ) -> None:
        super().__init__(what, site, cause, where, remedy)
        self.what, self.site, self.cause, self.where = what, site, cause, where
        self.remedy = remedy or _REMEDY

    def __str__(self) -> str:
        return f"{self.what}{self.where}: {self.cause}; {self.remedy}"


_REMEDY = (
    "try a lower learning rate, gradient clipping (clip_norm), or a scale bounded away from zero"
)


def make_checked_loss_and_grads(objective: Any, module: nn.Module) -> Callable[..., float]:
    """Wrap ``objective.loss_and_grads`` to raise if the loss or a gradient is not finite."""

    def loss_and_grads(model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        state = torch.get_rng_state()
        loss = objective.loss_and_grads(model, guide, *args, **kwargs)
        if not math.isfinite(loss):
            torch.set_rng_state(state)  # repeat the same samples, to check each site
            cause = _diagnose(model, guide, args, kwargs)
            raise NonFiniteLossError(f"the loss became {loss}", *cause)
        _check_gradients(module, args)
        return loss

    return loss_and_grads


def check_epoch(module: nn.Module, epoch: int, valid_elbo: float) -> None:
    """Raise a ``NonFiniteLossError`` if a parameter or the validation ELBO is not finite."""
    where = f" at the end of epoch {epoch}"
    name = find_non_finite_parameter(module)
    if name is not None:
        cause = f"parameter '{name}' is not finite after the last update"
        raise NonFiniteLossError("the weights overflowed", name, cause, where)
    if math.isnan(valid_elbo):
        cause = "the log weights of a validation example are NaN"
        raise NonFiniteLossError("the validation ELBO became NaN", "", cause, where)


def find_non_finite_parameter(module: nn.Module) -> str | None:
    """Return the name of the first parameter that is not finite, e.g. after too large a step."""
    return next((n for n, p in module.named_parameters() if not p.isfinite().all()), None)


def _check_gradients(module: nn.Module, args: tuple) -> None:
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    # check the total norm first: one device synchronisation instead of one per gradient
    if not get_total_norm(list(gradients.values())).isfinite():
        largest = {name: float(g.abs().max()) for name, g in gradients.items()}
        bad = [name for name, size in largest.items() if not math.isfinite(size)]
        if bad:
            cause = f"that of parameter '{bad[0]}' is NaN or infinite, but the loss is finite"
            remedy = None
            if any(isinstance(arg, Tensor) and arg.isnan().any() for arg in args):
                cause += ", and the data contain NaN, whose gradient is NaN even where it is masked"
                remedy = "replace NaN by a value in the support (x.nan_to_num()), and keep the mask"
            raise NonFiniteLossError("the gradient is not finite", bad[0], cause, remedy=remedy)
        name = max(largest, key=lambda name: largest[name])
        cause = f"that of parameter '{name}' is up to {largest[name]:.1e}, whose square overflows"
        raise NonFiniteLossError("the gradient has no finite norm", name, cause)


@torch.no_grad()
def _diagnose(model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[str, str]:
    with poutine.block(), pyro.validation_enabled(False):
        guide_sites, model_sites = trace_program(model, guide, args, kwargs)
    for name, site in (*guide_sites.items(), *model_sites.items()):
        if site["type"] == "param" and not site["value"].isfinite().all():
            return name, f"parameter '{name}' is not finite after the previous update"
    for program, sites in (("guide", guide_sites), ("model", model_sites)):
        for name, site in sample_sites(sites).items():
            log_prob = site["fn"].log_prob(site["value"])
            bad = int((~log_prob.isfinite()).sum())
            if bad:
                family = type(getattr(site["fn"], "base_dist", site["fn"])).__name__
                cause = (
                    f"the log-probability of site '{name}' ({family}) of the {program} is not "
                    f"finite for {bad} of {log_prob.numel()} values"
                )
                return name, cause
    return "", "the log-probability of every site is finite, but their sum or a KL overflowed"
