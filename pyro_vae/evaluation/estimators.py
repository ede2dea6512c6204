"""Estimators of log p(x) as objects: the argument ``estimators`` of :func:`evaluate`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..compiler.matmul import Precision
from ..programs.arguments import ProgramInputs
from .bounds import Bounds
from .subsets import scatter, select_examples

__all__ = [
    "EstimationTask",
    "Estimator",
    "SamplingOption",
    "SamplingSettings",
    "check_estimators",
]


@dataclass(frozen=True)
class SamplingSettings:
    """How q is sampled, and what is computed from the samples.

    Attributes:
        num_samples: the number K of samples per example; with ``tolerance``, the maximum.
        ks: the L_k to compute.
        chunk_size, compile, precision: as for :func:`~pyro_vae.log_weights`.
        keep_log_weights: keep the raw weights.
        corrected: compute the smoothed and the jackknife-corrected estimate.
        defensive: the prior's share of the samples in a defensive mixture; ``None`` for none.
        tolerance: the standard error of log p̂, in nats, for which the number of samples is chosen
            per example; ``None`` for the same number for all.
    """

    num_samples: int
    ks: Sequence[int] = ()
    chunk_size: int | None = None
    compile: bool | None = None
    precision: Precision = "float32"
    keep_log_weights: bool = False
    corrected: bool = False
    defensive: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class EstimationTask:
    """The program and the examples that an estimator gets from :func:`evaluate`.

    Attributes:
        inputs: the audited program and the examples; in a distributed run those of this process.
        seed: the random seed; in a distributed run that of this process.
        checkpoint: a file to resume from; estimators append a name.
        progress: show progress bars.
    """

    inputs: ProgramInputs
    seed: int
    checkpoint: Path | None = None
    progress: bool = False

    def __len__(self) -> int:
        return len(self.inputs.x)

    def select(self, rows: np.ndarray) -> EstimationTask:
        """Return the task for a subset of the examples.

        Raises:
            ValueError: if the program only runs on all examples at once.
        """
        return replace(self, inputs=select_examples(self.inputs, rows))

    def trial(self) -> EstimationTask:
        """Return a task for two examples, to find errors before any expensive computation."""
        short = replace(self, seed=0, checkpoint=None, progress=False)
        try:
            return short.select(np.arange(min(2, len(self))))
        except ValueError:  # a program that only runs on all examples
            return short

    def run(self, function: Callable[..., Bounds], name: str, **options: Any) -> Bounds:
        """Call a function such as :func:`~pyro_vae.ais` on the examples.

        Arguments:
            function: called as ``function((model, guide), x, *args, seed=…, checkpoint=…,
                progress=…, **options, **kwargs)``.
            name: the suffix of its checkpoint.
        """
        model, guide, x, args, kwargs = self.inputs
        file = self.checkpoint
        return function(
            (model, guide),
            x,
            *args,
            seed=self.seed,
            checkpoint=None if file is None else file.with_name(f"{file.name}.{name}"),
            progress=self.progress,
            **options,
            **kwargs,
        )

    def run_on(
        self, rows: np.ndarray, function: Callable[..., Bounds], name: str, **options: Any
    ) -> Bounds:
        """Call a function on some of the examples; the columns of the others are NaN."""
        bounds = self.select(rows).run(function, name, **options)
        columns = {n: scatter(v, rows, len(self)) for n, v in bounds.per_datum.items()}
        return replace(bounds, per_datum=columns)


@dataclass(frozen=True)
class Estimator(ABC):
    """Base class of the objects in ``estimators`` of :func:`~pyro_vae.evaluate`.

    A subclass is a frozen dataclass of its settings. It adds columns to the bounds, and registers
    their rows with :func:`~pyro_vae.evaluation.table_parts.register`.
    """

    #: Estimators of higher order run later, and get the columns of the others.
    order: ClassVar[int] = 0

    def configure(self, settings: SamplingSettings) -> SamplingSettings:
        """Return changed settings of the samples of q; unchanged by default.

        Raises:
            ValueError: if the settings do not suit the estimator.
        """
        return settings

    def check(self, task: EstimationTask) -> None:
        """Raise a ``ValueError`` if the program is not supported, before q is sampled."""
        return

    @abstractmethod
    def estimate(self, task: EstimationTask, bounds: Bounds) -> Bounds:
        """Return the bounds with the columns of this estimator.

        Arguments:
            task: the program, the examples, and the seed.
            bounds: the bounds so far, from samples of q and from the estimators before this one.
        """


@dataclass(frozen=True)
class SamplingOption(Estimator):
    """Base class of estimators that only change how q is sampled."""

    @abstractmethod
    def configure(self, settings: SamplingSettings) -> SamplingSettings: ...

    def estimate(self, task: EstimationTask, bounds: Bounds) -> Bounds:
        return bounds


def check_estimators(estimators: Any) -> list[Estimator]:
    """Return estimators in the order in which they run.

    Raises:
        ValueError: if it is not a list of instances of :class:`Estimator`, or if two have the
            same class.
    """
    if not isinstance(estimators, list | tuple):
        hint = ": put it into a list" if isinstance(estimators, Estimator) else ""
        raise ValueError(
            f"expected estimators to be a list, such as [Annealing()]; got {estimators!r}{hint}"
        )
    for item in estimators:
        if inspect.isclass(item) and issubclass(item, Estimator):
            raise ValueError(
                f"expected estimators to be objects; got the class {item.__name__}: write "
                f"{item.__name__}(…)"
            )
        if not isinstance(item, Estimator):
            raise ValueError(
                f"expected estimators to be objects such as Annealing(); got {item!r}: see "
                f"help(pyro_vae.evaluation.Estimator)"
            )
    names = [type(item).__name__ for item in estimators]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise ValueError(
            f"expected one estimator of each class; got {names.count(repeated[0])} of "
            f"{repeated[0]}: keep one, or evaluate twice and merge the Bounds"
        )
    return sorted(estimators, key=lambda item: item.order)
