"""The audit that every program passes before it is evaluated or queried."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..core.evaluation_mode import owning_modules, preserve_buffers
from ..core.links import see
from ..core.random import Stream, seeded
from .arguments import ProgramInputs, audited_rows, has_batch
from .base import (
    PLATE,
    Site,
    attach_noise,
    enumerated_sites,
    is_latent,
    sample_sites,
    trace_program,
)
from .checks import check_latents, check_sites, find_unnormalized
from .context import (
    check_parameter_store,
    inspecting,
    nan_parameters_reason,
    use_own_parameters,
)
from .enumeration.marks import mark_enumerated
from .masks import unscored_values
from .particles import Layout, ParticleBatch, Particles, map_site, run_particles
from .plates import is_data_plate

__all__ = [
    "SingleRun",
    "audit_inputs",
    "audit_minibatch",
    "examples_are_independent",
    "reads_plate_index",
    "unnormalized_sites",
    "weights_match",
]

#: Errors of a program that cannot run on a subset of the examples.
_FAILURES = (RuntimeError, ValueError, IndexError)

_MIXES = (
    "expected examples that do not depend on each other; got a program in which the weight of an "
    "example changes with the other examples of the run (e.g. by a batch statistic or a cumulative "
    "sum over the batch), so that weights per datum are undefined: compute each example from its "
    "own data and latents "
    f"({see('docs/how-to/estimators.md#which-programs-have-a-log-px-per-example')})"
)


class _Examples(Enum):
    """How the weights of a program depend on the examples of a run."""

    INDEPENDENT = 1
    #: Independent, but the program only runs on all examples at once.
    WHOLE = 2
    DEPENDENT = 3


def audit_inputs(inputs: ProgramInputs) -> ProgramInputs:
    """Check that a program defines a weight for each example, and return it in normal form.

    The program runs with one particle on the first and the last examples, and then, with the same
    latents, on the first half, the second half and every other one of these: the weights must not
    change. In normal form, all arguments of leading size N are per datum:

    - a tensor of leading size N that the program shares between examples is bound to it;
    - the sites of the model to sum out, see :mod:`~.enumeration.run`, are marked;
    - a program that reads its tensors by the index of the plate, as in ``loc[i]`` inside ``with
      pyro.plate("data", len(x)) as i``, gets the indices of the examples as a further argument,
      so that it reads the same rows on a subset.

    A program that only runs on all examples raises a ``ValueError`` on a subset.

    Arguments:
        inputs: a program with all its data; example i has index i.

    Returns:
        The inputs in normal form.

    Raises:
        ValueError: if weights per datum are undefined: as for :func:`~.checks.check_sites` and
            :func:`~.checks.check_latents`, or if examples depend on each other.
    """
    check_parameter_store(inputs.model, inputs.guide)
    with _auditing(inputs):
        normal = _find_normal_form(inputs)
    with _auditing(normal):
        run = _run_examined(normal)
    for name, reason in find_unnormalized(run.sites[1]).items():
        warnings.warn(
            f"log p(x) is undefined, so that nothing bounds or estimates it: {reason} at site "
            f"{name!r}",
            stacklevel=3,
        )
    if run.enumerated:
        normal = normal._replace(model=mark_enumerated(normal.model, run.enumerated))
    return normal


def unnormalized_sites(inputs: ProgramInputs) -> dict[str, str]:
    """Return the sites because of which log p(x) of the audited examples is undefined, and why.

    Without argument validation, a distribution evaluates its formula outside its support too. The
    cross entropy of grey pixels, for example, is no log probability.

    Arguments:
        inputs: the program in normal form.

    Returns:
        The reasons by site, as for :func:`~.checks.find_unnormalized`.
    """
    with _auditing(inputs):
        return find_unnormalized(_run_examined(inputs).sites[1])


def _auditing(inputs: ProgramInputs) -> AbstractContextManager[None]:
    return inspecting(inputs.model, inputs.guide)


def audit_minibatch(inputs: ProgramInputs) -> None:
    """Check the latents of a program that is trained on minibatches.

    Unlike :func:`audit_inputs`, it allows latents that all examples share, and examples that
    depend on each other. The program runs in the current mode; buffers are left unchanged.

    Arguments:
        inputs: the program with a minibatch.

    Raises:
        ValueError: as for :func:`~.checks.check_latents`.
    """
    model, guide, x, args, kwargs = inputs
    unchanged = preserve_buffers(owning_modules(model, guide))
    random = seeded(0, Stream.AUDIT_MINIBATCH)
    with torch.no_grad(), use_own_parameters(model, guide), unchanged, random:
        # a site to sum out may be shared by all examples
        traces = trace_program(model, guide, (x, *args), kwargs, sum_out=False)
        guide_sites, model_sites = map(sample_sites, traces)
        check_latents(guide, (x, *args), kwargs, guide_sites, model_sites)


def reads_plate_index(inputs: ProgramInputs) -> bool:
    """Whether a program reads the indices that the plate over the data returns.

    Call it in the context :func:`~.context.evaluating`.
    """
    index = audited_rows(inputs.x)
    mode = _IndexReads(index)
    try:
        part = inputs.select(index)
        with mode, _PlateIndex(index):
            trace_program(part.model, part.guide, (part.x, *part.args), part.kwargs, sum_out=False)
    except _FAILURES:
        pass  # the audit reports the error
    return mode.found


def examples_are_independent(inputs: ProgramInputs) -> bool:
    """Whether the weight of each example is the same on any subset of the examples.

    Arguments:
        inputs: a program in which all tensors of leading size N are per datum.
    """
    with _auditing(inputs):
        try:
            return _examine(inputs) is _Examples.INDEPENDENT
        except _FAILURES:
            return False


def weights_match(a: Tensor, b: Tensor) -> bool:
    """Whether log weights are equal up to rounding."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)


class SingleRun:
    """A run with one particle, whose sites have passed all checks.

    Attributes:
        draws: the draws of the guide, with the noise of flows.
        sites: the latent sites of the guide and the sample sites of the model.
        enumerated: the sites of the model that are summed out.
        nesting: plate nesting depth of the program.
        log_weights: the weights, ``(N,)``.

    Raises:
        ValueError: as for :func:`~.checks.check_sites` and
            :func:`~.checks.check_latents`.
    """

    def __init__(self, inputs: ProgramInputs) -> None:
        self.inputs = inputs
        args = (inputs.x, *inputs.args)
        traces = trace_program(inputs.model, inputs.guide, args, inputs.kwargs, check=True)
        self.enumerated = enumerated_sites(traces[1])
        self.draws: Mapping[str, Site] = attach_noise(traces[0])
        model = sample_sites(traces[1])
        # observed sites of a guide are auxiliary losses
        guide = {name: s for name, s in sample_sites(traces[0]).items() if is_latent(s)}
        self.sites = guide, model
        self.nesting = check_sites(guide, model, len(inputs.x))
        check_latents(inputs.guide, args, inputs.kwargs, guide, model)
        batch = ParticleBatch.single(args, inputs.kwargs)
        self.log_weights = Particles(batch.log_probs(model), batch.log_probs(guide)).log_weights[0]

    def is_reproduced_by(self, rows: Tensor) -> bool | None:
        """Whether the program gives the same weights on some of the examples alone.

        ``None`` if it fails on them.
        """
        draws = {
            name: map_site(site, lambda value, dim: value.index_select(dim, rows))
            for name, site in self.draws.items()
        }
        try:
            weights = self._replay(self.inputs.select(rows), draws)
        except _FAILURES:
            return None
        return weights_match(weights, self.log_weights[rows])

    def is_unaffected_by_others(self, rows: Tensor) -> bool:
        """Whether weights stay the same if data and latents of all other examples change."""
        model, guide, x, args, kwargs = self.inputs
        kept = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        kept[rows] = True
        other = attach_noise(trace_program(model, guide, (x, *args), kwargs)[0])

        def mix(name: str, site: Site) -> Site:
            values = iter([v for k in ("value", "noise") if (v := other[name].get(k)) is not None])

            def choose(value: Tensor, dim: int) -> Tensor:
                mask = kept.reshape(-1, *(1,) * (-1 - dim))
                return torch.where(mask, value, next(values))

            return map_site(site, choose)

        draws = {name: mix(name, site) for name, site in self.draws.items()}
        changed = torch.where(kept.reshape(-1, *(1,) * (x.ndim - 1)), x, x.roll(1, 0))
        weights = self._replay(self.inputs._replace(x=changed), draws)
        return weights_match(weights[rows], self.log_weights[rows])

    def sites_used_when_masked(self) -> list[str]:
        """Return the latent sites with masked values if weights change with these values."""
        masked = {name: mask for name, mask in map(_masked, self.draws.items()) if mask is not None}
        if not masked:
            return []
        model, guide, x, args, kwargs = self.inputs
        other = attach_noise(trace_program(model, guide, (x, *args), kwargs)[0])

        def replace(name: str, site: Site) -> Site:
            if name not in masked:
                return site
            values = iter([v for k in ("value", "noise") if (v := other[name].get(k)) is not None])

            def choose(value: Tensor, dim: int) -> Tensor:
                mask = masked[name].movedim(0, dim)
                return torch.where(mask, next(values), value) if mask.ndim == value.ndim else value

            return map_site(site, choose)

        draws = {name: replace(name, site) for name, site in self.draws.items()}
        weights = self._replay(self.inputs, draws)
        return [] if weights_match(weights, self.log_weights) else sorted(masked)

    def _replay(self, inputs: ProgramInputs, draws: Mapping[str, Site]) -> Tensor:
        # tiled adds no dimension for a single particle
        layout = Layout(self.nesting, tiled=True)
        model, guide, x, args, kwargs = inputs
        run = run_particles(
            model, guide, x, *args, num_samples=1, layout=layout, draws=draws, **kwargs
        )
        return run.log_weights[0]


def _masked(item: tuple[str, Site]) -> tuple[str, Tensor | None]:
    """Return the mask of the values of a latent site that are not scored."""
    name, site = item
    is_draw = site["type"] == "sample" and is_latent(site) and bool(site["cond_indep_stack"])
    return name, unscored_values(site) if is_draw else None


def _find_normal_form(inputs: ProgramInputs) -> ProgramInputs:
    whole: ProgramInputs | None = None
    failures: list[Exception] = []
    for candidate in _normal_forms(inputs):
        try:
            result = _examine(candidate)
        except _FAILURES as error:
            failures.append(error)
            continue
        if result is _Examples.INDEPENDENT:
            return candidate
        if result is _Examples.WHOLE and whole is None:
            whole = candidate
        if result is _Examples.DEPENDENT:
            failures.append(ValueError(_MIXES))
    if whole is None:
        reason = nan_parameters_reason(inputs.model, inputs.guide)
        raise failures[0] if reason is None else ValueError(reason) from failures[0]
    return _require_all(whole)


def _normal_forms(inputs: ProgramInputs) -> Iterator[ProgramInputs]:
    """Yield the ways to read the arguments of a program, the most plausible first."""
    reads_index = reads_plate_index(inputs)
    # an index out of range would end the CUDA context
    index_first = reads_index and inputs.x.device.type != "cuda"
    args, kwargs = enumerate(inputs.args), inputs.kwargs.items()
    keys = [key for key, value in (*args, *kwargs) if has_batch(len(inputs.x), (value,))]
    for count in range(len(keys) + 1):
        for shared in itertools.combinations(keys, count):
            bound = _bind(inputs, shared)
            forms = [bound, _add_index(bound)]
            yield from reversed(forms) if index_first else forms


def _examine(inputs: ProgramInputs) -> _Examples:
    """Find out whether the examples of a program are independent.

    Raises:
        RuntimeError, ValueError, IndexError: if the program cannot run.
    """
    run = _run_examined(inputs)
    rows = torch.arange(len(run.inputs.x), device=inputs.x.device)
    half = len(rows) // 2
    parts = [rows[:half], rows[half:], rows[::2]] if half else []
    results = [run.is_reproduced_by(part) for part in parts]
    if False in results:
        return _Examples.DEPENDENT
    if used := run.sites_used_when_masked():
        raise ValueError(
            f"expected densities that do not depend on masked values; got a program whose weights "
            f"change with those of the site {used[0]!r}, which no density describes: replace "
            f"them before they are used, as in torch.where(mask, z, 0) "
            f"({see('docs/how-to/own-program.md#what-may-a-program-contain')})"
        )
    if None not in results:
        return _Examples.INDEPENDENT
    unaffected = all(run.is_unaffected_by_others(part) for part in parts)
    return _Examples.WHOLE if unaffected else _Examples.DEPENDENT


def _run_examined(inputs: ProgramInputs) -> SingleRun:
    """Run a program on the audited examples, or on all if it cannot run on a subset."""
    rows = audited_rows(inputs.x)
    try:
        return SingleRun(inputs.select(rows))
    except _FAILURES:
        if len(rows) == len(inputs.x):
            raise
        return SingleRun(inputs)  # e.g. a guide with parameters per example


def _bind(inputs: ProgramInputs, shared: tuple[Any, ...]) -> ProgramInputs:
    """Bind further arguments, positions or names, to model and guide."""
    if not shared:
        return inputs
    positional = {key: inputs.args[key] for key in shared if isinstance(key, int)}
    named = {key: inputs.kwargs[key] for key in shared if isinstance(key, str)}

    def bind(program: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(program, updated=())
        def run(x: Any, *args: Any, **kwargs: Any) -> Any:
            values = [*args]
            for position, value in positional.items():
                values.insert(position, value)
            return program(x, *values, **kwargs, **named)

        return run

    return inputs._replace(
        model=bind(inputs.model),
        guide=bind(inputs.guide),
        args=tuple(v for i, v in enumerate(inputs.args) if i not in positional),
        kwargs={k: v for k, v in inputs.kwargs.items() if k not in named},
    )


def _require_all(inputs: ProgramInputs) -> ProgramInputs:
    """Make model and guide refuse subsets of the examples, on some of which they may run."""
    size = len(inputs.x)

    def require(program: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(program, updated=())
        def run(x: Any, *args: Any, **kwargs: Any) -> Any:
            if x is not None and len(x) % size:  # particles may repeat all examples
                raise ValueError(
                    f"expected all {size} examples in a run of this program, which reads tensors "
                    f"of that size; got {len(x)}: read its parameters by the index of the plate, "
                    f'as in loc[i] inside `with pyro.plate("{PLATE}", len(x)) as i`'
                )
            return program(x, *args, **kwargs)

        return run

    return inputs._replace(model=require(inputs.model), guide=require(inputs.guide))


def _add_index(inputs: ProgramInputs) -> ProgramInputs:
    """Append the index of each example to the arguments, for the plate to return."""

    def set_index(program: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(program, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            with _PlateIndex(args[-1]):
                return program(*args[:-1], **kwargs)

        return run

    index = torch.arange(len(inputs.x), device=inputs.x.device)
    return inputs._replace(
        model=set_index(inputs.model), guide=set_index(inputs.guide), args=(*inputs.args, index)
    )


class _PlateIndex(Messenger):
    """Make the plate over the data return given indices."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.index = index

    def _pyro_sample(self, msg: Any) -> None:
        if is_data_plate(msg) and msg["value"] is None:
            msg["value"] = self.index


#: Functions of a tensor that do not read its values.
_SIZE_FUNCTIONS = {
    Tensor.size,
    Tensor.__len__,
    *(getattr(Tensor, name).__get__ for name in ("shape", "device", "dtype", "ndim")),
}


class _IndexReads(TorchFunctionMode):
    """Detect functions that read a tensor, other than its size and device."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor, self.found = tensor, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _SIZE_FUNCTIONS:
            self.found |= any(leaf is self.tensor for leaf in tree_leaves((args, kwargs)))
        return func(*args, **kwargs)
