"""Gain of each optimisation that relies on internals of libraries or rewrites formulas.

    python experiments/benchmarks/internals.py
    python experiments/benchmarks/internals.py --only iwae --without adam --rounds 30
    python experiments/benchmarks/internals.py --table amd-epyc-zen4

A workload runs in one process with all optimisations and in one process per optimisation without
it, on one core. Each turn without an optimisation lies between two turns with it; the ratio of its
CPU time to their mean is the gain. CPU time hardly depends on the load of the machine. New rows
replace those in ``results/KIND/internals.json``; ``--table`` prints them for the documentation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import job as jobs
import machine
import ours
import torch
from cases import DEEP, WIDE
from harness import Worker, log, summarise
from job import Job, Run
from table import format_lines, format_ratio, read_results
from torch.fx import Interpreter

import pyro_vae as pv
from pyro_vae.compiler import hoist, rewrites, trace
from pyro_vae.distributions import unit
from pyro_vae.evaluation.annealing import compiled
from pyro_vae.learning import fused_adam, trainer
from pyro_vae.programs import importance_weights

#: Model, steps or images per turn, and job of each workload.
WORKLOADS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "step": (WIDE, 60, {"task": "step", "batch": 128, "compiled": True}),
    "step_batch_1": (DEEP, 150, {"task": "step", "batch": 1, "compiled": True}),
    "step_batch_20": (DEEP, 150, {"task": "step", "batch": 20, "compiled": True}),
    "step_batch_32": (DEEP, 120, {"task": "step", "batch": 32, "compiled": True}),
    "step_batch_100": (DEEP, 60, {"task": "step", "batch": 100, "compiled": True}),
    "iwae": (DEEP, 15, {"task": "iwae", "batch": 20, "num_samples": 50, "compiled": True}),
    "evaluate": (DEEP, 250, {"task": "evaluate", "num_samples": 1000, "compiled": True}),
    "evaluate_vamp": (DEEP, 60, {"task": "vamp", "num_samples": 1000, "compiled": True}),
    "ais": (DEEP, 64, {"task": "ais", "num_samples": 20, "compiled": True}),
    "step_eager": (WIDE, 40, {"task": "step", "batch": 128}),
    "evaluate_eager": (DEEP, 100, {"task": "evaluate", "num_samples": 1000}),
}


def _call_public_compiler(graph: Any, inputs: Any, options: Any) -> Any:
    return torch.compile(graph, fullgraph=True, dynamic=False, options=options)


def _keep_addmm() -> None:
    def call_function(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        keep = target is torch.ops.aten.addmm.default
        return (Interpreter.call_function if keep else original)(self, target, args, kwargs)

    original = rewrites.FormulaRewriter.call_function
    rewrites.FormulaRewriter.call_function = call_function


def _patch(name: str, value: Any, *owners: Any) -> Callable[[], None]:
    def switch_off() -> None:
        for owner in owners:
            setattr(owner, name, value)

    return switch_off


#: Workloads of each optimisation, and the function that switches it off in this process.
SWITCHES: dict[str, tuple[str, Callable[[], Any]]] = {
    "adam": (
        "step step_batch_20 iwae step_eager",
        _patch("step", lambda stepper: stepper._optimizer.step(), fused_adam.FusedAdamStepper),
    ),
    "onednn": (
        "step step_batch_32 step_batch_100 iwae evaluate ais evaluate_eager",
        lambda: os.environ.update(PYRO_VAE_MATMUL="mkl"),
    ),
    "few_rows": (
        "step_batch_1 step_batch_20",
        lambda: os.environ.update(PYRO_VAE_MATMUL="onednn"),
    ),
    "mallopt": (
        "step iwae evaluate step_eager evaluate_eager",
        _patch("keep_freed_memory", lambda: False, trace, trainer, importance_weights),
    ),
    "inductor": (
        "step step_batch_20 iwae",
        _patch("compile", _call_public_compiler, torch._inductor),
    ),
    "bias": ("step step_batch_20 iwae evaluate ais", _keep_addmm),
    "logarithm": ("step iwae evaluate ais", _patch("_FACTORS", 1, unit)),
    "hoist": (
        "evaluate evaluate_vamp ais",
        _patch("_find_hoistable", lambda nodes, changing: set(), hoist),
    ),
}


def prepare(job: Job) -> Run:
    """Prepare a workload without one of the optimisations."""
    if job.without:
        SWITCHES[job.without][1]()
    compiled.worth_compiling = lambda num_elements: job.compiled
    if job.task not in ("evaluate", "vamp"):
        return ours.TASKS[job.task](job)
    vae = ours.make_vae(job).eval()
    if job.task == "vamp":
        vae.prior = pv.priors.VampPrior(job.problem.latent_dims[0], components=100).eval()
        vae.prior.bind(vae.posterior)
    evaluate = partial(pv.evaluate, num_samples=job.num_samples, compile=job.compiled)
    return ours.prepare_bounds(job, vae, evaluate)


TASKS = dict.fromkeys(("step", "iwae", "evaluate", "vamp", "ais"), prepare)


def measure(name: str, switches: list[str], rounds: int) -> dict[str, Any]:
    """Return the ratio of a workload's CPU time without each optimisation to that with all."""
    widths, count, options = WORKLOADS[name]
    problem = ours.make_problem(widths)
    ratios, warm = {s: [] for s in switches}, count // 5 if "step" in name or name == "iwae" else 0
    with ExitStack() as stack:
        workers = {}
        for switch in ("", *switches):
            log(f"{name}: {f'without {switch}' if switch else 'all optimisations'}")
            job = Job(problem=problem, without=switch, **options)
            worker = workers[switch] = stack.enter_context(Worker(switch, "internals", job))
            worker.call(jobs.measure, count)
        for _ in range(rounds):
            before = workers[""].call(jobs.measure, count, warm)["cpu_seconds"]
            for switch in switches:
                seconds = workers[switch].call(jobs.measure, count, warm)["cpu_seconds"]
                after = workers[""].call(jobs.measure, count, warm)["cpu_seconds"]
                ratios[switch].append(2 * seconds / (before + after))
                before = after
    return {switch: {"rounds": rounds, **summarise(row)} for switch, row in ratios.items()}


def format_table(ratios: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table of optimisations and workloads, with gains of 5 % in bold."""
    rows = []
    for switch in dict.fromkeys(s for row in ratios.values() for s in row):
        name = switch if switch in SWITCHES else f"{switch} (removed)"
        rows.append([name, *(_format_cell(row.get(switch)) for row in ratios.values())])
    return format_lines(["without", *ratios], rows)


def _format_cell(summary: dict[str, Any] | None) -> str:
    text = format_ratio(summary)
    return f"**{text}**" if summary and summary["median"] >= 1.05 else text


def main(argv: list[str]) -> None:
    """Measure workloads, or print the table."""
    parser = argparse.ArgumentParser(description="Gain of each optimisation")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--without", nargs="+", choices=SWITCHES, default=list(SWITCHES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--table", metavar="KIND", help="print the table of a kind of processor")
    options = parser.parse_args(argv)
    kind = options.table or machine.describe_machine()["kind"]
    ratios = read_results().get(kind, {}).get("internals", {}).get("ratios", {})
    if options.table:
        print(format_table(ratios))
        return
    for name in options.only:
        switches = [s for s in options.without if name in SWITCHES[s][0].split()]
        row = measure(name, switches, options.rounds)
        ratios[name] = {**ratios.get(name, {}), **row}
        command = "python experiments/benchmarks/internals.py"
        machine.write_result("internals", command, {"ratios": ratios})


if __name__ == "__main__":
    main(sys.argv[1:])
