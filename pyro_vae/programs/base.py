"""Running somebody's Pyro program: its sites, its parameters, and what it must be like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch.distributions import TransformedDistribution

from ..core.components import Labels
from ..core.evaluation_mode import owning_modules

__all__ = [
    "PLATE",
    "Program",
    "Site",
    "attach_noise",
    "check_program",
    "empty_program",
    "label_use",
    "sample_sites",
    "trace_program",
    "use_own_parameters",
]

#: What Pyro records of one site: its distribution ``fn``, ``value``, ``mask`` and so on.
Site = Mapping[str, Any]

#: The name of the plate that holds every per-datum site.
PLATE = "data"


@runtime_checkable
class Program(Protocol):
    """A Pyro model and its guide, called with the same arguments."""

    @property
    def model(self) -> Callable[..., Any]: ...

    @property
    def guide(self) -> Callable[..., Any]: ...


def label_use(program: object) -> Labels:
    """A program's attribute ``labels``; one without it does not look at them."""
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
    """All sites of the guide, and of the model run on the guide's draws, by name.

    Arguments:
        model, guide: the program.
        args, kwargs: what both are called with.
        draws: sites of an earlier run whose values the guide takes instead of drawing; one
            with a ``noise`` (see :func:`attach_noise`) takes that through its own transforms.
    """
    if draws is not None:
        earlier = poutine.Trace()
        for name, site in draws.items():
            earlier.add_node(name, **site)
        guide = _ReplayNoise(draws)(poutine.replay(guide, trace=earlier))
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    pruned = (prune_subsample_sites(trace) for trace in (guide_trace, model_trace))
    guide_sites, model_sites = (cast("dict[str, Site]", trace.nodes) for trace in pruned)
    return guide_sites, model_sites


def attach_noise(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Adds to every transformed draw the noise that it was made of.

    A flow without an inverse can score nothing but its own draws. The same noise, sent
    through another run's transforms, is another run's own draw of the same value.
    """
    noted = {}
    for name, site in sites.items():
        flow = _transformed(site.get("fn"))
        if site["type"] == "sample" and flow is not None and not site["is_observed"]:
            site = _add_noise(site, flow)
        noted[name] = site
    return noted


def _add_noise(site: Site, flow: TransformedDistribution) -> Site:
    noise: Any = site["value"]
    try:
        for transform in reversed(flow.transforms):
            noise = transform.inv(noise)
        again: Any = noise
        for transform in flow.transforms:
            again = transform(again)
    except (KeyError, NotImplementedError):
        return site  # no inverse and no memory: the value is all there is
    # what a transform remembers is the noise itself; what it computes may be near it only
    return {**site, "noise": noise} if torch.equal(again, site["value"]) else site


class _ReplayNoise(Messenger):
    """Makes draws of transformed distributions out of given noise."""

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
    """The flow inside of what ``.to_event()`` and ``.mask()`` wrap around it, if it is one."""
    while not isinstance(fn, TransformedDistribution) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn if isinstance(fn, TransformedDistribution) else None


def sample_sites(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites that have a density; ``pyro.deterministic`` is a sample site in form only."""
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


def check_program(guide: Mapping[str, Site], model: Mapping[str, Site], size: int) -> int:
    """Refuses a program whose importance weights do not exist per datum.

    Arguments:
        guide, model: the sample sites of one run without particles.
        size: the number of data.

    Returns:
        The depth of the program's plates.

    Raises:
        ValueError: if a sample site is outside the plate ``"data"``, if the plate does not
            hold exactly the data given, if a site has batch dimensions that no plate
            declares, or if model and guide do not sample the same sites.
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
            loose = [n for d, n in enumerate(shape, -len(shape)) if n != 1 and d not in plates]
            if loose:
                raise ValueError(
                    f"site '{name}' of the {program} has batch shape {shape}, of which size "
                    f"{loose[0]} belongs to no plate: declare it part of a datum with .to_event(…)"
                )
    return nesting


@contextmanager
def use_own_parameters(*programs: Callable[..., Any]) -> Iterator[None]:
    """Makes modules use the parameters they hold, whatever Pyro's parameter store remembers.

    Pyro's store is global: a second ``PyroModule`` with the same parameter names would
    silently be given the first one's values. Parameters that a program makes with plain
    ``pyro.param`` are read from the store as always; the store itself is left unchanged.
    """
    held = set()
    for module in owning_modules(*programs):
        root = getattr(module, "_pyro_name", "")
        for name, _ in module.named_parameters():
            held.add(f"{root}.{name}".lstrip(".").removesuffix("_unconstrained"))
    store = pyro.get_param_store()
    state = store.get_state()
    # "$$$" separates a plain nn.Module's name from its parameter's in the store
    names = [n for n in state["params"] if n.replace("$$$", ".") in held]
    for name in names:
        del state["params"][name], state["constraints"][name]
    with store.scope(state):
        yield


def _check_plate(program: str, name: str, site: Site, size: int) -> None:
    frames = [f for f in site["cond_indep_stack"] if f.name == PLATE]
    if not frames:
        raise ValueError(
            f"site '{name}' of the {program} is outside the plate \"{PLATE}\", so its draw would "
            f"be shared by all data and no weight per datum exists: sample it inside "
            f'`with pyro.plate("{PLATE}", len(x)):` (for a bound on the joint minibatch there is '
            f"pyro.infer.RenyiELBO)"
        )
    if not frames[0].vectorized or frames[0].size != size:
        got = f"holds {frames[0].size}" if frames[0].vectorized else "is a sequential loop"
        raise ValueError(
            f"expected the plate \"{PLATE}\" to hold the {size} data given; at site '{name}' of "
            f'the {program} it {got}: write `pyro.plate("{PLATE}", len(x))` without subsampling'
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
                f"the {has} samples {', '.join(map(repr, sorted(names)))} and the {lacks} does "
                f"not: importance weights need the same latent sites in both"
            )
    if latent == set(model):
        raise ValueError(
            "the model observes nothing: give the data to one of its sites, `pyro.sample(…, obs=x)`"
        )
