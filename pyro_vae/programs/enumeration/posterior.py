"""The exact posterior of the sites of a model that are summed out, as a part of its guide."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import apply_stack
from torch import Tensor

from ..arguments import ProgramInputs
from ..base import PARTICLES, PLATE, Site, sample_sites, site_log_prob
from .marks import find_enumerated, unmarked
from .run import EnumeratedRun

__all__ = ["with_enumerated_posterior"]


def with_enumerated_posterior(inputs: ProgramInputs) -> ProgramInputs:
    """Return the program with the sites that are summed out as latents of model and guide.

    The guide samples them from their posterior p(y | z, x) given its own latents z, by backward
    sampling. The weights p(x, z, y) / (q(z|x) p(y | z, x)) are those of the sum over y.

    Arguments:
        inputs: an audited program; it is returned unchanged if no site is summed out.
    """
    model = unmarked(inputs.model)
    if model is None:
        return inputs
    guide = inputs.guide

    @functools.wraps(guide, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        with poutine.trace() as capture:
            result = guide(*args, **kwargs)
        _sample_enumerated(model, args, kwargs, cast("Mapping[str, Site]", capture.trace.nodes))
        return result

    return inputs._replace(model=model, guide=run)


def _sample_enumerated(
    model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], guide: Mapping[str, Site]
) -> None:
    """Sample the enumerated sites of a model, given the latents of a run of the guide."""
    values = {name: site["value"] for name, site in sample_sites(guide).items()}
    frames = _current_frames()
    # the runs of the model are no part of the guide
    with poutine.block(), _Frames(frames):
        conditioned = poutine.condition(model, data=values)
        trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
        nodes = cast("Mapping[str, Site]", trace.nodes)
        names = find_enumerated(nodes, guide)
        if not names:
            return
        kept = (PLATE, PARTICLES)
        posterior = EnumeratedRun(conditioned, args, kwargs, nodes, names, kept, site_log_prob)
    indices: dict[str, Tensor] = {}
    factors = dict(posterior.posterior())
    for name in (*factors, *(name for name in names if name not in factors)):
        site, fn = nodes[name], nodes[name]["fn"]
        if name in factors:
            fn = _make_distribution(name, fn, posterior.logits(name, factors[name], indices))
        inner = [f for f in site["cond_indep_stack"] if f not in frames]
        with _Frames(inner), poutine.mask(mask=True if site["mask"] is None else site["mask"]):
            value = pyro.sample(name, fn)
        indices[name] = (value.argmax(-1) if fn.event_dim else value).long()


def _make_distribution(name: str, fn: Any, logits: Tensor) -> Any:
    """Return the distribution of a site with other logits."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.OneHotCategorical):
        return dist.OneHotCategorical(logits=logits)
    if isinstance(fn, torch.distributions.Categorical):
        return dist.Categorical(logits=logits)
    if isinstance(fn, torch.distributions.Bernoulli):
        # the difference may be infinite
        limit = torch.finfo(logits.dtype).max / 2
        return dist.Bernoulli(logits=(logits[..., 1] - logits[..., 0]).clamp(-limit, limit))
    raise ValueError(
        f"expected an enumerated site of type Categorical, OneHotCategorical or Bernoulli, to "
        f"sample it from its posterior; got {type(fn).__name__} at site {name!r}: write it as a "
        f"Categorical, or sample it in the guide"
    )


def _current_frames() -> tuple[CondIndepStackFrame, ...]:
    """Return the plates that enclose the caller."""
    message: Any = {
        "type": "plates",
        "name": "plates",
        "fn": None,
        "is_observed": False,
        "args": (),
        "kwargs": {},
        "value": True,
        "scale": 1.0,
        "mask": None,
        "cond_indep_stack": (),
        "done": True,
        "stop": False,
        "continuation": None,
        "infer": {},
    }
    apply_stack(message)
    return message["cond_indep_stack"]


class _Frames(Messenger):
    """Put all sites into given plates, which may be active outside of a ``poutine.block``."""

    def __init__(self, frames: Any) -> None:
        super().__init__()
        self.frames = tuple(frames)

    def _pyro_sample(self, msg: Any) -> None:
        msg["cond_indep_stack"] = (*self.frames, *msg["cond_indep_stack"])
        BroadcastMessenger._pyro_sample(msg)
