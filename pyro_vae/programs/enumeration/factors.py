"""Sums of products of factors over discrete variables, and products over plates.

References:
    Tensor Variable Elimination for Plated Factor Graphs (Obermeyer et al., 2019).
    https://arxiv.org/abs/1902.03210
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factor", "sum_product"]


@dataclass(frozen=True)
class Factor:
    """A term of a log-density.

    Attributes:
        dims: the symbol of each dimension: of a plate or of an enumerated site.
        value: the term, in nats.
        plates: the plates of its site, other than those that are kept.
    """

    dims: str
    value: Tensor
    plates: frozenset[str]

    def count(self, symbols: Collection[str]) -> int:
        """Return the number of joint values along the given dimensions."""
        count = 1
        for dim, size in zip(self.dims, self.value.shape, strict=True):
            count *= size if dim in symbols else 1
        return count

    def align(self, dims: str) -> Tensor:
        """Return the term with the given dimensions, of size 1 if it does not have them."""
        own = [dim for dim in dims if dim in self.dims]
        value = self.value.permute([self.dims.index(dim) for dim in own])
        return value[tuple(slice(None) if dim in own else None for dim in dims)]

    def sum_plates(self, plates: frozenset[str], sizes: Mapping[str, int]) -> Factor:
        """Multiply the densities along some plates."""
        value, dims = self.value, self.dims
        for plate in sorted(plates):
            if plate in dims:
                value, dims = value.sum(dims.index(plate)), dims.replace(plate, "")
            else:
                value = value * sizes[plate]
        return Factor(dims, value, self.plates - plates)


def _multiply(factors: Sequence[Factor]) -> Factor:
    dims = "".join(sorted(set().union(*(factor.dims for factor in factors))))
    value = functools.reduce(torch.add, [factor.align(dims) for factor in factors])
    return Factor(dims, value, frozenset().union(*(factor.plates for factor in factors)))


def sum_product(
    factors: Sequence[Factor],
    variables: set[str],
    sizes: Mapping[str, int],
    steps: list[tuple[str, Factor]] | None = None,
) -> Factor:
    """Sum a product of factors over variables, and multiply it over plates.

    Unlike ``pyro.ops.contract``, which adds products of densities, all sums are those of
    ``logsumexp``: a product of densities may be too small for a float.

    Arguments:
        factors: the factors.
        variables: the symbols to sum over.
        sizes: the sizes of the plates.
        steps: gets each variable with the product of all factors that depend on it, in the order
            of the elimination.

    Raises:
        ValueError: if a factor depends on variables of plates that are not nested.
    """
    factors = list(factors)
    ordinals = {
        v: frozenset.intersection(*(f.plates for f in factors if v in f.dims))
        for v in variables
        if any(v in f.dims for f in factors)
    }
    while True:
        leaf = max((f.plates for f in factors), key=lambda plates: (len(plates), sorted(plates)))
        local = [f for f in factors if f.plates == leaf]
        factors = [f for f in factors if f.plates != leaf]
        outside = set().union(*(f.dims for f in factors))
        local = _eliminate(local, {v for v in ordinals if v not in outside}, steps)
        if not leaf:
            return _multiply(local)
        for factor in local:
            outer = frozenset[str]().union(*(ordinals[v] for v in factor.dims if v in ordinals))
            if outer >= leaf:
                raise ValueError(
                    "expected enumerated sites of plates that are nested in each other; got a "
                    "site that depends on those of several plates: sample these in the guide too"
                )
            factors.append(factor.sum_plates(leaf - outer, sizes))


def _eliminate(
    factors: Sequence[Factor], variables: set[str], steps: list[tuple[str, Factor]] | None
) -> list[Factor]:
    """Sum over variables one by one, always the one with the fewest neighbours."""
    holders: dict[str, list[Factor]] = {v: [] for v in variables}
    rest = []
    for factor in factors:
        for v in variables.intersection(factor.dims):
            holders[v].append(factor)
        if not variables.intersection(factor.dims):
            rest.append(factor)
    holders = {v: held for v, held in holders.items() if held}
    neighbours = {v: set().union(*(f.dims for f in held)) for v, held in holders.items()}
    while holders:
        variable = min(holders, key=lambda v: (len(neighbours[v]), v))
        used = holders.pop(variable)
        product = _multiply(used)
        if steps is not None:
            steps.append((variable, product))
        value = product.value.logsumexp(product.dims.index(variable))
        result = Factor(product.dims.replace(variable, ""), value, product.plates)
        affected = [v for v in result.dims if v in holders]
        for v in affected:
            holders[v] = [f for f in holders[v] if not any(f is u for u in used)] + [result]
            neighbours[v] = set().union(*(f.dims for f in holders[v]))
        if not affected:
            rest.append(result)
    return rest
