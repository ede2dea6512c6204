"""Whether several processes can share the minibatches of a program."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import distributed
from ..core.random import seeded
from ..programs.base import PLATE, Program, Site, sample_sites, trace_program
from .batches import Batches
from .objectives import Objective

__all__ = ["check_decomposable"]


def check_decomposable(program: nn.Module, objective: Any, batches: Batches) -> None:
    """Refuses what is not the same learned from parts of a minibatch, whose gradients are summed.

    That is a loss that is no sum over the data: an objective that says so, and a program in
    which the data of a minibatch meet, or that counts something once for a minibatch whatever
    its size. Nothing is looked at where there is one process.

    Raises:
        ValueError: saying what it is.
    """
    if distributed.world_size() == 1:
        return
    _check_objective(objective)
    if any(isinstance(module, _BatchNorm) for module in program.modules()):
        raise ValueError(
            "expected no batch norm with several processes, which see parts of a minibatch and so "
            "other statistics; got some: use norm 'layer', or one process"
        )
    for args in batches.first():
        _check_program(program, args)


def _check_objective(objective: Any) -> None:
    name = type(objective).__name__
    if isinstance(objective, Objective):
        why = objective.not_decomposable_reason
    elif isinstance(objective, Trace_ELBO | TraceEnum_ELBO):
        why = None
    else:
        why = "nothing is known of its being a sum over the data"
    if why:
        raise ValueError(
            f"expected an objective that is a sum over the data, of which several processes can "
            f"take parts; got {name}, but {why}: use one process, or another objective"
        )


def _check_program(program: Any, args: tuple[Tensor, ...]) -> None:
    """Compares what a minibatch's sites weigh with those of the half of it."""
    size = len(args[0])
    half = -(-size // 2)
    before = {name: buffer.clone() for name, buffer in program.named_buffers()}
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False), pyro.poutine.block():
        whole, part = (_sites(program, tuple(t[:count] for t in args)) for count in (size, half))
    changed = [n for n, b in program.named_buffers() if not torch.equal(b, before[n])]
    for name, buffer in program.named_buffers():
        buffer.copy_(before[name])
    if changed:
        raise ValueError(
            f"expected a program whose data do not meet in training, so that several processes can "
            f"take parts of a minibatch; got {changed[0]!r}, which keeps what a minibatch is like "
            f"as a whole: set it otherwise, or use one process"
        )
    for key, site in whole.items():
        if key not in part:
            continue
        each = any(frame.name == PLATE for frame in site["cond_indep_stack"])
        expected = 1.0 if each else half / size
        ratio = torch.as_tensor(part[key]["scale"]) / torch.as_tensor(site["scale"])
        if not torch.allclose(ratio, torch.full_like(ratio, expected), rtol=1e-4):
            raise ValueError(
                f"expected sites in the plate {PLATE!r} that weigh the same in any minibatch, or "
                f"outside of it by the minibatch's share of the data, so that several processes "
                f"can take parts; got {key[1]!r}, which would be counted otherwise than by one: "
                f"use pyro.poutine.scale(scale=len(x) / num_data), or one process"
            )


def _sites(program: Program, args: tuple[Tensor, ...]) -> dict[tuple[int, str], Site]:
    """The sites of guide and model, each scored once: some look at the minibatch only then."""
    both = map(sample_sites, trace_program(program.model, program.guide, args, {}))
    found = {(i, name): site for i, sites in enumerate(both) for name, site in sites.items()}
    for site in found.values():
        site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return found
