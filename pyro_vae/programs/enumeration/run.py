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

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .factors import Factor, sum_product
from .marks import Site

__all__ = ["GIVEN", "EnumeratedRun", "Marginal"]

#: Key in the ``infer`` of a latent site with a given value.
GIVEN = "_given"
#: Relative and absolute tolerance of the joint density of the drawn values, in nats.
_RTOL, _ATOL = 1e-4, 1e-3


@dataclass(frozen=True)
class Marginal:
    """Log-density of a site given the preceding ones, with the enumerated sites summed out.

    Attributes:
        log_prob: log p, ``(K, N)`` at the batch dimensions of particles and data, in nats; summed
            over all other plates, and masked.
        num_values: number of joint values of the enumerated sites at which the site is scored.
        sharing: all sites that share enumerated sites with it, and these, in the run with all
            values.
    """

    log_prob: Tensor
    num_values: int
    sharing: tuple[Site, ...]


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
        self._own: dict[str, Factor] = {}
        self._others: dict[str, Factor] = {}
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

    def _make_factor(self, site: Site, value: Tensor) -> Factor:
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
        return Factor(value._pyro_dims, value, frozenset(inner))  # type: ignore[attr-defined]

    def marginals(self) -> dict[str, Marginal]:
        """Return the marginal log-density of each site that depends on enumerated ones.

        Of the sites that share enumerated ones, latent sites come first, in the order of the
        program: their densities are those of the prior. The joint density of all observed sites
        given these is the term of the first of them; those of the others are 0, because the terms
        of a long sequence would take a time that is quadratic in its length.
        """
        result: dict[str, Marginal] = {}
        for names, enumerated in self._components():
            latent = [name for name in names if not _is_data(self._nodes[name])]
            observed = [name for name in names if name not in latent]
            terms: dict[str, Tensor] = {}
            previous = None
            for count in range(1, len(latent) + 1):
                total = self.log_marginal(latent[:count])
                terms[latent[count - 1]] = total if previous is None else total - previous
                previous = total
            if observed:
                total = self.log_marginal(names)
                terms[observed[0]] = total if previous is None else total - previous
                terms.update((name, torch.zeros_like(total)) for name in observed[1:])
            sharing = tuple(self._trace.nodes[name] for name in (*names, *enumerated))
            for name, term in terms.items():
                count = self._others[name].count(self._symbols.values())
                result[name] = Marginal(term, count, sharing)
        return result

    def _components(self) -> list[tuple[list[str], list[str]]]:
        """Return the connected components: dependent sites, and the enumerated ones they share."""
        symbols = set(self._symbols.values())
        found: list[tuple[set[str], list[str], list[str]]] = []
        for name, factor in (*self._own.items(), *((n, self._others[n]) for n in self.dependents)):
            shared, names, enumerated = symbols & set(factor.dims), [], []
            (enumerated if name in self._own else names).append(name)
            for other in [group for group in found if group[0] & shared]:
                found.remove(other)
                shared = shared | other[0]
                names, enumerated = other[1] + names, other[2] + enumerated
            found.append((shared, names, enumerated))
        return [([n for n in self.dependents if n in names], e) for _, names, e in found]

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

    def posterior(self) -> list[tuple[str, Factor]]:
        """Return the factorised posterior p(y | x, z) of the enumerated sites.

        Returns:
            Each site with its log-probabilities up to a constant, given the preceding ones of the
            list. A site with a single value has none.
        """
        steps: list[tuple[str, Factor]] = []
        factors = [*self._own.values(), *(self._others[name] for name in self.dependents)]
        sum_product(factors, set(self._symbols.values()), self._sizes, steps)
        names = {symbol: name for name, symbol in self._symbols.items()}
        return [(names[symbol], factor) for symbol, factor in reversed(steps)]

    def logits(self, name: str, factor: Factor, values: Mapping[str, Tensor]) -> Tensor:
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

    def _contract(self, factors: Sequence[Factor]) -> Tensor:
        total = sum_product(factors, set(self._symbols.values()), self._sizes)
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


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
