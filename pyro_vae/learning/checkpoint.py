"""The state of a fit, written after every epoch, from which a killed run goes on."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..core import files
from .history import History
from .objectives.base import Objective
from .optimizers import FusedOptimizer

__all__ = ["CheckpointError", "State", "load", "save"]

_FORMAT = "pyro_vae fit state 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` (tensors and plain containers), whole or not at all.

    Raises:
        OSError: if it cannot be written; the previous checkpoint is untouched.
    """
    files.write(path, lambda file: torch.save({"format": _FORMAT, **state}, file))


def load(path: Path) -> dict[str, Any]:
    """Reads what :func:`save` wrote; nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is truncated or not a checkpoint of pyro_vae.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint at {path} to resume from") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae; it holds other things than tensors "
            f"and numbers, and nothing of it was executed: remove it and fit again"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae; it is truncated or damaged: "
            f"remove it and fit again"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae ({_FORMAT}); it was written by "
            f"something else: remove it and fit again"
        )
    return state


class State:
    """Everything that an interrupted fit needs to go on."""

    def __init__(
        self,
        program: nn.Module,
        optim: FusedOptimizer,
        scheduler: LRScheduler | None,
        objective: Any,
        settings: dict[str, Any],
    ) -> None:
        self.program, self.optim, self.scheduler = program, optim, scheduler
        self.objective = objective
        self.settings = settings
        self.history = History()
        self.best: dict[str, Any] | None = None

    def record(self, record: dict[str, Any]) -> None:
        self.history.epochs.append(record)
        if self.settings["patience"] is None:
            return
        if self.best is None or record["valid_elbo"] > self.best["valid_elbo"]:
            weights = copy.deepcopy(self.program.state_dict())
            self.best = {**record, "weights": weights}
            self.history.best_epoch = record["epoch"]

    def stale(self, patience: int | None) -> bool:
        if patience is None or self.best is None:
            return False
        return len(self.history) - self.best["epoch"] >= patience

    def restore_best(self) -> None:
        if self.best is not None:
            self.program.load_state_dict(self.best["weights"])

    @property
    def _usual(self) -> dict[str, Any]:
        """The objective's defaults: what one had that was saved before it knew an argument."""
        known = inspect.signature(type(self.objective)).parameters
        _, values = self.settings["objective"]
        return {k: known[k].default for k in values if k in known}

    @property
    def _remembers(self) -> bool:
        return isinstance(self.objective, Objective)

    def as_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "history": self.history.epochs,
            "weights": self.program.state_dict(),
            "optimizer": self.optim.get_state(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "objective": self.objective.state_dict() if self._remembers else None,
            "best": self.best,
        }

    def load(self, path: Path, epochs: int) -> None:
        """
        Raises:
            CheckpointError: if it is damaged, of other settings, or further on than ``epochs``.
        """
        state = load(path)
        before = {**state["settings"]}
        name, values = before["objective"]
        before["objective"] = [name, {**self._usual, **values}]
        wrong = [k for k, v in self.settings.items() if before.get(k) != v]
        if wrong:
            raise CheckpointError(
                f"{path} belongs to a fit with another {', '.join(wrong)}: resume with the "
                f"settings it was started with, or fit anew elsewhere"
            )
        if len(state["history"]) > epochs:
            raise CheckpointError(
                f"{path} is already at epoch {len(state['history'])}: expected epochs to be at "
                f"least that; got {epochs}"
            )
        self.program.load_state_dict(state["weights"])
        self.optim.set_state(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self._remembers and state.get("objective") is not None:
            self.objective.load_state_dict(state["objective"])
        self.history.epochs = state["history"]
        self.best = state["best"]
        self.history.best_epoch = self.best["epoch"] if self.best else None
