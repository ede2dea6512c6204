"""This package and its peers side by side: each in a process of its own, one at work at a time.

    make bench
    make bench-gpu

or, for some of it, in the environment that ``make`` made:

    python experiments/benchmarks/bench.py --only step evaluation
    python experiments/benchmarks/bench.py --quick --results runs/bench

Each topic becomes a file in ``results/``; ``table.py`` makes the README's table of them. A
figure wants a quiet machine: run nothing else beside it.
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
from process import WorkerError
from rounds import DisagreementError
from scaling import scaling
from setting import Setting, say
from topics import evaluation, import_time, iwae, step

__all__ = ["TOPICS", "main"]

#: Where ``make`` puts the peers' environment.
PEERS = Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"
TOPICS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "step": step,
    "iwae": iwae,
    "evaluation": evaluation,
    "import_time": import_time,
    "scaling": scaling,
}
#: A load from which two threads of one contender wait for somebody else's.
BUSY = 0.5
#: What a GPU changes.
ON_GPU = ("step", "iwae", "evaluation")


def main(words: Sequence[str] | None = None) -> int:
    """Measures the topics; 1 if something went wrong, which is said in a sentence."""
    parser = _parser()
    args = parser.parse_args(words)
    if args.quick and args.results is None:
        parser.error("expected --results FOLDER with --quick: its figures are none to keep")
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "expected a CUDA device for --device cuda; torch finds none here: make bench measures "
            "the CPU",
            file=sys.stderr,
        )
        return 1
    if args.check:
        return 0
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load is not None and load > BUSY:
        say(f"expected a quiet machine; got a load of {load:.1f}: threads will wait for each other")
    topics = args.only or (ON_GPU if args.device == "cuda" else tuple(TOPICS))
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            folder=Path(folder),
            peers=args.peers or (None if args.quick else PEERS),
            device=args.device,
            threads=args.threads,
            quick=args.quick,
        )
        for topic in topics:
            try:
                result = TOPICS[topic](setting)
            except (WorkerError, DisagreementError) as error:
                print(f"{topic}: {error}", file=sys.stderr)
                return 1
            name = topic if args.device == "cpu" else f"{topic}-{args.device}"
            command = f"python experiments/benchmarks/bench.py --only {topic}"
            command += f" --device {args.device}" if args.device != "cpu" else ""
            result = {"load_before": load, **result}
            machine.write(name, command, result, args.results or machine.RESULTS)
    return 0


def _parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=tuple(TOPICS), help="these topics alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=cores, help="of every contender")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few steps; peers of the other environment only if --peers is given",
    )
    parser.add_argument("--check", action="store_true", help="only look whether it could run")
    parser.add_argument("--results", type=Path, help="where files go, instead of results/")
    parser.add_argument("--peers", type=Path, help="another Python that has the peers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
