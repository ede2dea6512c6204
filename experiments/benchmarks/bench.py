"""Benchmark this package against its peers, one process per contender, one at a time.

    make bench
    make bench-gpu

To run some of the topics in the environment that ``make`` created:

    python experiments/benchmarks/bench.py --only step evaluation
    python experiments/benchmarks/bench.py --quick --results runs/bench

Each topic writes one file in ``results/``; ``table.py`` prints the table in
docs/explanation/performance.md from these files. Run nothing else on the machine at the same time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from harness import Harness, log
from process import WorkerError
from rounds import DisagreementError
from scaling import measure_scaling
from topics import measure_evaluation, measure_import_time, measure_iwae, measure_step

__all__ = ["TOPICS", "main"]

#: The interpreter of the peers' environment that ``make`` creates.
PEER_PYTHON = Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"
TOPICS: dict[str, Callable[[Harness], dict[str, Any]]] = {
    "step": measure_step,
    "iwae": measure_iwae,
    "evaluation": measure_evaluation,
    "import_time": measure_import_time,
    "scaling": measure_scaling,
}
#: Above this load, the threads of a contender compete with other processes for the cores.
MAX_LOAD = 0.5
#: Topics whose results depend on a GPU.
GPU_TOPICS = ("step", "iwae", "evaluation")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 1 after an error, which is printed in one sentence."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    if args.quick and args.results is None:
        parser.error(
            "expected --results FOLDER with --quick; got none: quick results must not replace "
            "those in results/"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "expected a CUDA device for --device cuda; torch finds none: run make bench to "
            "measure the CPU",
            file=sys.stderr,
        )
        return 1
    if args.check:
        return 0
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load is not None and load > MAX_LOAD:
        log(f"expected an idle machine; got a load of {load:.1f}: stop other processes")
    topics = args.only or (GPU_TOPICS if args.device == "cuda" else tuple(TOPICS))
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(
            folder=Path(folder),
            peers=args.peers or (None if args.quick else PEER_PYTHON),
            device=args.device,
            threads=args.threads,
            quick=args.quick,
        )
        for topic in topics:
            try:
                result = TOPICS[topic](harness)
            except (WorkerError, DisagreementError) as error:
                print(f"{topic}: {error}", file=sys.stderr)
                return 1
            name = topic if args.device == "cpu" else f"{topic}-{args.device}"
            command = f"python experiments/benchmarks/bench.py --only {topic}"
            command += f" --device {args.device}" if args.device != "cpu" else ""
            result = {"load_before": load, **result}
            machine.write_result(name, command, result, args.results or machine.RESULTS)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=tuple(TOPICS), help="run only these topics")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=cores, help="threads per contender")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run a few steps only, and the peers' environment only with --peers",
    )
    parser.add_argument(
        "--check", action="store_true", help="only check that the benchmarks can run"
    )
    parser.add_argument("--results", type=Path, help="output folder (default: results/)")
    parser.add_argument("--peers", type=Path, help="Python interpreter that has the peers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
