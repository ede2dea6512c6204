"""Helpers for tests of runs: a small configuration, errors of commands, and a full disk."""

from __future__ import annotations

import re
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

from pyro_vae.cli import app

TINY = """\
data: {name: digits, binarize: dynamic}
model:
  latent_dim: 2
  encoder: {class_path: MLP, init_args: {hidden: [8]}}
  decoder: {class_path: MLP, init_args: {hidden: [8]}}
objective: ELBO
fit: {epochs: 1, batch_size: 500, device: cpu}
"""


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def assert_error(capsys, argv: list[str], message: str, folder: Path) -> None:
    """Check that a command fails with status 1 and one sentence, and changes no file."""
    before = snapshot(folder)
    capsys.readouterr()
    assert app.main(argv) == 1
    out, err = capsys.readouterr()
    # skip the progress bar
    error = err[err.index("pyro-vae: ") :]
    assert re.fullmatch(f"pyro-vae: {message}\n", error), error
    assert "Traceback" not in err
    assert out == ""
    assert snapshot(folder) == before


@contextmanager
def full_disk(limit: int):
    """Limit the size of files that this process writes to ``limit`` bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
