"""The training loop: epochs of eager or compiled steps, validation and checkpoints."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..compiler.allocator import keep_freed_memory
from ..compiler.matmul import TrainingPrecision, layer_precision
from ..core import distributed
from ..core.progress import progress_bar
from ..core.random import Stream, seeded
from ..programs.base import Program
from ..programs.importance_weights import log_weights
from .batches import Batch, BatchLoader, ValidationData
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .diagnostics import (
    NonFiniteLossError,
    check_epoch,
    check_owned,
    find_non_finite_parameter,
    make_checked_loss_and_grads,
    register,
)
from .history import History
from .objectives.base import Objective, StepInfo
from .optimizers import FusedOptimizer
from .svi import CompiledSVI

__all__ = ["MIN_COMPILED_STEPS", "Trainer", "validation_elbo"]

_log = logging.getLogger("pyro_vae")

#: Steps of a run from which ``compile=None`` compiles. Compilation pays off after 630 to 1,580
#: steps if the graph is in the cache on disk, after 6,540 to 13,150 if the cache is empty
#: (experiments/benchmarks/break_even.py).
MIN_COMPILED_STEPS = 2500


class Trainer:
    """Trains a program, and owns all state of a run: weights, optimizer, objective and history.

    Each epoch has its own random stream, so resuming does not need the state of the generators.

    Arguments:
        program: the program, in training mode, in its own parameter store.
        objective, seed, precision, compile, patience: as for :func:`~pyro_vae.fit`.
        optim, scheduler: optimizer of all parameters, and its scheduler.
        batches: the training minibatches.
        valid: the validation data, if any.
        settings: plain values that a checkpoint must agree with.
    """

    def __init__(
        self,
        program: nn.Module,
        objective: Any,
        optim: FusedOptimizer,
        scheduler: LRScheduler | None,
        batches: BatchLoader,
        valid: ValidationData | None,
        *,
        seed: int,
        precision: TrainingPrecision,
        compile: bool | None,
        patience: int | None,
        settings: dict[str, Any],
    ) -> None:
        keep_freed_memory()
        self.history = History()
        self._program, self._optim, self._scheduler = program, optim, scheduler
        self._objective = objective if isinstance(objective, Objective) else None
        self._name, self._updates = type(objective).__name__, getattr(objective, "updates", 1)
        self._batches, self._valid, self._seed = batches, valid, seed
        self._patience, self._settings = patience, settings
        self._precision: TrainingPrecision = precision
        self._best: dict[str, Any] | None = None
        self._bar = progress_bar(0, False)
        pair = cast(Program, program)
        guide = pair.guide if self._objective is not None else register(pair.guide, program)
        step = make_checked_loss_and_grads(objective, program)
        self._eager = SVI(pair.model, guide, optim, loss=objective.loss, loss_and_grads=step)
        #: The first compiled step (infinite if none is), and the number of steps of the run for
        #: which it was chosen.
        self._compile_from, self._planned_steps = 0 if compile else math.inf, 0
        self._compiles_by_length = compile is None
        self._compiled: CompiledSVI | None = None
        if self._updates > 1:
            if compile:
                _log.warning(
                    "steps run eagerly: %s makes several updates per minibatch", self._name
                )
        elif compile is not False:
            self._compiled = CompiledSVI(
                pair.model,
                guide,
                optim,
                loss=objective,
                draw=batches.make_args,
                worthwhile=lambda labelled, source, *_: len(source) == batches.shard_size,
                precision=precision,
            )

    def run(
        self,
        epochs: int,
        checkpoint: Path | None = None,
        checkpoint_every: int = 1,
        on_epoch: Callable[[History], None] | None = None,
        progress: bool = False,
    ) -> History:
        """Train up to ``epochs`` epochs in all; see :func:`~pyro_vae.fit` for the arguments."""
        history, is_main = self.history, distributed.is_main_process()
        self._plan_compilation(epochs)
        self._bar = progress_bar(
            epochs * len(self._batches),
            progress and is_main,
            initial=len(history) * len(self._batches),
            unit=" steps",
            bar_format="{desc}/" + str(epochs) + " |{bar}| {postfix}, {remaining} left",
        )
        with self._bar:
            while len(history) < epochs and not self._should_stop():
                self._add_epoch(self._run_epoch(len(history) + 1))
                last = len(history) == epochs or self._should_stop()
                if checkpoint and is_main and (last or len(history) % checkpoint_every == 0):
                    save_checkpoint(checkpoint, self.state_dict())
                if on_epoch is not None:
                    on_epoch(history)
        if self._best is not None:
            self._program.load_state_dict(self._best["weights"])
        return history

    def _plan_compilation(self, epochs: int) -> None:
        """Choose the first compiled step from the number of steps, never from timings.

        The choice is part of the checkpoint, so a run that is interrupted and resumed takes the
        same steps as an uninterrupted one. If it was eager and is resumed with more epochs, the
        remaining steps count as a run.
        """
        total, done = epochs * len(self._batches), len(self.history) * len(self._batches)
        if self._compiles_by_length and total != self._planned_steps and self._compile_from > done:
            self._compile_from = done if total - done >= MIN_COMPILED_STEPS else math.inf
        self._planned_steps = total

    def _run_epoch(self, epoch: int) -> dict[str, Any]:
        """Train for one epoch, validate, and return the record of the history."""
        start, compiled = time.perf_counter(), self._compiled
        self._optim.drop_denormals()
        compile_seconds = compiled.compile_seconds if compiled else 0.0
        optimizer = cast(torch.optim.Optimizer, self._optim.optimizer)
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": epoch * len(self._batches) * self._updates,
            "elbo": self._train(epoch),
            # schedulers change the learning rate after the epoch
            "lr": float(optimizer.param_groups[0]["lr"]),
        }
        # a parameter that pyro.param creates after the first run
        check_owned(
            self._program.parameters(), {p: repr(n) for n, p in self._optim.parameters.items()}
        )
        if self._valid is not None:
            record["valid_elbo"] = validation_elbo(self._program, self._valid, self._seed)
        # before the checkpoint is written
        check_epoch(self._program, epoch, record.get("valid_elbo", 0.0))
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(-record.get("valid_elbo", record["elbo"]))
        elif self._scheduler is not None:
            self._scheduler.step()
        record["seconds"] = time.perf_counter() - start
        if self._compiled and self._compiled.compile_seconds > compile_seconds:
            record["compile_seconds"] = self._compiled.compile_seconds - compile_seconds
        return record

    def _train(self, epoch: int) -> float:
        """Return the mean objective over the examples of all processes, in nats per datum.

        Compiled steps do not check their losses, to avoid device synchronisation. An epoch with
        such steps that diverges is repeated eagerly.
        """
        self._bar.set_description(f"epoch {epoch}")
        before = None
        if self._compiled and epoch * len(self._batches) > self._compile_from:
            before = copy.deepcopy(self._weights_state())
        total, count = self._take_steps(epoch)
        if before is not None:
            finite = math.isfinite(total) and find_non_finite_parameter(self._program) is None
            if not all(distributed.all_gather(finite)):
                self._load_weights_state(before)
                self._compiled = None
                self._bar.update(-len(self._batches))
                # eager steps either raise an error that names the cause, or succeed
                total, count = self._take_steps(epoch)
        results = distributed.all_gather((total, count))
        return sum(total for total, _ in results) / sum(count for _, count in results)

    def _take_steps(self, epoch: int) -> tuple[float, int]:
        """Return the objective summed over the examples seen, and their number."""
        losses: list[Any] = []
        count, steps, num_data = 0, len(self._batches), len(self._batches.data)
        with seeded(self._seed, Stream.TRAINING, epoch), pyro.validation_enabled(False):
            for step, batch in enumerate(self._batches.iter_epoch(), 1):
                done = (epoch - 1) * steps + step - 1
                info = StepInfo(done / steps, num_data, batch.index)
                try:
                    losses += self._step(batch, info, done >= self._compile_from)
                except NonFiniteLossError as error:
                    error.where = f" in epoch {epoch}, step {step}"
                    raise
                count += self._updates * len(batch.index)
                self._bar.update()
        # one device synchronisation for all tensors
        tensors = [loss for loss in losses if isinstance(loss, Tensor)]
        total = -float(torch.stack(tensors).double().sum()) if tensors else 0.0
        total -= math.fsum(loss for loss in losses if not isinstance(loss, Tensor))
        self._bar.set_postfix_str(
            f"{self._name} {total / max(count, 1):.2f} nats/datum", refresh=False
        )
        return total, count

    def _step(self, batch: Batch, info: StepInfo, compile: bool) -> list[Any]:
        """Make the updates with a minibatch and return their losses."""
        if not len(batch.index):
            # an empty shard still takes part in the gradient reduction
            for _ in range(self._updates):
                self._optim(())
            return []
        losses = []
        step = self._compiled if compile else None
        args = () if step else self._batches.make_args(batch.labelled, *batch.source)
        for update in range(self._updates):
            if self._objective is not None:
                self._objective.set_step(replace(info, update=update))
            if step:
                losses.append(step.step(batch.labelled, *batch.source))
            else:
                with layer_precision(self._precision):
                    losses.append(self._eager.step(*args))
        return losses

    def _add_epoch(self, record: dict[str, Any]) -> None:
        """Append an epoch to the history and keep its weights if they are the best so far."""
        self.history.epochs.append(record)
        if self._patience is None:
            return
        if self._best is None or record["valid_elbo"] > self._best["valid_elbo"]:
            self._best = {**record, "weights": copy.deepcopy(self._program.state_dict())}
            self.history.best_epoch = record["epoch"]

    def _should_stop(self) -> bool:
        """Whether the validation ELBO has not improved for ``patience`` epochs."""
        if self._patience is None or self._best is None:
            return False
        return len(self.history) - self._best["epoch"] >= self._patience

    def _weights_state(self) -> dict[str, Any]:
        """Return the state that the steps of an epoch change."""
        return {
            "weights": self._program.state_dict(),
            "optimizer": self._optim.get_state(),
            "objective": self._objective.state_dict() if self._objective else None,
        }

    def _load_weights_state(self, state: dict[str, Any]) -> None:
        self._program.load_state_dict(state["weights"])
        self._optim.set_state(state["optimizer"])
        if self._objective and state.get("objective") is not None:
            self._objective.load_state_dict(state["objective"])

    def state_dict(self) -> dict[str, Any]:
        """Return the contents of a checkpoint."""
        return {
            **self._weights_state(),
            "settings": self._settings,
            "compilation": (
                [self._compile_from, self._planned_steps] if self._compiles_by_length else None
            ),
            "history": self.history.epochs,
            "scheduler": self._scheduler.state_dict() if self._scheduler else None,
            "best": self._best,
        }

    def resume(self, path: Path, epochs: int) -> None:
        """Restore the state from a checkpoint.

        Raises:
            CheckpointError: if it is damaged, has other settings, or more than ``epochs`` epochs.
        """
        state = load_checkpoint(path)
        # an older checkpoint does not contain the precision
        saved = {"precision": "float32", **state["settings"]}
        if self._objective is not None:
            # an older checkpoint does not contain every argument of the objective
            parameters = inspect.signature(type(self._objective)).parameters
            name, values = saved["objective"]
            known = [k for k in self._settings["objective"][1] if k in parameters]
            defaults = {k: parameters[k].default for k in known}
            saved["objective"] = [name, {**defaults, **values}]
        changed = [k for k, v in self._settings.items() if saved.get(k) != v]
        if changed:
            raise CheckpointError(
                f"{path} belongs to a fit with another {', '.join(changed)}: resume with the "
                f"original settings, or fit to another checkpoint"
            )
        if len(state["history"]) > epochs:
            raise CheckpointError(
                f"{path} is already at epoch {len(state['history'])}: expected epochs to be at "
                f"least this; got {epochs}"
            )
        self._load_weights_state(state)
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self.history.epochs, self._best = state["history"], state["best"]
        if self._compiles_by_length and state.get("compilation"):
            self._compile_from, self._planned_steps = state["compilation"]
        self.history.best_epoch = self._best["epoch"] if self._best else None


def validation_elbo(program: nn.Module, valid: ValidationData, seed: int) -> float:
    """Return the ELBO of the validation data, sharded over processes, in nats per datum."""
    pair = cast(Program, program)
    total = 0.0
    # the same noise after every epoch, so that epochs differ by their weights only
    with (
        seeded(seed, Stream.VALIDATION, *distributed.rank_entropy()),
        pyro.validation_enabled(False),
    ):
        for args in valid.iter_args():
            log_w = log_weights(pair.model, pair.guide, *args, num_samples=1)
            total += float(log_w.double().sum())
    return sum(distributed.all_gather(total)) / len(valid)
