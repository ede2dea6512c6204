"""The observed sites of a model, and the parts of its arguments that they observe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from .base import PLATE, Site, trace_sites

__all__ = [
    "DataSites",
    "ObservedSite",
    "SiteNames",
    "data_first",
    "find_data_sites",
]

#: The name of an observed site, or several.
SiteNames = str | Sequence[str]

#: Examples by which the copied columns of an argument are identified.
_NUM_COMPARED = 100


@dataclass(frozen=True)
class ObservedSite:
    """The part of an argument that an observed site observes.

    Attributes:
        name: the name of the site.
        argument: the position of the argument, 0 for x, or its keyword; ``None`` if the site
            observes no part of an argument, but a function of one or a constant.
        event_dim: the number of dimensions of one example of the argument.
        index: the element of a flattened example of the argument that each element of the site
            observes; ``None`` if these are all elements in their order.
    """

    name: str
    argument: int | str | None = None
    event_dim: int = 0
    index: Tensor | None = None

    def take(self, examples: Tensor) -> Tensor:
        """Return the observed elements of examples ``(*batch, N, *event)``, ``(*batch, N, E)``."""
        flat = _flatten(examples, self.event_dim)
        return flat if self.index is None else flat[..., self.index.to(flat.device)]


@dataclass(frozen=True)
class DataSites:
    """The sites of a model whose values are the data, and its other observed sites.

    Attributes:
        sites: the sites that a query generates, scores or imputes, by name.
        others: further observed sites, whose values are given, by name.
    """

    sites: Mapping[str, ObservedSite]
    others: Mapping[str, ObservedSite]

    @property
    def argument(self) -> int | str | None:
        """The argument that the values of the data sites are parts of; ``None`` if none is."""
        return None if self.no_argument_reason else next(iter(self.sites.values())).argument

    @property
    def no_argument_reason(self) -> str | None:
        """The reason why the data sites do not observe different parts of one argument."""
        if self.no_parts_reason:
            return self.no_parts_reason
        if len({site.argument for site in self.sites.values()}) > 1:
            return f"{_join(self.sites)}, which observe several arguments"
        return None

    @property
    def no_parts_reason(self) -> str | None:
        """The reason why the data sites do not observe different parts of the arguments."""
        unknown = [name for name, site in self.sites.items() if site.argument is None]
        if unknown:
            return (
                f"{_join(unknown)}, which is neither a view of an argument (x.reshape(…), x[:, 0]) "
                f"nor a copy of elements that differ from all others"
            )
        for argument in {site.argument for site in self.sites.values()}:
            index = [site.index for site in self.sites.values() if site.argument == argument]
            parts = [part for part in index if part is not None]
            elements = torch.cat([torch.empty(0, dtype=torch.long), *parts])
            shares_whole = len(index) > 1 and len(parts) < len(index)
            if shares_whole or len(elements.unique()) < len(elements):
                return f"{_join(self.sites)}, of which two observe the same values"
        return None

    def is_observed(self, x: Tensor) -> Tensor:
        """Return whether a data site observes each element of an example of x, ``event``."""
        observed = torch.zeros(x[0].numel(), dtype=torch.bool, device=x.device)
        for site in self.sites.values():
            if site.argument == 0:
                observed[slice(None) if site.index is None else site.index.to(x.device)] = True
        return observed.reshape(x.shape[1:])

    def assemble(self, values: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Return examples of an argument with the given values of the sites that observe it.

        Arguments:
            values: the values of these data sites, each ``(*batch, N, E)``.
            like: examples ``(N, *event)``. Elements that no data site observes have its values.

        Returns:
            The examples, ``(*batch, N, *event)``.
        """
        sites = [self.sites[name] for name in values]
        batch = values[sites[0].name].shape[:-2]
        if sites[0].index is None:
            return values[sites[0].name].reshape(*batch, *like.shape)
        dtype = like.dtype
        for value in values.values():
            dtype = torch.promote_types(dtype, value.dtype)
        flat = _flatten(like.to(dtype), sites[0].event_dim)
        flat = flat.expand(*batch, *flat.shape).clone()
        for site in sites:
            assert site.index is not None  # all elements are observed by a single site
            flat[..., site.index.to(flat.device)] = values[site.name].to(dtype)
        return flat.reshape(*batch, *like.shape)


def find_data_sites(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    site: SiteNames | None = None,
    *,
    every_argument: bool = False,
) -> tuple[DataSites, dict[str, Site]]:
    """Find the sites of a model that observe the data.

    These are the sites named ``site``; by default the only observed site, or the only one that
    observes all elements of x, as in ``obs=x`` or ``obs=x.reshape(-1, 784)``; otherwise all that
    do not observe another argument, as in ``obs=x[:, 0]``.

    The part that a site observes is known for a view of an argument (a reshaped or transposed
    argument, a slice). A copy must have the values of exactly one part.

    Arguments:
        model: the model, called as ``model(*args, **kwargs)`` with its observed sites sampled.
        args: its arguments; the first is x, ``(N, *event)``.
        kwargs: its keyword arguments.
        site: the name of an observed site, or several.
        every_argument: select all sites that observe an argument or a part of it, instead.

    Returns:
        The data sites, and all sample sites of the run.

    Raises:
        ValueError: if the model has no observed site with a distribution, or none of a given name.
    """
    args, named = _contiguous(args), {k: _contiguous((v,))[0] for k, v in (kwargs or {}).items()}
    sites = trace_sites(poutine.uncondition(model), *args, **named)
    observed = {
        name: _locate(name, node, {**dict(enumerate(args)), **named})
        for name, node in sites.items()
        if node["infer"].get("was_observed")
    }
    # pyro.factor is a site without samples
    sampled = {n: part for n, part in observed.items() if not isinstance(sites[n]["fn"], Unit)}
    if not sampled:
        factors = f" but pyro.factor ({_join(observed)}), which has no samples" if observed else ""
        raise ValueError(
            f"expected a model that observes the data; got no observed site{factors}: write "
            f"pyro.sample(…, obs=x)"
        )
    names = _select(sampled, site, sites, args[0])
    if every_argument:
        names = [name for name, part in sampled.items() if part.argument is not None]
    others = {name: part for name, part in observed.items() if name not in names}
    return DataSites({name: observed[name] for name in names}, others), sites


def _select(
    observed: Mapping[str, ObservedSite],
    site: SiteNames | None,
    sites: Mapping[str, Site],
    x: Tensor,
) -> list[str]:
    """Return the names of the data sites."""
    if site is not None:
        names = [site] if isinstance(site, str) else list(site)
        for name in names or [""]:
            if name not in observed:
                remedy = ": name a latent site by latent=…" if name in sites else ""
                raise ValueError(
                    f"expected site to be an observed site of the model, "
                    f"{_join(observed)}; got {name!r}{remedy}"
                )
        return names
    if len(observed) == 1:
        return list(observed)
    whole = [
        name
        for name, part in observed.items()
        if part.argument == 0 and (part.index is None or len(part.index) == x[0].numel())
    ]
    if len(whole) == 1:
        return whole
    return [n for n, part in observed.items() if part.argument in (0, None)] or list(observed)


def data_first(site: Site, value: Tensor) -> Tensor:
    """Return a tensor of the site's shape in a run without particles as ``(N, *rest)``."""
    frames = [f for f in site["cond_indep_stack"] if f.name == PLATE and f.vectorized]
    axis = value.ndim - site["fn"].event_dim + frames[0].dim if frames else 0
    return value.movedim(axis, 0)


def _join(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _contiguous(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments whose views have strides by which their elements are known."""
    return tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)


def _flatten(examples: Tensor, event_dim: int) -> Tensor:
    return examples.flatten(-event_dim) if event_dim else examples.unsqueeze(-1)


def _locate(name: str, site: Site, arguments: Mapping[int | str, Any]) -> ObservedSite:
    """Find the part of an argument that a site of an unconditioned run observed."""
    value: Any = site["infer"]["obs"]
    tensors = {k: a for k, a in arguments.items() if isinstance(a, Tensor) and a.ndim}
    if isinstance(value, Tensor) and value.ndim and value.numel():
        value = data_first(site, value)
        for find in (_find_view, _find_copy, _find_columns):
            for argument, tensor in tensors.items():
                if len(tensor) == len(value) and (index := find(value, tensor)) is not None:
                    is_whole = torch.equal(index, torch.arange(tensor[0].numel()))
                    return ObservedSite(
                        name, argument, tensor.ndim - 1, None if is_whole else index
                    )
    return ObservedSite(name)


def _find_view(value: Tensor, base: Tensor) -> Tensor | None:
    """Return the elements of an example of ``base`` of which ``value`` is a view."""
    same_memory = value.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    if not same_memory or value.dtype != base.dtype:
        return None
    row, size = value[0], base[0].numel()
    offset = value.storage_offset() - base.storage_offset()
    last = offset + sum((n - 1) * step for n, step in zip(row.shape, row.stride(), strict=True))
    if not 0 <= offset <= last < size or (len(value) > 1 and value.stride(0) != size):
        return None
    index = torch.arange(size).as_strided(row.shape, row.stride(), offset).flatten()
    return index if len(index.unique()) == len(index) else None


def _find_copy(value: Tensor, base: Tensor) -> Tensor | None:
    """Return all elements of an example of ``base`` if ``value`` has their values."""
    flat, elements = value.reshape(len(value), -1), base.reshape(len(base), -1)
    if flat.shape == elements.shape and _equal(flat, elements).all():
        return torch.arange(elements.shape[1])
    return None


def _find_columns(value: Tensor, base: Tensor) -> Tensor | None:
    """Return the elements of an example of ``base`` that alone have the values of ``value``."""
    flat, elements = value.reshape(len(value), -1), base.reshape(len(base), -1)
    index: list[int] = []
    for column in flat.split(1, 1):
        head = _equal(column[:_NUM_COMPARED], elements[:_NUM_COMPARED]).all(0).nonzero()[:, 0]
        matches = head[_equal(column, elements[:, head]).all(0)].tolist()
        if len(matches) != 1:
            return None
        index += matches
    return torch.tensor(index) if len(set(index)) == len(index) else None


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Whether observed values are those of an argument, whose missing ones may be replaced."""
    return (a == b) | b.isnan()
