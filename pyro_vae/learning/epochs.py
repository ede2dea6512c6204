"""Training epochs with eager or compiled steps."""

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
from ..core.random import Stream, seeded
from ..programs.base import Program
from .batches import Batch, BatchLoader
from .diagnostics import NonFiniteLossError, check_finite_weights, make_checked_loss_and_grads
from .objectives import Objective
from .objectives.base import StepInfo
from .optimizers import FusedOptimizer
from .svi import CompiledSVI

__all__ = ["EpochRunner", "updates_per_batch"]

_log = logging.getLogger("pyro_vae")

#: Eager steps before compilation with ``compile=None``: about the number at which compilation pays
#: off, so the total cost is at most twice the optimum. As it is fixed, resumed and extended runs
#: take the same steps as uninterrupted ones.
_EAGER_STEPS = 2500


def updates_per_batch(objective: Any) -> int:
    """Return the number of updates per minibatch."""
    return objective.updates if isinstance(objective, Objective) else 1


class EpochRunner:
    """Runs training epochs, each with its own random stream.

    Arguments:
        program: the program to train.
        objective: the training objective.
        optim: the optimizer.
        batches: the training minibatches.
        seed: seed of the data order and of all samples.
        compile: whether steps on full minibatches are compiled; ``None`` for those after the
            first 2500 steps.
    """

    def __init__(
        self,
        program: nn.Module,
        objective: Any,
        optim: FusedOptimizer,
        batches: BatchLoader,
        seed: int,
        compile: bool | None,
    ) -> None:
        keep_freed_memory()
        self._program, self._objective, self._optim = program, objective, optim
        self._batches, self._seed = batches, seed
        pair = cast(Program, program)
        step = make_checked_loss_and_grads(objective, program)
        self._eager = SVI(pair.model, pair.guide, optim, loss=objective.loss, loss_and_grads=step)
        self._compiled: CompiledSVI | None = None
        self._eager_steps = _EAGER_STEPS if compile is None else 0
        if updates_per_batch(objective) > 1:
            if compile:
                name = type(objective).__name__
                _log.warning("steps run eagerly: %s makes several updates per minibatch", name)
        elif compile is not False:
            self._compiled = CompiledSVI(
                pair.model,
                pair.guide,
                optim,
                loss=objective,
                draw=batches.make_args,
                worthwhile=lambda index, labelled: len(index) == batches.shard_size,
            )

    @property
    def compile_seconds(self) -> float:
        """Total time spent on compilation."""
        return self._compiled.compile_seconds if self._compiled else 0.0

    def run(self, epoch: int, bar: tqdm) -> float:
        """Train for one epoch.

        Returns:
            The mean objective over the examples of all processes, in nats per datum.

        Raises:
            NonFiniteLossError: naming epoch, step and site.
        """
        bar.set_description(f"epoch {epoch}")
        if self._is_compiled_step(epoch * len(self._batches)):
            total, count = self._run_with_recovery(epoch, bar)
        else:
            total, count = self._run_epoch(epoch, bar)
        results = distributed.all_gather((total, count))
        return sum(total for total, _ in results) / sum(count for _, count in results)

    def _is_compiled_step(self, step: int) -> bool:
        """Whether a step, counted from the start of training, is compiled."""
        return self._compiled is not None and step > self._eager_steps

    def _run_with_recovery(self, epoch: int, bar: tqdm) -> tuple[float, int]:
        """Run an epoch of compiled steps; if it diverges, repeat it eagerly.

        Compiled steps do not check their losses, to avoid device synchronisation.
        """
        before = self._state()
        total, count = self._run_epoch(epoch, bar)
        if all(distributed.all_gather(math.isfinite(total) and _has_finite_weights(self._program))):
            return total, count
        self._restore(before)
        self._compiled = None
        bar.update(-len(self._batches))
        # eager steps either raise an error that names the cause, or succeed
        return self._run_epoch(epoch, bar)

    def _run_epoch(self, epoch: int, bar: tqdm) -> tuple[float, int]:
        """Return the objective summed over the examples seen, and their number."""
        losses: list[Any] = []
        count = 0
        # one stream per epoch: resuming does not need the state of the generators
        with seeded(self._seed, Stream.TRAINING, epoch), pyro.validation_enabled(False):
            for step, batch in enumerate(self._batches.iter_epoch(), 1):
                total_steps = (epoch - 1) * len(self._batches) + step
                progress = (total_steps - 1) / len(self._batches)
                info = StepInfo(progress, len(self._batches.data), batch.index)
                try:
                    losses += self._train_batch(batch, info, self._is_compiled_step(total_steps))
                except NonFiniteLossError as error:
                    error.where = f" in epoch {epoch}, step {step}"
                    raise
                count += updates_per_batch(self._objective) * len(batch.index)
                bar.update()
        total = -_sum_losses(losses)
        name = type(self._objective).__name__
        bar.set_postfix_str(f"{name} {total / max(count, 1):.2f} nats/datum", refresh=False)
        return total, count

    def _train_batch(self, batch: Batch, info: StepInfo, compiled: bool) -> Iterator[Any]:
        """Make the updates with a minibatch and yield their losses."""
        if not len(batch.index):
            # an empty shard still takes part in the gradient reduction
            for _ in range(updates_per_batch(self._objective)):
                self._optim(())
        elif compiled and self._compiled is not None:
            self._set_step(info)
            yield self._compiled.step(batch.index, batch.labelled)
        else:
            args = self._batches.make_args(batch.index, batch.labelled)
            for update in range(updates_per_batch(self._objective)):
                self._set_step(replace(info, update=update))
                yield self._eager.step(*args)

    def _set_step(self, info: StepInfo) -> None:
        if isinstance(self._objective, Objective):
            self._objective.set_step(info)

    def _state(self) -> dict[str, Any]:
        has_state = isinstance(self._objective, Objective)
        return copy.deepcopy(
            {
                "program": self._program.state_dict(),
                "optim": self._optim.get_state(),
                "objective": self._objective.state_dict() if has_state else None,
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self._program.load_state_dict(state["program"])
        self._optim.set_state(state["optim"])
        if state["objective"] is not None:
            self._objective.load_state_dict(state["objective"])


def _has_finite_weights(program: nn.Module) -> bool:
    try:
        check_finite_weights(program)
    except NonFiniteLossError:
        return False
    return True


def _sum_losses(losses: list[Any]) -> float:
    """Return the sum, with a single device synchronisation."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    total = float(torch.stack(tensors).double().sum()) if tensors else 0.0
    return total + math.fsum(loss for loss in losses if not isinstance(loss, Tensor))
