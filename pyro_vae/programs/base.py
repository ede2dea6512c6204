"""Tracing Pyro programs: their sites, their parameters and the checks they must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import TransformedDistribution

from ..core.components import Labels

__all__ = [
    "PLATE",
    "Program",
    "Site",
    "attach_noise",
    "check_program",
    "data_dim",
    "empty_program",
    "is_latent",
    "label_use",
    "sample_sites",
    "site_log_prob",
    "trace_program",
    "trace_sites",
]

#: Pyro's record of one site: its distribution ``fn``, ``value``, ``mask`` and so on.
Site = Mapping[str, Any]

#: Name of the plate that contains all per-datum sites.
PLATE = "data"


@runtime_checkable
class Program(Protocol):
    """A Pyro model and its guide, called with the same arguments."""

    @property
    def model(self) -> Callable[..., Any]: ...

    @property
    def guide(self) -> Callable[..., Any]: ...


def label_use(program: object) -> Labels:
    """Return the ``labels`` attribute of a program, ``UNUSED`` by default."""
    return getattr(program, "labels", Labels.UNUSED)


def empty_program(*args: Any, **kwargs: Any) -> None:
    """A program without sites."""


def trace_program(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    draws: Mapping[str, Site] | None = None,
) -> tuple[dict[str, Site], dict[str, Site]]:
    """Run the guide, replay the model on its draws, and return the sites of both by name.

    The guide reuses the values in ``draws``, sites of an earlier run, instead of drawing. If a site
    has ``noise`` (see :func:`attach_noise`), the guide transforms that noise instead.
    """
    if draws is not None:
        trace = poutine.Trace()
        for name, site in draws.items():
            trace.add_node(name, **site)
        guide = _ReplayNoise(draws)(poutine.replay(guide, trace=trace))
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    guide_sites, model_sites = (
        {name: site for name, site in trace.nodes.items() if not site_is_subsample(site)}
        for trace in (guide_trace, model_trace)
    )
    return cast("dict[str, Site]", guide_sites), cast("dict[str, Site]", model_sites)


def trace_sites(program: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Site]:
    """Run a program once and return its sample sites by name."""
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    return sample_sites(cast("Mapping[str, Site]", trace.nodes))


def attach_noise(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Add the base noise of each draw from a transformed distribution to its site.

    A flow without an inverse can only score its own samples. Passing the same noise through the
    transforms of another run gives the same value as a sample of that run.
    """
    result = {}
    for name, site in sites.items():
        flow = _transformed(site.get("fn"))
        if site["type"] == "sample" and flow is not None and not site["is_observed"]:
            site = _attach_site_noise(site, flow)
        result[name] = site
    return result


def _attach_site_noise(site: Site, flow: TransformedDistribution) -> Site:
    noise: Any = site["value"]
    try:
        for transform in reversed(flow.transforms):
            noise = transform.inv(noise)
        value: Any = noise
        for transform in flow.transforms:
            value = transform(value)
    except (KeyError, NotImplementedError):
        return site  # neither an inverse nor a cache
    # cached noise is exact; noise from a computed inverse may be approximate
    return {**site, "noise": noise} if torch.equal(value, site["value"]) else site


class _ReplayNoise(Messenger):
    """Sample transformed distributions from given noise."""

    def __init__(self, draws: Mapping[str, Site]) -> None:
        super().__init__()
        self.noise = {name: site["noise"] for name, site in draws.items() if "noise" in site}

    def _pyro_sample(self, msg: Any) -> None:
        flow = _transformed(msg["fn"])
        if msg["name"] in self.noise and flow is not None:
            value = self.noise[msg["name"]]
            for transform in flow.transforms:
                value = transform(value)
            msg["value"] = value


def _transformed(fn: Any) -> TransformedDistribution | None:
    """Return the transformed distribution inside ``.to_event()`` and ``.mask()``, if any."""
    while not isinstance(fn, TransformedDistribution) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn if isinstance(fn, TransformedDistribution) else None


def sample_sites(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Select the sites with a density: no ``pyro.deterministic`` and no subsampling of a plate."""
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample"
        and not (site["infer"].get("_deterministic") or site_is_subsample(cast("Any", site)))
    }


def is_latent(site: Site) -> bool:
    """Whether a sample site is latent, i.e. not observed."""
    return not site["is_observed"]


def data_dim(site: Site) -> int:
    """Return the (negative) batch dimension of the data plate at a site."""
    (dim,) = (frame.dim for frame in site["cond_indep_stack"] if frame.name == PLATE)
    return dim


def site_log_prob(site: Site) -> Tensor:
    """Return log p of one site with its batch shape: 0 where masked, and not scaled."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, mask=site["mask"])


def check_program(guide: Mapping[str, Site], model: Mapping[str, Site], size: int) -> int:
    """Check that the importance weights of a program are defined per datum.

    Arguments:
        guide, model: the sample sites of one run without particles.
        size: the number N of examples.

    Returns:
        The plate nesting depth of the program.

    Raises:
        ValueError: if a sample site is outside the plate ``"data"``, if the size of the plate is
            not N, if a site has batch dimensions without a plate, or if model and guide do not
            sample the same sites.
    """
    for program, sites in (("guide", guide), ("model", model)):
        for name, site in sites.items():
            _check_plate(program, name, site, size)
    _check_match(model, guide)
    frames = [f for m in (guide, model) for s in m.values() for f in s["cond_indep_stack"]]
    nesting = max(-frame.dim for frame in frames if frame.vectorized)
    for program, sites in (("guide", guide), ("model", model)):
        for name, site in sites.items():
            shape = tuple(site["fn"].batch_shape)
            plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
            undeclared = [n for d, n in enumerate(shape, -len(shape)) if n != 1 and d not in plates]
            if undeclared:
                raise ValueError(
                    f"expected a plate for every batch dimension; got site '{name}' of the "
                    f"{program} with batch shape {shape}, whose dimension of size {undeclared[0]} "
                    f"has no plate: make it an event dimension with .to_event(…)"
                )
    return nesting


def _check_plate(program: str, name: str, site: Site, size: int) -> None:
    frames = [f for f in site["cond_indep_stack"] if f.name == PLATE]
    if not frames:
        raise ValueError(
            f"expected all sample sites inside the plate \"{PLATE}\"; got site '{name}' of the "
            f"{program} outside of it, which is shared by all examples, so that weights per datum "
            f'are undefined: sample it inside `with pyro.plate("{PLATE}", len(x)):` (use '
            f"pyro.infer.RenyiELBO for a bound on the joint minibatch)"
        )
    if not frames[0].vectorized or frames[0].size != size:
        got = f"has size {frames[0].size}" if frames[0].vectorized else "is a sequential loop"
        raise ValueError(
            f'expected the plate "{PLATE}" to have the size of the data, {size}; at site '
            f"'{name}' of the {program} it {got}: write `pyro.plate(\"{PLATE}\", len(x))` without "
            f"subsampling"
        )


def _check_match(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    latent = {n for n, s in model.items() if not s["is_observed"]}
    proposed = {
        n for n, s in guide.items() if not (s["is_observed"] or s["infer"].get("is_auxiliary"))
    }
    for names, has, lacks in (
        (latent - proposed, "model", "guide"),
        (proposed - latent, "guide", "model"),
    ):
        if names:
            raise ValueError(
                f"expected the same latent sites in model and guide; got "
                f"{', '.join(map(repr, sorted(names)))} in the {has} only: sample the site in the "
                f"{lacks} too"
            )
    if latent == set(model):
        raise ValueError(
            "expected a model that observes the data; got no observed site: write "
            "`pyro.sample(…, obs=x)`"
        )
