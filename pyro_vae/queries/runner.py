"""Sampling, scoring and decoding the latents of a program, with many particles at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from ..programs.base import PLATE, Program, Site
from ..programs.importance_weights import Layout, expand_inputs, find_layout, log_prob_of
from ..programs.sites import find_data_site, trace_sites

__all__ = [
    "Decoded",
    "Runner",
    "get_mean",
    "move_to_device",
    "slice_args",
    "unpack_program",
    "validate_inputs",
]


def unpack_program(program: Program | tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the model and the guide of a program or of a pair."""
    return program if isinstance(program, tuple) else (program.model, program.guide)


def move_to_device(program: Any, x: Any, args: tuple) -> tuple[Tensor, tuple]:
    """Move the examples and additional arguments to the device of the program's parameters.

    Raises:
        ValueError: if ``x`` is not a tensor of examples.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected x to be a tensor of shape (N ≥ 1, …); got {got}")
    device = x.device
    if isinstance(program, torch.nn.Module):
        device = next((p.device for p in program.parameters()), device)
    return x.to(device), tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)


def validate_inputs(program: Any, x: Any, args: tuple) -> tuple[Tensor, tuple]:
    """Move the examples to the program's device and check them if the program has a ``check``.

    Raises:
        ValueError: if ``x`` is not a tensor of examples, or the program rejects it.
    """
    x, args = move_to_device(program, x, args)
    if hasattr(program, "check"):
        program.check(x, *args)
    return x, args


def slice_args(rows: slice, size: int, args: tuple) -> tuple:
    """Select rows of the tensors of leading size N; keep all other arguments."""
    return _map_per_example(lambda value: value[rows], size, args)


def _map_per_example(fn: Callable[[Tensor], Tensor], size: int, args: tuple) -> tuple:
    def is_per_example(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size

    return tuple(fn(value) if is_per_example(value) else value for value in args)


@dataclass(frozen=True)
class Decoded:
    """Output of the model at given latents, K particles for each of N examples.

    Attributes:
        log_latents: log p of the latents, ``(K, N)``.
        log_others: log p of other observed sites, such as a class, ``(K, N)``.
        fn: p(x | latents).
        shape: ``(K, N, *event)``.
        mask: the mask of the observed site, if the program sets one.
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
        return get_mean(self.fn).reshape(self.shape)

    def sample(self) -> Tensor:
        """Sample x ~ p(x | latents), ``(K, N, *event)``."""
        return self.fn.sample().reshape(self.shape)

    @property
    def pixels(self) -> Any:
        """The distribution of single pixels, whose batch shape includes ``(K, N, *event)``.

        Raises:
            ValueError: if the pixels are not independent given the latents.
        """
        fn = self.fn
        while isinstance(fn, Independent):
            fn = fn.base_dist
        if fn.event_shape:
            raise ValueError(
                f"expected a likelihood whose pixels are independent given the latents, so that "
                f"a subset can be observed; got {type(fn).__name__}: use a distribution with "
                f".to_event(…)"
            )
        return fn

    def mask_pixels(self, log_prob: Tensor) -> Tensor:
        """Return log densities of :attr:`pixels`, ``(K, N, *event)``; 0 where x is masked."""
        if isinstance(self.mask, Tensor):
            shape = (*self.mask.shape, *(1,) * (log_prob.ndim - self.mask.ndim))
            return scale_and_mask(log_prob, mask=self.mask.reshape(shape)).reshape(self.shape)
        return scale_and_mask(log_prob, mask=self.mask).reshape(self.shape)

    def expand_pixels(self, value: Tensor) -> Tensor:
        """Broadcast values to ``(K, N, *event)`` and to the batch shape of :attr:`pixels`."""
        return value.expand(self.shape).reshape(self.pixels.batch_shape)


def get_mean(fn: Any) -> Tensor:
    """Return the mean of a distribution.

    Raises:
        ValueError: if it has none.
    """
    try:
        return fn.mean
    except (NotImplementedError, AttributeError):
        raise ValueError(
            f"expected p(x|z) to have a mean; got {type(fn).__name__}: set mean=False to return "
            f"samples only"
        ) from None


@dataclass(frozen=True)
class Runner:
    """A program with its data and the layout of its particles.

    Latents have shape ``(K, N, *rest)``, whatever the program's plates are.

    Attributes:
        model, guide: the program.
        x: the examples, ``(N, *event)``.
        args: additional arguments of model and guide.
        site: the name of the site that observes x.
        layout: the layout of the particles.
        plate_depths: the depth of the data plate at each site of the model.
        noise_sites: the sites that represent noise in the weights rather than latents.
    """

    model: Any
    guide: Any
    x: Tensor
    args: tuple
    site: str
    layout: Layout
    plate_depths: Mapping[str, int]
    noise_sites: frozenset[str] = frozenset()

    @classmethod
    def create(cls, program: Program | tuple[Any, Any], x: Tensor, args: tuple) -> Runner:
        """Create a runner by inspecting a run of the program.

        Raises:
            ValueError: if the program's weights per example are not defined, or if another plate
                encloses the data plate.
        """
        model, guide = unpack_program(program)
        site, _ = find_data_site(model, x, *args)
        layout = find_layout(model, guide, x, *args)
        depths, noise = {}, set()
        for name, node in trace_sites(model, x, *args).items():
            if node["infer"].get("is_noise"):
                noise.add(name)
            (dim,) = (f.dim for f in node["cond_indep_stack"] if f.name == PLATE)
            if len(node["fn"].batch_shape) > -dim:
                raise ValueError(
                    f'expected the plate "{PLATE}" to be the outermost; got a plate to its left '
                    f"at site {name!r}: give that plate a dim to its right"
                )
            depths[name] = -dim
        return cls(model, guide, x, args, site, layout, depths, frozenset(noise))

    def with_data(self, x: Tensor, args: tuple) -> Runner:
        """Return the same program with other data."""
        return replace(self, x=x, args=args)

    def with_copies(self, copies: Tensor) -> Runner:
        """Return the program with M versions of the data, ``(M, N, *event)``, as M × N examples."""
        args = _map_per_example(lambda v: torch.cat([v] * len(copies)), len(self.x), self.args)
        return self.with_data(copies.flatten(0, 1), args)

    def sample_guide(self, num_samples: int) -> tuple[dict[str, Tensor], Tensor]:
        """Sample latents from the guide; return them with log q, ``(K, N)``."""
        nodes, dim = self._run(self.guide, num_samples)
        latents = self._extract_latents(nodes, num_samples)
        shape = (num_samples, len(self.x))
        return latents, _sum([log_prob_of(n, dim, shape) for n in nodes.values()], self.x, shape)

    def run_guide(self, messenger: Messenger) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Run the guide once under a messenger.

        Returns:
            The latents, ``(N, *rest)``, and their distributions, by site.
        """

        def handled(*args: Any) -> Any:
            with messenger:
                return self.guide(*args)

        nodes, _ = self._run(handled, 1)
        latents = {name: value[0] for name, value in self._extract_latents(nodes, 1).items()}
        return latents, {name: nodes[name]["fn"] for name in latents}

    def sample_prior(self, num_samples: int) -> dict[str, Tensor]:
        """Sample latents from the model, ignoring x."""
        nodes, _ = self._run(self.model, num_samples)
        return self._extract_latents(nodes, num_samples)

    def guide_log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return log q of given latents, ``(K, N)``.

        Raises:
            NotImplementedError: if the guide samples more sites than the model's latents.
        """
        num_samples = len(next(iter(latents.values())))
        nodes, dim = self._run(self._condition(self.guide, latents), num_samples)
        if not all(node["is_observed"] for node in nodes.values()):
            raise NotImplementedError("the density of a guide with auxiliary sites is not known")
        shape = (num_samples, len(self.x))
        return _sum([log_prob_of(n, dim, shape) for n in nodes.values()], self.x, shape)

    def decode(self, latents: Mapping[str, Tensor]) -> Decoded:
        """Run the model at given latents."""
        num_samples = len(next(iter(latents.values())))
        nodes, dim = self._run(self._condition(self.model, latents), num_samples)
        shape = (num_samples, len(self.x))
        node = nodes.pop(self.site)
        terms = {name: log_prob_of(other, dim, shape) for name, other in nodes.items()}
        log_latents = _sum([t for name, t in terms.items() if name in latents], self.x, shape)
        log_others = _sum([t for name, t in terms.items() if name not in latents], self.x, shape)
        event = self.x.shape[1:]
        return Decoded(log_latents, log_others, node["fn"], (*shape, *event), node["mask"])

    def _run(
        self, program: Callable[..., Any], num_samples: int
    ) -> tuple[dict[str, Site], int | None]:
        args, _, plate, dim = expand_inputs(
            len(self.x), num_samples, self.layout, (self.x, *self.args), {}
        )
        with plate:
            return trace_sites(program, *args), dim

    def _condition(
        self, program: Callable[..., Any], latents: Mapping[str, Tensor]
    ) -> Callable[..., Any]:
        data = {name: self._to_site_shape(name, value) for name, value in latents.items()}
        return poutine.condition(program, data=data)

    def _to_site_shape(self, name: str, value: Tensor) -> Tensor:
        if self.layout.tiled:
            return value.flatten(0, 1)
        padding = (1,) * (self.layout.nesting - self.plate_depths[name])
        return value.reshape(len(value), *padding, *value.shape[1:])

    def _extract_latents(self, nodes: Mapping[str, Site], num_samples: int) -> dict[str, Tensor]:
        latents = {}
        for name, node in nodes.items():
            if name in self.plate_depths and not node["is_observed"]:
                value = node["value"]
                inner = self.plate_depths[name] - 1 + len(node["fn"].event_shape)
                rest = value.shape[value.ndim - inner :]
                latents[name] = value.reshape(num_samples, len(self.x), *rest)
        return latents


def _sum(terms: list[Tensor], like: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the sum of a possibly empty list of ``(K, N)`` tensors."""
    return torch.stack(terms).sum(0) if terms else like.new_zeros(shape)
