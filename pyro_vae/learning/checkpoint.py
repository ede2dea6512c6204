"""Checkpoints of ``fit``, from which an interrupted run resumes."""

from __future__ import annotations

import io
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
    """Write ``state`` (tensors and plain containers) with a checksum, atomically.

    Raises:
        OSError: if the file cannot be written; the previous file is kept.
    """
    with io.BytesIO() as buffer:
        torch.save({"format": _FORMAT, **state}, buffer)
        files.write_with_checksum(path, buffer)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, without executing any code in the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if it is damaged or not a checkpoint of pyro_vae.
    """
    try:
        content = files.read_with_checksum(path)
        state = torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected a checkpoint at {path} to resume from; the file does not exist"
        ) from None
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae; it contains objects other than "
            f"tensors and numbers, which were not executed: remove it and fit again"
        ) from error
    except Exception as error:  # any error of the parsers means a damaged file
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae; it is truncated or damaged: "
            f"restore it, or fit again"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        other = f"is of another version ({found})" if found else "has another format"
        raise CheckpointError(
            f"expected {path} to be a checkpoint of pyro_vae ({_FORMAT}); it {other}: "
            f"remove it and fit again"
        )
    return state
