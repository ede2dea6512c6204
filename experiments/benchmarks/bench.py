"""Benchmark this package against its peers, one process per contender, in turns.

    make bench          # everything
    make bench-quick    # the rows with targets in fewer turns, in five minutes
    make bench-gpu      # the topics that depend on a GPU
    python experiments/benchmarks/bench.py --only step evaluation

Each topic writes ``results/KIND/TOPIC.json``, where KIND is the kind of processor (see
``machine.name_kind``); ``table.py`` writes the tables in the documentation from these files. Run
nothing else on the machine at the same time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cases import GPU_TOPICS, TOPICS
from job import BenchmarkError

#: Above this load, the threads of a contender compete with other processes for the cores.
MAX_LOAD = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 1 after an error, which is printed in one sentence."""
    # not at the top, because every contender's process imports this file first
    import harness
    import machine
    import torch
    from table import CPU_ROWS, GPU_ROWS, format_kind, read_results, select_targets

    parser = argparse.ArgumentParser(description="Benchmark this package against its peers")
    add = parser.add_argument
    add("--only", nargs="+", help="run only these topics")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=os.cpu_count(), help="threads per contender")
    add("--quick", action="store_true", help="fewer turns; written to runs/bench-quick")
    add("--check", action="store_true", help="only check that the benchmarks can run")
    arguments = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(arguments)
    on_gpu, load = args.device == "cuda", os.getloadavg()[0]
    if on_gpu and not torch.cuda.is_available():
        harness.log("expected a CUDA device; torch finds none: run make bench to measure the CPU")
        return 1
    if args.check:
        return 0
    if load > MAX_LOAD:
        harness.log(f"expected an idle machine; got a load of {load:.1f}: stop other processes")
    topics, rows = (GPU_TOPICS, GPU_ROWS) if on_gpu else (TOPICS, CPU_ROWS)
    if args.quick:
        topics = select_targets(topics, rows)
    if not {*(args.only or ())} <= {*topics}:
        parser.error(f"expected topics of this run, {', '.join(topics)}; got {' '.join(args.only)}")
    folder = Path("runs/bench-quick") if args.quick else machine.RESULTS
    command = shlex.join(["python", "experiments/benchmarks/bench.py", *arguments])
    try:
        for topic in args.only or topics:
            start, measured = time.monotonic(), {}
            for name, case in topics[topic].items():
                harness.log(f"{topic}: {name}")
                measured[name] = harness.measure(case, args.threads, args.device, args.quick)
            content = {"quick": args.quick, "load_before": load, "cases": measured}
            path = machine.write_result(topic, command, content, folder, args.device)
            harness.log(f"{path}: {time.monotonic() - start:.0f} s")
    except BenchmarkError as error:
        harness.log(f"{topic}: {error}")
        return 1
    kind = path.parent.name
    print(format_kind(kind, read_results(folder)[kind]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
