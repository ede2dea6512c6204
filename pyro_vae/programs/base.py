"""Tracing Pyro programs: their sites and the densities of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import TransformedDistribution

from ..core.components import Labels
from .enumeration.marks import Site, find_enumerated, find_marked
from .enumeration.run import EnumeratedRun, Marginal

__all__ = [
    "PARTICLES",
    "PLATE",
    "Pair",
    "Program",
    "Site",
    "attach_noise",
    "data_dim",
    "data_plate",
    "empty_program",
    "enumerated_sites",
    "innermost_error",
    "is_latent",
    "label_use",
    "marginal",
    "sample_sites",
    "site_log_prob",
    "trace_program",
    "trace_sites",
]

#: Name of the plate that contains all per-datum sites, and of the one over particles.
PLATE, PARTICLES = "data", "_particles"


@runtime_checkable
class Program(Protocol):
    """A Pyro model and its guide, called with the same arguments."""

    @property
    def model(self) -> Callable[..., Any]: ...

    @property
    def guide(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Pair:
    """A program that consists of any model and guide, with the attributes that describe it.

    Arguments:
        model: the Pyro model, called as ``model(x, …)``.
        guide: its guide, called with the same arguments.
        plate: the name of its plate over the data, if several have the size of the data; see
            :func:`~.plates.normalize_plate`.
        labels: whether it is called with labels, ``model(x, labels)``.

    Example:
        >>> program = pv.Pair(vae.model, vae.guide, plate="data")
        >>> len(pv.evaluate(program, x, num_samples=20))
        20
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    plate: str | None = None
    labels: Labels = Labels.UNUSED


def label_use(program: object) -> Labels:
    """Return the ``labels`` attribute of a program, ``UNUSED`` by default."""
    return getattr(program, "labels", Labels.UNUSED)


def data_plate(program: object) -> str | None:
    """Return the ``plate`` attribute of a program: the name of its plate over the data."""
    plate = getattr(program, "plate", None)
    return plate if isinstance(plate, str) else None


def empty_program(*args: Any, **kwargs: Any) -> None:
    """A program without sites."""


def trace_program(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    draws: Mapping[str, Site] | None = None,
    *,
    sum_out: bool = True,
    check: bool = False,
) -> tuple[dict[str, Site], dict[str, Site]]:
    """Run the guide, replay the model on its draws, and return the sites of both by name.

    The guide reuses the values in ``draws``, sites of an earlier run, instead of drawing. If a site
    has ``noise`` (see :func:`attach_noise`), the guide transforms that noise instead.

    Sites of the model that the guide lacks and that are marked for enumeration are summed out, as
    are those of both that :func:`~.enumeration.marks.mark_enumerated` marks: they have the type
    ``"enumerated"``, and the sites that depend on them a :func:`marginal`.

    Arguments:
        sum_out: whether to sum out these sites; if not, they are ordinary sites.
        check: whether to check that the densities of their draws are those of an ordinary run.

    Raises:
        ValueError: as for :class:`~.enumeration.run.EnumeratedRun`.
    """
    if draws is not None:
        trace = poutine.Trace()
        for name, site in draws.items():
            if site["type"] != "enumerated":
                trace.add_node(name, **site)
        guide = _ReplayNoise(draws)(poutine.replay(guide, trace=trace))
    with _program_errors():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        guide_nodes = cast("dict[str, Site]", guide_trace.nodes)
        model_nodes = cast("dict[str, Site]", model_trace.nodes)
        if sum_out:
            if marked := find_marked(guide_nodes):
                guide_nodes = _sum_out(marked, guide_nodes, guide, args, kwargs, check)
            proposed = guide_nodes.keys() - marked
            if names := find_enumerated(model_nodes, proposed):
                model_nodes = _sum_out(names, model_nodes, model, args, kwargs, check)
    guide_sites, model_sites = (
        {name: site for name, site in nodes.items() if not site_is_subsample(cast("Any", site))}
        for nodes in (guide_nodes, model_nodes)
    )
    return cast("dict[str, Site]", guide_sites), cast("dict[str, Site]", model_sites)


def trace_sites(program: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Site]:
    """Run a program once and return its sample sites by name.

    Sites that :func:`~.enumeration.marks.mark_enumerated` marks are summed out and not returned.

    Raises:
        ValueError: if the program has an improper prior, which has no samples.
    """
    with _program_errors():
        trace = poutine.trace(program).get_trace(*args, **kwargs)
        nodes = cast("dict[str, Site]", trace.nodes)
        if names := find_marked(nodes):
            nodes = _sum_out(names, nodes, program, args, kwargs)
    return sample_sites(nodes)


def _sum_out(
    names: list[str],
    nodes: dict[str, Site],
    model: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    check: bool = False,
) -> dict[str, Site]:
    """Return the sites of a run, some of them summed out."""
    run = EnumeratedRun(model, args, kwargs, nodes, names, (PLATE, PARTICLES), site_log_prob)
    if check:
        run.check_draws()
    result = {**nodes} | {name: {**nodes[name], "type": "enumerated"} for name in names}
    for name, value in run.marginals().items():
        result[name] = {**nodes[name], "marginal": value}
    return result


def enumerated_sites(model: Mapping[str, Site]) -> list[str]:
    """Return the sites that are summed out, of those from :func:`trace_program`."""
    return [name for name, site in model.items() if site["type"] == "enumerated"]


def marginal(site: Site) -> Marginal | None:
    """Return the marginal density of a site, if others that it depends on are summed out.

    Its distribution ``fn`` is that for one draw of these.
    """
    return site.get("marginal")


@contextmanager
def _program_errors() -> Iterator[None]:
    """Explain that an improper prior cannot be sampled, and keep refusals in one sentence."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        refusal = innermost_error(error)
        # Pyro appends a table of shapes, which explains errors of a program only
        if refusal is not error and str(refusal).startswith("expected "):
            raise refusal from None
        if "ImproperUniform" not in str(error) or not isinstance(error, NotImplementedError):
            raise
        raise ValueError(
            "expected a model that can be sampled; got an improper prior (ImproperUniform), which "
            "has no samples, and with which p(x) is defined up to a constant only: use a proper "
            "prior, such as a wide Normal"
        ) from error


def innermost_error(error: BaseException) -> BaseException:
    """Return the error to which Pyro's traces appended shapes."""
    while (cause := error.__cause__) is not None and str(error).startswith(f"{cause}\n"):
        error = cause
    return error


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
    """Return log p of one site with its batch shape: 0 where masked, and not scaled.

    If it depends on sites that are summed out, it is that of its :func:`marginal`.

    Raises:
        ValueError: if the value is outside the support; with the remedy if it has NaN.
    """
    if (summed := marginal(site)) is not None:
        return summed.log_prob
    try:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        count = int(site["value"].isnan().sum()) if site["value"].is_floating_point() else 0
        if not (count and site["is_observed"]):
            raise
        raise ValueError(
            f"expected an observed value without NaN at site {site['name']!r}, masked entries "
            f"included, because the gradient of a masked NaN is NaN; got {count} NaN of "
            f"{site['value'].numel()}: replace them by a value in the support (such as "
            f"obs=x.nan_to_num()), and mask these entries if they are missing"
        ) from error
    return scale_and_mask(log_prob, mask=site["mask"])
