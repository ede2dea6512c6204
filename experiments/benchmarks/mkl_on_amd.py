"""Time with MKL's kernels for Intel on an AMD processor, over that with torch as installed.

    python experiments/benchmarks/mkl_on_amd.py

MKL uses these kernels, with AVX-512 where the processor has it, only if its own function says that
the processor is Intel's. A library of one line that says so, loaded before torch (``LD_PRELOAD``),
makes it use them. Workloads of ``internals.py`` run in turns on one thread: as installed, with the
library, and with the library and MKL for all products. Printed is the median ratio of CPU times
(quartiles). A C compiler is needed, as for compiled steps.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import job as jobs
import machine
from harness import Worker, log, summarise, take_turns
from internals import WORKLOADS
from job import Job
from ours import make_problem
from table import format_lines, format_ratio

SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
ROUNDS = 9


def measure(workload: str, library: Path) -> list[str]:
    """Return the ratios of a workload's CPU time with the library to that without, formatted."""
    widths, count, options = WORKLOADS[workload]
    job = Job(problem=make_problem(widths), **options)
    preload = {"LD_PRELOAD": str(library)}
    variants = {"": {}, "library": preload, "MKL": {**preload, "PYRO_VAE_MATMUL": "mkl"}}
    with ExitStack() as stack:
        workers = {}
        for name, values in variants.items():
            with patch.dict(os.environ, values):
                worker = workers[name] = stack.enter_context(Worker(name, "internals", job))
            worker.call(jobs.measure, count)
        turns = take_turns(
            list(workers), ROUNDS, lambda n: workers[n].call(jobs.measure, count, count // 5)
        )
    seconds = {name: [turn["cpu_seconds"] for turn in row] for name, row in turns.items()}
    ratios = ([x / y for x, y in zip(row, seconds[""], strict=True)] for row in seconds.values())
    return [format_ratio(summarise(row)) for row in list(ratios)[1:]]


def main() -> None:
    """Measure and print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "mkl.c"), Path(folder, "mkl.so")
        source.write_text(SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        for workload in ("step", "step_batch_20", "iwae", "evaluate"):
            log(workload)
            rows.append([workload, *measure(workload, library)])
    description = machine.describe_machine()
    print(f"{description['cpu']} ({description['kind']}), one thread")
    print(format_lines(["", "with the library", "and MKL for all products"], rows))


if __name__ == "__main__":
    main()
