"""A contender in a process of its own, as the driver sees it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from job import Job

__all__ = ["Worker", "WorkerError", "environment"]

WORKER = Path(__file__).with_name("worker.py")


class WorkerError(RuntimeError):
    """A contender failed, said in one sentence."""


class Worker:
    """A process that waits until it is told to work.

    Arguments:
        name: of the contender, for errors to name.
        python: the interpreter, of the environment that has the contender's packages.
        module: the contender's module in this folder.
        job: what to do.
        threads: how many cores it may use.

    Raises:
        WorkerError: if the process fails or dies, here or at a later question.
    """

    def __init__(self, name: str, python: Path, module: str, job: Job, threads: int) -> None:
        self.name = name
        # closed with the process, not with a block
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        words = [str(python), str(WORKER), module, job.dumps(), str(threads)]
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
                env=environment(threads, job.device),
            )
        except OSError as error:
            self._log.close()
            raise WorkerError(
                f"expected a Python at {python} for the contender {name!r}; got "
                f"{error.strerror}: make the peers' with make bench-peers"
            ) from None
        ready = self._answer()
        self.versions: dict[str, str] = ready["versions"]
        self.seconds: float = ready["seconds"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one question; the process works only until it is there."""
        assert self._process.stdin is not None
        # if it has died, reading says how
        with suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line.endswith("\n") else None
        if answer is None or "error" in answer:
            reason = answer["error"] if answer else self._end()
            self.close()
            raise WorkerError(
                f"expected the contender {self.name!r} to answer; got {' '.join(reason.split())}"
            )
        return answer

    def _end(self) -> str:
        """How the process ended and the last line it wrote."""
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        last = f", after it wrote {lines[-1]!r}" if lines else ""
        return f"the end of its process with status {status}{last}"


def environment(threads: int, device: str) -> dict[str, str]:
    """Environment variables that give every library as many threads, the device, and float32."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": device,
        # JAX would take most of a GPU's memory for itself, and multiply as TF32
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **({"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if device == "cuda" else {}),
        "PYTHONWARNINGS": "ignore",
    }
