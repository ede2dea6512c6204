"""Discrete sites of a model that are summed out exactly.

A site that only the model samples and that is marked for enumeration (``infer={"enumerate":
"parallel"}`` or ``config_enumerate``) is marginalised: the model runs once with all values of these
sites, each along a dimension to the left of the plates, and the joint density is summed over these
dimensions (tensor variable elimination).

References:
    Tensor Variable Elimination for Plated Factor Graphs (Obermeyer et al., 2019).
    https://arxiv.org/abs/1902.03210
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = [
    "GIVEN",
    "SUMMED_OUT",
    "EnumeratedRun",
    "Marginal",
    "find_enumerated",
    "find_marked",
    "is_marked",
    "mark_enumerated",
    "not_enumerable_reason",
    "unmarked",
]

Site = Mapping[str, Any]

#: Key in the ``infer`` of a site of a model that is summed out.
SUMMED_OUT = "_summed_out"
#: Key in the ``infer`` of a latent site with a given value.
GIVEN = "_given"
#: Attribute of a marked model: the model.
_MARKED = "_unmarked"
#: Reasons why a distribution cannot be summed over.
_CONTINUOUS = "is continuous"
_COMBINATIONS = "has all combinations of several dimensions as values"
_INFINITE = "has infinitely many values"
#: Relative and absolute tolerance of the joint density of the drawn values, in nats.
_RTOL, _ATOL = 1e-4, 1e-3


@dataclass(frozen=True)
class Marginal:
    """Log-density of a site given the preceding ones, with the enumerated sites summed out.

    Attributes:
        log_prob: log p, ``(K, N)`` at the batch dimensions of particles and data, in nats; summed
            over all other plates, and masked.
        num_values: number of joint values of the enumerated sites at which the site is scored.
        scales: the scale and the plates of each site with which it shares enumerated sites, and
            of these.
    """

    log_prob: Tensor
    num_values: int
    scales: tuple[Site, ...]


def is_marked(site: Site) -> bool:
    """Whether a site is a latent one that is marked for enumeration, in whichever way."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and (bool(site["infer"].get("enumerate")) or SUMMED_OUT in site["infer"])
    )


def find_enumerated(model: Mapping[str, Site], guide: Collection[str]) -> list[str]:
    """Return the sites of a model to sum out: marked for enumeration, and not in the guide.

    Raises:
        ValueError: if such a site does not have finitely many values.
    """
    names = [name for name, site in model.items() if is_marked(site) and name not in guide]
    for name in names:
        _check_finite(name, model[name]["fn"])
    return names


def find_marked(program: Mapping[str, Site]) -> list[str]:
    """Return the sites that :func:`mark_enumerated` marks."""
    return [n for n, site in program.items() if is_marked(site) and SUMMED_OUT in site["infer"]]


def _check_finite(name: str, fn: Any) -> None:
    reason = not_enumerable_reason(fn)
    if reason is None:
        return
    remedy = {
        _CONTINUOUS: "sample it in the guide",
        _COMBINATIONS: "put the dimensions into a plate, or sample it in the guide",
        _INFINITE: "sample it in the guide, or truncate it to a Categorical",
    }[reason]
    raise ValueError(
        f"expected sites with finitely many values, to sum them out; got site {name!r} "
        f"({type(_unwrap(fn)).__name__}), marked for enumeration, which {reason}: {remedy}"
    )


def not_enumerable_reason(fn: Any) -> str | None:
    """Return why a distribution cannot be summed over, as a clause; ``None`` if it can."""
    if getattr(fn, "has_enumerate_support", False):
        return None
    try:
        is_discrete = bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        is_discrete = False
    if not is_discrete:
        return _CONTINUOUS
    has_event = fn.event_shape and getattr(_unwrap(fn), "has_enumerate_support", False)
    return _COMBINATIONS if has_event else _INFINITE


def _unwrap(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def mark_enumerated(model: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """Return the model with a mark at the sites to sum out, for runs without the guide.

    :func:`unmarked` undoes it.
    """
    names = frozenset(names)

    @functools.wraps(model, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        with _Mark(names):
            return model(*args, **kwargs)

    setattr(run, _MARKED, model)
    return run


def unmarked(model: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the model without the marks of :func:`mark_enumerated`, ``None`` if it has none."""
    return getattr(model, _MARKED, None)


class _Mark(Messenger):
    """Mark sites to sum out."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            msg["infer"][SUMMED_OUT] = True


class EnumeratedRun:
    """A run of a model with all values of some sites, and the values of another run elsewhere.

    Arguments:
        model: the model, called as ``model(*args, **kwargs)``.
        nodes: the sites of a run of the same model, plates included.
        names: the sites to sum out.
        kept: the names of the plates over data and particles.
        log_prob: returns the masked log-density of a site, with its batch shape.

    Raises:
        ValueError: if the model does not run with all values of these sites, if one of them is
            outside of the first of the kept plates, or if their plates are not nested.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple,
        kwargs: Mapping[str, Any],
        nodes: Mapping[str, Site],
        names: Sequence[str],
        kept: Sequence[str],
        log_prob: Callable[[Site], Tensor],
    ) -> None:
        self.names, self._nodes, self._log_prob = tuple(names), nodes, log_prob
        for name in names:
            if all(frame.name != kept[0] for frame in nodes[name]["cond_indep_stack"]):
                raise ValueError(
                    f'expected enumerated sites inside the plate "{kept[0]}", to sum them out for '
                    f"each example; got site {name!r} outside of it, which all examples share: "
                    f"train the program with EnumeratedELBO"
                )
        try:
            self._trace = self._run(model, args, kwargs)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise ValueError(
                f"expected a model that runs with all values of {_join(names)} at once, each along "
                f"a dimension to the left of the plates; got an error ({error}): broadcast the "
                f"values with other tensors, index with Vindex(t)[..., y], use torch.where instead "
                f"of `if`, and wrap a loop over time in pyro.markov"
            ) from error
        self._pack(kept)

    def _run(self, model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        frames = [f for site in self._nodes.values() for f in site.get("cond_indep_stack", ())]
        depth = max(-frame.dim for frame in frames if frame.vectorized)
        # the last messenger is the first to act
        rerun = _Rerun(self._nodes, self.names)
        with EnumMessenger(first_available_dim=-1 - depth), poutine.trace() as capture, rerun:
            model(*args, **kwargs)
        return capture.trace

    def _pack(self, kept: Sequence[str]) -> None:
        """Collect the log-densities with a symbol for each dimension."""
        trace = self._trace
        trace.symbolize_dims()
        plates = trace.plate_to_symbol
        self._kept = frozenset(plates[name] for name in kept if name in plates)
        self._sizes: dict[str, int] = {}
        self._own: dict[str, _Factor] = {}
        self._others: dict[str, _Factor] = {}
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            if site["infer"].get("_deterministic"):
                continue
            if name in self.names:
                # masks of an enumerated site are ignored: its probabilities have the sum 1
                value = site["fn"].log_prob(site["value"])
                self._own[name] = self._make_factor(site, value)
            elif name in self._nodes:
                self._others[name] = self._make_factor(site, self._log_prob(site))
            else:
                raise ValueError(
                    f"expected a model with the same sites in every run, to sum out "
                    f"{_join(self.names)}; got {name!r} in some runs only: sample it always, under "
                    f"a mask"
                )
        symbols = {name: trace.nodes[name]["infer"]["_enumerate_symbol"] for name in self._own}
        self._symbols = symbols
        found = set(symbols.values())
        self.dependents = [n for n, f in self._others.items() if found & set(f.dims)]

    def _make_factor(self, site: Site, value: Tensor) -> _Factor:
        plates = self._trace.plate_to_symbol
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                self._sizes[plates[frame.name]] = frame.size
        inner = {plates[f.name] for f in site["cond_indep_stack"] if f.vectorized} - self._kept
        try:
            value = cast("Tensor", packed.pack(value, site["infer"]["_dim_to_symbol"]))
        except ValueError as error:
            raise ValueError(
                f"expected sites outside of a plate not to depend on the enumerated ones inside of "
                f"it, whose values are enumerated for each of its elements; got site "
                f"{site['name']!r} with a log-density of shape {tuple(value.shape)}, in which a "
                f"dimension is not of its plates: sample {_join(self.names)} in the guide too"
            ) from error
        return _Factor(value._pyro_dims, value, frozenset(inner))  # type: ignore[attr-defined]

    def marginals(self) -> dict[str, Marginal]:
        """Return the marginal log-density of each site that depends on enumerated ones.

        Latent sites come first, in the order of the program: their densities are those of the
        prior. The joint density of all observed sites given these is the term of the first of
        them; those of the others are 0, because the terms of a long sequence would take a time
        that is quadratic in its length.
        """
        latent = [name for name in self.dependents if not _is_data(self._nodes[name])]
        observed = [name for name in self.dependents if name not in latent]
        terms: dict[str, Tensor] = {}
        previous = None
        for count in range(1, len(latent) + 1):
            total = self.log_marginal(latent[:count])
            terms[latent[count - 1]] = total if previous is None else total - previous
            previous = total
        if observed:
            total = self.log_marginal(self.dependents)
            terms[observed[0]] = total if previous is None else total - previous
            terms.update((name, torch.zeros_like(total)) for name in observed[1:])
        scales = tuple(
            {key: self._trace.nodes[name][key] for key in ("scale", "cond_indep_stack")}
            for name in (*self.names, *self.dependents)
        )
        symbols = set(self._symbols.values())
        return {
            name: Marginal(term, self._others[name].count(symbols), scales)
            for name, term in terms.items()
        }

    def log_marginal(self, names: Collection[str]) -> Tensor:
        """Return log p of the given sites together, with the enumerated sites summed out."""
        factors = [self._others[name] for name in names]
        needed = set().union(*(f.dims for f in factors))
        own = []
        # a site with no descendants among these has the sum 1
        for name in reversed(self._own):
            if self._symbols[name] in needed:
                own.append(self._own[name])
                needed |= set(self._own[name].dims)
        return self._contract([*own, *factors])

    def check_draws(self) -> None:
        """Check that the drawn values have the same joint density as in the run that drew them.

        Raises:
            ValueError: if they do not, e.g. because the model sums over the dimension of a plate.
        """
        drawn, expected = [], []
        for name in self._own:
            values, site = self._trace.nodes[name], self._nodes[name]
            equal = values["value"] == site["value"]
            depth = site["fn"].event_dim
            equal = equal.flatten(equal.ndim - depth).all(-1) if depth else equal
            indicator = torch.zeros_like(equal, dtype=torch.get_default_dtype())
            indicator = indicator.masked_fill(~equal, -torch.inf)
            drawn.append(self._make_factor(values, indicator))
            own = site["fn"].log_prob(site["value"])
            expected.append(self._make_factor(values, own))
        others = [self._others[name] for name in self.dependents]
        total = self._contract([*self._own.values(), *drawn, *others])
        for name in self.dependents:
            log_prob = self._log_prob(self._nodes[name])
            expected.append(self._make_factor(self._trace.nodes[name], log_prob))
        single = self._contract(expected)
        if not torch.allclose(total, single, rtol=_RTOL, atol=_ATOL, equal_nan=True):
            raise ValueError(
                f"expected a model that computes each value of {_join(self.names)} on its own, "
                f"to sum them out; got other densities if it runs with all values at once (e.g. "
                f"because it sums over a plate or the dimension of the values): sample "
                f"{'it' if len(self.names) == 1 else 'them'} in the guide too"
            )

    def posterior(self) -> list[tuple[str, _Factor]]:
        """Return the factorised posterior p(y | x, z) of the enumerated sites.

        Returns:
            Each site with its log-probabilities up to a constant, given the preceding ones of the
            list. A site with a single value has none.
        """
        steps: list[tuple[str, _Factor]] = []
        factors = [*self._own.values(), *(self._others[name] for name in self.dependents)]
        contract(factors, set(self._symbols.values()), self._sizes, steps)
        names = {symbol: name for name, symbol in self._symbols.items()}
        return [(names[symbol], factor) for symbol, factor in reversed(steps)]

    def logits(self, name: str, factor: _Factor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of a site of :meth:`posterior`, with its values along the last axis.

        Arguments:
            values: the index of the value of each preceding site, with its batch shape.
        """
        term = factor.value
        term._pyro_dims = factor.dims  # type: ignore[attr-defined]
        for other, index in values.items():
            symbol = self._symbols[other]
            if symbol in term._pyro_dims:  # type: ignore[attr-defined]
                dims = self._trace.nodes[other]["infer"]["_dim_to_symbol"]
                term = packed.gather(term, packed.pack(index, dims), symbol)
        dim = self._trace.nodes[name]["infer"]["_enumerate_dim"]
        full = cast("Tensor", packed.unpack(term, self._trace.symbol_to_dim))
        logits = full.unsqueeze(-1).transpose(-1, dim - 1)
        while logits.ndim > 1 and len(logits) == 1:
            logits = logits[0]
        return logits

    def _contract(self, factors: Sequence[_Factor]) -> Tensor:
        total = contract(factors, set(self._symbols.values()), self._sizes)
        value = total.value
        value._pyro_dims = total.dims  # type: ignore[attr-defined]
        return cast("Tensor", packed.unpack(value, self._trace.symbol_to_dim))


class _Rerun(Messenger):
    """Repeat the values of a run, except at the enumerated sites."""

    def __init__(self, nodes: Mapping[str, Site], names: Collection[str]) -> None:
        super().__init__()
        self.nodes, self.names = nodes, names

    def _pyro_sample(self, msg: Any) -> None:
        site = self.nodes.get(msg["name"])
        if site is None or msg["infer"].get("_deterministic"):
            return
        if site_is_subsample(msg):
            msg["value"] = site["value"]
            return
        # a copy: a replayed site shares it with the other run
        infer = {k: v for k, v in msg["infer"].items() if k not in ("enumerate", "num_samples")}
        msg["infer"] = infer
        if msg["name"] in self.names:
            infer |= {"enumerate": "parallel", "expand": False}
        else:
            msg["value"], msg["is_observed"] = site["value"], True
        # other messengers need the dimensions of sites with a value too
        msg["done"] = False


def _is_data(site: Site) -> bool:
    """Whether a site is observed by the model itself, rather than given a value in a run."""
    infer = site["infer"]
    return bool(infer.get("was_observed") or (site["is_observed"] and not infer.get(GIVEN)))


@dataclass(frozen=True)
class _Factor:
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

    def sum_plates(self, plates: frozenset[str], sizes: Mapping[str, int]) -> _Factor:
        """Multiply the densities along some plates."""
        value, dims = self.value, self.dims
        for plate in sorted(plates):
            if plate in dims:
                value, dims = value.sum(dims.index(plate)), dims.replace(plate, "")
            else:
                value = value * sizes[plate]
        return _Factor(dims, value, self.plates - plates)


def _multiply(factors: Sequence[_Factor]) -> _Factor:
    dims = "".join(sorted(set().union(*(factor.dims for factor in factors))))
    value = functools.reduce(torch.add, [factor.align(dims) for factor in factors])
    return _Factor(dims, value, frozenset().union(*(factor.plates for factor in factors)))


def contract(
    factors: Sequence[_Factor],
    variables: set[str],
    sizes: Mapping[str, int],
    steps: list[tuple[str, _Factor]] | None = None,
) -> _Factor:
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
    factors: Sequence[_Factor], variables: set[str], steps: list[tuple[str, _Factor]] | None
) -> list[_Factor]:
    """Sum over variables one by one, always the one with the fewest neighbours."""
    holders: dict[str, list[_Factor]] = {v: [] for v in variables}
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
        result = _Factor(product.dims.replace(variable, ""), value, product.plates)
        affected = [v for v in result.dims if v in holders]
        for v in affected:
            holders[v] = [f for f in holders[v] if not any(f is u for u in used)] + [result]
            neighbours[v] = set().union(*(f.dims for f in holders[v]))
        if not affected:
            rest.append(result)
    return rest


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
