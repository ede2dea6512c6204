"""The parameters that a run depends on, and the prior of the model's own, for MAP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["leaves", "log_weight_prior"]


def leaves(results: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that tensors were computed from, by autograd's own account.

    Not by Pyro's parameter store, which may remember another module's of the same name.
    """
    results = list(results)
    found = {id(t): t for t in results if t.requires_grad and t.is_leaf}
    waiting: list[Any] = [t.grad_fn for t in results if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        after = {function for function, _ in node.next_functions if function is not None} - seen
        seen |= after
        waiting += after
    return list(found.values())


def log_weight_prior(modelled: Iterable[Tensor], guided: Iterable[Tensor]) -> Tensor:
    """log N(θ; 0, I), but for a constant, of the parameters θ that the model alone uses.

    Constrained ones count as the unconstrained numbers that are learned.

    Arguments:
        modelled: what the model computed of a run, its log-densities.
        guided: what the guide did, its draws and their log-densities.

    Raises:
        ValueError: if the guide uses all of the model's parameters.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5 and appendix F.
        https://arxiv.org/abs/1312.6114
    """
    shared = {id(leaf) for leaf in leaves(guided)}
    own = [leaf for leaf in leaves(modelled) if id(leaf) not in shared]
    if not own:
        raise ValueError(
            "expected parameters that the model uses and the guide does not; got none: leave "
            "map_weights out"
        )
    return -0.5 * torch.stack([leaf.square().sum() for leaf in own]).sum()
