"""Runs of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..evaluation import EVALUATIONS
from .files import RunError

__all__ = ["HUB_PREFIX", "SHARED_FILES", "download_run", "import_hub"]

#: How the name of a repository of the hub starts where a folder is expected.
HUB_PREFIX = "hf://"
#: The files of a run that are shared. ``state.pt`` is a pickle, the report has paths of the machine
#: where the run was trained, and the explorer has examples of its data.
SHARED_FILES = (
    *("config.yaml", "metrics.jsonl", "result.json", "weights.safetensors"),
    *(f"{name}.nc" for name in EVALUATIONS),
)


def download_run(name: str) -> Path:
    """Return the local copy of a run of the hub, which is downloaded if it has changed.

    Only files that are not pickles are downloaded. Results of evaluations are written to the
    copy, in the cache of ``huggingface_hub``.

    Arguments:
        name: ``hf://USER/NAME`` or ``hf://USER/NAME@REVISION``.

    Raises:
        ModuleNotFoundError: if ``huggingface_hub`` is not installed.
        RunError: if the repository does not exist, or is not a run.
    """
    hub = import_hub()
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    try:
        folder = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(SHARED_FILES)
        )
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
        raise RunError(
            f"expected a repository of the hub that exists and that you may read; got {name}: "
            f"check the name, or log in with `hf auth login`"
        ) from error
    except hub.errors.HFValidationError as error:
        raise RunError(f"expected {HUB_PREFIX}USER/NAME; got {name}") from error
    if not (Path(folder) / "config.yaml").is_file():
        raise RunError(f"expected a run of pyro-vae in {name}; it has no config.yaml")
    return Path(folder)


def import_hub() -> Any:
    """Return the package ``huggingface_hub``."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "runs on the hub need huggingface_hub: pip install 'pyro-vae[hub]'", name=error.name
        ) from error
    return huggingface_hub
