"""A program on some data: latents drawn, given, scored and decoded, many particles wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from ..core.evaluation_mode import eval_mode
from ..core.random import seeded
from ..programs.base import PLATE, Program, Site, use_own_parameters
from ..programs.importance_weights import Layout, expand_inputs, find_layout, log_prob_of
from ..programs.sites import find_site, trace_sites

__all__ = [
    "Decoded",
    "Runner",
    "as_pair",
    "checked",
    "mean_of",
    "placed",
    "rows_of",
    "running",
]


def as_pair(program: Program | tuple[Any, Any]) -> tuple[Any, Any]:
    """The model and the guide of a program, or of a pair of them."""
    return program if isinstance(program, tuple) else (program.model, program.guide)


@contextmanager
def running(program: Program | tuple[Any, Any], *entropy: int) -> Iterator[None]:
    """Evaluation mode, the modules' own parameters, a seed of one's own, no gradient."""
    model, guide = as_pair(program)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(use_own_parameters(model, guide))
        stack.enter_context(eval_mode(model, guide))
        stack.enter_context(seeded(*entropy))
        yield


def placed(program: Any, x: Any, args: tuple) -> tuple[Tensor, tuple]:
    """The data and what goes with them where the program's weights are.

    Raises:
        ValueError: if ``x`` is no tensor of data.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected x to be a tensor of shape (N ≥ 1, …); got {got}")
    device = x.device
    if isinstance(program, torch.nn.Module):
        device = next((p.device for p in program.parameters()), device)
    return x.to(device), tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)


def checked(program: Any, x: Any, args: tuple) -> tuple[Tensor, tuple]:
    """:func:`placed` data that the program can score, as far as it knows.

    Raises:
        ValueError: if they are no data, or the program refuses them.
    """
    x, args = placed(program, x, args)
    if hasattr(program, "check"):
        program.check(x, *args)
    return x, args


def rows_of(rows: slice, size: int, args: tuple) -> tuple:
    """Arguments for some of the data: tensors of leading size N are per datum."""
    return _each(lambda value: value[rows], size, args)


def _each(change: Callable[[Tensor], Tensor], size: int, args: tuple) -> tuple:
    def per_datum(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size

    return tuple(change(value) if per_datum(value) else value for value in args)


@dataclass(frozen=True)
class Decoded:
    """A run of the model on given latents, K particles for each of N data.

    Attributes:
        log_latents: log p of the latents, ``(K, N)``.
        log_others: log p of whatever else is observed beside x (a class, say), ``(K, N)``.
        fn: p(x | latents).
        shape: ``(K, N, *event)``.
        mask: of the observed site, if the program masks it.
    """

    log_latents: Tensor
    log_others: Tensor
    fn: Any
    shape: tuple[int, ...]
    mask: Any = None

    @property
    def mean(self) -> Tensor:
        """E[x | latents], ``(K, N, *event)``.

        Raises:
            ValueError: if the distribution has no mean.
        """
        return mean_of(self.fn).reshape(self.shape)

    def draw(self) -> Tensor:
        """x ~ p(x | latents), ``(K, N, *event)``."""
        return self.fn.sample().reshape(self.shape)

    @property
    def pixels(self) -> Any:
        """The distribution of single pixels, whose batch shape holds ``(K, N, *event)``.

        Raises:
            ValueError: if the pixels are not independent given the latents.
        """
        fn = self.fn
        while isinstance(fn, Independent):
            fn = fn.base_dist
        if fn.event_shape:
            raise ValueError(
                f"expected a likelihood whose pixels are independent given the latents, so that "
                f"some can be observed without the others; got {type(fn).__name__}: choose one "
                f"that is made with .to_event(…)"
            )
        return fn

    def per_pixel(self, score: Tensor) -> Tensor:
        """Log-densities of :attr:`pixels` as ``(K, N, *event)``, 0 where the program masks x."""
        if isinstance(self.mask, Tensor):
            mask = self.mask.reshape(*self.mask.shape, *(1,) * (score.ndim - self.mask.ndim))
            return scale_and_mask(score, mask=mask).reshape(self.shape)
        return scale_and_mask(score, mask=self.mask).reshape(self.shape)

    def lay(self, value: Tensor) -> Tensor:
        """Pixels that broadcast to ``(K, N, *event)`` as :attr:`pixels` wants them."""
        return value.expand(self.shape).reshape(self.pixels.batch_shape)


def mean_of(fn: Any) -> Tensor:
    """The mean of a distribution.

    Raises:
        ValueError: if it has none.
    """
    try:
        return fn.mean
    except (NotImplementedError, AttributeError):
        raise ValueError(
            f"expected p(x|z) to know its mean; {type(fn).__name__} does not: ask for draws, "
            f"mean=False"
        ) from None


@dataclass(frozen=True)
class Runner:
    """A program with its data, and where its particles are.

    Latents come and go as ``(K, N, *rest)``, whatever the program's plates are.

    Attributes:
        model, guide: the program.
        x: the data, ``(N, *event)``.
        args: what else both are called with.
        site: the name of the site that observes x.
        layout: how particles are laid out.
        depths: at what depth of plates the data's plate is, for each site of the model.
        noise: the sites that stand for weights and tell nothing of their datum.
    """

    model: Any
    guide: Any
    x: Tensor
    args: tuple
    site: str
    layout: Layout
    depths: Mapping[str, int]
    noise: frozenset[str] = frozenset()

    @classmethod
    def of(cls, program: Program | tuple[Any, Any], x: Tensor, args: tuple) -> Runner:
        """Finds all that out.

        Raises:
            ValueError: if the program has no weights per datum, or a plate on the left of the
                data's.
        """
        model, guide = as_pair(program)
        site, _ = find_site(model, x, *args)
        layout = find_layout(model, guide, x, *args)
        depths, noise = {}, set()
        for name, node in trace_sites(model, x, *args).items():
            if node["infer"].get("is_noise"):
                noise.add(name)
            (dim,) = (f.dim for f in node["cond_indep_stack"] if f.name == PLATE)
            if len(node["fn"].batch_shape) > -dim:
                raise ValueError(
                    f'expected the plate "{PLATE}" to be the outermost; site {name!r} has a plate '
                    f"on its left: give that one a dim to its right"
                )
            depths[name] = -dim
        return cls(model, guide, x, args, site, layout, depths, frozenset(noise))

    def on(self, x: Tensor, args: tuple) -> Runner:
        """The same program on other data."""
        return replace(self, x=x, args=args)

    def repeated(self, copies: Tensor) -> Runner:
        """On several versions of the data, ``(M, N, *event)``, as M × N data."""
        tiled = _each(lambda v: torch.cat([v] * len(copies)), len(self.x), self.args)
        return self.on(copies.flatten(0, 1), tiled)

    def draw(self, num_samples: int) -> tuple[dict[str, Tensor], Tensor]:
        """Latents from the guide, and log q of them, ``(K, N)``."""
        nodes, dim = self._run(self.guide, num_samples)
        latents = self._latents(nodes, num_samples)
        shape = (num_samples, len(self.x))
        return latents, _sum([log_prob_of(n, dim, shape) for n in nodes.values()], self.x, shape)

    def under(self, messenger: Messenger) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """One draw of the guide under a handler, ``(N, *rest)``, and its distributions."""

        def handled(*args: Any) -> Any:
            with messenger:
                return self.guide(*args)

        nodes, _ = self._run(handled, 1)
        latents = {name: value[0] for name, value in self._latents(nodes, 1).items()}
        return latents, {name: nodes[name]["fn"] for name in latents}

    def prior(self, num_samples: int) -> dict[str, Tensor]:
        """Latents from the model, as if x were not observed."""
        nodes, _ = self._run(self.model, num_samples)
        return self._latents(nodes, num_samples)

    def score(self, latents: Mapping[str, Tensor]) -> Tensor:
        """log q of given latents, ``(K, N)``.

        Raises:
            NotImplementedError: if the guide draws more than the model's latents.
        """
        num_samples = len(next(iter(latents.values())))
        nodes, dim = self._run(self._given(self.guide, latents), num_samples)
        if not all(node["is_observed"] for node in nodes.values()):
            raise NotImplementedError("the density of auxiliary draws is not that of the latents")
        shape = (num_samples, len(self.x))
        return _sum([log_prob_of(n, dim, shape) for n in nodes.values()], self.x, shape)

    def decode(self, latents: Mapping[str, Tensor]) -> Decoded:
        """The model on given latents."""
        num_samples = len(next(iter(latents.values())))
        nodes, dim = self._run(self._given(self.model, latents), num_samples)
        shape = (num_samples, len(self.x))
        node = nodes.pop(self.site)
        terms = {name: log_prob_of(other, dim, shape) for name, other in nodes.items()}
        inside = _sum([t for name, t in terms.items() if name in latents], self.x, shape)
        beside = _sum([t for name, t in terms.items() if name not in latents], self.x, shape)
        event = self.x.shape[1:]
        return Decoded(inside, beside, node["fn"], (*shape, *event), node["mask"])

    def _run(
        self, program: Callable[..., Any], num_samples: int
    ) -> tuple[dict[str, Site], int | None]:
        args, _, plate, dim = expand_inputs(
            len(self.x), num_samples, self.layout, (self.x, *self.args), {}
        )
        with plate:
            return trace_sites(program, *args), dim

    def _given(
        self, program: Callable[..., Any], latents: Mapping[str, Tensor]
    ) -> Callable[..., Any]:
        return poutine.condition(program, data={n: self._raw(n, v) for n, v in latents.items()})

    def _raw(self, name: str, value: Tensor) -> Tensor:
        if self.layout.tiled:
            return value.flatten(0, 1)
        between = (1,) * (self.layout.nesting - self.depths[name])
        return value.reshape(len(value), *between, *value.shape[1:])

    def _latents(self, nodes: Mapping[str, Site], num_samples: int) -> dict[str, Tensor]:
        latents = {}
        for name, node in nodes.items():
            if name in self.depths and not node["is_observed"]:
                value, inner = node["value"], self.depths[name] - 1 + len(node["fn"].event_shape)
                rest = value.shape[value.ndim - inner :]
                latents[name] = value.reshape(num_samples, len(self.x), *rest)
        return latents


def _sum(terms: list[Tensor], like: Tensor, shape: tuple[int, int]) -> Tensor:
    """The sum of ``(K, N)`` tensors, of which there may be none."""
    return torch.stack(terms).sum(0) if terms else like.new_zeros(shape)
