"""The process of a command: standard streams, signals, and errors in one sentence."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from run_folders import TINY

from pyro_vae.cli import app, process
from pyro_vae.learning.diagnostics import NonFiniteLossError

MAIN = [sys.executable, "-m", "pyro_vae"]


@pytest.fixture
def run_command(monkeypatch):
    """A function that runs ``pyro-vae compare run``, which calls the given function instead."""

    def run(function, *options):
        monkeypatch.setattr(app.comparison, "compare", function)
        return app.main(["compare", "run", *options])

    return run


def raises(error):
    def function(*_):
        raise error

    return function


def open_stream(path, **kwargs):
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(path, "w")), **kwargs)


@pytest.fixture
def connect(monkeypatch):
    """A function that connects a standard stream of the process to a text file."""

    def connect(name, stream):
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, f"__{name}__", stream)

    return connect


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


# --- streams


def test_output_that_the_encoding_lacks(connect, run_command, tmp_path):
    with open_stream(tmp_path / "out", encoding="ascii") as stream:
        connect("stdout", stream)
        assert run_command(lambda run: "log p̂ ± \udcff") == 0
    assert (tmp_path / "out").read_bytes() == b"log p\\u0302 \\xb1 \\udcff\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_reader_that_has_ended(name, connect, run_command, capfd):
    with open_stream(broken_pipe(), encoding="utf-8", line_buffering=True) as stream:
        connect(name, stream)

        def compare(run):
            print("progress", file=sys.stderr)
            print("1", flush=True)
            return "2"

        assert run_command(compare) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_full_disk_of_the_output(connect, run_command, capsys):
    with open_stream("/dev/full", encoding="utf-8") as stream:
        connect("stdout", stream)
        assert run_command(lambda run: "table") == 1
    message = "pyro-vae: could not write the standard output: No space left on device\n"
    assert capsys.readouterr().err == message


def test_full_disk_of_the_log(connect, run_command, capsys):
    with open_stream("/dev/full", encoding="utf-8", write_through=True) as stream:
        connect("stderr", stream)
        assert run_command(lambda run: print("progress", file=sys.stderr)) == 0
    assert capsys.readouterr().out == "None\n"


def test_streams_are_restored(run_command):
    before = sys.stdout, sys.stderr
    assert run_command(raises(ValueError("no"))) == 1
    assert (sys.stdout, sys.stderr) == before


def test_training_with_closed_streams(tmp_path):
    """The files of the run must not get the messages of a stream that had their number."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = " ".join([*MAIN, "fit", "--config", "tiny.yaml", "--run", "run"])
    shell = ["bash", "-c", f"{command} <&- >&- 2>&-"]
    assert subprocess.run(shell, cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "run" / "weights.safetensors").is_file()


# --- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signal(name, run_command, capsys):
    number, cleaned = signal.Signals[name], []

    def compare(run):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            # as sent by systemd and by torchrun: does not interrupt the clean-up
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            cleaned.append(True)

    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert run_command(compare) == 128 + number
    assert cleaned == [True]
    by = "" if name == "SIGINT" else f" by {name}"
    assert capsys.readouterr().err == f"pyro-vae: interrupted{by}\n"
    assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]


def test_later_signal_interrupts_the_clean_up(run_command, monkeypatch):
    monkeypatch.setattr(process, "_SAME_REQUEST", 0.0)

    def compare(run):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

    assert run_command(compare) == 128 + signal.SIGINT


def test_ignored_signal_stays_ignored(run_command, monkeypatch):
    """``nohup`` ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command(lambda run: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_command_in_a_thread(run_command):
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(run_command(lambda run: "")))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_terminated_training_can_be_resumed(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [*MAIN, "fit", "--config", "tiny.yaml", "--run", "run", "--fit.epochs", "100000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as training:
        while training.poll() is None and not (tmp_path / "run" / "state.pt").is_file():
            time.sleep(0.05)
        training.terminate()
        _, err = training.communicate()
    assert training.returncode == 128 + signal.SIGTERM, err
    sentence = "pyro-vae: interrupted by SIGTERM; resume with `pyro-vae fit --run … --resume`\n"
    assert err.endswith(sentence)
    assert "Traceback" not in err


# --- errors

FAULTS = {
    "KeyError": lambda run: {}["bounds"],
    "AssertionError": raises(AssertionError()),
    "TypeError": raises(TypeError("not\niterable")),
    "ZeroDivisionError": lambda run: 1 // 0,
    "RecursionError": lambda run: FAULTS["RecursionError"](run),
    "OverflowError": lambda run: int(float("inf")),
    # a message of the standard library, and not a sentence of this package
    "ValueError": lambda run: int("one"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name, run_command, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))
    assert run_command(FAULTS[name]) == 1
    out, err = capsys.readouterr()
    sentence = (
        rf"pyro-vae: unexpected {name}(: [^\n]+)?; this is a fault of pyro-vae or of a plugin: the "
        rf"traceback is in (.*\.txt)\n"
    )
    match = re.fullmatch(sentence, err)
    assert match and out == "", err
    file = Path(match[2])
    assert file.parent == tmp_path and file.stat().st_mode & 0o777 == 0o600
    text = file.read_text(encoding="utf-8")
    assert text.startswith("Traceback") and name in text


def test_fault_without_a_folder_for_its_traceback(run_command, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path / "none"))
    assert run_command(FAULTS["KeyError"]) == 1
    *lines, sentence = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert sentence.endswith("fault of pyro-vae or of a plugin: see the traceback above")


@pytest.mark.parametrize("error", [KeyError("bounds"), FileNotFoundError(2, "No such file", "x")])
def test_debug_prints_the_traceback(error, run_command, capsys):
    assert run_command(raises(error), "--debug") == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "/pyro-vae-" not in err
    assert err.splitlines()[-1].startswith("pyro-vae: ")


def allocate_with_torch(run):
    return torch.empty(10**13)


def allocate_with_numpy(run):
    import numpy as np

    return np.empty(10**14)


EXPECTED = {
    "torch's memory": (
        allocate_with_torch,
        "expected 37,253 GiB of free memory for a tensor; got less: use a smaller model, .*",
    ),
    "numpy's memory": (
        allocate_with_numpy,
        "expected 728. TiB of free memory for a tensor; got less: use a smaller model, .*",
    ),
    "Python's memory": (
        raises(MemoryError()), "expected more free memory for a tensor; got less: use a .*"
    ),
    "overflow": (
        lambda run: torch.empty(2**40, 2**40), "expected tensors of less than 2⁶³ bytes; got .*"
    ),
    "missing file": (lambda run: Path("none").read_bytes(), "No such file or directory: none"),
    "divergence": (
        raises(NonFiniteLossError("the loss became nan", "z", "site z is NaN")),
        "the loss became nan: site z is NaN; try a lower learning rate, .*",
    ),
    "missing package": (raises(ModuleNotFoundError("needs x:\n pip install x")), "needs x: pip .*"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_expected_error(name, run_command, capsys):
    function, message = EXPECTED[name]
    assert run_command(function) == 1
    out, err = capsys.readouterr()
    assert re.fullmatch(f"pyro-vae: {message}\n", err) and out == "", err
    assert "fault" not in err
