"""Marks of the sites of a model that are summed out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger

__all__ = [
    "SUMMED_OUT",
    "Site",
    "find_enumerated",
    "find_marked",
    "is_marked",
    "mark_enumerated",
    "not_enumerable_reason",
    "unmarked",
]

#: Pyro's record of one site: its distribution ``fn``, ``value``, ``mask`` and so on.
Site = Mapping[str, Any]

#: Key in the ``infer`` of a site of a model that is summed out.
SUMMED_OUT = "_summed_out"
#: Attribute of a marked model: the model.
_MARKED = "_unmarked"
#: Reasons why a distribution cannot be summed over.
_CONTINUOUS = "is continuous"
_COMBINATIONS = "has all combinations of several dimensions as values"
_INFINITE = "has infinitely many values"


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
