"""Declaration of an evaluation, from which its files, command and report section are derived."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_type_hints

from .results import Result
from .sections import Section

__all__ = ["Evaluation", "SplitName"]

#: Name of a data split.
SplitName = Literal["test", "valid", "train", "all"]

R = TypeVar("R", bound=Result)

#: Arguments of ``compute`` that a run supplies; they are not options.
_SUPPLIED = ("program", "dataset", "checkpoint", "progress")


@dataclass(frozen=True)
class Evaluation(Generic[R]):
    """An evaluation of the program of a run.

    A run folder has its result in ``NAME.nc``, its summary in the entry NAME of ``result.json``,
    and its checkpoint in ``NAME.npz`` until it is finished. ``pyro-vae COMMAND RUN`` computes it,
    with the first line of the docstring of ``compute`` as help.

    Attributes:
        name: the name.
        title: the heading in the report.
        compute: ``compute(program, dataset, *, checkpoint, progress, …)`` returns the result.
            Its other keyword arguments, documented under ``Arguments:``, are the options of the
            command. If it has ``**options``, so are those of ``function``.
        function: the public function that ``compute`` passes its further options to.
        result: the class of the result.
        make_section: returns the section of the report.
        command: the name on the command line; by default the name with hyphens.
        resumable: whether an interrupted computation resumes from its checkpoint, or the options
            of which one is needed for it.
        is_distributed: whether several processes can share the computation.
        replaced: options of earlier versions by name, and their replacement on the command line.
    """

    name: str
    title: str
    compute: Callable[..., R]
    function: Callable[..., R]
    result: type[R]
    make_section: Callable[[R], Section]
    command: str = ""
    resumable: bool | tuple[str, ...] = True
    is_distributed: bool = False
    replaced: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.command:
            object.__setattr__(self, "command", self.name.replace("_", "-"))

    def is_resumable(self, options: Mapping[str, Any]) -> bool:
        """Whether a computation with the given options resumes after an interruption."""
        if isinstance(self.resumable, bool):
            return self.resumable
        return any(options.get(name) for name in self.resumable)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The options by name, keyword-only, with evaluated annotations."""
        found: dict[str, inspect.Parameter] = {}
        for function in (self.compute, self.function):
            hints, signature = get_type_hints(function), inspect.signature(function)
            for name, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in _SUPPLIED:
                    found.setdefault(name, parameter.replace(annotation=hints[name]))
            if all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()):
                break
        return found

    def bind(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, with defaults for those that are not given.

        Raises:
            TypeError: if an option is unknown.
            ValueError: if it is one of an earlier version.
        """
        for name in options.keys() & self.replaced.keys():
            raise ValueError(f"{self.command} has no option {name}: use {self.replaced[name]}")
        bound = inspect.Signature(list(self.parameters.values())).bind(**options)
        bound.apply_defaults()
        return bound.arguments
