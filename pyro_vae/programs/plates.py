"""The plate over the data, of any name and declared in any way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .arguments import ProgramInputs, audited_rows
from .base import PLATE, Site, is_latent, sample_sites, trace_program
from .context import inspecting

__all__ = ["is_data_plate", "normalize_plate"]

T = TypeVar("T")

#: Key of the ``infer`` entry with the normalised name of a renamed plate.
_NORMALIZED = "normalized_plate"
#: Normalised name of a plate "data" that is not the plate over the data.
_OTHER = f"{PLATE} (not over the examples)"
#: Errors of a program that cannot run, which the audit reports.
_FAILURES = (RuntimeError, ValueError, IndexError)


def normalize_plate(
    inputs: ProgramInputs, plate: str | None = None, *, allow_shared: bool = False
) -> ProgramInputs:
    """Return a program whose plate over the data is ``pyro.plate("data", len(x))``.

    Programs declare that plate by any name, without a size (``pyro.plate("cells")``), or with
    subsampling: indices of a minibatch (``subsample=index``) are kept, and a plate that draws its
    own minibatch (``subsample_size=B``) returns the indices of all examples. Sites keep their
    dimensions, values and densities. A program that declares ``pyro.plate("data", len(x))`` is
    returned unchanged.

    Arguments:
        inputs: a program with all its data, or a minibatch.
        plate: the name of its plate over the data. By default it is the plate of size len(x), of
            a subsample of this size, or without a size, that encloses most sites.
        allow_shared: whether sites may be outside of the plate, i.e. shared by all examples, as
            in training. If there is no plate over the data, the inputs are returned unchanged.

    Raises:
        ValueError: if there is no such plate, if there are several, if a site is outside of it,
            or if a site in a plate without a size is shared by all examples.
    """
    found = None
    with inspecting(inputs.model, inputs.guide):
        for part in _parts(inputs):
            try:
                declared = _Declarations.of(part)
            except _FAILURES:
                continue
            try:
                found = declared.find(plate, allow_shared)
                break
            except ValueError:
                if part is inputs:
                    raise
    if found is None or found.is_normal:
        return inputs

    def normalize(program: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(program, updated=())
        def run(x: Any, *args: Any, **kwargs: Any) -> Any:
            size = None if x is None else len(x)
            with _NormalizedPlate(found.name, size), found.all_examples(size):
                return program(x, *args, **kwargs)

        return run

    return inputs._replace(model=normalize(inputs.model), guide=normalize(inputs.guide))


def is_data_plate(msg: Any) -> bool:
    """Whether a message is of the indices of the plate over the data."""
    return site_is_subsample(msg) and msg["infer"].get(_NORMALIZED, msg["name"]) == PLATE


def _parts(inputs: ProgramInputs) -> Iterator[ProgramInputs]:
    """Yield the program with a few examples, and then with all."""
    rows = audited_rows(inputs.x)
    if len(rows) < len(inputs.x):
        yield inputs.select(rows)
    yield inputs


@dataclass(frozen=True)
class _Plate:
    """The plate over the data as a program declares it.

    Attributes:
        name: its name.
        frame: Pyro's record of it.
        draws_subsample: whether it draws a random minibatch.
    """

    name: str
    frame: CondIndepStackFrame
    draws_subsample: bool

    @property
    def is_normal(self) -> bool:
        return self.name == PLATE and self.frame.size != -1 and not self.draws_subsample

    def all_examples(self, size: int | None) -> Any:
        """Return a context in which the plate has all examples instead of a minibatch."""
        if size is None or not self.draws_subsample:
            return nullcontext()
        return _without_subsampling(self.name, size)


class _Declarations(NamedTuple):
    """The plates of a program, from one run.

    Attributes:
        size: the number N of examples.
        sites: the latent sites of the guide and all sites of the model, as (program, name, site).
        drawn: the plates that draw a subsample.
    """

    size: int
    sites: list[tuple[str, str, Site]]
    drawn: set[str]

    @classmethod
    def of(cls, inputs: ProgramInputs) -> _Declarations:
        """Run a program once.

        Raises:
            RuntimeError, ValueError, IndexError: if it cannot run.
        """
        model, guide, x, args, kwargs = inputs
        recorder = _SubsampleRecorder()

        def run(whole: str | None = None) -> tuple[dict[str, Site], ...]:
            full = nullcontext() if whole is None else _without_subsampling(whole, len(x))
            with recorder, full:
                # densities per datum are unknown until the plate is
                return trace_program(model, guide, (x, *args), kwargs, sum_out=False)

        try:
            traces = run()
        except _FAILURES as error:
            # a minibatch may be larger than x, or its indices
            traces = next(_attempts(run, sorted(recorder.drawn)), None)
            if traces is None:
                raise error
        guide_sites, model_sites = map(sample_sites, traces)
        sites = [("guide", name, s) for name, s in guide_sites.items() if is_latent(s)]
        sites += [("model", name, s) for name, s in model_sites.items()]
        return cls(len(x), sites, recorder.drawn)

    def find(self, name: str | None, allow_shared: bool) -> _Plate | None:
        """Return the plate over the data."""
        fitting: dict[str, list[CondIndepStackFrame]] = {}
        for _, _, site in self.sites:
            for frame in site["cond_indep_stack"]:
                if self._fits(frame) and name in (None, frame.name):
                    fitting.setdefault(frame.name, []).append(frame)
        if not fitting:
            if name is None and allow_shared:
                return None
            raise ValueError(self._explain_missing(name))
        most = max(map(len, fitting.values()))
        best = [plate for plate, frames in fitting.items() if len(frames) == most]
        chosen = PLATE if PLATE in best else best[0]
        if len(best) > 1 and chosen != PLATE:
            names = " and ".join(f'"{plate}"' for plate in best)
            raise ValueError(
                f"expected one plate over the data; got the plates {names}, which both have the "
                f"size of the data, {self.size}: name the plate over the data, as in "
                f'plate="{chosen}"'
            )
        plate = _Plate(chosen, fitting[chosen][0], chosen in self.drawn)
        if not allow_shared and chosen != PLATE:
            self._check_enclosed(plate)
        return plate

    def _fits(self, frame: CondIndepStackFrame) -> bool:
        sizes = {frame.size, frame.full_size} if frame.name in self.drawn else {frame.size}
        return frame.vectorized and not sizes.isdisjoint({self.size, -1})

    def _check_enclosed(self, plate: _Plate) -> None:
        for program, name, site in self.sites:
            frames = site["cond_indep_stack"]
            others = [frame.name for frame in frames]
            if plate.name in others:
                continue
            where = f'in the plate "{others[0]}" instead' if others else "outside of it"
            if not any(map(self._fits, frames)):
                where += (
                    ", which is shared by all examples, so that weights per datum are undefined"
                )
            raise ValueError(
                f'expected all sample sites inside the plate "{plate.name}" over the data; got '
                f"site {name!r} of the {program} {where}: sample it inside `with "
                f'pyro.plate("{plate.name}", len(x)):`'
            )

    def _explain_missing(self, name: str | None) -> str:
        """Return the reason why there is no plate over the data."""
        frames = {f.name: f for _, _, site in self.sites for f in site["cond_indep_stack"]}
        if name is not None and name not in frames:
            got = ", ".join(f'the plate "{other}"' for other in frames) or "no plate"
            return f'expected a plate "{name}" around the sites of the program; got {got}'
        named = [frames[name]] if name is not None else [*frames.values()]
        if not named:
            program, site, _ = self.sites[0]
            return (
                f"expected all sample sites inside the plate \"{PLATE}\"; got site '{site}' of the "
                f"{program} outside of it, which is shared by all examples, so that weights per "
                f'datum are undefined: sample it inside `with pyro.plate("{PLATE}", len(x)):` '
                f"(AutoNormal does; pyro.infer.RenyiELBO bounds the joint minibatch)"
            )
        loops = [frame.name for frame in named if not frame.vectorized]
        if loops:
            return (
                f'expected the plate "{loops[0]}" to be vectorized; it is a sequential loop, `for '
                f'… in pyro.plate(…)`: write `with pyro.plate("{loops[0]}", len(x)):`'
            )
        if len(named) == 1:
            return (
                f'expected the plate "{named[0].name}" to have the size of the data, {self.size}; '
                f"it has size {named[0].size}: write "
                f'`pyro.plate("{named[0].name}", len(x))`, and pass only the examples of this run'
            )
        sizes = ", ".join(f'"{f.name}" of size {f.size}' for f in named)
        return (
            f"expected a plate of the size of the data, {self.size}; got the plates {sizes}: "
            f'write `with pyro.plate("{PLATE}", len(x)):` around the sites of an example'
        )


def _attempts(run: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """Yield the results of a function for the arguments for which it does not fail."""
    for name in names:
        with suppress(*_FAILURES):
            yield run(name)


class _SubsampleRecorder(Messenger):
    """Record the plates that draw a subsample of given size."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["value"] is not None
        if site_is_subsample(msg) and not given and msg["fn"].subsample_size is not None:
            self.drawn.add(msg["name"])


class _NormalizedPlate(Messenger):
    """Make a plate appear as ``pyro.plate("data", size)`` at every site.

    Arguments:
        name: the name of the plate.
        size: the number N of examples, ``None`` if unknown.
    """

    def __init__(self, name: str, size: int | None) -> None:
        super().__init__()
        self.names = {name: PLATE} if name == PLATE else {name: PLATE, PLATE: _OTHER}
        self.size = size

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            # the name stays: it may also be that of a site
            if msg["name"] in self.names:
                msg["infer"][_NORMALIZED] = self.names[msg["name"]]
            return
        frames = msg["cond_indep_stack"]
        unsized = [f for f in frames if self.names.get(f.name) == PLATE and f.size == -1]
        if unsized and self.size is not None and not msg["infer"].get("_deterministic"):
            self._check_batch(msg, unsized[0])
        msg["cond_indep_stack"] = tuple(map(self._normalize, frames))

    def _normalize(self, frame: CondIndepStackFrame) -> CondIndepStackFrame:
        name = self.names.get(frame.name, frame.name)
        if name != PLATE or frame.size != -1 or self.size is None:
            return frame._replace(name=name)
        return frame._replace(name=name, size=self.size, full_size=self.size)

    def _check_batch(self, msg: Any, frame: CondIndepStackFrame) -> None:
        """Check that a site in a plate without a size has a batch dimension of the data."""
        fn, dim = msg["fn"], cast(int, frame.dim)
        shape = tuple(fn.batch_shape)
        own = shape[dim] if len(shape) >= -dim else 1
        if own == self.size:
            return
        value = msg["value"]
        if own == 1 and msg["is_observed"] and isinstance(value, Tensor):
            # log p(value) broadcasts over the values
            batch = value.shape[: value.ndim - fn.event_dim]
            if len(batch) >= -dim and batch[dim] == self.size:
                msg["fn"] = fn.expand(torch.broadcast_shapes(shape, batch))
                return
        raise ValueError(
            f'expected every site of the plate "{frame.name}", which has no size, to have a batch '
            f"dimension of the size of the data, {self.size}, at {dim}; got site {msg['name']!r} "
            f"with batch shape {shape}"
            + (", which is shared by all examples" if own == 1 else "")
            + f': write `pyro.plate("{frame.name}", len(x))`'
        )


@contextmanager
def _without_subsampling(name: str, size: int) -> Iterator[None]:
    """Make a plate that draws a subsample of the examples return all of them.

    A message can replace the indices of a subsample, but not its size.
    """
    messenger: Any = SubsampleMessenger
    original = messenger._subsample

    def declare(plate: str, *options: Any) -> Any:
        if plate == name:
            options = (size, None, *options[2:])
        return original(plate, *options)

    messenger._subsample = staticmethod(declare)
    try:
        yield
    finally:
        messenger._subsample = staticmethod(original)
