"""Where a loss that is not finite came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine

from ..particles import samples, traces

__all__ = ["NonFiniteLossError", "guarded"]


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the weights are those before the failing update.

    Attributes:
        site: the first sample site whose value or log-probability is not finite, or the
            parameter that is not.
    """

    def __init__(self, loss: float, site: str, cause: str) -> None:
        super().__init__(loss, site, cause)
        self.loss, self.site, self.cause = loss, site, cause
        self.where = ""

    def __str__(self) -> str:
        return (
            f"the loss became {self.loss}{self.where}: {self.cause}; try a lower learning rate, "
            f"gradient clipping (clip_norm), or a scale bounded away from zero"
        )


def guarded(objective: Any) -> Callable[..., float]:
    """``objective.loss_and_grads`` that raises, before any weight is updated, if not finite."""

    def loss_and_grads(model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        state = torch.get_rng_state()
        loss = objective.loss_and_grads(model, guide, *args, **kwargs)
        if not math.isfinite(loss):
            torch.set_rng_state(state)  # the same draws again, looked at one by one
            raise NonFiniteLossError(loss, *_diagnose(model, guide, args, kwargs))
        return loss

    return loss_and_grads


@torch.no_grad()
def _diagnose(model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[str, str]:
    with poutine.block(), pyro.validation_enabled(False):
        guide_sites, model_sites = traces(model, guide, args, kwargs)
    for name, site in (*guide_sites.items(), *model_sites.items()):
        if site["type"] == "param" and not site["value"].isfinite().all():
            return name, f"parameter '{name}' is not finite since the update before"
    for program, sites in (("guide", guide_sites), ("model", model_sites)):
        for name, site in samples(sites).items():
            log_prob = site["fn"].log_prob(site["value"])
            bad = int((~log_prob.isfinite()).sum())
            if bad:
                family = type(getattr(site["fn"], "base_dist", site["fn"])).__name__
                what = (
                    f"the log-probability of site '{name}' ({family}) of the {program} is not "
                    f"finite for {bad} of {log_prob.numel()} data"
                )
                return name, what
    return "", "no single site is to blame: their sum, or a KL, overflowed"
