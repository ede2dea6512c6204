"""Benchmarks: turns, ratios and verdicts on fake times; all contenders do the same work."""

# the peers' modules are not a package, and some of their dependencies are not installed here
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import bench
import cases
import harness
import internals
import job as jobs
import limits
import machine
import ours
import table
from job import Job, Problem, find_fastest, make_inputs
from peers import plain_torch
from torch.utils.flop_counter import FlopCounterMode

import pyro_vae as pv
from pyro_vae.compiler.cache import worth_compiling

PIXELS, TOY_HIDDEN = 6, 3
#: Peers that are not among the packages of the tests.
HAS_JAX = bool(find_spec("numpyro"))
needs_jax = pytest.mark.skipif(not HAS_JAX, reason="requires NumPyro: make bench-peers")


@pytest.fixture(autouse=True)
def restore_validation():
    """Enable Pyro's validation again after each test; contenders switch it off."""
    with pyro.validation_enabled(True):
        yield


@pytest.fixture(scope="module")
def toy() -> Problem:
    """A problem with six pixels and one latent variable, so that log p(x) is a sum over a grid."""
    problem = make_toy_problem(0, (TOY_HIDDEN, 1))
    # q is slightly wider than the prior: with arbitrary weights it may be too narrow for log p(x)
    weight, bias = problem.encoders[0][1]
    weight /= 10
    bias[:] = 0.1, 0.5
    return problem


@pytest.fixture(scope="module")
def two_layers() -> Problem:
    """A problem with two latent variables z₁ and one z₂ above them."""
    return make_toy_problem(3, (TOY_HIDDEN, 2), (TOY_HIDDEN, 1), scale=0.5)


@pytest.fixture
def make_untrained(monkeypatch):
    """``make_problem`` with initial weights, for tests of sizes."""
    monkeypatch.setattr(pv, "fit", lambda *args, **kwargs: None)
    return ours.make_problem.__wrapped__  # the cache keeps trained ones only


def make_toy_problem(seed: int, *widths: tuple[int, int], scale: float = 1.0) -> Problem:
    rng = np.random.default_rng(seed)

    def make_layers(*sizes: int) -> jobs.Layers:
        return [
            (
                scale * rng.normal(size=(b, a)).astype(np.float32),
                rng.normal(size=b).astype(np.float32) / 2,
            )
            for a, b in pairwise(sizes)
        ]

    below = [PIXELS, *(latents for _, latents in widths)]
    outputs = [PIXELS, *(2 * latents for _, latents in widths)]
    encoders = [make_layers(n, h, 2 * d) for n, (h, d) in zip(below, widths, strict=False)]
    decoders = [make_layers(d, h, n) for n, (h, d) in zip(outputs, widths, strict=False)]
    train, test = ((rng.random((n, PIXELS)) < 0.4).astype(np.float32) for n in (500, 20))
    return Problem(widths, train, test, encoders, decoders)


def compute_bounds(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Return the ELBO of the training data and log p(x) of the test data by quadrature."""

    def mlp(layers, h):
        for weight, bias in layers[:-1]:
            h = np.tanh(h @ weight.T + bias)
        return h @ layers[-1][0].T + layers[-1][1]

    def joint(x, z):
        logits = mlp(job.problem.decoders[0], z[..., None])
        log_likelihood = (x[:, None] * logits - np.logaddexp(0, logits)).sum(-1)
        return log_likelihood - z**2 / 2 - math.log(2 * math.pi) / 2

    grid = np.linspace(-9, 9, 4001)
    step = grid[1] - grid[0]
    loc, log_scale = mlp(job.problem.encoders[0], job.problem.train).T[..., None]
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * step
    entropy = 0.5 * math.log(2 * math.pi * math.e) + log_scale[:, 0]
    energy = joint(job.problem.train, loc + np.exp(log_scale) * grid) @ density
    z = np.broadcast_to(grid, (len(job.problem.test), len(grid)))
    evidence = np.log(np.exp(joint(job.problem.test, z)).sum(1) * step)
    return energy + entropy, evidence


class LocalWorker:
    """A contender in this process, which answers as its worker process does."""

    def __init__(self, name: str, module: str, job: Job) -> None:
        run = import_module(module).TASKS[job.task](job)
        self._contender = {"_run": run, "_next_inputs": make_inputs(job), "_begin": 0.0}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def call(self, function, *args):
        with mock.patch.multiple(jobs, create=True, **self._contender):
            return function(*args)


def start(name: str, job: Job):
    """Start a contender by its name, not compiled; JAX in a process of its own."""
    module, options = cases.CONTENDERS[name]
    kind = harness.Worker if "jax" in module else LocalWorker
    return kind(name, module, replace(job, **{**options, "compiled": False}))


def run(contender, count: int) -> list[float]:
    """Return the values of ``count`` steps or images."""
    return contender.call(jobs.measure, count)["values"]


# turns and summaries


def test_rounds_begin_with_another_contender():
    order = []
    turns = harness.take_turns(["a", "b", "c"], 4, lambda n: order.append(n) or len(order))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert turns == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_ratios_are_computed_within_rounds():
    # the machine was ten times slower in the second round
    seconds = {"ours": [1.0, 30.0, 5.0], "ours_eager": [2.0, 60.0, 10.0], "pyro": [4.0, 40.0, 2.0]}
    ratios = harness.summarise_ratios(seconds)
    assert ratios["ours / pyro"] == {"median": 0.75, "quartiles": [0.5, 1.625]}
    assert {*ratios} >= {"ours / ours_eager", "ours_eager / pyro"} and "pyro / ours" not in ratios
    with pytest.raises(ValueError, match="zip"):
        harness.summarise_ratios({"ours": [1.0], "pyro": [1.0, 2.0]})


def test_deviating_losses_are_rejected():
    losses = {"a": [[150.0], [120.0]], "b": [[151.0], [119.0]], "c": [[149.0], [121.0]]}
    harness.check_agreement(losses, 0.03)
    for wrong in ([[150.0], [130.0]], [[135.0], [110.0]], [[150.0], [math.nan]]):
        with pytest.raises(jobs.BenchmarkError, match=r"expected the mean value of 'd' within"):
            harness.check_agreement({**losses, "d": wrong}, 0.03)


def test_deviating_estimates_are_rejected():
    # seeded; false-alarm rate 1e-4
    rng = np.random.default_rng(0)
    rows = {n: [list(rng.normal(-90, 0.1, 5)) for _ in range(7)] for n in ("a", "b")}
    rows["c"] = [list(rng.normal(-90, 0.1, 4)) for _ in range(7)]
    harness.check_agreement(rows)
    # a fifth value, which not all contenders have, does not count
    harness.check_agreement({**rows, "a": [[*row[:4], 0.0] for row in rows["a"]]})
    wrong = [[value + 0.3 for value in row] for row in rows.pop("c")]
    with pytest.raises(jobs.BenchmarkError, match="mean value of 'c' within"):
        harness.check_agreement({**rows, "c": wrong})
    # products in bfloat16
    harness.check_agreement({**rows, "c_bfloat16": wrong})


def test_find_fastest_returns_the_fastest_candidate():
    assert find_fastest(lambda n: sum(range(n)), [300_000, 3, 600_000]) == 3


@pytest.mark.parametrize(
    ("cpuinfo", "kind"),
    [
        ("model name\t: AMD EPYC\ncpu family\t: 26\nflags\t\t: avx2 avx512f\n", "amd-epyc-zen5"),
        ("model name\t: AMD EPYC 7B13\ncpu family\t: 25\nflags\t\t: avx2\n", "amd-epyc-zen3"),
        ("model name\t: AMD EPYC 9R14\ncpu family\t: 25\nflags\t: avx512f\n", "amd-epyc-zen4"),
        ("model name\t: Intel(R) Xeon(R) Processor\nflags\t: avx2 amx_tile\n", "intel-xeon-amx"),
        ("model name\t: Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz\nflags\t: avx2\n\nflags\t: a\n",
         "intel-core-avx2"),
    ],
)  # fmt: skip
def test_kind_of_processor(cpuinfo, kind):
    assert machine.name_kind(cpuinfo) == kind


# equal work


def test_inputs_are_the_same_for_all_contenders(toy):
    job = Job("step", toy, batch=8)
    first, second = make_inputs(job), make_inputs(job)
    rows = first(125)
    # whatever the number of steps in a call
    np.testing.assert_array_equal(rows, np.concatenate([second(n) for n in (3, 60, 62)]))
    assert rows.shape == (125, 8) and rows.min() == 0 and rows.max() == 499
    np.testing.assert_array_equal(make_inputs(Job("ais", toy))(21), [*range(20), 0])


TRAINING = ["ours", "pyro", "torch", pytest.param("numpyro", marks=needs_jax)]


@pytest.mark.parametrize("name", TRAINING)
def test_loss_is_negative_elbo(name, toy):
    job = Job("step", toy, batch=50, learning_rate=0.0)
    elbo, _ = compute_bounds(job)
    with start(name, job) as contender:
        losses = np.array([run(contender, 1)[0] for _ in range(60)])
    # the false-alarm rate is 6e-7
    assert abs(losses.mean() + elbo.mean()) < 5 * losses.std(ddof=1) / math.sqrt(len(losses))


def test_all_contenders_train_alike(toy):
    job = Job("step", toy, batch=50, learning_rate=0.01)
    elbo, _ = compute_bounds(job)
    losses = {}
    for name in ("ours", "pyro", "torch", *(["numpyro"] if HAS_JAX else [])):
        with start(name, job) as contender:
            losses[name] = [run(contender, 50) for _ in range(6)]
    harness.check_agreement(losses, harness.LOSS_TOLERANCE)
    for name, values in losses.items():
        assert values[-1][0] < -elbo.mean() - 0.3, name


@pytest.mark.parametrize("name", ["ours", "torch", pytest.param("numpyro", marks=needs_jax)])
def test_loss_of_two_layers_is_negative_elbo(name, two_layers):
    """The mean over minibatches is that of log weights of this package's own program."""
    job = Job("step", two_layers, batch=500, learning_rate=0.0)
    vae = ours.make_vae(job)
    log_w = pv.log_weights(vae.model, vae.guide, torch.tensor(job.problem.train), num_samples=400)
    with start(name, job) as contender:
        losses = np.array([run(contender, 1)[0] for _ in range(60)])
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    assert abs(losses.mean() + float(log_w.mean())) < 5 * error


def test_contenders_with_two_layers_train_alike(two_layers):
    job = Job("step", two_layers, batch=50, learning_rate=0.01)
    losses = {}
    for name in ("ours", "torch", *(["numpyro"] if HAS_JAX else [])):
        with start(name, job) as contender:
            losses[name] = [run(contender, 50) for _ in range(6)]
    harness.check_agreement(losses, harness.LOSS_TOLERANCE)
    assert all(values[-1][0] < values[0][0] - 0.05 for values in losses.values())


@pytest.mark.parametrize("name", ["ours", "pyro", pytest.param("numpyro", marks=needs_jax)])
def test_iwae_loss_with_many_samples_is_negative_log_evidence(name, toy):
    job = Job("iwae", toy, batch=100, num_samples=500, learning_rate=0.0)
    with start(name, job) as contender:
        loss = run(contender, 20)[0]
    # the bias and the noise are about 0.001; L_50 would be off by 0.02
    problem = replace(toy, test=toy.train[make_inputs(job)(20).ravel()])
    _, evidence = compute_bounds(Job("iwae", problem))
    assert loss == pytest.approx(-evidence.mean(), abs=0.008)


@pytest.mark.parametrize(
    "name",
    [
        "ours",
        "ours_bfloat16",
        "pyro",
        "pythae",
        pytest.param("jax", marks=needs_jax),
    ],
)
def test_estimate_is_log_evidence(name, toy):
    job = Job("evaluation", toy, num_samples=20_000)
    _, evidence = compute_bounds(job)
    with start(name, job) as contender:
        np.testing.assert_allclose(run(contender, 8), evidence[:8], atol=0.05)


def test_ais_is_log_evidence(toy):
    job = Job("ais", toy, num_samples=10)
    _, evidence = compute_bounds(job)
    with start("ours", job) as contender:
        estimates = np.reshape(run(contender, 400), (20, 20))
    # seeded; the standard error of the mean is about 0.01, the bias of AIS below that
    assert estimates.mean() == pytest.approx(evidence.mean(), abs=0.06)


# worker processes

FAKE = """
import os

def good(job):
    print("output of a library")
    return lambda inputs: [float(inputs.size), float(os.environ["OMP_NUM_THREADS"])]

def dying(job):
    return lambda inputs: os._exit(7)

class Unpicklable(ValueError):
    def __init__(self):
        super().__init__("expected something; got nothing\\nand more")
        self.function = lambda: None

def wrong(job):
    raise Unpicklable

TASKS = {"good": good, "dying": dying, "wrong": wrong}
"""


def test_workers_answer_and_failures_are_one_sentence(tmp_path, monkeypatch, toy, capfd):
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def fake(task: str, module: str = "fake"):
        return harness.Worker("peer", module, Job(task, toy, threads=3))

    with fake("good") as process:
        answer = process.call(jobs.measure, 21, 5)
        assert answer["values"] == [21.0, 3.0] and answer["seconds"] > 0
    assert capfd.readouterr().out == ""
    with fake("import") as process:
        assert run(process, 1) == []
    prefix = "^expected the contender 'peer' to answer; got "
    with (
        fake("dying") as process,
        pytest.raises(jobs.BenchmarkError, match=f"{prefix}the end of its process$"),
    ):
        run(process, 1)
    message = f"{prefix}Unpicklable: expected something; got nothing$"
    with pytest.raises(jobs.BenchmarkError, match=message):
        fake("wrong")
    message = f"{prefix}ModuleNotFoundError: No module named 'nowhere'$"
    with pytest.raises(jobs.BenchmarkError, match=message):
        fake("good", module="nowhere")


def test_worker_ends_with_a_killed_benchmark():
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(harness.__file__).parent)!r})\n"
        "from harness import Worker; from job import Job\n"
        "worker = Worker('peer', 'json', Job('import', None)); print('started', flush=True)\n"
        "time.sleep(600)"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as benchmark:
        assert benchmark.stdout is not None
        assert benchmark.stdout.readline() == "started\n"
        benchmark.kill()
        # stderr ends with the last process that has it open
        benchmark.communicate(timeout=60)


def test_warming_up_is_not_timed(monkeypatch):
    clock = [0.0]
    fake = SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: clock[0] / 2)
    monkeypatch.setattr(jobs, "time", fake)

    def advance(count):
        clock[0] += count
        return [count * 2.0]

    monkeypatch.setattr(jobs, "_run", advance, raising=False)
    monkeypatch.setattr(jobs, "_next_inputs", lambda count: count, raising=False)
    monkeypatch.setattr(jobs, "_begin", -1.0, raising=False)
    assert jobs.measure(21, 5) == {
        "seconds": 21.0,
        "cpu_seconds": 10.5,
        "since_start": 27.0,
        "values": [42.0],
    }


# the limit


def count_flops(products: list[tuple[int, int, int]]) -> int:
    return sum(2 * n * k * m for n, k, m in products)


@pytest.mark.parametrize("widths", [cases.WIDE, cases.DEEP, cases.TWO_LAYERS])
def test_limit_counts_every_matrix_product(widths, make_untrained):
    job = Job("step", make_untrained(widths), batch=20)
    networks = plain_torch.Networks(job)
    with FlopCounterMode(display=False) as counter:
        plain_torch.loss_function(networks, torch.zeros(20, 784)).backward()
    products, passes, parameters = limits.count_work(job)
    assert count_flops(products) == counter.get_total_flops()
    assert parameters == sum(parameter.numel() for parameter in networks.parameters())
    units = [m.out_features for m in networks.modules() if isinstance(m, torch.nn.Linear)]
    outputs = [784, *(2 * widths[-1] for widths in widths), *(2 * w[-1] for w in widths[:-1])]
    assert passes["tanh"] == 20 * (sum(units) - sum(outputs))
    assert passes["softplus"] == passes["sigmoid"] == 20 * 784


def test_limit_counts_samples(make_untrained):
    problem = make_untrained(cases.DEEP)
    layers = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]
    encoder, decoder = (sum(a * b for a, b in part) for part in (layers[:3], layers[3:]))
    # of IWAE, the encoder has 20 rows and the decoder 20 × 3
    job = Job("iwae", problem, batch=20, num_samples=3)
    products, passes, _ = limits.count_work(job)
    assert count_flops(products) == 2 * 20 * (3 * encoder - 784 * 200 + 3 * 3 * decoder)
    assert passes == {"tanh": (20 + 60) * 400, "softplus": 60 * 784, "sigmoid": 60 * 784}
    # of L_K, only the decoder counts, on as many numbers as are in a batch
    products, passes, _ = limits.count_work(Job("evaluation", problem, num_samples=9))
    assert count_flops(products) == limits.SAMPLES * 2 * decoder
    assert passes["tanh"] == limits.SAMPLES * 400 and not passes["sigmoid"]
    # of AIS, also the gradient by z
    products, passes, _ = limits.count_work(Job("ais", problem, num_samples=3))
    assert count_flops(products) == limits.SAMPLES * 2 * 2 * decoder
    assert passes["sigmoid"] == limits.SAMPLES * 784


def test_limit_is_that_of_a_step_a_sample_or_an_image(monkeypatch, make_untrained):
    # every product takes a second, and every pass, whose numbers fill rows of 784
    monkeypatch.setattr(limits, "_time", lambda work: 1.0)
    problem = make_untrained(cases.DEEP)

    def find(job: Job) -> list[float]:
        return limits.prepare(job)(np.arange(1))

    total, products, elements, memory = find(Job("step", problem, batch=20))
    # three for each of six layers, but two for the first
    assert products == 17
    assert elements == pytest.approx(2 + 20 * 800 / (20 * 784))
    # three tensors of float32 are added in a second; Adam moves seven, and a step two minibatches
    sizes = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]
    parameters = sum((a + 1) * b for a, b in sizes)
    assert memory == pytest.approx((7 * parameters + 2 * 20 * 784) / (3 * parameters))
    assert total == products + elements + memory
    # the fastest of 1, 4 and 16 times as many samples; 8 chains with 11 gradients at a temperature
    total, products, elements, memory = find(Job("evaluation", problem))
    assert products == 3 / (16 * limits.SAMPLES) and memory == 0
    _, products, *_ = find(Job("ais", problem, num_samples=3))
    assert products == 8 * 11 * 3 * 6 / (16 * limits.SAMPLES)


def test_limit_uses_float32_products_only(monkeypatch):
    timed = []
    monkeypatch.setattr(limits, "_time", lambda work: timed.append(work()) or 1.0)
    # a product of bfloat16 accuracy
    rounded = lambda a, b: (a.bfloat16() @ b.bfloat16()).float()  # noqa: E731
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: (
            rounded(a, b)
            if torch.get_float32_matmul_precision() == "medium" and a.dtype == torch.float32
            else product(a, b)
        ),
    )
    before = torch.get_float32_matmul_precision()
    assert limits.time_product(64, 300, 50, "cpu") == 1.0
    assert len(timed) == 1 and torch.get_float32_matmul_precision() == before


# measurements


def make_toy_case(names: str, **job) -> cases.Case:
    return cases.Case(cases.pick(names), job, ((TOY_HIDDEN, 1),), count=10, rounds=3)


def test_case_is_measured_in_turns(monkeypatch, toy):
    monkeypatch.setattr(harness, "Worker", LocalWorker)
    monkeypatch.setattr(harness, "make_problem", lambda widths: toy)
    monkeypatch.setitem(cases.CONTENDERS, "ours", ("ours", {}))  # not compiled
    monkeypatch.setitem(cases.CONTENDERS, "limit", ("limits", {}))
    monkeypatch.setattr(limits, "_time", lambda work: 1e-9)
    result = harness.measure(make_toy_case("ours pyro limit", task="step", batch=50), 1)
    assert {"ours / pyro", "ours / limit"} == {*result["ratios"]}
    assert result["per_turn"] == {"ours": 10, "pyro": 10, "limit": 1}
    # the limit is its value, not its run time
    assert result["limit"]["all"] == result["seconds"]["limit"]
    # two for the first of four layers, three for the others
    assert result["limit"]["products"]["median"] == pytest.approx(11e-9)
    # seconds per sample
    case = make_toy_case("ours pyro", task="evaluation", num_samples=1000)
    result = harness.measure(case, 1)
    assert result["seconds"]["ours"]["median"] < 1e-3
    # a contender without the KL divergence
    monkeypatch.setitem(
        import_module("peers.pyro_svi").TASKS, "step", lambda job: lambda rows: [1.0]
    )
    with pytest.raises(jobs.BenchmarkError, match="do not do the same work"):
        harness.measure(make_toy_case("ours pyro torch", task="step", batch=50), 1)


class FakeWorker(LocalWorker):
    """A contender that takes a second, and keeps the jobs and the requests of all."""

    started: dict[str, list[Job]]
    requests: list[tuple[Any, ...]]

    def __init__(self, name, module, job):
        self.name = name
        self.started.setdefault(name, []).append(job)

    def call(self, function, *args):
        self.requests.append((self.name, function, *args))
        return {"seconds": 12.0, "since_start": 13.0, "values": [1.0] * 4}


@pytest.fixture
def fake(monkeypatch):
    """Contenders without processes; returns their class."""
    FakeWorker.started, FakeWorker.requests = {}, []
    monkeypatch.setattr(harness, "Worker", FakeWorker)
    monkeypatch.setattr(harness, "make_problem", lambda widths: None)
    return FakeWorker


def test_quick_turns_of_an_evaluation_are_long_enough_to_be_compiled(fake):
    harness.measure(cases.EVALUATION, 1, quick=True)
    counts = {name: count for name, _, count, *_ in fake.requests}
    assert worth_compiling(counts["ours"] * cases.EVALUATION.job["num_samples"] * 784)
    assert counts["jax"] == 20 and counts["limit"] == 1


@pytest.mark.parametrize("has_instructions", [True, False])
def test_emulated_bfloat16_is_not_measured(has_instructions, fake, monkeypatch):
    monkeypatch.setattr(harness, "has_bfloat16", lambda device: has_instructions)
    case = cases.Case(
        cases.pick("ours ours_bfloat16"), {"task": "step"}, cases.DEEP, count=6, rounds=3
    )
    ratios = harness.measure(case, 1)["ratios"]
    assert ("ours_bfloat16 / ours" in ratios) == has_instructions


def test_contenders_that_measure_themselves(fake):
    contenders = cases.pick("ours numpyro limit kernels")
    case = cases.Case(contenders, {"task": "step"}, cases.DEEP, count=6, rounds=3)
    result = harness.measure(case, 2, "cuda")
    for name, (job,) in fake.started.items():
        assert (job.device, job.threads) == ("cuda", 2) and job.compiled == (name != "numpyro")
    order = [name for name, _, *counts in fake.requests if counts == [6, 6]]
    assert [counts for name, _, *counts in fake.requests if name == "limit"] == [[1, 0]] * 3
    assert " ".join(order) == (
        "ours numpyro kernels " + "numpyro kernels ours " + "kernels ours numpyro"
    )
    # 12 s for six steps, and by their values a second for a step
    assert result["ratios"]["ours / kernels"]["median"] == 2.0
    assert result["ratios"]["ours / limit"]["median"] == 2.0
    assert {*result["mean_values"]} == {"ours", "numpyro"}


def test_kernels_are_those_of_a_step(toy, monkeypatch):
    events = [SimpleNamespace(self_device_time_total=microseconds) for microseconds in (3e6, 1e6)]
    profiler = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr(ours, "profile", lambda activities: nullcontext(profiler))
    steps = []
    monkeypatch.setitem(ours.TASKS, "step", lambda job: lambda rows: steps.append(rows.shape))
    job = Job("kernels", toy, batch=5)
    assert ours.TASKS["kernels"](job)(make_inputs(job)(8)) == [0.5] and steps == [(8, 5)]


def test_internals_are_measured_between_turns_with_all(monkeypatch, toy):
    monkeypatch.setattr(internals, "Worker", LocalWorker)
    monkeypatch.setattr(ours, "make_problem", lambda widths: toy)
    monkeypatch.setitem(internals.SWITCHES, "adam", ("step", lambda: None))
    monkeypatch.setattr(internals.compiled, "worth_compiling", worth_compiling)
    monkeypatch.setitem(internals.WORKLOADS, "step", (cases.WIDE, 2, {"task": "step", "batch": 5}))
    row = internals.measure("step", ["adam"], 3)
    assert row["adam"]["rounds"] == 3 and row["adam"]["median"] > 0


def test_start_is_measured_in_a_new_process_per_turn(fake):
    result = harness.measure(cases.FIRST_STEP, 1, quick=True)
    assert result["seconds"]["ours"]["median"] == 13.0 and result["rounds"] == 3
    # one untimed, to fill the caches
    assert len(fake.started["ours"]) == 1 + 3
    assert all(count == 1 and not warm for _, _, count, *warm in fake.requests)


def test_time_since_the_start_includes_the_import(tmp_path, monkeypatch):
    for name, seconds in (("slow", 0.4), ("fast", 0)):
        code = f"import time; time.sleep({seconds})"
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    contenders = {"ours": ("slow", {}), "fast": ("fast", {})}
    case = cases.Case(contenders, {"task": "import"}, rounds=3)
    seconds = harness.measure(case, 1)["seconds"]
    assert seconds["ours"]["median"] > seconds["fast"]["median"] + 0.3
    # modules are compiled once, not in every process
    assert {file.name.partition(".")[0] for file in tmp_path.rglob("*.pyc")} == {"slow", "fast"}


# the command


@pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without a GPU")
def test_missing_gpu_is_reported_in_one_sentence(capsys):
    assert bench.main(["--device", "cuda", "--check"]) == 1
    message = "expected a CUDA device; torch finds none: run make bench to measure the CPU\n"
    assert capsys.readouterr().err == message
    assert bench.main(["--check"]) == 0


def test_results_are_written_by_kind_of_processor(tmp_path, monkeypatch, capsys):
    summary = {"median": 0.4, "quartiles": [0.3, 0.5]}
    case = {"ratios": {"ours / pyro": summary}, "seconds": {}, "device": "cpu", "threads": 1}
    monkeypatch.setattr(harness, "measure", lambda *args: case)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 0.1, 0.1))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    options = ["--quick", "--only", "step", "--threads", "1"]
    assert bench.main(options) == 0
    output = capsys.readouterr()
    assert output.err.startswith(
        "expected an idle machine; got a load of 1.7: stop other processes\n"
    )
    assert "With fewer turns (`--quick`): step.\n" in output.out
    assert "| step, batch 128, one thread | Pyro | 0.30 | 0.40 (0.30–0.50) |" in output.out
    (results,) = table.read_results(Path("runs/bench-quick")).values()
    assert results["step"]["load_before"] == 1.7
    command = "python experiments/benchmarks/bench.py --quick --only step --threads 1"
    assert results["step"]["command"] == command


def test_quick_run_measures_what_has_a_target(tmp_path, monkeypatch):
    summary = {"median": 0.4, "quartiles": [0.3, 0.5]}
    result = {"ratios": {"ours / pyro": summary}, "seconds": {}, "device": "cpu", "threads": 2}
    measured = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "measure", lambda *args: measured.append(args) or result)
    assert bench.main(["--quick"]) == 0
    expected = {
        ("step", "step"): "ours pyro torch torch_compiled numpyro limit",
        ("small_batches", "batch 20"): "ours numpyro limit",
        ("iwae", "iwae"): "ours pyro limit",
        ("evaluation", "evaluation"): "ours pyro jax pythae limit ours_bfloat16",
        ("startup", "import"): "ours torch_and_pyro",
    }
    assert [" ".join(case.contenders) for case, *_ in measured] == [*expected.values()]
    assert all(quick for *_, quick in measured)
    (results,) = table.read_results(Path("runs/bench-quick")).values()
    assert {(t, n) for t, content in results.items() for n in content["cases"]} == {*expected}
    with pytest.raises(SystemExit):
        bench.main(["--quick", "--only", "ais"])


def test_failure_of_a_contender_is_reported(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise jobs.BenchmarkError("expected the contender 'pyro' to answer; got silence")

    monkeypatch.setattr(harness, "measure", fail)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    assert bench.main(["--only", "step"]) == 1
    error = capsys.readouterr().err
    assert error.endswith("step: expected the contender 'pyro' to answer; got silence\n")
    assert not list(tmp_path.iterdir())


# tables


def test_verdicts_are_computed():
    def summary(median, spread=0.0):
        return {"median": median, "quartiles": [median, median + spread]}

    step = {
        "ratios": {
            "ours / pyro": summary(0.3),
            "ours / torch": summary(0.5625, 0.125),
            "ours / numpyro": summary(1.0),
        },
        "seconds": {
            "ours": summary(2.1),
            "limit": summary(2.0),
            "pyro": summary(8.0),
            "numpyro": summary(2.1),
        },
    }
    targets = {"pyro": 0.3, "torch": 0.45, "torch_compiled": 0.5, "numpyro": 0.9, "limit": 1.2}
    rows = [table.format_row(*target, step, "ours") for target in targets.items()]
    assert [row[1:] for row in rows] == [
        ["0.30", "0.30 (0.30–0.30)", "0.25", "met"],
        ["0.45", "0.56 (0.56–0.69)", "", "missed; unsteady"],
        ["0.50", "", "", "not measured"],
        ["0.90", "1.00 (1.00–1.00)", "0.95", "missed; the limit is above the target"],
        ["1.20", "", "", "not measured"],
    ]
    step["seconds"]["ours"] = summary(1.9)  # below the limit, which explains nothing then
    assert table.format_row("numpyro", 0.9, step, "ours")[-1] == "missed"


def test_small_batches_have_a_table_of_their_own():
    def case(ratio):
        ratios = {"ours / numpyro": {"median": ratio, "quartiles": [ratio, ratio + 0.1]}}
        return {"model": "784–3–2", "ratios": ratios, "seconds": {}, "device": "cpu"}

    cases = {"batch 20": case(0.9), "two layers, batch 1": case(0.8)}
    content = {"machine": {"cpu": "AMD", "cores": 2, "torch": "2"}, "quick": False, "cases": cases}
    *_, table_of_rows, small = table.format_kind("amd", {"small_batches": content}).split("\n\n")
    assert "| NumPyro | 0.90 | 0.90 (0.90–1.00) |  | met |" in table_of_rows
    assert small.splitlines()[2:] == [
        "| 784–3–2, batch 20 | 0.90 (0.90–1.00) |  |  |",
        "| 784–3–2, two layers, batch 1 | 0.80 (0.80–0.90) |  |  |",
    ]
    del content["cases"]["two layers, batch 1"]
    assert "784–3–2" not in table.format_kind("amd", {"small_batches": content})
    cases["batch 20"]["ratios"] = {"ours_bfloat16 / ours": {"median": 0.5, "quartiles": [0.4, 0.6]}}
    *_, rounded = table.format_kind("amd", {"small_batches": content}).split("\n\n")
    assert rounded.splitlines()[2:] == ["| 784–3–2, batch 20 | 0.50 (0.40–0.60) |"]


def test_every_row_is_measured_by_a_case():
    rows = [(cases.TOPICS, row) for row in table.CPU_ROWS]
    rows += [(cases.GPU_TOPICS, row) for row in table.GPU_ROWS]
    for topics, (_, topic, case, targets, ours_) in rows:
        assert {ours_, *targets} <= {*topics[topic][case].contenders}, (topic, case)
    assert {topic for _, topic, *_ in table.GPU_ROWS} == {*cases.GPU_TOPICS}
    assert cases.GPU_TOPICS["evaluation"]["evaluation"].count == 10_000


def test_docs_show_the_current_tables():
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.START in text, "put <!-- benchmarks --> where table.py shall write the tables"
    shown = text.partition(table.START)[2].partition(table.END)[0]
    assert shown == table.format_tables() + "\n", "python experiments/benchmarks/table.py"


def test_docs_show_the_current_gains_of_internals():
    text = (table.PAGE.parent / "internals.md").read_text(encoding="utf-8")
    kinds = {
        k: r["internals"]["ratios"] for k, r in table.read_results().items() if "internals" in r
    }
    assert kinds
    for kind, ratios in kinds.items():
        assert internals.format_table(ratios) in text, kind


def test_results_lie_in_the_folder_of_their_kind():
    for file in machine.RESULTS.glob("*/*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        # a quick result says so in its command, and above its table
        assert content.get("quick", False) == ("--quick" in content["command"].split()), file
        assert content["machine"]["kind"] == file.parent.name, file
        if file.stem in ("step", "iwae", "evaluation"):
            (case,) = content["cases"].values()
            cores = content["machine"]["cores"]
            assert (case["threads"] != cores) == ("--threads" in content["command"].split()), file
