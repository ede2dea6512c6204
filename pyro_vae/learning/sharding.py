"""Check that a program can be trained on several processes."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import distributed
from ..core.links import see
from ..core.random import seeded
from ..programs.base import PLATE, Program, Site, sample_sites, trace_program
from .batches import BatchLoader
from .objectives import Objective

__all__ = ["check_decomposable"]


def check_decomposable(program: nn.Module, objective: Any, batches: BatchLoader) -> None:
    """Raise if the loss is not a sum over the examples of a minibatch.

    Several processes train on shards of a minibatch and sum their gradients. This rules out
    objectives that are not decomposable, programs in which the examples of a minibatch interact,
    and terms that do not scale with the minibatch. With one process, everything is allowed.

    Raises:
        ValueError: naming the objective, module or site at fault.
    """
    if distributed.world_size() == 1:
        return
    reason: str | None = "it is not known to be a sum over examples"
    if isinstance(objective, Objective):
        reason = objective.not_decomposable_reason
    elif isinstance(objective, Trace_ELBO | TraceEnum_ELBO):
        reason = None
    if reason:
        raise ValueError(
            f"expected an objective that is a sum over examples, to train on several processes; "
            f"got {type(objective).__name__}, but {reason}: use one process, or another objective "
            f"({see('docs/how-to/distributed.md')})"
        )
    if any(isinstance(module, _BatchNorm) for module in program.modules()):
        raise ValueError(
            "expected no batch norm with several processes, because its statistics would be those "
            "of a shard of the minibatch; got some: use norm 'layer', or one process"
        )
    for args in batches.example_args():
        _check_program(program, args)


def _check_program(program: Any, args: tuple[Tensor, ...]) -> None:
    """Compare the scales of the sites for a minibatch and for half of it."""
    size = len(args[0])
    half = -(-size // 2)
    before = {name: buffer.clone() for name, buffer in program.named_buffers()}
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False), pyro.poutine.block():
        full, partial = (_run_sites(program, tuple(t[:n] for t in args)) for n in (size, half))
    changed = [n for n, b in program.named_buffers() if not torch.equal(b, before[n])]
    for name, buffer in program.named_buffers():
        buffer.copy_(before[name])
    if changed:
        raise ValueError(
            f"expected a program that treats examples independently, to train on several "
            f"processes; got {changed[0]!r}, which is updated from the whole minibatch: disable "
            f"it, or use one process"
        )
    for key, site in full.items():
        if key not in partial:
            continue
        in_plate = any(frame.name == PLATE for frame in site["cond_indep_stack"])
        expected = 1.0 if in_plate else half / size
        ratio = torch.as_tensor(partial[key]["scale"]) / torch.as_tensor(site["scale"])
        if not torch.allclose(ratio, torch.full_like(ratio, expected), rtol=1e-4):
            raise ValueError(
                f"expected sites whose scale is constant in the plate {PLATE!r} and proportional "
                f"to the minibatch outside of it, to train on several processes; got {key[1]!r}, "
                f"whose scale is not: use pyro.poutine.scale(scale=len(x) / num_data), or one "
                f"process"
            )


def _run_sites(program: Program, args: tuple[Tensor, ...]) -> dict[tuple[int, str], Site]:
    """Return the sites of guide and model, each scored once, because scoring may update buffers."""
    run = trace_program(program.model, program.guide, args, {}, sum_out=False)
    traces = map(sample_sites, run)
    sites = {(i, name): site for i, trace in enumerate(traces) for name, site in trace.items()}
    for site in sites.values():
        site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return sites
