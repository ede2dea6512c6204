"""A small run for the tests of the command line, and what a refusal must look like."""

from __future__ import annotations

import re
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
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def refused(capsys, argv: list[str], message: str, folder: Path) -> None:
    """One sentence on the standard error, status 1, and no file changed."""
    before = snapshot(folder)
    capsys.readouterr()
    assert app.main(argv) == 1
    out, err = capsys.readouterr()
    # what a terminal keeps of the progress bar is not part of the message
    last = err[err.index("pyro-vae: ") :]
    assert re.fullmatch(f"pyro-vae: {message}\n", last), last
    assert "Traceback" not in err
    assert out == ""
    assert snapshot(folder) == before
