"""Commands in forked processes: the imports are paid once, and a crash stays in its process."""

from __future__ import annotations

import gc
import io
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

#: Seconds after which a command is taken to hang.
PATIENCE = 120.0


class Kill(NamedTuple):
    """When to send a signal to a command.

    Attributes:
        number: the signal.
        after: seconds after the start; or ``None``.
        operation: number of the file operation of the command before which it is sent; or ``None``.
    """

    number: signal.Signals
    after: float | None = None
    operation: int | None = None


class Done(NamedTuple):
    """A command that has ended.

    Attributes:
        status: exit status, or minus the number of the signal that ended it.
        out, err: its output.
        seconds: its duration.
        operations: the number of its file operations.
        hung: whether it was ended after :data:`PATIENCE`.
    """

    status: int
    out: str
    err: str
    seconds: float
    operations: int
    hung: bool


def preload(config: str) -> None:
    """Import what the commands need and parse a configuration, so that no child has to."""
    import arviz_stats.base  # noqa: F401
    import h5netcdf  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets.data  # noqa: F401
    import torch
    import torch._inductor.compile_fx
    import xarray  # noqa: F401

    import pyro_vae.cli.app
    import pyro_vae.report

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        file = Path(folder, "x.yaml")
        file.write_text(config, encoding="utf-8")
        assert pyro_vae.cli.app.main(["fit", "--config", str(file), "--print_config"]) == 0
    gc.freeze()  # a collection would copy the pages of all these modules in every child


def run_command(argv: list[str], folder: Path, kill: Kill | None = None) -> Done:
    """Run ``pyro-vae ARGV`` in a folder, as the console script would."""

    def command() -> int:
        from pyro_vae.cli.app import main

        return main(argv)

    return run_function(command, folder, kill)


def run_function(function: Callable[[], int], folder: Path, kill: Kill | None = None) -> Done:
    """Run a function in a forked process, which exits with its value."""
    sys.stdout.flush()
    sys.stderr.flush()
    out, err, count = (os.memfd_create(name) for name in ("out", "err", "count"))
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            _become_command(folder, out, err, count, kill)
            status = function()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    deadlines = [start + PATIENCE]
    if kill is not None and kill.after is not None:
        deadlines.insert(0, start + kill.after)
    wait_status, hung = _wait(pid, deadlines, kill)
    seconds = time.perf_counter() - start
    status = os.waitstatus_to_exitcode(wait_status)
    texts = [os.pread(file, os.fstat(file).st_size, 0) for file in (out, err, count)]
    for file in (out, err, count):
        os.close(file)
    operations = len(texts[2])
    return Done(status, texts[0].decode(), texts[1].decode(), seconds, operations, hung)


def _wait(pid: int, deadlines: list[float], kill: Kill | None) -> tuple[int, bool]:
    """Wait for a child; send the signal at the first deadline, and SIGKILL at the last one."""
    descriptor = os.pidfd_open(pid)
    try:
        for i, deadline in enumerate(deadlines):
            timeout = max(0.0, deadline - time.perf_counter())
            if select.select([descriptor], [], [], timeout)[0]:
                break
            is_last = i == len(deadlines) - 1
            assert is_last or kill is not None
            os.kill(pid, signal.SIGKILL if is_last else kill.number)
        else:
            return os.waitpid(pid, 0)[1], True
        return os.waitpid(pid, 0)[1], False
    finally:
        os.close(descriptor)


def _become_command(folder: Path, out: int, err: int, count: int, kill: Kill | None) -> None:
    """Give this process the folder, the streams and the limits of a command."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    _count_operations(str(folder.resolve()), count, kill)


def _count_operations(folder: str, count: int, kill: Kill | None) -> None:
    """Count the file operations below a folder, and send the signal before the chosen one."""
    done = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal done
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & os.O_ACCMODE):
            return
        path = args[0]
        if not isinstance(path, str) or not os.path.abspath(path).startswith(folder):
            return
        done += 1
        os.write(count, b".")
        if kill is not None and kill.operation == done:
            os.kill(os.getpid(), kill.number)

    sys.addaudithook(hook)
