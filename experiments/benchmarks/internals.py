"""Gain of each optimisation that relies on internals of libraries or rewrites formulas.

    python experiments/benchmarks/internals.py
    python experiments/benchmarks/internals.py --only iwae --without tanh --rounds 30
    python experiments/benchmarks/internals.py --table

A workload runs in one process with all optimisations and in one process per optimisation without
it, on one core. Each turn without an optimisation lies between two turns with it; the ratio of its
CPU time to their mean is the gain. CPU time hardly depends on the load of the machine. New rows
replace those in ``results/internals.json``; ``--table`` prints them for
docs/explanation/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import machine
import ours
import torch
from harness import Contender, Harness, log
from job import Job, Plan
from rounds import summarise
from torch.fx import Interpreter

import pyro_vae as pv
from pyro_vae.compiler import hoist, rewrites, trace
from pyro_vae.distributions import unit
from pyro_vae.evaluation import Annealing, ais
from pyro_vae.evaluation.annealing import compiled
from pyro_vae.learning import fused_adam, trainer
from pyro_vae.programs import importance_weights

#: Environment variable that names the optimisation which a worker does without.
_VARIABLE = "PYRO_VAE_WITHOUT"
#: Hidden layers, latent variables and epochs of training before the measurement.
_WIDE, _DEEP = ((400,), 20, 5), ((200, 200), 50, 10)
#: Model, steps or images per turn, and job of each workload.
WORKLOADS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "step": (_WIDE, 60, {"task": "step", "batch": 128, "compiled": True}),
    "step_batch_20": (_DEEP, 150, {"task": "step", "batch": 20, "compiled": True}),
    "iwae": (_DEEP, 15, {"task": "iwae", "batch": 20, "num_samples": 50, "compiled": True}),
    "evaluate": (_DEEP, 250, {"task": "evaluate", "num_samples": 1000, "compiled": True}),
    "evaluate_vamp": (_DEEP, 60, {"task": "vamp", "num_samples": 1000, "compiled": True}),
    "ais": (_DEEP, 64, {"task": "ais", "num_samples": 20, "compiled": True}),
    "step_eager": (_WIDE, 40, {"task": "step", "batch": 128}),
    "evaluate_eager": (_DEEP, 100, {"task": "evaluate", "num_samples": 1000}),
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
        "step step_batch_20 iwae evaluate ais evaluate_eager",
        lambda: os.environ.update(PYRO_VAE_MATMUL="mkl"),
    ),
    "mallopt": (
        "step iwae evaluate step_eager evaluate_eager",
        _patch("keep_freed_memory", lambda: False, trace, trainer, importance_weights),
    ),
    "inductor": (
        "step step_batch_20 iwae evaluate",
        _patch("compile", _call_public_compiler, torch._inductor),
    ),
    "bias": ("step step_batch_20 iwae evaluate ais", _keep_addmm),
    "logarithm": ("step iwae evaluate ais", _patch("_FACTORS", 1, unit)),
    "hoist": (
        "evaluate evaluate_vamp ais",
        _patch("_find_hoistable", lambda nodes, changing: set(), hoist),
    ),
}


def plan_evaluation(job: Job) -> Plan:
    """Plan ``evaluate``, also with a VampPrior, or ``ais``, where K counts temperatures."""
    vae, x = ours.make_vae(job).eval(), torch.from_numpy(job.data.test)
    if job.task == "vamp":
        vae.prior = pv.priors.VampPrior(job.data.latent_dim, components=100).eval()
        vae.prior.bind(vae.posterior)
    compiled.worth_compiling = lambda num_elements: job.compiled
    options = {"num_samples": job.num_samples, "compile": job.compiled}

    def run(count: int) -> list[float]:
        if job.task == "ais":
            bounds = ais(vae, x[:count], annealing=Annealing(8, job.num_samples, 10))
        else:
            bounds = pv.evaluate(vae, x[:count], **options)
        return [bounds.estimates["ais" if job.task == "ais" else "elbo"].value]

    return lambda count: lambda: run(count)


PACKAGES = ours.PACKAGES
TASKS = {**ours.TASKS, **dict.fromkeys(("evaluate", "vamp", "ais"), plan_evaluation)}


def measure(harness: Harness, name: str, switches: list[str], rounds: int) -> dict[str, Any]:
    """Return the ratio of a workload's CPU time without each optimisation to that with all."""
    shape, count, options = WORKLOADS[name]
    job, ratios = Job(problem=harness.problem(*shape), **options), {s: [] for s in switches}
    request = {"run": count, **({"warm": count // 5} if job.task in ("step", "iwae") else {})}
    with ExitStack() as stack:
        workers = {}
        for switch in ("", *switches):
            log(f"{name}: {f'without {switch}' if switch else 'all optimisations'}")
            os.environ[_VARIABLE] = switch
            contender = Contender(switch or "all", "internals", count)
            workers[switch] = stack.enter_context(harness.start(contender, job))
            workers[switch].ask(run=count)
        for _ in range(rounds):
            before = workers[""].ask(**request)["cpu_seconds"]
            for switch in switches:
                seconds = workers[switch].ask(**request)["cpu_seconds"]
                after = workers[""].ask(**request)["cpu_seconds"]
                ratios[switch].append(2 * seconds / (before + after))
                before = after
    return {switch: {"rounds": rounds, **summarise(row)} for switch, row in ratios.items()}


def format_table(ratios: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table of optimisations and workloads, with gains of 5 % in bold."""
    lines = [["without", *ratios], ["---"] * (len(ratios) + 1)]
    for switch in dict.fromkeys(s for row in ratios.values() for s in row):
        name = switch if switch in SWITCHES else f"{switch} (removed)"
        lines.append([name, *(_format_cell(row.get(switch)) for row in ratios.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format_cell(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return ""
    low, high = summary["quartiles"]
    text = f"{summary['median']:.2f} ({low:.2f}–{high:.2f})"
    return f"**{text}**" if summary["median"] >= 1.05 else text


def main(argv: list[str]) -> None:
    """Measure workloads, or print the table."""
    parser = argparse.ArgumentParser(description="Gain of each optimisation")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--without", nargs="+", choices=SWITCHES, default=list(SWITCHES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(argv)
    file = machine.RESULTS / "internals.json"
    ratios = json.loads(file.read_text(encoding="utf-8"))["ratios"] if file.exists() else {}
    if options.table:
        print(format_table(ratios))
        return
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder), None, "cpu", threads=1)
        for name in options.only:
            switches = [s for s in options.without if name in SWITCHES[s][0].split()]
            row = measure(harness, name, switches, options.rounds)
            ratios[name] = {**ratios.get(name, {}), **row}
            command = "python experiments/benchmarks/internals.py"
            machine.write_result("internals", command, {"ratios": ratios})


if __name__ == "__main__":
    main(sys.argv[1:])
elif os.environ.get(_VARIABLE):
    SWITCHES[os.environ[_VARIABLE]][1]()
