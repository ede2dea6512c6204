"""Atomic file writes, also on a full disk."""

from __future__ import annotations

import os
import resource
import signal
import stat
from contextlib import contextmanager

import pytest
import torch

from pyro_vae.core import files


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


WRITERS = {
    "text": lambda file: file.write_text("x" * 100_000),
    "torch": lambda file: torch.save({"x": torch.zeros(100_000)}, file),
}


def test_new_file_replaces_the_old_one(tmp_path):
    file = tmp_path / "deep" / "folder" / "a.txt"
    files.atomic_write_text(file, "old")
    files.atomic_write_text(file, "né")
    assert file.read_bytes() == "né".encode()
    assert os.listdir(file.parent) == ["a.txt"]


def test_file_has_default_permissions(tmp_path):
    files.atomic_write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    a, b = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("a.txt", "b.txt"))
    assert a == b


@pytest.mark.parametrize("kind", ["text", "torch"])
def test_full_disk_keeps_the_previous_file(kind, tmp_path):
    file = tmp_path / "a.pt"
    file.write_text("old")
    with full_disk(10_000), pytest.raises(OSError, match="previous file is kept"):
        files.atomic_write(file, WRITERS[kind])
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("name", ["state", "state.pt", ".state", "a.b.pt", "[a]"])
def test_any_file_name_works_and_temporary_files_are_found(name, tmp_path):
    # torch cannot write to a name whose only dot is the first character
    file = tmp_path / name
    files.atomic_write(file, WRITERS["torch"])
    assert os.listdir(tmp_path) == [name]
    torch.load(file)
    temporary_files = []

    def killed(temporary):
        temporary_files.extend(files.stale_temporary_files(file))
        assert temporary_files == [temporary]
        raise KeyboardInterrupt

    (tmp_path / "other").write_text("")
    with pytest.raises(KeyboardInterrupt):
        files.atomic_write(file, killed)
    assert temporary_files and files.stale_temporary_files(file) == []


@pytest.mark.parametrize("error", [RuntimeError("from C++"), KeyboardInterrupt()])
def test_failed_writer_leaves_no_files(error, tmp_path):
    def writer(file):
        file.write_text("half")
        raise error

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError):
        files.atomic_write(tmp_path / "a.txt", writer)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
