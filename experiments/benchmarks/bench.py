"""Benchmark this package against its peers, one process per contender, in turns.

    make bench          # everything
    make bench-quick    # the rows of the table with fewer turns, in five minutes
    make bench-gpu      # the topics that depend on a GPU
    python experiments/benchmarks/bench.py --only step evaluation

Each topic writes ``results/KIND/TOPIC.json``, where KIND is the kind of processor (see
``machine.name_kind``); ``table.py`` writes the tables in the documentation from these files. Run
nothing else on the machine at the same time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import machine
import torch
from cases import GPU_TOPICS, TOPICS
from harness import Harness, log
from summaries import BenchmarkError
from table import CPU_ROWS, format_table, read_results

#: The interpreter of the peers' environment that ``make`` creates.
PEER_PYTHON = Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"
#: Fraction of the rounds, and of the steps of a turn, in a quick run.
QUICK_EFFORT = 0.25
#: Above this load, the threads of a contender compete with other processes for the cores.
MAX_LOAD = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 1 after an error, which is printed in one sentence."""
    args = _parse(argv)
    on_gpu = args.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        log("expected a CUDA device; torch finds none: run make bench to measure the CPU")
        return 1
    if args.check:
        return 0
    load = os.getloadavg()[0]
    if load > MAX_LOAD:
        log(f"expected an idle machine; got a load of {load:.1f}: stop other processes")
    rows = [(row.topic, row.case or row.topic) for row in CPU_ROWS]
    cases = {**TOPICS, **GPU_TOPICS} if on_gpu else TOPICS
    topics = GPU_TOPICS if on_gpu else dict(rows) if args.quick else TOPICS
    folder = args.results or (Path("runs/bench-quick") if args.quick else machine.RESULTS)
    harness = Harness(args.peers, args.threads, args.device, QUICK_EFFORT if args.quick else 1.0)
    for topic in args.only or topics:
        start, measured = time.monotonic(), {}
        try:
            for name, case in cases[topic].items():
                if not args.quick or (topic, name) in rows:
                    log(f"{topic}: {name}")
                    measured[name] = harness.measure(case)
        except BenchmarkError as error:
            log(f"{topic}: {error}")
            return 1
        options = f"{' --quick' * args.quick}{' --device cuda' * on_gpu}"
        if args.threads != os.cpu_count():
            options += f" --threads {args.threads}"
        command = f"python experiments/benchmarks/bench.py --only {topic}{options}"
        content = {"quick": args.quick, "load_before": load, "cases": measured}
        path = machine.write_result(topic, command, content, folder, args.device)
        log(f"{path}: {time.monotonic() - start:.0f} s")
    kind = path.parent.name
    print(format_table(kind, read_results(folder)[kind]))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--only", nargs="+", choices=TOPICS, help="run only these topics")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=cores, help="threads per contender")
    add("--quick", action="store_true", help="fewer turns; written to runs/bench-quick")
    add("--check", action="store_true", help="only check that the benchmarks can run")
    add("--results", type=Path, help="output folder (default: results/)")
    add("--peers", type=Path, default=PEER_PYTHON, help="Python interpreter that has the peers")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
