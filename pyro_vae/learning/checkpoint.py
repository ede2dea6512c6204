"""Checkpoints of ``fit``, from which an interrupted run resumes."""

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

__all__ = ["CheckpointError", "FitState", "load_checkpoint", "save_checkpoint"]

_FORMAT = "pyro_vae fit state 1"


class CheckpointError(ValueError):
    """A checkpoint from which training cannot resume."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain containers) atomically.

    Raises:
        OSError: if it cannot be written; the previous checkpoint is kept.
    """
    files.atomic_write(path, lambda file: torch.save({"format": _FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, without executing any code in the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if it is truncated or not a checkpoint of pyro_vae.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected a checkpoint at {path} to resume from; the file does not exist"
        ) from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae; it contains objects other than "
            f"tensors and numbers, which were not executed: remove it and fit again"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae; it is truncated or damaged: "
            f"remove it and fit again"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae ({_FORMAT}); it has another "
            f"format: remove it and fit again"
        )
    return state


class FitState:
    """Complete state of a fit, for checkpoints and early stopping."""

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

    def add_epoch(self, record: dict[str, Any]) -> None:
        """Append an epoch to the history and keep its weights if they are the best so far."""
        self.history.epochs.append(record)
        if self.settings["patience"] is None:
            return
        if self.best is None or record["valid_elbo"] > self.best["valid_elbo"]:
            weights = copy.deepcopy(self.program.state_dict())
            self.best = {**record, "weights": weights}
            self.history.best_epoch = record["epoch"]

    def should_stop(self, patience: int | None) -> bool:
        """Whether the validation ELBO has not improved for ``patience`` epochs."""
        if patience is None or self.best is None:
            return False
        return len(self.history) - self.best["epoch"] >= patience

    def restore_best(self) -> None:
        """Load the weights of the best epoch."""
        if self.best is not None:
            self.program.load_state_dict(self.best["weights"])

    @property
    def _objective_defaults(self) -> dict[str, Any]:
        """Defaults for objective arguments that an older checkpoint does not contain."""
        parameters = inspect.signature(type(self.objective)).parameters
        _, values = self.settings["objective"]
        return {k: parameters[k].default for k in values if k in parameters}

    @property
    def _objective_has_state(self) -> bool:
        return isinstance(self.objective, Objective)

    def as_dict(self) -> dict[str, Any]:
        """Return the checkpoint contents."""
        return {
            "settings": self.settings,
            "history": self.history.epochs,
            "weights": self.program.state_dict(),
            "optimizer": self.optim.get_state(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "objective": self.objective.state_dict() if self._objective_has_state else None,
            "best": self.best,
        }

    def load(self, path: Path, epochs: int) -> None:
        """Restore the state from a checkpoint.

        Raises:
            CheckpointError: if it is damaged, has other settings, or more than ``epochs`` epochs.
        """
        state = load_checkpoint(path)
        saved = {**state["settings"]}
        name, values = saved["objective"]
        saved["objective"] = [name, {**self._objective_defaults, **values}]
        changed = [k for k, v in self.settings.items() if saved.get(k) != v]
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
        self.program.load_state_dict(state["weights"])
        self.optim.set_state(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self._objective_has_state and state.get("objective") is not None:
            self.objective.load_state_dict(state["objective"])
        self.history.epochs = state["history"]
        self.best = state["best"]
        self.history.best_epoch = self.best["epoch"] if self.best else None
