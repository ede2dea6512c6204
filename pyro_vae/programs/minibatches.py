"""Programs in the form in which they are trained on minibatches."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..core.evaluation_mode import owning_modules
from ..data.arguments import is_per_datum
from .arguments import ProgramInputs, spread_arguments
from .audit import examples_are_independent, reads_plate_index
from .autoguides import direct_guide
from .base import PLATE, sample_sites, trace_program
from .context import inspecting
from .plates import is_data_plate, normalize_plate

__all__ = ["MinibatchForm", "MinibatchSource", "find_minibatch_form", "name_arguments"]

#: Examples from each end of the data on which forms of a program are tried.
_PART = 100
#: Errors of a program that cannot run.
_FAILURES = (RuntimeError, ValueError, IndexError)
#: Arguments by position (after x and the labels) or by name.
_Arguments = Mapping[int | str, Any]


@dataclass(frozen=True)
class MinibatchForm:
    """A program that is called with x, the labels if any, and further tensors per datum.

    Attributes:
        model, guide: the program, called as ``model(x, *tensors)``.
        tensors: the further tensors of all examples, ``(N, …)``, from which minibatches are
            gathered; the last is the index of the examples, if the program reads it.
        keys: positions or names of the tensors that are arguments of the program.
        shared: the other arguments, which are bound to model and guide.
        reads_index: whether the program reads the index of its plate over the data, e.g. because
            it has parameters per example.
        needs_all: whether the program only runs on all examples at once, in their order.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    tensors: tuple[Tensor, ...] = ()
    keys: tuple[int | str, ...] = ()
    shared: _Arguments = field(default_factory=dict)
    reads_index: bool = False
    needs_all: bool = False


@dataclass(frozen=True)
class MinibatchSource:
    """Examples that a program can be tried on.

    Attributes:
        size: the number N of training examples.
        batch: the indices of a minibatch.
        gather: returns the arguments (x, or x and labels) of the examples at an index.
        is_sequential: whether examples can only be read in order.
        is_resident: whether all examples are in memory.
    """

    size: int
    batch: Tensor
    gather: Callable[[Tensor], tuple[Tensor, ...]]
    is_sequential: bool = False
    is_resident: bool = True

    @property
    def all(self) -> Tensor:
        return torch.arange(self.size)

    @property
    def ends(self) -> Tensor:
        """Indices of the first and of the last examples."""
        if self.size <= 2 * _PART or self.is_sequential:
            return self.all[: 2 * _PART]
        return torch.cat([self.all[:_PART], self.all[-_PART:]])

    @property
    def part(self) -> Tensor:
        """Indices of some examples: of the minibatch, without the last if it has all examples."""
        return self.batch[:-1] if len(self.batch) == self.size > 1 else self.batch


def find_minibatch_form(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    source: MinibatchSource,
    arguments: _Arguments,
    plate: str | None = None,
) -> MinibatchForm:
    """Find the form in which a program is trained on minibatches.

    As in :func:`~.audit.audit_inputs`, arguments that are tensors of leading size N are per datum,
    unless examples then depend on each other or the program cannot run; a program that reads the
    index of its plate gets the indices of the examples. Pyro's autoguides with parameters per
    example select those of the minibatch. A plate of size N with a subsample does not scale the
    loss, which is a sum over the minibatch; sites outside of it count B / N instead.

    Arguments:
        model, guide: the program. The parameters of autoguides are created from all examples, if
            they do not exist yet.
        source: the training examples.
        arguments: further arguments of model and guide.
        plate: the name of the plate over the data, see :func:`~.plates.normalize_plate`.

    Raises:
        ValueError: if the program cannot be trained on minibatches, or does not run.
    """
    return _Finder((model, guide), source, arguments, plate).find()


class _Finder:
    """Tries the forms of a program."""

    def __init__(
        self,
        functions: tuple[Callable[..., Any], Callable[..., Any]],
        source: MinibatchSource,
        arguments: _Arguments,
        plate: str | None,
    ) -> None:
        # autoguides of the latents of all examples together can sample those of a minibatch
        self.functions = functions[0], direct_guide(functions[1])
        self.source, self.arguments, self.plate = source, arguments, plate
        self.keys = [k for k, v in arguments.items() if is_per_datum(v, source.size)]
        owners = list(owning_modules(*functions))
        guides = [m for owner in owners for m in owner.modules() if isinstance(m, AutoGuide)]
        self.autoguides = [g for g in dict.fromkeys(guides) if g.master is None]

    def find(self) -> MinibatchForm:
        self._create_autoguides()
        plain = self._form()
        with self._evaluating():
            plates = [plate for g in self.autoguides if (plate := self._autoguide_plate(g))]
            reads_index = bool(plates) or reads_plate_index(self._inputs(plain, self.source.part))
        if not (self.keys or reads_index):
            return self._check_plain(plain)
        for shared, indexed in self._candidates(reads_index):
            form = self._form(shared, indexed, plates)
            if examples_are_independent(self._inputs(form, self.source.ends)):
                return self._finish(form, shared, plates)
        failures: list[Exception] = []
        for shared, indexed in self._candidates(reads_index):
            form = self._form(shared, indexed, plates)
            try:
                self._run(form, self.source.part)
            except _FAILURES as error:
                failures.append(error)
            else:
                return self._finish(form, shared, plates)
        return self._require_all(plain, failures[0])

    def _evaluating(self) -> Any:
        return inspecting(*self.functions)

    def _candidates(self, reads_index: bool) -> Iterator[tuple[tuple[int | str, ...], bool]]:
        """Yield shared arguments, and whether the index is given, the most plausible first."""
        for count in range(len(self.keys) + 1):
            for shared in itertools.combinations(self.keys, count):
                yield shared, reads_index
                if not self.autoguides:
                    yield shared, not reads_index

    def _form(
        self,
        shared: tuple[int | str, ...] = (),
        indexed: bool = False,
        plates: Sequence[_AutoGuidePlate] = (),
        rules: _PlateRules | None = None,
    ) -> MinibatchForm:
        """Return a form of the program, with its plates as they are unless there are rules."""
        form = self._spread_form(shared)
        model, guide = self._normalize(form)
        if indexed or rules is not None:
            rules = rules or _PlateRules(self.source.size, self._plate_names(plates))
            model, guide = (_set_index(f, indexed, rules, plates) for f in (model, guide))
        tensors = (*form.tensors, *([self.source.all] if indexed else []))
        return replace(form, model=model, guide=guide, tensors=tensors, reads_index=indexed)

    def _plate_names(self, plates: Sequence[_AutoGuidePlate] = ()) -> frozenset[str]:
        """Return the names of the plate over the data in the program itself."""
        return frozenset({PLATE, *([self.plate] if self.plate else []), *(p.name for p in plates)})

    def _spread_form(self, shared: tuple[int | str, ...] = ()) -> MinibatchForm:
        """Return the program as a function of x and of the arguments that are per datum."""
        keys = tuple(key for key in self.keys if key not in shared)
        bound = {key: v for key, v in self.arguments.items() if key not in keys}
        model, guide = self.functions
        if self.arguments:
            model, guide = (spread_arguments(f, keys, bound) for f in (model, guide))
        return MinibatchForm(model, guide, tuple(self.arguments[k] for k in keys), keys, bound)

    def _normalize(self, form: MinibatchForm) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return model and guide with a plate "data" over the data."""
        is_whole = self.source.is_resident and not self.source.is_sequential
        indices = [self.source.part, *([self.source.all] if is_whole else [])]
        for index in indices:
            inputs = self._inputs(form, index)
            try:
                normal = normalize_plate(inputs, self.plate, allow_shared=True)
            except ValueError:
                if index is indices[-1]:
                    raise
                continue  # the plate may have the size of all examples
            if normal is not inputs or self._has_data_plate(form, index):
                return normal.model, normal.guide
        return form.model, form.guide

    def _has_data_plate(self, form: MinibatchForm, index: Tensor) -> bool:
        try:
            traces = self._run(form, index)
        except _FAILURES:
            return False
        frames = [
            f for t in traces for s in sample_sites(t).values() for f in s["cond_indep_stack"]
        ]
        return any(frame.name == PLATE for frame in frames)

    def _inputs(self, form: MinibatchForm, index: Tensor) -> ProgramInputs:
        x, *labels = self.source.gather(index)
        tensors = (t[index.to(t.device)].to(x.device) for t in form.tensors)
        return ProgramInputs(form.model, form.guide, x, (*labels, *tensors), {})

    def _run(self, form: MinibatchForm, index: Tensor) -> tuple[dict, dict]:
        inputs = self._inputs(form, index)
        with self._evaluating():
            return trace_program(
                inputs.model, inputs.guide, (inputs.x, *inputs.args), {}, sum_out=False
            )

    def _check_plain(self, form: MinibatchForm) -> MinibatchForm:
        try:
            traces = self._run(form, self.source.part)
        except _FAILURES as error:
            return self._require_all(form, error)
        if not _has_subsample(traces):
            return form
        rules = _PlateRules(self.source.size, self._plate_names(), scales_sites=True)
        return self._form(rules=rules)

    def _finish(
        self,
        form: MinibatchForm,
        shared: tuple[int | str, ...],
        plates: Sequence[_AutoGuidePlate],
    ) -> MinibatchForm:
        """Return the form with a plate that does not scale the loss."""
        traces = self._run(form, self.source.part)
        is_subsample = _has_subsample(traces)
        if not (is_subsample or plates):
            return form
        names = self._plate_names(plates)
        rules = _PlateRules(self.source.size, names, True, keeps_scaled=not is_subsample)
        return self._form(shared, form.reads_index, plates, rules)

    def _require_all(self, form: MinibatchForm, error: Exception) -> MinibatchForm:
        """Return the form, if the program runs on all examples and minibatches have all of them."""
        size, batch_size = self.source.size, len(self.source.batch)
        if size < 2 or self.source.is_sequential:
            raise error
        try:
            self._run(form, self.source.all)
        except _FAILURES:
            raise error from None
        if batch_size == size:
            return replace(form, needs_all=True)
        guides = [g for g in self.autoguides if self._autoguide_plate(g)]
        reason = f"got one that only runs on all {size} examples, e.g. with parameters per example"
        if guides:
            reason = (
                f"got {type(guides[0]).__name__}, which draws the latents of all {size} examples "
                f"together"
            )
        raise ValueError(
            f"expected a program that runs on some of the examples, to train on minibatches of "
            f"{batch_size}; {reason}: set batch_size to {size}, or read parameters per example by "
            f'the index of the plate, as in loc[i] inside `with pyro.plate("{PLATE}", len(x)) as '
            f"i` (AutoNormal does)"
        ) from error

    def _create_autoguides(self) -> None:
        """Let autoguides create their parameters, in a first run with all examples."""
        new = [guide for guide in self.autoguides if guide.prototype_trace is None]
        if not new:
            return
        if self.source.is_sequential:
            raise ValueError(
                "expected examples that can be read at once, from which an autoguide creates its "
                "parameters per example; got an iterable data set: use a map-style Dataset"
            )
        form = self._spread_form()
        inputs, store = self._inputs(form, self.source.all), pyro.get_param_store()
        state = store.get_state()
        for name in [*state["params"]]:
            # parameters of another guide of the same name would be taken over
            if name.startswith(tuple(f"{guide._pyro_name}." for guide in new)):
                del state["params"][name], state["constraints"][name]
        with self._evaluating(), store.scope(state), pyro.poutine.block():
            inputs.guide(inputs.x, *inputs.args)

    def _autoguide_plate(self, guide: AutoGuide) -> _AutoGuidePlate | None:
        """Return the plate over the data of an autoguide with parameters per example, if any."""
        trace: Any = guide.prototype_trace
        if trace is None or not all(trace.nodes.values()):
            return None  # it is not used by the program, or it is an AutoStructured
        stacks = [site["cond_indep_stack"] for _, site in trace.iter_stochastic_nodes()]
        frames = {f.name: f for stack in stacks for f in stack if f.vectorized}
        full = {name: f.full_size or f.size for name, f in frames.items()}
        fitting = [name for name in frames if full[name] == self.source.size]
        if PLATE in frames and full[PLATE] != self.source.size:
            raise ValueError(
                f"expected {type(guide).__name__} with parameters of all {self.source.size} "
                f"training examples; got one that was created with {full[PLATE]}: create a new "
                f"guide, whose parameters fit creates"
            )
        named = [name for name in (self.plate, PLATE) if name in fitting]
        name = next(iter(named or fitting), None)
        return None if name is None else _AutoGuidePlate(guide, name, frames[name].dim)


def _has_subsample(traces: tuple[dict, dict]) -> bool:
    """Whether the plate over the data has a subsample of its size."""
    frames = [frame for frame in _frames(traces) if frame.name == PLATE]
    return any(f.full_size not in (None, f.size) for f in frames)


def _frames(traces: tuple[dict, dict]) -> list[Any]:
    """Return Pyro's records of the plates of all sites."""
    sites = [site for trace in traces for site in sample_sites(trace).values()]
    return [frame for site in sites for frame in site["cond_indep_stack"]]


@dataclass(frozen=True)
class _PlateRules:
    """How the plate over the data scales sites in training.

    Attributes:
        num_data: the number N of training examples.
        names: the names of the plate in the program.
        scales_sites: whether sites in the plate count once per example of the minibatch, and
            others B / N.
        keeps_scaled: whether sites outside of the plate keep a scale of their own.
    """

    num_data: int
    names: frozenset[str]
    scales_sites: bool = False
    keeps_scaled: bool = False


@dataclass(frozen=True)
class _AutoGuidePlate:
    """The plate over the data of an autoguide."""

    guide: AutoGuide
    name: str
    dim: int

    @contextmanager
    def restrict(self, size: int) -> Iterator[None]:
        """Let the guide sample ``size`` examples instead of all."""
        given = self.guide.create_plates

        def create(*args: Any, **kwargs: Any) -> list[Any]:
            plates = () if given is None else given(*args, **kwargs)
            plates = [plates] if isinstance(plates, pyro.plate) else [*plates]
            own = pyro.plate(self.name, size, dim=self.dim)
            return [*(plate for plate in plates if plate.name != self.name), own]

        self.guide.create_plates = create
        try:
            yield
        finally:
            self.guide.create_plates = given


def _set_index(
    function: Callable[..., Any],
    indexed: bool,
    rules: _PlateRules,
    plates: Sequence[_AutoGuidePlate],
) -> Callable[..., Any]:
    """Return a function whose plate over the data has the indices in its last argument."""

    @functools.wraps(function, updated=())
    def run(x: Any, *args: Any) -> Any:
        index = args[-1] if indexed else None
        with ExitStack() as stack:
            for plate in plates:
                stack.enter_context(plate.restrict(len(x)))
            stack.enter_context(_MinibatchPlate(index, len(x), rules))
            return function(x, *(args[:-1] if indexed else args))

    return run


class _MinibatchPlate(Messenger):
    """Give the plate over the data the indices of a minibatch, and its sites their scale.

    Arguments:
        index: the indices of the examples, ``(B,)``, if the program reads them.
        size: the number B of examples.
        rules: how sites are scaled.
    """

    def __init__(self, index: Tensor | None, size: int, rules: _PlateRules) -> None:
        super().__init__()
        self.index, self.size, self.rules = index, size, rules

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if self.index is not None and is_data_plate(msg) and msg["value"] is None:
                msg["value"] = self.index
            return
        if not self.rules.scales_sites:
            return
        frames = msg["cond_indep_stack"]
        if not any(frame.name == PLATE for frame in frames):
            if not (self.rules.keeps_scaled and _is_scaled(msg["scale"])):
                msg["scale"] = msg["scale"] * self.size / self.rules.num_data
            return
        for frame in frames:
            if frame.name == PLATE and frame.full_size not in (None, frame.size):
                msg["scale"] = msg["scale"] * frame.size / frame.full_size
        msg["cond_indep_stack"] = tuple(
            f._replace(full_size=f.size) if f.name == PLATE else f for f in frames
        )

    def _pyro_post_param(self, msg: Any) -> None:
        """Select the rows of a parameter in a plate of the size of the minibatch."""
        event_dim = msg["kwargs"].get("event_dim")
        if self.index is None or event_dim is None:
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name not in self.rules.names or frame.dim is None:
                continue
            if frame.full_size not in (None, frame.size):
                continue  # Pyro selects the rows in a plate with a subsample
            value, dim = msg["value"], frame.dim - event_dim
            if value.ndim >= -dim and value.shape[dim] == self.rules.num_data:
                msg["value"] = value.index_select(dim, self.index.to(value.device))


def _is_scaled(scale: Any) -> bool:
    return isinstance(scale, Tensor) or scale != 1


def name_arguments(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    num_first: int,
) -> dict[int | str, Any]:
    """Return further arguments of a program by name, or by position if they have no common name.

    Arguments:
        args, kwargs: the arguments that follow the first.
        num_first: number of first arguments: x, or x and the labels.

    Raises:
        ValueError: if an argument is given twice.
    """
    names = [_positional_names(function, num_first) for function in (model, guide)]
    named: dict[int | str, Any] = {}
    for position, value in enumerate(args):
        found = {own[position] if position < len(own) else None for own in names}
        name = found.pop() if len(found) == 1 else None
        named[position if name is None else name] = value
        if name in kwargs:
            raise ValueError(f"expected the argument {name!r} once; got it by position and by name")
    return {**named, **kwargs}


def _positional_names(function: Callable[..., Any], num_first: int) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    return [p.name for p in parameters if p.kind in kinds][num_first:]
