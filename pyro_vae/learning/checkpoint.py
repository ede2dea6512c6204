"""The state of a fit, written after every epoch, from which a killed run goes on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from .. import _files

__all__ = ["CheckpointError", "load", "save"]

_FORMAT = "pyro_vae fit state 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` (tensors and plain containers), whole or not at all.

    Raises:
        OSError: if it cannot be written; the previous checkpoint is untouched.
    """
    _files.write(path, lambda file: torch.save({"format": _FORMAT, **state}, file))


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
