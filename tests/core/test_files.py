"""Atomic file writes, also on a full disk."""

from __future__ import annotations

import io
import os
import stat

import numpy as np
import pytest
import torch
from run_folders import full_disk

from pyro_vae.core import files


def save_npz(file):
    content = io.BytesIO()
    np.savez(content, x=np.zeros(20_000))
    files.write_with_checksum(file, content)


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
    with full_disk(10_000), pytest.raises(OSError, match="previous file is kept: File too large"):
        save_npz(file)
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
        files.remove_stale_temporary_files(file)  # by another process
        temporary_files.extend(files.temporary_files(file))
        assert temporary_files == [temporary]
        raise KeyboardInterrupt

    (tmp_path / "other").write_text("")
    with pytest.raises(KeyboardInterrupt):
        files.atomic_write(file, killed)
    assert temporary_files and files.temporary_files(file) == []
    # what a killed process leaves is not locked
    temporary_files[0].write_text("half")
    assert files.temporary_files(file) == temporary_files
    files.remove_stale_temporary_files(file)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "other"])


def test_wildcards_find_the_temporary_files_of_several_files(tmp_path):
    names = {".a-x1.png", ".b-c-x_2.png"}
    for name in (*names, "a-x1.png", ".a-x1.npz", ".a.png", ".a-X.png"):
        (tmp_path / name).write_text("")
    assert {file.name for file in files.temporary_files(tmp_path / "*.png")} == names


def test_changed_bytes_are_noticed(tmp_path):
    file, content = tmp_path / "a.npz", io.BytesIO()
    np.savez(content, x=np.arange(5))
    files.write_with_checksum(file, content)
    assert np.load(file)["x"].tolist() == [0, 1, 2, 3, 4]  # other programs ignore the trailer
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        file.write_bytes(bad)
        try:
            loaded = np.load(files.read_with_checksum(file))["x"].tolist()
        except ValueError:
            continue
        # in the words of the trailer: the content is unharmed
        assert position >= len(good) - 82 and loaded == [0, 1, 2, 3, 4]
    file.write_bytes(content.getvalue())  # without a checksum
    assert np.load(files.read_with_checksum(file))["x"].tolist() == [0, 1, 2, 3, 4]


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
