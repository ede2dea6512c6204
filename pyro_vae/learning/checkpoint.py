"""Checkpoints of ``fit``, from which an interrupted run resumes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from ..core import files

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

_FORMAT = "pyro_vae fit state 1"


class CheckpointError(ValueError):
    """A checkpoint from which training cannot resume."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain containers) atomically; see :func:`.atomic_write`."""
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
