"""Likelihood of the rows of a table, whose columns have different types."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn.module import PyroModuleList
from torch import Tensor, nn
from torch.distributions import Independent

from .. import distributions
from ..core.components import Heads, NetworkFactory, Shape
from .base import Likelihood
from .counts import NegativeBinomial
from .levels import Categorical
from .real import Gaussian
from .unit import Bernoulli

__all__ = ["Columns"]


class Columns(Likelihood):
    """p(x|z) = Π_g p_g(x_g|z), with one likelihood for each group of columns of a table.

    The decoder is shared: its outputs are the concatenated outputs of the parts. log p(x|z) is the
    sum over groups of log-densities of continuous columns and log-probabilities of discrete ones.
    All columns are independent given z, so that any of them may be unobserved (NaN).

    Unlike in the paper, the prior is that of the program, continuous columns are not normalised
    here, and the parts have no separate decoders.

    Arguments:
        parts: the likelihood of each group, ``likelihood(latent_dim, event_shape, network)``. In
            YAML and on the command line, parts and columns follow from the types of the columns
            of a table by default, see :meth:`from_table`.
        columns: the columns of each group, lists of integers from 0 to D − 1 in the order of the
            parts. Every column belongs to one group.

    Raises:
        ValueError: if parts or columns are missing, if an example is not a vector, if the columns
            are not those of the data, each once, if ``parts`` has another length, or if a part
            scores whole examples only.

    References:
        Handling Incomplete Heterogeneous Data using VAEs (Nazábal et al., 2018), section 3.
        https://arxiv.org/abs/1807.03653
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Shape,
        network: NetworkFactory,
        parts: list[Callable[[int, Shape, NetworkFactory], Likelihood]] | None = None,
        columns: list[list[int]] | None = None,
    ) -> None:
        super().__init__(latent_dim, event_shape, network)
        if parts is None or columns is None:
            raise ValueError(
                "expected parts and columns of Columns; got none: pass both, or Columns.from_table"
                "(data) for a table"
            )
        groups = [[int(index) for index in group] for group in columns]
        _check_columns(self.event_shape, len(parts), groups)
        slices: list[_Slice] = []

        def make_slice(in_shape: Shape, out_shape: Shape) -> nn.Module:
            start = slices[-1].stop if slices else 0
            slices.append(_Slice(start, out_shape))
            return slices[-1]

        for factory in parts:
            if isinstance(factory, Likelihood):
                kind = type(factory).__name__
                raise ValueError(
                    f"expected parts to be classes of likelihoods, or partials of them; got an "
                    f"instance of {kind}: pass {kind}, or functools.partial({kind}, …)"
                )
        made = [
            factory(latent_dim, (len(group),), make_slice)
            for factory, group in zip(parts, groups, strict=True)
        ]
        for part in made:
            if not isinstance(part, Likelihood):
                raise ValueError(f"expected parts to be likelihoods; got {type(part).__name__}")
            if part.not_factorised_reason:
                raise ValueError(
                    f"expected parts whose columns are independent given z; got "
                    f"{type(part).__name__}, because {part.not_factorised_reason}: choose another"
                )
        if len(slices) != len(made):
            raise ValueError(
                f"expected every part to have one network; got {len(slices)} networks of "
                f"{len(made)} parts: choose other likelihoods"
            )
        self.parts = PyroModuleList(made)
        for i, group in enumerate(groups):
            self.register_buffer(f"columns_{i}", torch.tensor(group), persistent=False)
        sizes = [size for part in slices for size in Heads.sizes_of(part.out_shape)]
        self.network = network((latent_dim,), Heads((slices[-1].stop,), sizes))

    @classmethod
    def from_table(cls, dataset: Any) -> Callable[[int, Shape, NetworkFactory], Columns]:
        """Return a factory with the usual likelihood for each type of the columns of a data set.

        Real columns are ``Gaussian`` with one scale per column, counts ``NegativeBinomial``,
        binary ones ``Bernoulli``, and categorical ones ``Categorical``, grouped by their number of
        categories. Counts that were scaled are real.

        Arguments:
            dataset: a :class:`~pyro_vae.data.Dataset` loaded from a table.

        Raises:
            ValueError: if the data set has no columns with types.
        """
        columns = getattr(dataset, "columns", None)
        if not columns:
            raise ValueError(
                "expected a data set loaded from a table, with the types of its columns, for the "
                "likelihood Columns; got one without: set data.name to table, or pass parts and "
                "columns"
            )
        is_scaled = getattr(dataset, "scale", None) is not None
        groups: dict[tuple[str, int], list[int]] = {}
        for index, column in enumerate(columns):
            kind, levels = column.type, 0
            if kind == "categorical":
                levels = _highest_level(column.categories, index, dataset)
            elif kind == "count" and is_scaled:
                kind = "real"
            groups.setdefault((kind, levels), []).append(index)
        parts: list[Any] = [
            partial(Categorical, levels=levels) if levels else _PART_BY_TYPE[kind]
            for kind, levels in groups
        ]
        return partial(cls, parts=parts, columns=[*groups.values()])

    def describe(self, names: Sequence[str]) -> str:
        """Return the part of each column, for messages."""
        groups = [
            f"{type(part).__name__}: {', '.join(names[int(i)] for i in index)}"
            for part, index in zip(self._parts, self._columns, strict=True)
        ]
        return "; ".join(groups)

    @property
    def has_code_length(self) -> bool:
        return all(part.has_code_length for part in self._parts)

    @property
    def measure(self) -> str:
        measures = {part.measure for part in self._parts}
        if len(measures) == 1:
            return measures.pop()
        count = sum(part.event_shape[0] for part in self._parts if part.measure == "density")
        return f"density of {count} and probability of {self.event_shape[0] - count} columns"

    def forward(self, z: Tensor) -> Distribution:
        outputs = self.network(z)
        singles = []
        for part in self._parts:
            fn: Any = part(outputs)
            while isinstance(fn, Independent):
                fn = fn.base_dist
            if fn.event_shape:
                raise ValueError(
                    f"expected parts whose columns are independent given z; got "
                    f"{type(part).__name__}, which returns a {type(fn).__name__}: choose another"
                )
            singles.append(fn)
        return distributions.Concatenated(singles, self._columns).to_event(1)

    def score_observed(self, fn: Any) -> Distribution:
        return fn  # the parts leave out unobserved values

    def initial_outputs(self, x: Tensor) -> Tensor:
        rows = [part.initial_outputs(columns) for part, columns in self._split(x)]
        return torch.cat([row.reshape(-1) for row in rows])

    def init_from_data(self, x: Tensor) -> None:
        """Initialise the decoder, and the parts from their columns."""
        super().init_from_data(x)
        for part, columns in self._split(x):
            part.init_from_data(columns)

    def check(self, x: Tensor) -> None:
        self._check_parts(x, "check")

    def check_observed(self, x: Tensor) -> None:
        self._check_parts(x, "check_observed")

    def _check_parts(self, x: Tensor, method: str) -> None:
        for (part, columns), index in zip(self._split(x), self._columns, strict=True):
            try:
                getattr(part, method)(columns)
            except ValueError as error:
                names = ", ".join(map(str, index.tolist()))
                raise ValueError(f"columns {names}: {error}") from None

    def _split(self, x: Tensor) -> list[tuple[Likelihood, Tensor]]:
        columns = (x.index_select(1, index.to(x.device)) for index in self._columns)
        return list(zip(self._parts, columns, strict=True))

    @property
    def _parts(self) -> list[Any]:
        return list(self.parts)

    @property
    def _columns(self) -> list[Tensor]:
        return [getattr(self, f"columns_{i}") for i in range(len(self.parts))]


class _Slice(nn.Module):
    """The outputs of a part among those of the shared decoder, which take the place of z."""

    def __init__(self, start: int, out_shape: Shape) -> None:
        super().__init__()
        self.start, self.stop, self.out_shape = start, start + math.prod(out_shape), out_shape

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs[..., self.start : self.stop].unflatten(-1, self.out_shape)


def _check_columns(event_shape: Shape, num_parts: int, groups: list[list[int]]) -> None:
    if len(event_shape) != 1:
        raise ValueError(
            f"expected vectors, the rows of a table, for Columns; got event_shape {event_shape}"
        )
    if num_parts != len(groups) or not groups or not all(groups):
        raise ValueError(
            f"expected one group of columns for each part; got {num_parts} parts and groups of "
            f"{', '.join(str(len(group)) for group in groups) or 'no'} columns"
        )
    if sorted(index for group in groups for index in group) != list(range(event_shape[0])):
        raise ValueError(
            f"expected every column from 0 to {event_shape[0] - 1} in one group; got {groups}"
        )


def _highest_level(categories: Sequence[str] | None, index: int, dataset: Any) -> int:
    """Return the number of the last category of a column, at least 1."""
    if categories is not None:
        return max(len(categories) - 1, 1)
    splits = (dataset.train, dataset.valid, dataset.test)
    observed = [split.draw()[:, index] for split in splits if len(split)]
    return max(1, *(int(x.nan_to_num(0.0).max()) for x in observed))


_PART_BY_TYPE: dict[str, Any] = {
    "real": partial(Gaussian, scale="per_pixel"),
    "count": NegativeBinomial,
    "binary": Bernoulli,
}
