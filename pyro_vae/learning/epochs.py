"""A pass over the data: which steps it has, eager or compiled."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from tqdm import tqdm

from ..compile.allocator import keep_freed_memory
from ..core import distributed
from ..core.random import seeded
from ..programs.base import Program
from .batches import Batch, Batches
from .diagnostics import NonFiniteLossError, check_weights, guarded
from .objectives import Objective
from .objectives.base import StepInfo
from .optimizers import FusedOptimizer
from .svi import CompiledSVI

__all__ = ["TRAINING", "Epochs", "updates"]

_log = logging.getLogger("pyro_vae")

#: The stream of random numbers that epochs draw from.
TRAINING = 0
#: Steps after which there were so many that compiling would have paid. Whoever goes on from there
#: loses at most as much again, and a run that is resumed, or told to go on for longer, takes the
#: same steps as one that was never interrupted.
_MANY_STEPS = 2500


def updates(objective: Any) -> int:
    """How many updates are made with each minibatch."""
    return objective.updates if isinstance(objective, Objective) else 1


class Epochs:
    """Passes over the data, each with a stream of random numbers of its own.

    Arguments:
        program: what learns.
        objective: by what.
        optim: with what.
        batches: from what.
        seed: of the order of the data and of all draws.
        compile: whether full minibatches take a compiled step; ``None`` for those after the
            first 2500.
    """

    def __init__(
        self,
        program: nn.Module,
        objective: Any,
        optim: FusedOptimizer,
        batches: Batches,
        seed: int,
        compile: bool | None,
    ) -> None:
        keep_freed_memory()
        self._program, self._objective, self._optim = program, objective, optim
        self._batches, self._seed = batches, seed
        pair = cast(Program, program)
        step = guarded(objective, program)
        self._eager = SVI(pair.model, pair.guide, optim, loss=objective.loss, loss_and_grads=step)
        self._compiled: CompiledSVI | None = None
        self._eager_steps = _MANY_STEPS if compile is None else 0
        if updates(objective) > 1:
            if compile:
                name = type(objective).__name__
                _log.warning("steps run eagerly: %s makes several with each minibatch", name)
        elif compile is not False:
            self._compiled = CompiledSVI(
                pair.model,
                pair.guide,
                optim,
                loss=objective,
                draw=batches.arguments,
                worthwhile=lambda index, labelled: len(index) == batches.largest,
            )

    @property
    def compile_seconds(self) -> float:
        """How long it took to compile steps so far."""
        return self._compiled.compile_seconds if self._compiled else 0.0

    def run(self, epoch: int, bar: tqdm) -> float:
        """The next pass; the mean objective of the data of all processes, in nats per datum.

        Raises:
            NonFiniteLossError: naming epoch, step and site.
        """
        bar.set_description(f"epoch {epoch}")
        if self._compiles(epoch * len(self._batches)):
            total, seen = self._checked_pass(epoch, bar)
        else:
            total, seen = self._pass(epoch, bar)
        parts = distributed.all_gather((total, seen))
        return sum(total for total, _ in parts) / sum(seen for _, seen in parts)

    def _compiles(self, step: int) -> bool:
        """Whether that step, counted from the first of all, is a compiled one."""
        return self._compiled is not None and step > self._eager_steps

    def _checked_pass(self, epoch: int, bar: tqdm) -> tuple[float, int]:
        """Compiled steps. Nobody looks at their losses: where one was NaN, they are repeated."""
        before = self._state()
        total, seen = self._pass(epoch, bar)
        if all(distributed.all_gather(math.isfinite(total) and _finite(self._program))):
            return total, seen
        self._restore(before)
        self._compiled = None
        bar.update(-len(self._batches))
        # either it is found where it came from, or it was the compiled step's alone
        return self._pass(epoch, bar)

    def _pass(self, epoch: int, bar: tqdm) -> tuple[float, int]:
        """The objective summed over the data seen, and their number."""
        losses: list[Any] = []
        seen = 0
        # the epoch's own stream: to resume, nothing of the generators needs to be stored
        with seeded(self._seed, TRAINING, epoch), pyro.validation_enabled(False):
            for step, batch in enumerate(self._batches.epoch(), 1):
                number = (epoch - 1) * len(self._batches) + step
                passed = (number - 1) / len(self._batches)
                moment = StepInfo(passed, len(self._batches.data), batch.index)
                try:
                    losses += self._updates(batch, moment, self._compiles(number))
                except NonFiniteLossError as error:
                    error.where = f" in epoch {epoch}, step {step}"
                    raise
                seen += updates(self._objective) * len(batch.index)
                bar.update()
        total = -_sum(losses)
        name = type(self._objective).__name__
        bar.set_postfix_str(f"{name} {total / max(seen, 1):.2f} nats/datum", refresh=False)
        return total, seen

    def _updates(self, batch: Batch, moment: StepInfo, compiled: bool) -> Iterator[Any]:
        """Makes the updates with a minibatch, and gives the loss of each."""
        if not len(batch.index):
            # this process's share of the minibatch is empty: it follows the others' gradients
            for _ in range(updates(self._objective)):
                self._optim(())
        elif compiled and self._compiled is not None:
            self._tell(moment)
            yield self._compiled.step(batch.index, batch.labelled)
        else:
            args = self._batches.arguments(batch.index, batch.labelled)
            for update in range(updates(self._objective)):
                self._tell(replace(moment, update=update))
                yield self._eager.step(*args)

    def _tell(self, moment: StepInfo) -> None:
        if isinstance(self._objective, Objective):
            self._objective.at(moment)

    def _state(self) -> dict[str, Any]:
        remembers = isinstance(self._objective, Objective)
        return copy.deepcopy(
            {
                "program": self._program.state_dict(),
                "optim": self._optim.get_state(),
                "objective": self._objective.state_dict() if remembers else None,
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self._program.load_state_dict(state["program"])
        self._optim.set_state(state["optim"])
        if state["objective"] is not None:
            self._objective.load_state_dict(state["objective"])


def _finite(program: nn.Module) -> bool:
    try:
        check_weights(program)
    except NonFiniteLossError:
        return False
    return True


def _sum(losses: list[Any]) -> float:
    """A sum that is read from the device once."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    total = float(torch.stack(tensors).double().sum()) if tensors else 0.0
    return total + math.fsum(loss for loss in losses if not isinstance(loss, Tensor))
