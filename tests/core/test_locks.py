"""Advisory locks: exclusion, the name of the holder, killed holders, file systems without locks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from pyro_vae.core import locks
from pyro_vae.core.locks import LockHeldError, exclusive_lock

#: A process that holds a lock until it is killed.
HOLD = """
import sys, time
from pathlib import Path
from pyro_vae.core.locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(100)
"""


@pytest.fixture(params=["flock", "no flock"])
def file_system(request, monkeypatch):
    """Whether the file system has locks."""
    if request.param == "no flock":
        monkeypatch.setattr(locks, "fcntl", None)


def test_lock_is_held_once_and_leaves_no_file(tmp_path, file_system):
    file = tmp_path / "lock"
    with exclusive_lock(file):
        with pytest.raises(LockHeldError) as caught, exclusive_lock(file):
            pass
        me = f"(process {os.getpid()} on {socket.gethostname()})"
        assert caught.value.holder.endswith(f"` {me}")
    assert os.listdir(tmp_path) == []
    with exclusive_lock(file):
        pass


def test_error_in_the_block_releases_the_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), exclusive_lock(tmp_path / "lock"):
        raise KeyboardInterrupt
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_waiting_for_the_lock(tmp_path):
    file, order = tmp_path / "lock", []

    def wait():
        with exclusive_lock(file, wait=60):
            order.append("second")

    thread = threading.Thread(target=wait)
    with exclusive_lock(file):
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and os.listdir(tmp_path) == []


def test_killed_holder(tmp_path):
    file = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    expected = rf"`-c .*/lock` \(process {process.pid} on "
    with pytest.raises(LockHeldError, match=expected), exclusive_lock(file):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert file.is_file()
    with exclusive_lock(file):
        pass
    assert not file.exists()


@pytest.mark.parametrize(
    ("host", "pid", "held"),
    [(socket.gethostname(), 2**22 + 1, False), (socket.gethostname(), 1, True), ("x", 1, True)],
)
def test_without_locks_the_holder_is_looked_up(tmp_path, monkeypatch, host, pid, held):
    monkeypatch.setattr(locks, "fcntl", None)
    file = tmp_path / "lock"
    file.write_text(json.dumps({"command": "c", "host": host, "pid": pid}))
    if held:
        message = re.escape(f"`c` (process {pid} on {host})")
        with pytest.raises(LockHeldError, match=message), exclusive_lock(file):
            pass
        return
    with exclusive_lock(file):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_lock_file_without_a_holder(tmp_path, file_system, content):
    (tmp_path / "lock").write_text(content)
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_lock_in_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError), exclusive_lock(tmp_path / "none" / "lock"):
        pass
