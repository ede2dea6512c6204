"""Programs with their discrete latents summed out of model and guide."""

from __future__ import annotations

from ..arguments import ProgramInputs, audited_rows
from ..base import is_latent, sample_sites, trace_program
from ..context import inspecting
from .marks import mark_enumerated, not_enumerable_reason, unmarked

__all__ = ["sum_out_discrete"]


def sum_out_discrete(inputs: ProgramInputs) -> ProgramInputs:
    """Return the program with its discrete latents y summed out of model and guide.

    Methods that follow gradients need continuous latents z. The result has log p(x, z) =
    log Σ_y p(x, y, z) and log q(z|x) = log Σ_y q(y, z|x), with the same p(x). Sampling its guide
    samples y as well, and ignores it.

    Arguments:
        inputs: an audited program; it is returned unchanged if its latents are all continuous or
            all discrete.

    Raises:
        ValueError: if a discrete latent has infinitely many values, or if model or guide do not run
            with all values at once; see :mod:`~.enumeration.run`.
    """
    model, guide = inputs.model, inputs.guide
    rows = audited_rows(inputs.x)
    with inspecting(model, guide):
        try:
            part = inputs.select(rows)
            sites = trace_program(model, guide, (part.x, *part.args), part.kwargs)
        except (RuntimeError, ValueError, IndexError):
            if len(rows) == len(inputs.x):
                raise
            # a program that only runs on all examples
            part = inputs
            sites = trace_program(model, guide, (part.x, *part.args), part.kwargs)
        latents = {n: s for n, s in sample_sites(sites[0]).items() if is_latent(s)}
        discrete = [n for n, site in latents.items() if _is_discrete(site["fn"])]
        if not discrete or len(discrete) == len(latents):
            return inputs
        for name in discrete:
            fn = latents[name]["fn"]
            if (reason := not_enumerable_reason(fn)) is not None:
                raise ValueError(
                    f"expected continuous latents, or discrete ones to sum out; got site {name!r} "
                    f"({type(fn).__name__}), which {reason}: evaluate the program by importance "
                    f"sampling"
                )
        before = unmarked(model)
        summed = [n for n, site in sites[1].items() if site["type"] == "enumerated"]
        result = inputs._replace(
            model=mark_enumerated(before or model, [*discrete, *summed]),
            guide=mark_enumerated(guide, discrete),
        )
        trace_program(result.model, result.guide, (part.x, *part.args), part.kwargs, check=True)
    return result


def _is_discrete(fn: object) -> bool:
    try:
        return bool(fn.support.is_discrete)  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError):
        return False
