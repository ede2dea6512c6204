"""Driver side of a contender's worker process."""

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

__all__ = ["Worker", "WorkerError", "make_environment"]

WORKER_SCRIPT = Path(__file__).with_name("worker.py")


class WorkerError(RuntimeError):
    """A contender failed; the message is one sentence."""


class Worker:
    """A worker process that waits for requests.

    Arguments:
        name: the contender's name in error messages.
        python: the interpreter of the environment with the contender's packages.
        module: the contender's module in this folder.
        job: the task.
        threads: number of cores.

    Raises:
        WorkerError: if the process fails or exits, now or during a later request.
    """

    def __init__(self, name: str, python: Path, module: str, job: Job, threads: int) -> None:
        self.name = name
        # closed in close()
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        command = [str(python), str(WORKER_SCRIPT), module, job.dumps(), str(threads)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
                env=make_environment(threads, job.device),
            )
        except OSError as error:
            self._log.close()
            raise WorkerError(
                f"expected a Python at {python} for the contender {name!r}; got "
                f"{error.strerror}: create the peers' environment with make bench-peers"
            ) from None
        ready = self._read_answer()
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
        """Send a request and return the answer; the process is idle afterwards."""
        assert self._process.stdin is not None
        # reading the answer reports a dead process
        with suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read_answer()

    def close(self) -> None:
        """Stop the process."""
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

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line.endswith("\n") else None
        if answer is None or "error" in answer:
            reason = answer["error"] if answer else self._describe_exit()
            self.close()
            raise WorkerError(
                f"expected the contender {self.name!r} to answer; got {' '.join(reason.split())}"
            )
        return answer

    def _describe_exit(self) -> str:
        """Return the exit status of the process and the last line that it wrote."""
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        last = f" after the output {lines[-1]!r}" if lines else ""
        return f"exit status {status}{last}"


def make_environment(threads: int, device: str) -> dict[str, str]:
    """Return the environment variables for threads, device and float32 of all libraries."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": device,
        # by default JAX allocates most of a GPU's memory and multiplies in TF32
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **({"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if device == "cuda" else {}),
        "PYTHONWARNINGS": "ignore",
    }
